"""What speaks against draws from a guide, said before they are made."""

from __future__ import annotations

import warnings

from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL

__all__ = ["warn_of_guide"]


def warn_of_guide(
    model: HeterogeneousBTL, guide: NeuralProcessGuide, context: Preferences, correct: str | None
) -> None:
    """Warns of contexts beyond the guide's training, and of a guide of another posterior.

    Arguments are those of :class:`fssa_bayes.Posterior`.
    """
    largest, most = int(guide.largest_context), context.counts.max()
    is_proposal = correct is None or not model.is_mixed_logit
    if is_proposal and most > largest > 0:
        warnings.warn(
            f"the largest context has {most} comparisons, and the guide was trained for at most "
            f"{largest}; look at reliable",
            stacklevel=3,
        )
    if correct and "NeuralProcessELBO" in guide.objectives:
        warnings.warn(
            "the guide was fitted by NeuralProcessELBO, whose q(z | C) is not the posterior "
            "p(z | C) and whose scale of z is no population estimate: correct='psis' weighs "
            "towards p(z | C) of that model, correct=None takes the guide as it was trained",
            stacklevel=3,
        )
