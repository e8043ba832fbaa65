"""What a check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REFINE", "REFIT", "Check"]


REFINE = (
    "refine the guide, fit(model, guide, train, objective=Sleep(16, steps=1500), "
    "validation=None), or take more draws"
)


REFIT = (
    "the model does not describe these people: try another utility, a larger latent_dim, ties, "
    "position_bias or lapses, and compare on people held out"
)


LEVEL = 0.01
"""Each of five kinds of check on real people, and of two on simulated ones, fails a right model
this often at most: one report in fifteen names a fault that is none."""


@dataclass(frozen=True)
class Check:
    """Holds what one check found.

    Attributes:
        name: What was checked.
        value: What was found, with its uncertainty and unit.
        threshold: What was asked of it.
        verdict: `"pass"`; `"fail"`; `"note"`, where it informs without judging; or `"skipped"`.
        advice: What to do.
        sees_wrong_model: Whether it can tell a model that does not fit these people.
    """

    name: str
    value: str
    threshold: str
    verdict: str
    advice: str
    sees_wrong_model: bool
