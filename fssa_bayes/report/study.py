"""What every part of the report looks at, and what parts share."""

from __future__ import annotations

import io
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from fssa_bayes.checks import simulate_people
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.posterior import Posterior
from fssa_bayes.report.page import Figure, Section
from fssa_bayes.report.verdicts import Check, NotPossibleError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Part", "Study", "draw_figure", "need_guide", "share_covered"]

_LACKS = r"Glyph [0-9]+ .*missing from"  # How a warning of matplotlib begins.


@dataclass
class Study:
    """Holds what every part of the report looks at: the arguments of `diagnose`."""

    model: HeterogeneousBTL
    guide: NeuralProcessGuide | None
    data: Preferences
    train: Preferences | None
    sizes: tuple[int, ...]
    num_users: int
    num_samples: int
    refit_steps: int
    seed: int

    @cached_property
    def seconds(self) -> float:
        """Seconds that the posterior of one simulated person takes, at the largest context.

        Raises:
            NotPossibleError: If there are no comparisons to ask people about.
        """
        if not self.data.num_comparisons:
            raise NotPossibleError("the people held out have no comparisons")
        people = simulate_people(self.model, self.data, max(self.sizes), 100, seed=self.seed)
        self.posterior(people.context.subset(range(10)))  # The first call loads libraries.
        start = time.perf_counter()
        self.posterior(people.context)
        return (time.perf_counter() - start) / 100

    def posterior(self, context: Preferences, num_samples: int | None = None) -> Posterior:
        """Returns the corrected posterior of people, without the warnings that the report makes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            num_samples = self.num_samples if num_samples is None else num_samples
            return Posterior(self.model, self.guide, context, num_samples, seed=self.seed)


@dataclass(frozen=True)
class Part:
    """Holds one part of the report.

    Attributes:
        name: The name of the part, which stands in the table where the part is skipped.
        sees_wrong_model: Whether the part can tell a model that does not fit these people.
        seconds: Estimates the seconds that the part takes.
        run: Makes the checks and the section of the page.
    """

    name: str
    sees_wrong_model: bool
    seconds: Callable[[Study], float]
    run: Callable[[Study], tuple[list[Check], Section]]


def need_guide(study: Study) -> None:
    """Raises a NotPossibleError where the model has no guide, as a mixed logit need not have."""
    if study.guide is None:
        raise NotPossibleError("the model has no guide, as its draws lie around people's modes")


def draw_figure(ax: Axes, caption: str, name: str | None = None) -> Figure:
    """Saves the figure of the axes and closes it; `name` is that of a file of its own.

    The caption says where the font lacks characters, in place of matplotlib's warnings.
    """
    import matplotlib.pyplot as plt

    picture = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", _LACKS, UserWarning)
        ax.figure.savefig(picture, format="png", dpi=150, bbox_inches="tight")
    plt.close(ax.figure)
    for other in (warning for warning in caught if not re.match(_LACKS, str(warning.message))):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    if any(re.match(_LACKS, str(warning.message)) for warning in caught):
        caption += "; boxes stand for characters that the font of the figure lacks"
    return Figure(picture.getvalue(), caption, name)


def share_covered(pit: torch.Tensor, level: float) -> str:
    """Says how many transforms lie in the central interval of that probability."""
    covered = ((pit - 0.5).abs() < level / 2).double().mean().item()
    error = (level * (1 - level) / len(pit)) ** 0.5
    return f"{covered:.1%} ± {error:.1%}"
