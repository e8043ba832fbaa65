"""EM for a mixture of homogeneous models."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm.auto import tqdm

from fssa_bayes.baselines.membership import (
    find_separated_classes,
    log_shares,
    maximise_membership,
)
from fssa_bayes.data import Preferences
from fssa_bayes.kernels.plackett_luce import Rankings
from fssa_bayes.model import HeterogeneousBTL, log_prob_of_choices

__all__ = ["EM", "FlatComparisons", "State", "minimise"]

_STEPS = 10  # L-BFGS iterations of an M-step.
_CONCENTRATION = 0.3  # Of the Dirichlet distribution of starting class probabilities.
_SHORT_RUN = 15  # EM iterations of a start.
_SHORT_POLISH = 100  # L-BFGS iterations of a start.
_POLISH = 2000  # Of the best start.
_NEARER = 0.1  # Share of infinite coefficients of the shares with which the polish is repeated.
_NOBODY = -30.0  # Log-share, in nats, from which the polish starts for a class with share 0.


class State:
    """Holds the parameters of a mixture and the iterations that led to them.

    Attributes:
        parameters: One vector a class, with shape (C, P).
        membership: Coefficients γ of the classes' shares, (C, 1 + W), or (C, 1) as long as shares
            do not depend on covariates; up to a term for all classes.
        responsibility: Probability of each person's class under the parameters, (U, C).
        log_likelihood: Log-likelihood of all people together, in nats.
        history: One row an iteration.
        settled: Whether the last iteration gained less than the tolerance.
    """

    def __init__(self, parameters: Tensor, membership: Tensor, responsibility: Tensor) -> None:
        self.parameters, self.membership = parameters, membership
        self.responsibility = responsibility
        self.log_likelihood = -math.inf
        self.history: list[dict] = []
        self.settled = False


class EM:
    """Runs EM in double precision.

    Args:
        model: The homogeneous model, fitted to everybody, from which all classes start.
        data: The comparisons.
        num_classes: Number of classes C.
        seed: Seed of the starts.
        design: Ones and standardised covariates of people, with shape (U, 1 + W).
    """

    def __init__(
        self,
        model: HeterogeneousBTL,
        data: Preferences,
        num_classes: int,
        seed: int,
        design: Tensor,
    ) -> None:
        self.template = model
        self.model = copy.deepcopy(model).double()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.comparisons = FlatComparisons(self.model, data)
        self.num_people, self.num_classes = len(data), num_classes
        self.rng = np.random.default_rng(seed)
        self.design = design

    def search(
        self, starts: int, max_iterations: int, tolerance: float, *, progress_bar: bool = False
    ) -> tuple[State, bool, list[dict]]:
        """Maximises the likelihood from several starts.

        Classes are sought without covariates first, and every end is then continued with them, so
        that covariates never lower the likelihood. For a linear utility every start has a short run
        of EM and of L-BFGS, because the likelihood after EM alone does not tell which maximum is
        near, and the best is polished. For networks, the best of the short runs is continued.

        Args:
            starts: Number of starts.
            max_iterations: Largest number of EM iterations of a run.
            tolerance: Gain in nats a person at which a run ends.
            progress_bar: Whether to show progress.

        Returns:
            The best end, whether it is a maximum, and the histories of all runs, its own last.
        """
        is_linear, ends = self.model.utility.is_linear, []
        for number in tqdm(range(starts), desc="EM starts", delay=1.0, disable=not progress_bar):
            short = min(_SHORT_RUN, max_iterations)
            state = self.run(self.start(number), number, short, tolerance)
            if is_linear:
                state, _ = self.polish(state, number, _SHORT_POLISH)
            if self.design.shape[1] > 1:
                state.membership, state.settled = self._pad(state.membership), False
                if is_linear:
                    state, _ = self.polish(state, number, _SHORT_POLISH)
            ends.append(state)
        best = max(range(starts), key=lambda number: ends[number].log_likelihood)
        if is_linear:
            final, settled = self.polish(ends[best], best, _POLISH)
        else:
            rest = max_iterations - len(ends[best].history)
            final = self.run(ends[best], best, rest, tolerance)
            settled = final.settled
        others = [end for number, end in enumerate(ends) if number != best]
        return final, settled, [row for end in [*others, final] for row in end.history]

    def start(self, number: int) -> State:
        """Draws a start, of one kind or the other by its number.

        Of even number: all classes have the parameters of the homogeneous model, and most people
        belong to one class with a probability near 1. Of odd number, for a linear utility: the
        classes' coefficients are those of the homogeneous model, each times a log-normal number,
        and people are of any class. Shares do not depend on covariates.
        """
        vector = parameters_to_vector(self.parameters).detach().repeat(self.num_classes, 1)
        membership = self.design.new_zeros(self.num_classes, 1)
        if number % 2 and self.model.utility.is_linear:
            shape = self.num_classes, self.model.utility.mean.numel()
            factor = torch.ones_like(vector)
            factor[:, self._coefficients] = torch.from_numpy(np.exp(self.rng.normal(size=shape)))
            state = State(vector * factor, membership, self.design.new_zeros(0, self.num_classes))
            self.e_step(state)
            return state
        alpha = np.full(self.num_classes, _CONCENTRATION)
        responsibility = torch.from_numpy(self.rng.dirichlet(alpha, size=self.num_people))
        membership[:, 0] = responsibility.mean(0).log()
        return State(vector, membership, responsibility)

    def _pad(self, membership: Tensor) -> Tensor:
        """Adds coefficients of 0 for the covariates to constants (C, 1), to (C, 1 + W)."""
        return F.pad(membership.nan_to_num(neginf=_NOBODY), (0, self.design.shape[1] - 1))

    def _design(self, membership: Tensor) -> Tensor:
        """Returns the columns of the design that coefficients (C, ·) are of."""
        return self.design[:, : membership.shape[1]]

    @property
    def _coefficients(self) -> slice:
        """Where the coefficients of a linear utility are among the parameters of a class."""
        sizes = [p.numel() for p in self.parameters]
        place = next(i for i, p in enumerate(self.parameters) if p is self.model.utility.mean)
        return slice(sum(sizes[:place]), sum(sizes[: place + 1]))

    def run(self, state: State, restart: int, iterations: int, tolerance: float) -> State:
        """Alternates M-steps and E-steps until one pair gains less than the tolerance a person."""
        for _ in range(iterations):
            if state.settled:
                break
            before = state.log_likelihood
            for number in range(self.num_classes):
                weight = state.responsibility[:, number]
                state.parameters[number] = self.m_step(state.parameters[number], weight)
            state.membership = maximise_membership(
                self._design(state.membership), state.responsibility, state.membership
            )
            self.e_step(state)
            self._record(state, restart)
            state.settled = state.log_likelihood - before < tolerance * self.num_people
        return state

    def polish(self, state: State, restart: int, iterations: int) -> tuple[State, bool]:
        """Raises the likelihood by L-BFGS; returns the end, and whether it is a maximum.

        Where it ends with coefficients of the shares at infinity, it is tried again from smaller
        ones: the likelihood is flat there, and may be higher at finite coefficients.
        """
        end, is_maximum = self._ascend(state, iterations)
        nearer = self._nearer(end)
        if nearer is not None:
            again = self._ascend(nearer, iterations)
            if again[0].log_likelihood > end.log_likelihood:
                end, is_maximum = again
        if end.log_likelihood < state.log_likelihood:
            end = state
        end.history = state.history
        self._record(end, restart)
        return end, is_maximum

    def _nearer(self, state: State) -> State | None:
        """Returns a state with smaller coefficients where they are at infinity; None elsewhere."""
        if self.num_classes == 1 or state.membership.shape[1] == 1:
            return None
        gamma = state.membership - state.membership[:1]
        divergence = find_separated_classes(self.design, gamma)
        if divergence is None:
            return None
        flat = divergence.directions
        free = gamma[1:].flatten()
        free = free - (1 - _NEARER) * flat @ (flat.T @ free)
        gamma = torch.cat([gamma[:1], free.view_as(gamma[1:])])
        return State(state.parameters, gamma, state.responsibility)

    def _ascend(self, state: State, iterations: int) -> tuple[State, bool]:
        shape, count = state.parameters.shape, state.parameters.numel()
        membership = state.membership.nan_to_num(neginf=_NOBODY)
        start = torch.cat([state.parameters.flatten(), membership.flatten()])

        def unpack(vector: Tensor) -> State:
            parameters = vector[:count].reshape(shape).clone()
            return State(
                parameters, vector[count:].view_as(membership).clone(), state.responsibility
            )

        def negative(vector: Tensor) -> tuple[float, Tensor]:
            trial = unpack(vector)
            self.e_step(trial)
            slopes = [
                self.loss(own, trial.responsibility[:, number])[1]
                for number, own in enumerate(trial.parameters)
            ]
            excess = self.shares(trial) - trial.responsibility
            of_shares = (excess.T @ self._design(membership)).flatten() / self.num_people
            gradient = torch.cat([*slopes, of_shares])
            return -trial.log_likelihood / self.num_people, gradient

        vector, slope = minimise(negative, start, iterations)
        end = unpack(vector)
        self.e_step(end)
        return end, slope < 1e-5

    def model_of(self, vector: Tensor) -> HeterogeneousBTL:
        """Returns a model with the parameters of a class, in the precision of the start."""
        twin = copy.deepcopy(self.template)
        trained = [p for p in twin.parameters() if p.requires_grad]
        with torch.no_grad():
            vector_to_parameters(vector.to(trained[0].dtype), trained)
        return twin.eval()

    def _record(self, state: State, restart: int) -> None:
        row = {"restart": restart, "iteration": len(state.history) + 1}
        state.history.append(row | {"log_likelihood": state.log_likelihood})

    @torch.no_grad()
    def e_step(self, state: State) -> None:
        """Computes each person's class probabilities, and the likelihood, from the parameters."""
        columns = []
        for vector in state.parameters:
            vector_to_parameters(vector, self.parameters)
            columns.append(self.comparisons.log_prob(self.model))
        log_joint = torch.stack(columns, -1) + self._log_shares(state.membership)
        state.responsibility = log_joint.softmax(-1)
        state.log_likelihood = log_joint.logsumexp(-1).sum().item()

    def shares(self, state: State) -> Tensor:
        """Returns the shares π of the classes given each person's covariates, (U, C)."""
        return self._log_shares(state.membership).exp()

    def _log_shares(self, membership: Tensor) -> Tensor:
        return log_shares(self._design(membership), membership)

    def m_step(self, vector: Tensor, weight: Tensor) -> Tensor:
        """Takes a few L-BFGS iterations of weighted maximum likelihood for a class.

        The iterations need not reach a maximum. If they lower the likelihood, the old parameters
        are returned.
        """
        start, _ = self.loss(vector, weight)
        end, _ = minimise(lambda v: self.loss(v, weight), vector, _STEPS)
        return end if self.loss(end, weight)[0] <= start else vector

    def loss(self, vector: Tensor, weight: Tensor) -> tuple[float, Tensor]:
        """Returns the weighted loss of a class, in nats a person, and its gradient."""
        with torch.no_grad():
            vector_to_parameters(vector, self.parameters)
        self.model.zero_grad()
        loss = -(weight @ self.comparisons.log_prob(self.model)) / self.num_people
        loss.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return loss.item(), parameters_to_vector(gradients)


