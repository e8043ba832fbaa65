"""Do people differ at all? A test of the homogeneous model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.comparison.elpd import Pair, fit_fresh, score_users
from fssa_bayes.data import Preferences, user_batches
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population import feature_differences

__all__ = ["HeterogeneityTest", "heterogeneity_test"]


_MAX_VARIANCES = 60  # Free variances and covariances that a null distribution is simulated for.


_PEOPLE_PER_VARIANCE = 5  # People needed for each of them.


@dataclass(frozen=True)
class HeterogeneityTest:
    """Holds a likelihood-ratio test of the homogeneous model.

    Attributes:
        log_likelihood: Maximised log-likelihood of the homogeneous and of the heterogeneous model,
            in nats.
        statistic: Twice their difference.
        statistic_error: Its Monte-Carlo standard error, from the draws of z.
        p_value: Probability of a statistic as large if everybody had the same utilities.
        p_interval: 95 % interval of the p-value for Monte-Carlo error, of the null distribution
            and of the statistic.
        null: Draws of the statistic under the null; empty where its distribution is known.
        method: `"mixture"`, `"simulated mixture"` or `"bootstrap"`.
        people: Number of people.
    """

    log_likelihood: tuple[float, float]
    statistic: float
    statistic_error: float
    p_value: float
    p_interval: tuple[float, float]
    null: np.ndarray
    method: str
    people: int

    @property
    def verdict(self) -> str:
        """What the test says, in words, at the level of 5 %."""
        if self.p_value <= 0.05:
            return f"the {self.people} people do differ"
        if self.statistic > self.null.max(initial=-np.inf) and self.method == "bootstrap":
            return (
                f"the statistic is larger than each of the {len(self.null)} under the null, which "
                "are too few to say more (num_null=19 at least)"
            )
        return f"these {self.people} people do not show that they differ"

    def __str__(self) -> str:
        how = {
            "mixture": "a mixture in equal parts of chi-squares with 0 and 1 degrees of freedom",
            "simulated mixture": (
                "a mixture of chi-squares with different degrees of freedom, of which "
                f"{len(self.null):,} draws were made from its cone"
            ),
            "bootstrap": (
                f"that of {len(self.null)} data sets simulated from the homogeneous model, both "
                "models fitted to each"
            ),
        }[self.method]
        low, high = self.p_interval
        lines = [
            f"Twice the log-likelihood ratio is {self.statistic:.2f} ± {self.statistic_error:.2f}: "
            f"{self.log_likelihood[1]:.2f} against {self.log_likelihood[0]:.2f} nats.",
            "No variance between people is the edge of what variances can be, so the statistic has "
            f"no chi-square distribution if all are alike, but {how}.",
            f"p = {self.p_value:.3g} (Monte-Carlo error: {low:.2g} to {high:.2g}): "
            + f"{self.verdict}, as far as both models fit otherwise.",
            "The test takes one of the models to be true: lapses, position bias or a utility of "
            "the wrong form can look like differences between people. Whether differences help to "
            "predict is another question, which leaving people out answers.",
        ]
        return " ".join(lines)


def heterogeneity_test(
    build: Callable[[], Pair],
    data: Preferences,
    *,
    null: str = "auto",
    num_null: int | None = None,
    seed: int = 0,
    num_samples: int = 1000,
    fit_options: Mapping[str, object] | None = None,
) -> HeterogeneityTest:
    r"""Tests whether people differ, by a likelihood ratio against the homogeneous model.

    The null hypothesis, ΛΛᵀ = 0, lies on the boundary. For a linear utility with a normal prior
    the limit of the statistic is :math:`\max_Σ\, 2\,\mathrm{tr}(SΣ) - \mathrm{vec}(Σ)^T I\,
    \mathrm{vec}(Σ)` over covariances Σ of rank at most K, where S is a normal draw of the score
    of Σ and I its information after w0 is accounted for: with one feature
    :math:`\tfrac12 χ^2_0 + \tfrac12 χ^2_1`, otherwise a mixture that is simulated without any
    refit. For other models z is not identified under the null, and the distribution comes from a
    parametric bootstrap: both models are fitted to data simulated from the homogeneous one, in
    which half wins stay where they are.

    Args:
        build: Returns a fresh heterogeneous model and its guide. The homogeneous model has the
            same utility and `latent_dim=0`.
        data: The comparisons.
        null: `"mixture"`, `"bootstrap"`, or `"auto"`: the mixture for a linear utility, a normal
            prior, neither ties nor position bias nor lapses, no rankings, at most 60 variances and
            covariances, and five people for each.
        num_null: Draws from the null distribution; 2,000 for the mixture, 19 for the bootstrap if
            None. A bootstrap cannot have a p-value below 1 / (num_null + 1).
        seed: Seed of weights, fits, draws and simulations.
        num_samples: Number of draws of each person to begin with, for the likelihood.
        fit_options: Arguments of :func:`fssa_bayes.fit`, such as `steps`; the same for the data
            and for every bootstrap data set, so that a short fit costs power and not validity.

    Returns:
        The test; `print` it for an explanation.

    Raises:
        ValueError: If an option is out of range, or the mixture is asked of a model without one.

    References:
        Self & Liang (1987), Asymptotic properties of maximum likelihood estimators and likelihood
        ratio tests under nonstandard conditions.
        Silvapulle & Sen (2005), Constrained statistical inference.
        Davies (1987), Hypothesis testing when a nuisance parameter is present only under the
        alternative.
        Davison & Hinkley (1997), Bootstrap methods and their application, chapter 4.
    """
    if null not in ("auto", "mixture", "bootstrap"):
        raise ValueError(f"null must be 'auto', 'mixture' or 'bootstrap', got {null!r}")
    if num_null is not None and (not isinstance(num_null, int) or num_null < 1):
        raise ValueError(f"num_null must be an integer of at least 1, got {num_null!r}")
    with seeded(seed):
        model, _ = build()
    problem = _no_mixture(model, data)
    if null == "mixture" and problem:
        raise ValueError(f"null='mixture' {problem}; null='bootstrap' does without")
    if model.latent_dim == 0:
        raise ValueError("build must return a model with latent_dim of at least 1, got 0")
    if model.num_covariates:
        raise ValueError(
            "build must return a model without covariates, under which differences between people "
            f"are those of z alone, got num_covariates={model.num_covariates}: leave_users_out "
            "tells whether covariates predict"
        )
    if model.config["utility"] == "module":
        raise ValueError(
            "build must return a model with a named utility, of which a homogeneous one can be "
            "made, got a module"
        )

    def ratio(people: Preferences, number: int) -> tuple[HeterogeneousBTL, np.ndarray, float]:
        average, _ = fit_fresh(lambda: _homogeneous(model), people, number, fit_options)
        pair = fit_fresh(build, people, number, fit_options)
        scores = [
            score_users(*both, people, num_samples, seed=number) for both in ((average, None), pair)
        ]
        values = np.array([score.total for score in scores])
        return average, values, 2 * scores[1].monte_carlo_error

    average, values, error = ratio(data, seed)
    statistic = 2 * (values[1] - values[0])
    if null == "bootstrap" or problem:
        method, draws = "bootstrap", []
        for number in range(seed + 1, seed + 1 + (num_null or 19)):
            choices = average.simulate(data, seed=number)[0].choice
            if data.ties != "keep":  # Half wins, which no model draws.
                choices = np.where(data.half_wins, 0.5, choices)
            _, simulated, _ = ratio(data.with_choices(choices), number)
            draws.append(2 * (simulated[1] - simulated[0]))
        draws = np.array(draws)
        p_value, interval = _p_value(draws, statistic, error, add=1)
    elif data.num_features == 1:
        method, draws = "mixture", np.empty(0)
        p_value = _half_chi_square(statistic)
        interval = tuple(_half_chi_square(statistic + sign * 2 * error) for sign in (1, -1))
    else:
        method = "simulated mixture"
        draws = _boundary_draws(average, data, model.latent_dim, num_null or 2000, seed=seed)
        p_value, interval = _p_value(draws, statistic, error, add=1)
    return HeterogeneityTest(
        log_likelihood=(values[0].item(), values[1].item()),
        statistic=statistic.item(),
        statistic_error=error,
        p_value=p_value,
        p_interval=interval,
        null=draws,
        method=method,
        people=len(data),
    )


def _no_mixture(model: HeterogeneousBTL, data: Preferences) -> str | None:
    """Says why there is no known limit of the likelihood ratio, or returns None."""
    variances = data.num_features * (data.num_features + 1) // 2
    if not model.utility.is_linear or len(model.prior_flow):
        return "needs utility='linear' and prior='normal', whose z vanishes with its variance"
    if answers := list(model.answer_parameters()):
        return f"needs a model without ties, position bias and lapses, got {', '.join(answers)}"
    if data.has_rankings:
        return "needs comparisons that stand alone, got rankings"
    if variances > _MAX_VARIANCES:
        return f"needs at most {_MAX_VARIANCES} variances and covariances, got {variances}"
    if len(data) < _PEOPLE_PER_VARIANCE * variances:
        return (
            f"needs {_PEOPLE_PER_VARIANCE} people for each of the {variances} variances and "
            f"covariances, got {len(data)}"
        )
    return None


def _homogeneous(model: HeterogeneousBTL) -> Pair:
    return HeterogeneousBTL(**(model.config | {"latent_dim": 0, "prior": "normal"})), None


def _half_chi_square(statistic: float) -> float:
    """Returns the tail probability of ½χ²₀ + ½χ²₁."""
    return 1.0 if statistic <= 0 else float(0.5 * stats.chi2.sf(statistic, 1))


def _p_value(
    null: np.ndarray, statistic: float, error: float, add: int
) -> tuple[float, tuple[float, float]]:
    """Returns a Monte-Carlo p-value, and its interval for both sources of Monte-Carlo error."""
    count = len(null)
    p_value = (add + np.sum(null >= statistic)) / (add + count)
    fewest, most = (int(np.sum(null >= statistic + sign * 2 * error)) for sign in (1, -1))
    low = stats.binomtest(fewest, count).proportion_ci(0.95).low
    high = stats.binomtest(most, count).proportion_ci(0.95).high
    return float(p_value), (float(low), float(high))


@torch.no_grad()
def _boundary_draws(
    average: HeterogeneousBTL, data: Preferences, latent_dim: int, num: int, *, seed: int = 0
) -> np.ndarray:
    """Draws the likelihood ratio's limit if everybody is alike, for a linear utility.

    Args:
        average: The homogeneous model at its maximum.
        data: The comparisons.
        latent_dim: Largest rank K of the covariance under the alternative.
        num: Number of draws.
        seed: Seed of the draws.

    Returns:
        Draws with shape (num,), at least 0: see :func:`heterogeneity_test`.
    """
    score, information = _variance_scores(average, data)
    size = score.shape[-1]
    moments = score.flatten(1).T @ score.flatten(1)
    cross = score.flatten(1).T @ information.slope
    efficient = moments - cross @ torch.linalg.pinv(information.outer, hermitian=True) @ cross.T
    values, vectors = torch.linalg.eigh(efficient)
    root = vectors * values.clamp(min=0).sqrt()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, len(root), generator=generator, dtype=root.dtype)
    linear = (noise @ root.T).reshape(num, size, size)
    return _cone_maximum(linear, efficient, min(latent_dim, size)).numpy()


@dataclass(frozen=True)
class _Slopes:
    """Holds people's scores of w0, (U, D), and the sum of their outer products."""

    slope: Tensor
    outer: Tensor


