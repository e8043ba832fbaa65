"""What a check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LEVEL", "NOTHING", "REFINE", "REFIT", "VERDICTS", "Check", "NotPossibleError"]

VERDICTS = ("pass", "fail", "note", "skipped", "error")
"""What a check can end in."""

NOTHING = "–"
"""Advice where nothing is to be done."""

REFINE = (
    "refine the guide, fit(model, guide, train, objective=Sleep(16, steps=1500), "
    "validation=None), or take more draws"
)
"""Advice where guide and weights fail."""

REFIT = (
    "the model does not describe these people: try another utility, a larger latent_dim, ties, "
    "position_bias or lapses, and compare on people held out"
)
"""Advice where the model fails."""

LEVEL = 0.01
"""Each of five kinds of check on real people, and of two on simulated ones, fails a right model
this often at most: one report in fifteen reports a false alarm."""


class NotPossibleError(Exception):
    """Says why a part of the report cannot be made of these data: the part is skipped."""


@dataclass(frozen=True)
class Check:
    """Holds what one check found.

    Attributes:
        name: What was checked.
        value: What was found, with its uncertainty and unit; of an error, its type and message.
        threshold: What was asked of the value.
        verdict: `"pass"`; `"fail"`; `"note"`, which informs without judging; `"skipped"`, where
            data or budget do not allow the check; or `"error"`, where the check stopped with an
            exception and judged nothing.
        advice: What to do; a dash where nothing is to be done.
        sees_wrong_model: Whether the check can tell a model that does not fit these people.
    """

    name: str
    value: str
    threshold: str
    verdict: str
    advice: str
    sees_wrong_model: bool
