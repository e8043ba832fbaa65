r"""The marginal likelihood of a linear utility, and its gradient, by adaptive importance sampling.

By Fisher's identity the gradient of a person's log p(C) is the posterior mean of that of
log p(C, z), here taken with self-normalised importance weights.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fssa_bayes._random import Streams
from fssa_bayes.data import Preferences, total_weight, user_batches
from fssa_bayes.inference.climb import Climb, root_of_covariance
from fssa_bayes.inference.maximum import pooled_batches
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling import Points, draw_adapted, draw_points, find_modes

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

    from fssa_bayes.inference.progress import Progress
    from fssa_bayes.inference.training import Fitter, Leg

__all__ = ["MarginalLikelihood", "Value", "maximise_marginal"]

_MARGINS = 2**22  # Evaluated at once.
_PADDING = 2**19  # As many of them take about as long as another batch does.


@dataclass(frozen=True)
class Value:
    """Holds a value of the log-likelihood and what is known of its error.

    Attributes:
        log_likelihood: Log p of all people's choices, in nats, weighted by person.
        standard_error: Its Monte-Carlo standard error, as if draws were independent.
        relative_ess: Effective sample size of a person's draws as a share of their number, of the
            person with the smallest.
    """

    log_likelihood: float
    standard_error: float
    relative_ess: float


# Standard errors of the log-likelihood by which an iteration must improve on it, to begin with on
# few draws, which take a share of a fit's iterations at most.
_COARSE_GAIN, _COARSE_SHARE = 0.1, 0.5
_GAIN = 0.01
_CLIMBS = 5  # Another one follows a failed line search, after a gain of more than the noise.
_COARSE_DRAWS = 64  # Of each person's z.
_COARSE_PEOPLE = 2_000  # From where these end, one step leads most of the way to the maximum.


class MarginalLikelihood:
    """Evaluates the log-likelihood of all people at the parameters that the model has.

    Proposals follow the parameters: at every evaluation the mode of each person's posterior is
    found again, from where it was. The draws come from the same points every time.

    Args:
        model: A model with linear utility and normal prior, in double precision.
        data: The people and their choices.
        num_draws: Number of draws of each person's z.
        seed: Seed of the points.

    References:
        Louis (1982), Finding the observed information matrix when using the EM algorithm.
        Train (2009), Discrete choice methods with simulation, chapters 9 and 10.
    """

    def __init__(
        self, model: HeterogeneousBTL, data: Preferences, num_draws: int, seed: int
    ) -> None:
        self.model = model
        # People of similar numbers of comparisons share a batch, so that little is padded.
        data = data.subset(np.argsort(data.counts, kind="stable"))
        self.batches = [
            batch.double()
            for _, batch in user_batches(
                data, num_draws, model.device, margins=_MARGINS, padding=_PADDING
            )
        ]
        self.modes: list[Tensor | None] = [None] * len(self.batches)
        streams = Streams(seed, "maximum likelihood")
        self.points: list[Points] = [
            draw_points(num_draws, batch.num_users, model.latent_dim, streams, batch.keys)
            for batch in self.batches
        ]

    def evaluate(self, *, gradient: bool = True) -> Value:
        """Evaluates the log-likelihood, and adds its gradient to those of the parameters."""
        total = variance = 0.0
        least = 1.0
        for index, (batch, points) in enumerate(zip(self.batches, self.points, strict=True)):
            modes = find_modes(self.model, batch, self.modes[index])
            self.modes[index] = modes.z
            with torch.set_grad_enabled(gradient):
                draws = draw_adapted(self.model, batch, modes, points)
                weights = draws.log_weights.softmax(0)
                if gradient:
                    counted = weights if batch.weights is None else weights * batch.weights
                    (counted * draws.log_joint).sum().backward()
            relative_ess = 1 / weights.square().sum(0) / points.number
            log_mean = draws.log_weights.logsumexp(0) - math.log(points.number)
            person_variance = (1 / relative_ess - 1) / points.number
            if batch.weights is not None:
                log_mean = batch.weights * log_mean
                person_variance = batch.weights.square() * person_variance
            total += log_mean.sum().item()
            variance += person_variance.sum().item()
            least = min(least, relative_ess.min().item())
        return Value(total, math.sqrt(variance), least)


def maximise_marginal(fitter: Fitter, leg: Leg, steps: int, progress: Progress) -> int:
    """Maximises the marginal likelihood of a linear utility by L-BFGS in double precision.

    The search starts from the average person, with few draws and at most 2,000 people. Where it
    ends, these people's information tells the scale of the parameters, so that the first step with
    all people and draws is about Newton's.

    With moving proposals the gradient is not exactly that of the value, so that a search ends where
    iterations gain no more than Monte-Carlo noise, at the best parameters that it has seen. A line
    search may fail on the noise before, so that another climb follows.

    Args:
        fitter: The fit that the leg is part of; its model is changed in place.
        leg: The stage and its people.
        steps: Largest number of iterations.
        progress: Where iterations are counted.

    Returns:
        Number of iterations.

    Raises:
        FloatingPointError: If the likelihood is not finite at the start.

    Warns:
        UserWarning: If the last of `steps` iterations still gained more than the log-likelihood's
            Monte-Carlo standard error.
    """
    model, count = fitter.model, total_weight(leg.training)
    parameters = [p for p in model.parameters() if p.requires_grad]
    dtype = parameters[0].dtype
    model.double()
    step, losses, ends = 0, [], []

    def after_iteration(intermediate_result: OptimizeResult) -> None:
        nonlocal step
        step += 1
        losses.append(float(intermediate_result.fun))
        loss = losses[-1] / count
        fitter.record(leg, step, loss, None)
        progress.update(leg.name, loss)

    try:
        few = some_people(leg.training, _COARSE_PEOPLE, fitter.seed)
        if not model.utility.mean.count_nonzero():
            start_from_average(model, few)
        likelihood = MarginalLikelihood(model, few, _COARSE_DRAWS, fitter.seed)
        size = sum(parameter.numel() for parameter in parameters)
        root = torch.eye(size, dtype=torch.float64) / math.sqrt(len(few))
        for start in starts(model, parameters):
            vector_to_parameters(start, parameters)
            climb = Climb(likelihood.evaluate, parameters, root, _COARSE_GAIN)
            left = max(int(_COARSE_SHARE * steps) - step, 0)
            climb.run(left, is_newton=False, callback=after_iteration)
            ends.append((climb.lowest, parameters_to_vector(parameters).detach()))
        vector_to_parameters(min(ends, key=itemgetter(0))[1], parameters)

        root_of_few = root_of_covariance(model, parameters, few, fitter.seed)
        is_newton = root_of_few is not None
        root = (root_of_few if is_newton else root) * math.sqrt(total_weight(few) / count)
        likelihood = MarginalLikelihood(model, leg.training, leg.stage.num_draws, fitter.seed)
        for _ in range(_CLIMBS):
            losses.clear()
            climb = Climb(likelihood.evaluate, parameters, root, _GAIN)
            climb.run(steps - step, is_newton=is_newton, callback=after_iteration)
            if step >= steps or not (climb.has_failed and climb.gained > climb.noise):
                break
        noise = climb.noise
        if step >= steps and len(losses) > 1 and losses[-2] - losses[-1] > noise:
            warnings.warn(
                f"maximum likelihood did not converge in {steps} iterations: the last one gained "
                f"{losses[-2] - losses[-1]:.2g} nats, more than the Monte-Carlo standard error of "
                f"{noise:.2g}. Allow more (steps)",
                stacklevel=5,
            )
    finally:
        model.to(dtype)
    progress.skip(leg.stage.steps - step)
    return max(step, 1)


def start_from_average(model: HeterogeneousBTL, data: Preferences) -> None:
    """Sets w0 to its maximum likelihood estimate where nobody differs, in place."""
    batches = pooled_batches(data, model)
    optimiser = torch.optim.LBFGS([model.utility.mean], line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        model.zero_grad()
        total = sum(
            -model.choice(batch, batch.choice.new_zeros(batch.num_users, model.latent_dim))
            .log_prob(batch.choice)
            .sum()
            for batch in batches
        )
        total.backward()
        return total.detach()

    optimiser.step(loss)


def starts(model: HeterogeneousBTL, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Lists where searches start: at the parameters, and with the price's sign reversed.

    In willingness-to-pay space no path of ascent need lead from a price of one sign to the other,
    as nothing is known of willingness to pay where the price is 0. Coefficients of one sign stay.
    """
    here = parameters_to_vector(parameters).detach().clone()
    utility = model.utility
    if utility.map.price is None or utility.map.sign(utility.mean).any():
        return [here]
    with torch.no_grad():
        for parameter in (utility.mean, utility.loading):
            parameter.neg_()
    return [here, parameters_to_vector(parameters).detach().clone()]


def some_people(data: Preferences, number: int, seed: int) -> Preferences:
    """Draws people without replacement; all of them if there are no more than `number`."""
    if len(data) <= number:
        return data
    chosen = Streams(seed, "some people").of(0).permutation(len(data))[:number]
    return data.subset(np.sort(chosen))
