r"""Can I believe this posterior, for whom, and if not, what do I do?

:func:`diagnose` runs the checks of this library on one fitted model, within a budget of seconds,
and writes a table and one self-contained page. Every check says whether it could see that the model
is wrong: those on people simulated from the model itself cannot.
"""

from __future__ import annotations

import io
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fssa_bayes import diagnostics, exact, plots
from fssa_bayes._page import Figure, Section, render
from fssa_bayes.calibration import CalibrationStudy, calibrate, simulate_people
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.held_out import HeldOut, predict_held_out, score_tests
from fssa_bayes.inference import check_data, check_guide, fit
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.objectives import ImportanceWeightedELBO, Sleep
from fssa_bayes.posterior import Posterior

__all__ = ["Check", "Report", "diagnose"]

REFINE = (
    "refine the guide: fit(model, guide, train, objective=[Sleep(steps=6000)]), or take more draws"
)
REFIT = (
    "the model does not describe these people: try another utility, a larger latent_dim, or ties, "
    "position_bias and lapses, and compare on held-out people"
)


@dataclass(frozen=True)
class Check:
    """Holds what one check found.

    Attributes:
        name: What was checked.
        value: What was found, with its uncertainty and unit.
        threshold: What was asked.
        verdict: `"pass"`, `"fail"`, `"note"` where it informs without judging, or `"skipped"`.
        advice: What to do.
        sees_wrong_model: Whether it could have told a model that does not fit these people.
    """

    name: str
    value: str
    threshold: str
    verdict: str
    advice: str
    sees_wrong_model: bool


@dataclass
class Report:
    """Holds the checks and the page that tells of them.

    Attributes:
        checks: What was found, in order.
        sections: The page's parts.
        title: The page's title.
        footer: Sizes, seeds and times.
    """

    checks: list[Check]
    sections: list[Section]
    title: str
    footer: str
    summary: list[str] = field(default_factory=list)

    @property
    def table(self) -> pd.DataFrame:
        """One row a check: check, value, threshold, verdict, what to do, sees a wrong model."""
        columns = ["check", "value", "threshold", "verdict", "what to do", "sees a wrong model"]
        rows = [
            (c.name, c.value, c.threshold, c.verdict, c.advice, "yes" if c.sees_wrong_model else "no")
            for c in self.checks
        ]
        return pd.DataFrame(rows, columns=columns)

    @property
    def passed(self) -> bool:
        """Whether no check failed; skipped ones count neither way."""
        return all(check.verdict != "fail" for check in self.checks)

    def to_html(self) -> str:
        """Returns the page: one file, figures inside it, without network."""
        opening = Section("", self.summary, self.table, cards=True)
        return render(self.title, [opening, *self.sections], self.footer)