def _variance_scores(average: HeterogeneousBTL, data: Preferences) -> tuple[Tensor, _Slopes]:
    """Returns people's scores of Σ at 0, ½(g gᵀ − H), (U, D, D), and of w0.

    Coefficients are in units in which their information is the identity, so that the cone's
    maximum is well conditioned; directions without information are left out.
    """
    slopes, curvatures = [], []
    for _, batch in user_batches(data, 16, average.device):
        difference = feature_differences(average, batch).double()
        z = batch.choice.new_zeros(1, batch.num_users, 0)
        prob = average.choice(batch, z).mean[0].double()
        residual = (batch.choice - prob) * batch.mask
        spread = prob * (1 - prob) * batch.mask
        slopes.append(torch.einsum("un,und->ud", residual, difference).cpu())
        curvatures.append(torch.einsum("un,und,une->ude", spread, difference, difference).cpu())
    slope, curvature = torch.cat(slopes), torch.cat(curvatures)
    values, vectors = torch.linalg.eigh(curvature.mean(0))
    informative = values > 1e-9 * values[-1]
    whiten = vectors[:, informative] / values[informative].sqrt()
    slope = slope @ whiten
    curvature = whiten.T @ curvature @ whiten
    score = 0.5 * (slope.unsqueeze(-1) * slope.unsqueeze(-2) - curvature)
    return score, _Slopes(slope, slope.T @ slope)


