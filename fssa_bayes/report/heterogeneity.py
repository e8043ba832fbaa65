"""Do people differ at all? A test of all people beside the comparison on people left out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fssa_bayes._random import seeded
from fssa_bayes.comparison import HeterogeneityTest, heterogeneity_test, reason_against_mixture
from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.report.page import Section

__all__ = ["Heterogeneity", "judge_heterogeneity"]

_LEVEL = 0.05
# Comparisons times features and latent dimensions up to which the test is run, with a known limit
# and by bootstrap: each takes about half a minute of a processor at most.
_MOST_WORK, _MOST_BOOTSTRAP_WORK = 1_000_000, 60_000
_HEADING = "Do people differ at all?"


@dataclass(frozen=True)
class Heterogeneity:
    """Holds what the test says of all people.

    Attributes:
        section: The part of the report.
        verdict: The answer in a sentence; empty where the test was left out.
        p_value: The p-value; NaN where the test was left out.
        numbers: The figures by name.
    """

    section: Section
    verdict: str = ""
    p_value: float = math.nan
    numbers: dict[str, object] = field(default_factory=dict)

    @property
    def differ(self) -> bool:
        """Whether people differ, at the level of 5 %."""
        return self.p_value <= _LEVEL


def judge_heterogeneity(
    data: Preferences,
    latent_dim: int,
    ties: str | None,
    seed: int,
    num_bootstrap: int | None = None,
) -> Heterogeneity:
    """Tests whether all people are alike, by :func:`fssa_bayes.comparison.heterogeneity_test`.

    Utility is linear, whatever that of the model of individual people, and its likelihood has a
    maximum that is found. Where the test takes long it is left out, with the reason and the call.

    Args:
        data: All people.
        latent_dim: Largest number of dimensions in which people differ.
        ties: The model of ties, as for :class:`HeterogeneousBTL`.
        seed: Seed of fits and draws.
        num_bootstrap: Data sets simulated where the distribution of the statistic is not known; 0
            leaves the test out there, and None is 19, or 0 where a fit takes long.
    """
    width = max(1, min(latent_dim, data.num_features - (data.items is None)))

    def build() -> tuple[HeterogeneousBTL, None]:
        return HeterogeneousBTL(data.num_features, width, "linear", ties=ties), None

    with seeded(seed):
        by_bootstrap = reason_against_mixture(build()[0], data) is not None
    work = data.num_comparisons * data.num_features * width
    if work > _MOST_WORK or (by_bootstrap and _is_too_long(work, num_bootstrap)):
        fits = "a fit to each of several simulated data sets of" if by_bootstrap else "a fit to"
        options = f", ties={ties!r}" if ties else ""
        remedy = (
            "--bootstraps 19 (num_bootstrap=19 in Python) runs it all the same. " * by_bootstrap
        )
        why = (
            f"The likelihood-ratio test of whether people differ was left out, which takes {fits} "
            f"{data.num_comparisons:,} comparisons and {data.num_features:,} coefficients. {remedy}"
            "The call: heterogeneity_test(lambda: (HeterogeneousBTL(data.num_features, "
            f"{width}, 'linear'{options}), None), data) of fssa_bayes.comparison."
        )
        return Heterogeneity(Section(_HEADING, (why,)))
    more = {"num_null": num_bootstrap} if by_bootstrap else {}
    answering = data.subset(data.counts > 0)
    try:
        return describe(heterogeneity_test(build, answering, seed=seed, **more))
    except (ValueError, FloatingPointError) as reason:  # The rest of the analysis stands.
        why = f"The likelihood-ratio test of whether people differ was left out: {reason}."
        return Heterogeneity(Section(_HEADING, (why,)))


def _is_too_long(work: int, num_bootstrap: int | None) -> bool:
    return work > _MOST_BOOTSTRAP_WORK if num_bootstrap is None else num_bootstrap == 0


def describe(test: HeterogeneityTest) -> Heterogeneity:
    """Says what a test found."""
    low, high = test.p_interval
    p_value = f"p = {test.p_value:.2g}, {low:.2g} to {high:.2g} by its Monte-Carlo error"
    verdict = (
        f"{test.verdict[0].upper()}{test.verdict[1:]} ({p_value}; likelihood-ratio test of "
        "everybody alike)."
    )
    how = (
        f"Likelihood-ratio test of all {test.people:,} people (heterogeneity_test): a mixed logit, "
        "in which everybody has coefficients of their own, against one in which all are alike."
    )
    text = [how, str(test)]
    count = len(test.null)
    if test.method == "bootstrap" and test.p_value * (count + 1) < 1.5:
        more = max(99, 10 * (count + 1) - 1)
        text.append(
            f"No p-value of {count:,} simulated data sets is smaller: --bootstraps {more} "
            f"(num_bootstrap={more} in Python) can tell a smaller one."
        )
    numbers = {
        "heterogeneity_p_value": test.p_value,
        "heterogeneity_p_lower": low,
        "heterogeneity_p_upper": high,
    }
    return Heterogeneity(Section(_HEADING, text), verdict, test.p_value, numbers)
