"""Do people differ at all? A test of the homogeneous model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fssa_bayes._random import seeded
from fssa_bayes.comparison.boundary import boundary_draws, half_chi_square_tail
from fssa_bayes.comparison.people import Pair, fit_fresh, score_users
from fssa_bayes.data import Preferences, check_unweighted
from fssa_bayes.model import HeterogeneousBTL

__all__ = [
    "HeterogeneityTest",
    "heterogeneity_test",
    "monte_carlo_p_value",
    "reason_against_mixture",
]

_MAX_VARIANCES = 60  # Largest number of variances and covariances with a simulated null.
_SUBJECTS = {
    "ties": " in how readily they call a tie",
    "position_bias": " in their liking for a side",
    "lapses": " in how often they answer at random",
    "scale": " in how consistent they are",
}
_PEOPLE_PER_VARIANCE = 5  # People needed for each variance and covariance.


@dataclass(frozen=True)
class HeterogeneityTest:
    """Holds a likelihood-ratio test of the homogeneous model.

    Attributes:
        log_likelihood: Maximised log-likelihood of the homogeneous and of the heterogeneous model,
            in nats.
        statistic: Twice the difference of the log-likelihoods.
        statistic_error: Monte-Carlo standard error of the statistic, from the proposals of z.
        p_value: Probability of a statistic as large if everybody had the same utilities.
        p_interval: 95 % interval of the p-value for the Monte-Carlo errors of the null distribution
            and of the statistic.
        null: Draws of the statistic under the null; empty where its distribution is known.
        method: `"mixture"`, `"simulated mixture"` or `"bootstrap"`.
        people: Number of people.
        subject: In what people might differ.
        degrees: Number q of covariances that the null fixes beside a variance: the limit is then
            :math:`\\tfrac12 χ^2_q + \\tfrac12 χ^2_{q+1}`.
    """

    log_likelihood: tuple[float, float]
    statistic: float
    statistic_error: float
    p_value: float
    p_interval: tuple[float, float]
    null: np.ndarray
    method: str
    people: int
    subject: str = ""
    degrees: int = 0

    @property
    def verdict(self) -> str:
        """The result of the test in words, at the level of 5 %."""
        if self.p_value <= 0.05 < self.p_interval[1]:
            return (
                f"the {self.people} people seem to differ{self.subject}, but the Monte-Carlo error "
                "of the p-value leaves it open (a larger num_null would tell)"
            )
        if self.p_value <= 0.05:
            return f"the {self.people} people do differ{self.subject}"
        if self.statistic > self.null.max(initial=-np.inf) and self.method == "bootstrap":
            return (
                f"the statistic is larger than each of the {len(self.null)} under the null, which "
                "are too few to say more (num_null=19 at least)"
            )
        return f"these {self.people} people do not show that they differ{self.subject}"

    def __str__(self) -> str:
        how = {
            "mixture": (
                f"a mixture in equal parts of chi-squares with {self.degrees} and "
                f"{self.degrees + 1} degrees of freedom"
            ),
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
            "No variance between people is the boundary of what variances can be, so if all are "
            f"alike the statistic has no chi-square distribution, but {how}.",
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
    of: str | None = None,
) -> HeterogeneityTest:
    r"""Tests whether people differ, by a likelihood ratio against the homogeneous model.

    The null hypothesis, ΛΛᵀ = 0, lies on the boundary. For a linear utility with a normal prior
    the limit of the statistic is known, see :func:`fssa_bayes.comparison.boundary.boundary_draws`:
    :math:`\tfrac12 χ^2_0 + \tfrac12 χ^2_1` with one feature, otherwise a mixture that is simulated
    without any refit. For other models z is not identified under the null, and the distribution
    comes from a parametric bootstrap: both models are fitted to data simulated from the homogeneous
    model. A half win is kept as it is in the simulated data.

    Args:
        build: Returns a fresh heterogeneous model and its guide. The homogeneous model has the
            same utility and `latent_dim=0`.
        data: The comparisons.
        null: `"mixture"`, `"bootstrap"`, or `"auto"`: the mixture for a linear utility, a normal
            prior, neither ties nor position bias nor lapses, no rankings, at most 60 variances and
            covariances, and five people for each variance and covariance.
        num_null: Draws from the null distribution; 2,000 for the mixture, 19 for the bootstrap if
            None. A bootstrap cannot have a p-value below 1 / (num_null + 1).
        seed: Seed of weights, fits, draws and simulations.
        num_samples: Number of proposals for each person to begin with, for the likelihood.
        fit_options: Arguments of :func:`fssa_bayes.fit`, such as `steps`; the same for the data
            and for every bootstrap data set, so that a short fit costs power and not validity.
        of: One of the model's `personal`, such as `"ties"`: the null hypothesis is then that people
            are alike in this alone, and differ otherwise as the model says. It needs a linear
            utility. The null fixes one variance and q covariances, those with tastes and with other
            answers, and the limit is a mixture in equal parts of chi-squares with q and q + 1
            degrees of freedom (Stram & Lee 1994).

    Returns:
        The test; `print` it for an explanation.

    Raises:
        ValueError: If an option is out of range, or the mixture is asked of a model without one.

    References:
        Self & Liang (1987), Asymptotic properties of maximum likelihood estimators and likelihood
        ratio tests under nonstandard conditions.
        Silvapulle & Sen (2005), Constrained statistical inference.
        Stram & Lee (1994), Variance components testing in the longitudinal mixed effects model,
        Biometrics 50(4).
        Davies (1987), Hypothesis testing when a nuisance parameter is present only under the
        alternative.
        Davison & Hinkley (1997), Bootstrap methods and their application, chapter 4.
    """
    if null not in ("auto", "mixture", "bootstrap"):
        raise ValueError(f"null must be 'auto', 'mixture' or 'bootstrap', got {null!r}")
    if num_null is not None and (not isinstance(num_null, int) or num_null < 1):
        raise ValueError(f"num_null must be an integer of at least 1, got {num_null!r}")
    check_unweighted(data, "heterogeneity_test()")
    with seeded(seed):
        model, _ = build()
    if of is not None:
        return _test_answer(build, model, data, of, null, seed, num_samples, fit_options)
    problem = reason_against_mixture(model, data)
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
    homogeneous = model.config | {"latent_dim": 0, "prior": "normal", "personal": ()}

    def ratio(people: Preferences, number: int) -> tuple[HeterogeneousBTL, np.ndarray, float]:
        without = fit_fresh(
            lambda: (HeterogeneousBTL(**homogeneous), None), people, number, fit_options
        )
        pair = fit_fresh(build, people, number, fit_options)
        scores = [score_users(*both, people, num_samples, seed=number) for both in (without, pair)]
        values = np.array([score.total for score in scores])
        return without[0], values, 2 * scores[1].monte_carlo_error

    average, values, error = ratio(data, seed)
    statistic = 2 * (values[1] - values[0])
    draws = np.empty(0)
    if null == "bootstrap" or problem:
        method = "bootstrap"
        draws = np.zeros(19 if num_null is None else num_null)
        for position in range(len(draws)):
            number = seed + 1 + position
            choices = average.simulate(data, seed=number)[0].choice
            if data.ties != "keep":  # The model draws no half wins.
                choices = np.where(data.half_wins, 0.5, choices)
            _, simulated, _ = ratio(data.with_choices(choices), number)
            draws[position] = 2 * (simulated[1] - simulated[0])
    elif data.num_features != 1:
        method = "simulated mixture"
        number = 2000 if num_null is None else num_null
        draws = boundary_draws(average, data, model.latent_dim, number, seed=seed)
    else:
        method = "mixture"
    if len(draws):
        p_value, interval = monte_carlo_p_value(draws, statistic, error)
    else:
        p_value = half_chi_square_tail(statistic)
        interval = tuple(half_chi_square_tail(statistic + sign * 2 * error) for sign in (1, -1))
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


def _test_answer(
    build: Callable[[], Pair],
    model: HeterogeneousBTL,
    data: Preferences,
    of: str,
    null: str,
    seed: int,
    num_samples: int,
    fit_options: Mapping[str, object] | None,
) -> HeterogeneityTest:
    """Tests whether people differ in one of the answers; see :func:`heterogeneity_test`."""
    personal = model.config.get("personal", [])
    if of not in personal:
        raise ValueError(f"of must be one of the model's personal={tuple(personal)}, got {of!r}")
    if not model.is_mixed_logit:
        raise ValueError(
            f"of={of!r} needs utility='linear', under which the likelihood ratio has a known "
            f"limit, got utility={model.config['utility']!r}"
        )
    if null == "bootstrap":
        raise ValueError(f"null must be 'auto' or 'mixture' with of={of!r}, got 'bootstrap'")
    alike = model.config | {"personal": [name for name in personal if name != of]}

    def build_alike() -> Pair:
        twin = HeterogeneousBTL(**alike)
        return twin, None

    free, row = model.personal.free, model.personal.names.index(of)
    column = model.taste_dim + row
    degrees = int(free[row].sum() + free[:, column].sum()) - 2
    pairs = [
        fit_fresh(own, data, seed, fit_options) for own in (build_alike, lambda: (build()[0], None))
    ]
    scores = [score_users(*pair, data, num_samples, seed=seed) for pair in pairs]
    statistic = 2 * (scores[1].total - scores[0].total)
    error = 2 * float(np.hypot(scores[0].monte_carlo_error, scores[1].monte_carlo_error))

    def tail(value: float) -> float:
        if value <= 0:
            return 1.0
        upper = stats.chi2.sf(value, degrees + 1)
        return 0.5 * float(upper + (stats.chi2.sf(value, degrees) if degrees else 0.0))

    return HeterogeneityTest(
        log_likelihood=(scores[0].total, scores[1].total),
        statistic=statistic,
        statistic_error=error,
        p_value=tail(statistic),
        p_interval=(tail(statistic + 2 * error), tail(statistic - 2 * error)),
        null=np.empty(0),
        method="mixture",
        people=len(data),
        subject=_SUBJECTS[of],
        degrees=degrees,
    )


def reason_against_mixture(model: HeterogeneousBTL, data: Preferences) -> str | None:
    """Says why the likelihood ratio has no known limit, or returns None where it has one."""
    variances = data.num_features * (data.num_features + 1) // 2
    if not model.utility.is_linear or len(model.prior_flow):
        return "needs utility='linear' and prior='normal', whose z vanishes with its variance"
    if answers := list(model.answer_parameters()):
        return f"needs a model without ties, position bias and lapses, got {', '.join(answers)}"
    if model.personal is not None:
        return f"needs a model of tastes alone, got personal={model.personal.names}"
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


def monte_carlo_p_value(
    null: np.ndarray, statistic: float, error: float
) -> tuple[float, tuple[float, float]]:
    """Estimates a p-value from draws of the statistic under the null.

    Args:
        null: The draws. The observed statistic is counted as one more.
        statistic: The observed statistic.
        error: Its Monte-Carlo standard error.

    Returns:
        The p-value, and its 95 % interval for the Monte-Carlo errors of the null distribution and
        of the statistic.
    """
    count = len(null)
    p_value = (1 + np.sum(null >= statistic)) / (1 + count)
    fewest, most = (int(np.sum(null >= statistic + sign * 2 * error)) for sign in (1, -1))
    low = stats.binomtest(fewest, count).proportion_ci(0.95).low
    high = stats.binomtest(most, count).proportion_ci(0.95).high
    return float(p_value), (float(low), float(high))