def _cone_maximum(linear: Tensor, quadratic: Tensor, rank: int, steps: int = 100) -> Tensor:
    """Maximises 2 tr(SΣ) − vec(Σ)ᵀ I vec(Σ) over covariances of a rank, for S (B, D, D).

    Accelerated projected gradient ascent (Beck & Teboulle 2009). Below full rank the set is not
    convex: the ascent starts at the best full-rank Σ and at 0, and the better end counts.
    """
    size = linear.shape[-1]
    step = 1 / torch.linalg.eigvalsh(quadratic)[-1]

    def value(sigma: Tensor) -> Tensor:
        flat = sigma.flatten(1)
        return 2 * (linear.flatten(1) * flat).sum(-1) - ((flat @ quadratic) * flat).sum(-1)

    def ascend(sigma: Tensor, rank: int) -> Tensor:
        ahead, momentum = sigma, 1.0
        for number in range(steps):
            gradient = linear - (ahead.flatten(1) @ quadratic).reshape(ahead.shape)
            new = _project(ahead + step * gradient, rank)
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + (momentum - 1) / following * (new - sigma)
            settled = number % 10 == 9 and (value(new) - value(sigma)).abs().max() < 1e-4
            sigma, momentum = new, following
            if settled:
                break
        return sigma

    full = ascend(torch.zeros_like(linear), size)
    best = value(full)
    if rank < size:
        ends = ascend(_project(full, rank), rank), ascend(torch.zeros_like(linear), rank)
        best = torch.maximum(*(value(end) for end in ends))
    return best.clamp(min=0)


def _project(matrix: Tensor, rank: int) -> Tensor:
    """Returns the nearest covariance of that rank at most."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    values = values.clamp(min=0)
    values[..., : values.shape[-1] - rank] = 0
    return (vectors * values.unsqueeze(-2)) @ vectors.mT