class FlatComparisons:
    """Lists all comparisons without padding, because EM evaluates a model on them many times.

    Args:
        model: A homogeneous model in double precision, on the CPU.
        data: The comparisons.
    """

    def __init__(self, model: HeterogeneousBTL, data: Preferences) -> None:
        used, pairs = np.unique(np.stack([data.left, data.right]), return_inverse=True)
        used = torch.from_numpy(used.astype(np.int64))
        items = used if data.items is None else data.items[used].double()
        self.items = model.standardise(items)
        self.left, self.right = torch.from_numpy(pairs.reshape(2, -1))
        self.choice = torch.from_numpy(data.choice).double()
        self.side = 1.0 if data.side is None else torch.from_numpy(data.side).double()
        self.person = torch.from_numpy(data.person)
        self.num_people = len(data)
        self.rankings = None
        if data.ranking is not None:
            # The comparisons as those of one person, because a row has no padding.
            mask = torch.ones(1, data.num_comparisons, dtype=torch.bool)
            rows = (self.left[None], self.right[None], self.choice[None], mask)
            self.rankings = Rankings.find(*rows, torch.from_numpy(data.ranking)[None])

    def log_prob(self, model: HeterogeneousBTL) -> Tensor:
        """Evaluates log p(choices of a person), in nats, with shape (U,)."""
        utility = model.utility(self.items, self.choice.new_zeros(1, 0)).squeeze(0)
        margin = utility[self.left] - utility[self.right]
        if model.bias is not None:
            margin = margin + model.bias * self.side
        parameters = {"log_tie": model.log_tie, "lapse_logit": model.lapse_logit}
        each = log_prob_of_choices(margin[None], self.choice[None], self.rankings, **parameters)
        return self.choice.new_zeros(self.num_people).index_add(0, self.person, each.squeeze(0))


def minimise(
    loss: Callable[[Tensor], tuple[float, Tensor]], start: Tensor, iterations: int
) -> tuple[Tensor, float]:
    """Minimises by L-BFGS.

    Args:
        loss: Returns the loss at a vector, and the gradient of the loss.
        start: The vector to start from, in double precision.
        iterations: Largest number of iterations.

    Returns:
        The vector at the end, and the largest absolute slope there.
    """
    from scipy.optimize import minimize

    def evaluate(vector: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = loss(torch.from_numpy(vector))
        return value, gradient.numpy()

    options = {"maxiter": iterations, "maxfun": 4 * iterations, "ftol": 1e-15, "gtol": 1e-9}
    result = minimize(evaluate, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(result.x.copy()), float(np.abs(result.jac).max(initial=0.0))
