"""How much data a check of real people needs."""

from __future__ import annotations

from fssa_bayes.data import Preferences

__all__ = ["LEAST_PEOPLE", "NotEnoughDataError", "word_for_judgements"]

LEAST_PEOPLE = 20
"""People that a check of real people needs; fewer give no standard error worth printing."""


class NotEnoughDataError(ValueError):
    """Says what the data lack for a check that other data would allow."""


def word_for_judgements(data: Preferences) -> str:
    """Names what is counted: judgements where there are rankings, else comparisons."""
    return "judgements" if data.has_rankings else "comparisons"
