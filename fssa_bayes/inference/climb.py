"""A climb to the maximum of a noisy log-likelihood, in units of standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population import population_information

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["Climb", "Evaluated", "root_of_covariance"]

_LINE_SEARCH = 8  # Evaluations along a direction, which noise may make useless.
_PAIRS = 20  # Of steps and changes of the gradient, by which L-BFGS knows the curvature.
_FAILED = 2  # SciPy's status of a line search that found nothing better.
_DRAWS = 64  # Of each person's z, for the information.
_MOST_PARAMETERS = 300  # With more, the information costs more than it saves.


class Evaluated(Protocol):
    """Is a value of a log-likelihood with its Monte-Carlo standard error, in nats."""

    log_likelihood: float
    standard_error: float


class Climb:
    """Climbs from the parameters to the best ones seen, until iterations gain too little.

    Args:
        evaluate: Evaluates the log-likelihood and adds its gradient to those of the parameters.
        parameters: The parameters, changed in place.
        root: A root C of about the covariance of the estimates, with shape (P, P). The search is
            for C⁻¹ times the parameters, where a step of length 1 is one of a standard error.
        gain: Standard errors of the log-likelihood that an iteration must gain.

    Attributes:
        noise: Monte-Carlo standard error of the log-likelihood where the climb began, in nats.
        lowest: Minus the highest log-likelihood seen, in nats.
        gained: By how much the log-likelihood has grown, in nats.
        has_failed: Whether a line search found nothing better.
    """

    def __init__(
        self,
        evaluate: Callable[[], Evaluated],
        parameters: list[nn.Parameter],
        root: Tensor,
        gain: float,
    ) -> None:
        self.evaluate, self.parameters = evaluate, parameters
        self.start = parameters_to_vector(parameters).detach().clone()
        self.root, self.gain = root, gain
        self.noise, self.gained, self.has_failed = math.nan, 0.0, False
        self.lowest, self._best = math.inf, self.start

    def run(
        self, steps: int, *, is_newton: bool, callback: Callable[[OptimizeResult], None]
    ) -> None:
        """Climbs.

        Args:
            steps: Largest number of iterations.
            is_newton: Whether the first step is C Cᵀ times the gradient, which is Newton's; else it
                has the length of a standard error.
            callback: Called after each iteration, as by `scipy.optimize.minimize`.

        Raises:
            FloatingPointError: If the log-likelihood is not finite at the start.
        """
        from scipy.optimize import minimize  # A tenth of the time to import the package.

        origin = np.zeros(len(self.start))
        value, gradient = self._loss(origin)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the log-likelihood must be finite, got {-value} before step 1 of "
                "MaximumLikelihood: the model's parameters or features are out of range"
            )
        if is_newton:  # L-BFGS gives its first step the length 1.
            length = float(np.linalg.norm(gradient)) or 1.0
            self.root, gradient = self.root * length, gradient * length
        found = minimize(
            lambda vector: self._loss(vector) if vector.any() else (value, gradient),
            origin,
            jac=True,
            method="L-BFGS-B",
            callback=callback,
            options={
                "maxiter": steps,
                "maxls": _LINE_SEARCH,
                "maxcor": _PAIRS,
                "ftol": self.gain * self.noise / max(abs(value), 1.0),
                "gtol": 0.0,
            },
        )
        vector_to_parameters(self._best, self.parameters)
        self.gained = value - self.lowest
        self.has_failed = found.status == _FAILED

    def _loss(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        """Evaluates minus the log-likelihood and its gradient at C⁻¹ times a change."""
        change = self.root @ torch.from_numpy(vector)
        new = self.start + change.to(self.start)
        vector_to_parameters(new, self.parameters)
        for parameter in self.parameters:
            parameter.grad = None
        evaluated = self.evaluate()
        value = -evaluated.log_likelihood
        if not vector.any():
            self.noise = evaluated.standard_error
        if not math.isfinite(value):  # Too long a step of the line search.
            return math.inf, np.zeros_like(vector)
        if value < self.lowest:
            self.lowest, self._best = value, new.clone()
        gradient = -parameters_to_vector([p.grad for p in self.parameters]).cpu()
        return value, (self.root.T @ gradient).numpy()


def root_of_covariance(
    model: HeterogeneousBTL, parameters: list[nn.Parameter], data: Preferences, seed: int
) -> Tensor | None:
    """Returns a root of about the covariance of maximum likelihood estimates of these people.

    The covariance is the inverse of the observed information, by Louis' identity. Its eigenvalues
    count as positive, and it is drawn towards a multiple of the identity with the weight of as many
    people as there are parameters. None where there are many parameters.

    Args:
        model: A model with linear utility and normal prior, near its maximum.
        parameters: Its parameters, P numbers.
        data: The people and their choices.
        seed: Seed of the draws.

    Returns:
        The root with shape (P, P).

    References:
        Louis (1982), Finding the observed information matrix when using the EM algorithm, JRSS B
        44.
    """
    width = 1 + model.latent_dim
    size = model.num_features * width
    table = torch.arange(size).reshape(-1, width)
    places = {model.utility.mean: table[:, 0], model.utility.loading: table[:, 1:].flatten()}
    for parameter in [*model.prior_parameters(), *model.answer_parameters().values()]:
        places[parameter] = torch.arange(size, size + parameter.numel())
        size += parameter.numel()
    if size > _MOST_PARAMETERS:
        return None
    order = torch.cat([places[parameter] for parameter in parameters])
    eye = torch.eye(model.latent_dim, dtype=torch.float64, device=model.device)
    _, information = population_information(model, data, eye, _DRAWS, seed)
    free = torch.ones(size, dtype=torch.float64)
    free[table[:, 1:].flatten()] = model.utility.free.flatten().double().cpu()
    information = (free.outer(free) * information)[order][:, order]
    values, vectors = torch.linalg.eigh(information)
    values = values.abs()
    return vectors / (values + values.sum() / len(data)).sqrt()
