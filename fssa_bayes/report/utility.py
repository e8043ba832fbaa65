"""Which utility do so many people allow? The linear one where they are few for a network."""

from __future__ import annotations

from dataclasses import dataclass

from fssa_bayes.data import Preferences

__all__ = ["PEOPLE_FOR_NETWORK", "UtilityChoice", "choose_utility"]

PEOPLE_FOR_NETWORK = 1000
"""People of a fit below which personal intervals of the bilinear utility are too narrow.

Simulated people with linear utilities of two or three features, 15 or 12 choices each and as many
latent dimensions as features, fitted as an analysis does; the share of people whose direction, the
correlation of their utilities with the average person's, lay in its nominal 90 % interval, in each
of several sets of people. Linear utility: 75 to 93 % of 40 people (mean .86 of seven sets), 92 % of
100, 89 % of 400. Bilinear: 28 to 57 % of 40 (four sets, two with a dimension less), 61 % of 160, 52
to 89 % of 250 (mean .72), 57 to 90 % of 400 (mean .77), 71 to 87 % of 1,000 (mean .83), 87 and
89 % of 2,000.
"""


@dataclass(frozen=True)
class UtilityChoice:
    """Holds the utility of the model of individual people, and what a reader should know of it.

    Attributes:
        name: The utility.
        note: Why it is not the one that more people would allow; empty where it is.
        warning: What its intervals lack; empty where they lack nothing.
    """

    name: str
    note: str = ""
    warning: str = ""


def choose_utility(train: Preferences, asked: str | None = None) -> UtilityChoice:
    """Chooses the utility of the model of individual people by the number of people.

    Args:
        train: The people of the fit.
        asked: The utility that is asked for; None for `"linear"` where items have no features or
            people are few for a network, else `"bilinear"`.
    """
    people = len(train)
    few = people < PEOPLE_FOR_NETWORK
    if asked is None:
        if train.items is None:
            return UtilityChoice("linear")
        if not few:
            return UtilityChoice("bilinear")
        return UtilityChoice(
            "linear",
            f"Utility is linear in the features, a mixed logit, as {people:,} people of the fit "
            f"are fewer than {PEOPLE_FOR_NETWORK:,}, and a network's intervals for a person would "
            "be too narrow; --utility bilinear (utility='bilinear' in Python) fits the network.",
        )
    if asked == "linear" or not few:
        return UtilityChoice(asked)
    return UtilityChoice(
        asked,
        warning=f"{people:,} people of the fit are few for the utility {asked!r}, a network: below "
        f"{PEOPLE_FOR_NETWORK:,} people its intervals for a person are too narrow; of nominal 90 % "
        "intervals of direction about half held the truth for 40 simulated people, about three "
        "quarters for 400. Of those of --utility linear (utility='linear' in Python) 86 % and 89 % "
        "did",
    )
