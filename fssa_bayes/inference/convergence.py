"""Whether the fit of a mixed logit came to its maximum, judged by draws that it has not seen."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from fssa_bayes.data import Preferences, total_weight
from fssa_bayes.inference.marginal import MarginalLikelihood, Value
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.population import find_newton_step, has_population_estimates

__all__ = ["Convergence", "describe_convergence"]

_CLOSE = 0.1  # Standard errors from the maximum that change no conclusion.
_NOISE = 3.0  # Monte-Carlo standard errors that a step by chance seldom exceeds.
_NOISY = 0.3  # Standard errors of Monte Carlo from which more draws are advised.
_HEAVY = 0.05  # Share of a person's draws below which the effective number is small.


@dataclass(frozen=True, eq=False)
class Convergence:
    """Holds what fresh draws say of a fit; printing it says what matters.

    Attributes:
        log_likelihood: Log-likelihood at the estimates, rescored with four times the draws of the
            fit, in nats.
        standard_error: Its Monte-Carlo standard error.
        gain: Nats that a Newton step from the estimates promises.
        iterations: Number of iterations of the fit; 0 where that is not known.
        last_gain: Nats that the last iteration gained; NaN where that is not known.
        table: One row a quantity of the population: `estimate`; `standard_error`, the sandwich or
            what takes its place; `monte_carlo_error`, the part of the error that comes from the
            draws of the fit; `newton_step`, the change that fresh draws propose; and `relative`,
            this change in standard errors.
        person: The person whose draws have the smallest effective number.
        relative_ess: That number as a share of the draws.
        flat: Says by name in which directions the data tell nothing.
    """

    log_likelihood: float
    standard_error: float
    gain: float
    iterations: int
    last_gain: float
    table: pd.DataFrame = field(repr=False)
    person: Hashable
    relative_ess: float
    flat: tuple[str, ...]

    @property
    def converged(self) -> bool:
        """Whether each estimate is within .1 standard errors, or noise, of the maximum."""
        return not self.far.any()

    @property
    def far(self) -> pd.Series:
        """Marks quantities with a Newton step beyond .1 standard errors and 3 of Monte Carlo."""
        step = self.table["newton_step"].abs()
        beyond_noise = step > _NOISE * 1.5**0.5 * self.table["monte_carlo_error"]
        return beyond_noise & (self.table["relative"].abs() > _CLOSE)

    def __str__(self) -> str:
        known = self.table.dropna()
        error = (known["monte_carlo_error"] / known["standard_error"]).max()
        step = known["relative"].abs()
        most = "an unknown number of standard errors"
        if len(step):
            most = f"{step.max():.2g} standard errors at most, {_name(step.idxmax())}"
        lines = [
            f"{'converged' if self.converged else 'not converged'}"
            + (f" after {self.iterations} iterations" if self.iterations else ""),
            f"log-likelihood {self.log_likelihood:.2f} ± {self.standard_error:.2f} by fresh draws",
            f"a Newton step would gain {self.gain:.2g} nats (the last iteration gained "
            f"{self.last_gain:.2g}), and change an estimate by {most}",
            f"draws of the fit add up to {error:.2g} standard errors to an estimate",
        ]
        if error > _NOISY:
            lines[-1] += ": take more, by MaximumLikelihood(num_draws=)"
        if self.far.any():
            names = ", ".join(_name(row) for row in self.table.index[self.far][:5])
            lines.append(f"further from the maximum than noise: {names}; fit() again goes on")
        heavy = ", a heavy tail" if self.relative_ess < _HEAVY else ""
        lines.append(
            f"smallest effective number of draws: {self.relative_ess:.1%} of them, "
            f"{self.person!r}{heavy}"
        )
        lines += [f"without information: {direction}" for direction in self.flat]
        return "\n".join(lines)


def describe_convergence(
    model: HeterogeneousBTL,
    data: Preferences,
    history: pd.DataFrame,
    *,
    num_draws: int = 512,
    num_samples: int = 1024,
    seed: int = 1,
) -> Convergence:
    """Judges by fresh draws how close a mixed logit's fit came to its maximum.

    Args:
        model: A fitted model with linear utility, normal prior and a latent factor.
        data: The comparisons the model was fitted to.
        history: The history of the fit, as :class:`fssa_bayes.inference.FitResult` has it.
        num_draws: Draws of each person's z in the fit, whose errors are judged.
        num_samples: Draws of each person's z for the information, to begin with.
        seed: Seed of the draws; another one than that of the fit.

    Raises:
        ValueError: If the model is no mixed logit: if its utility is not linear, its prior not
            normal, or nobody differs.

    References:
        Hess, Train & Polak (2006), On the use of a modified Latin hypercube sampling method in the
        estimation of a mixed logit model, Transportation Research B 40, on simulation error of
        estimates.
    """
    if model.latent_dim == 0 or not has_population_estimates(model):
        raise ValueError(
            "convergence() needs utility='linear', prior='normal' and a latent factor, got "
            f"utility={model.config['utility']!r}, prior={model.config['prior']!r} and "
            f"latent_dim={model.latent_dim}"
        )
    data = align(model, data)
    newton = find_newton_step(model, data, num_draws, num_samples, seed)
    value = _rescore(model, data, 4 * num_draws, seed)
    losses = history.loc[history["stage"].str.startswith("MaximumLikelihood"), "loss"].to_numpy()
    error = newton.estimates.standard_errors()
    table = pd.DataFrame(
        {
            "estimate": newton.estimates.values.numpy(),
            "standard_error": error,
            "monte_carlo_error": newton.noise,
            "newton_step": newton.step,
            "relative": newton.step / np.where(error > 0, error, np.nan),
        },
        index=newton.estimates.names,
    )
    worst = int(newton.relative_ess.argmin())
    return Convergence(
        log_likelihood=value.log_likelihood,
        standard_error=value.standard_error,
        gain=newton.gain,
        iterations=len(losses),
        last_gain=total_weight(data) * (losses[-2] - losses[-1]) if len(losses) > 1 else np.nan,
        table=table,
        person=data.user_names[[worst]].tolist()[0],
        relative_ess=float(newton.relative_ess[worst]),
        flat=newton.flat,
    )


def _rescore(model: HeterogeneousBTL, data: Preferences, num_draws: int, seed: int) -> Value:
    """Evaluates the log-likelihood with fresh draws."""
    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        return MarginalLikelihood(twin, data, num_draws, seed).evaluate(gradient=False)


def _name(row: tuple[str, Hashable]) -> str:
    quantity, term = row
    return f"{quantity} of {term}"
