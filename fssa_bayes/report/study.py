"""What every part of the report looks at, and what parts share."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd
import torch

from fssa_bayes.checks import simulate_people
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.posterior import Posterior
from fssa_bayes.report.page import Figure, Section
from fssa_bayes.report.verdicts import Check

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = []


@dataclass
class Study:
    """Holds what every part of the report looks at."""

    model: HeterogeneousBTL
    guide: NeuralProcessGuide
    data: Preferences
    train: Preferences | None
    sizes: tuple[int, ...]
    num_users: int
    num_samples: int
    seed: int

    @cached_property
    def seconds(self) -> float:
        """Seconds that the posterior of one simulated person takes, at the largest context."""
        people = simulate_people(self.model, self.data, max(self.sizes), 100, seed=self.seed)
        self.posterior(people.context.subset(range(10)))  # The first call loads libraries.
        start = time.perf_counter()
        self.posterior(people.context)
        return (time.perf_counter() - start) / 100

    def posterior(self, context: Preferences, num_samples: int | None = None) -> Posterior:
        with warnings.catch_warnings():  # The report says for itself what these warn of.
            warnings.simplefilter("ignore", UserWarning)
            num_samples = num_samples or self.num_samples
            return Posterior(self.model, self.guide, context, num_samples, seed=self.seed)


@dataclass(frozen=True)
class Part:
    """Holds one part of the report: what it would cost, and how it is made."""

    name: str
    sees_wrong_model: bool
    seconds: Callable[[Study], float]
    run: Callable[[Study], tuple[list[Check], Section]]


class NotPossibleError(Exception):
    """Says why a part cannot be made of these data."""


def draw_figure(ax: Axes, caption: str) -> Figure:
    import matplotlib.pyplot as plt

    picture = io.BytesIO()
    ax.figure.savefig(picture, format="png", dpi=150, bbox_inches="tight")
    plt.close(ax.figure)
    return Figure(picture.getvalue(), caption)


def share_covered(pit: torch.Tensor, level: float) -> str:
    covered = ((pit - 0.5).abs() < level / 2).double().mean().item()
    error = (level * (1 - level) / len(pit)) ** 0.5
    return f"{covered:.1%} ± {error:.1%}"


def root_mean_square(difference: torch.Tensor) -> float:
    return difference.square().nanmean().sqrt().item()


def first_names(names: pd.Index) -> str:
    more = ", …" if len(names) > 5 else ""
    return ", ".join(map(str, names[:5])) + more
