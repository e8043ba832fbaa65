r"""Can I believe this posterior, for whom, and if not, what do I do?

:func:`diagnose` runs the checks of this library on one fitted model, within a budget of seconds,
and writes a table and one self-contained page. Every check says whether it could see that the model
is wrong: those on people simulated from the model itself cannot.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch

from fssa_bayes.checks import check_study
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.model import HeterogeneousBTL, check_data
from fssa_bayes.report.page import Section, render
from fssa_bayes.report.real import (
    another_objective,
    behaviour,
    directions,
    predictions,
    seconds_of_another_objective,
    seconds_of_predictions,
    surprises,
)
from fssa_bayes.report.simulated import SBC, calibration, gold_standard, seconds_of_simulated
from fssa_bayes.report.study import NotPossibleError, Part, Study
from fssa_bayes.report.verdicts import Check

__all__ = ["Report", "diagnose"]


@dataclass(frozen=True)
class Report:
    """Holds the checks, and the page that tells of them.

    Attributes:
        checks: What was found, in order.
        sections: The parts of the page after the table.
        summary: The answer in plain words.
        footer: Sizes, seeds and times.
    """

    checks: Sequence[Check]
    sections: Sequence[Section]
    summary: Sequence[str]
    footer: str

    @property
    def table(self) -> pd.DataFrame:
        """One row a check."""
        names = ["check", "value", "threshold", "verdict", "what to do", "sees a wrong model"]
        rows = [
            (c.name, c.value, c.threshold, c.verdict, c.advice, _yes(c.sees_wrong_model))
            for c in self.checks
        ]
        return pd.DataFrame(rows, columns=names)

    @property
    def passed(self) -> bool:
        """Whether a check passed and none failed; those that were skipped count neither way."""
        verdicts = {check.verdict for check in self.checks}
        return "pass" in verdicts and "fail" not in verdicts

    def to_html(self) -> str:
        """Returns the page: one file with its figures, without network."""
        opening = Section("", self.summary, self.table, cards=True)
        return render("Can this posterior be believed?", [opening, *self.sections], self.footer)

    def write(self, out: str | os.PathLike) -> Path:
        """Writes `report.html` and `checks.csv` into a folder, each whole or not at all.

        Args:
            out: The folder; it is made.

        Returns:
            The path of the page.

        Raises:
            OSError: If it cannot be written.
        """
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "checks.csv", self.table.to_csv(index=False))
        return _write(out / "report.html", self.to_html())


def diagnose(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    data: Preferences,
    out: str | os.PathLike | None = None,
    *,
    train: Preferences | None = None,
    budget: float = 300.0,
    sizes: Sequence[int] = (0, 1, 2, 4, 8, 16),
    num_users: int = 2000,
    num_samples: int = 1000,
    seed: int = 0,
) -> Report:
    """Checks the posteriors of a fitted model in every way that the budget allows.

    Args:
        model: A fitted model with latent factor.
        guide: Its guide.
        data: People who took no part in the fit.
        out: Folder for `report.html` and `checks.csv`; nothing is written if None.
        train: The people of the fit, for the comparison with a fit by another objective.
        budget: Seconds; a check that would not fit into what is left is skipped and named.
        sizes: Numbers of known choices.
        num_users: People simulated at each of them.
        num_samples: Draws S of each person's posterior.
        seed: Seed of people, splits and draws.

    Returns:
        The report, which is written when all checks are done.

    Raises:
        ValueError: If the data do not fit the model, or an option is out of range.
        OSError: If the folder cannot be written, before any work is done.
    """
    check_data(model, data)
    check_guide(model, guide)
    if model.latent_dim == 0:
        raise ValueError(
            "model must have latent_dim of at least 1 to be diagnosed, got 0: nothing is inferred "
            "from a person's choices"
        )
    if train is not None:
        check_data(model, train)
    if not isinstance(budget, int | float) or not budget > 0:
        raise ValueError(f"budget must be a positive number of seconds, got {budget!r}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
    sizes = tuple(sorted(check_study(model, sizes, num_users, num_samples)))
    if not all(torch.isfinite(value).all() for value in model.parameters()):
        raise ValueError("model must have finite parameters, got NaN or infinity")
    if out is not None:
        _check_writable(Path(out))
    study = Study(model, guide, data, train, sizes, num_users, num_samples, seed)
    return _run(study, budget, out)


# ---------------------------------------------------------------------- running the checks


def _run(study: Study, budget: float, out: str | os.PathLike | None) -> Report:
    start = time.perf_counter()
    checks, sections, times = [], [], []
    for part in _PARTS:
        began = time.perf_counter()
        left = budget - (began - start)
        try:
            needed = part.seconds(study)
            if needed > left:
                raise NotPossibleError(f"about {needed:.0f} s needed, {max(left, 0):.0f} s left")
            found, section = part.run(study)
        except (NotPossibleError, ValueError) as reason:
            checks.append(Check(part.name, "–", "–", "skipped", str(reason), part.sees_wrong_model))
            continue
        checks += found
        sections.append(section)
        times.append(f"{part.name} {time.perf_counter() - began:.0f} s")
    model = study.model.config
    footer = (
        f"fssa_bayes {metadata.version('fssa_bayes')}; {len(study.data)} people held out with "
        f"{study.data.num_comparisons} comparisons; utility {model['utility']}, "
        f"{model['latent_dim']} latent dimensions; {study.num_users} people simulated at each of "
        f"{', '.join(map(str, study.sizes))} known choices; {study.num_samples} draws a person; "
        f"seed {study.seed}; {'; '.join(times)}; budget {budget:g} s."
    )
    report = Report(checks, sections, _summary(checks), footer)
    if out is not None:
        report.write(out)
    return report


def _summary(checks: Sequence[Check]) -> list[str]:
    """Answers in plain words: can the posterior be believed, for whom, and what to do?"""
    inference = [check for check in checks if not check.sees_wrong_model]
    reality = [check for check in checks if check.sees_wrong_model]
    lines = [_about_inference(inference), _about_reality(reality)]
    skipped = [check.name for check in checks if check.verdict == "skipped"]
    if skipped:
        lines.append(f"Not checked: {', '.join(skipped)}; the table says why.")
    return lines


def _about_inference(checks: Sequence[Check]) -> str:
    failed = [check for check in checks if check.verdict == "fail"]
    if failed:
        return (
            "The posteriors are not those of the fitted model: "
            f"{', '.join(check.name for check in failed)} failed. What to do: {failed[0].advice}."
        )
    if any(check.name == SBC and check.verdict == "pass" for check in checks):
        return (
            "The posteriors are those of the fitted model, as far as people simulated from it can "
            "show; they could not show that the model is wrong."
        )
    return "Whether the posteriors are those of the fitted model was not checked in full."


def _about_reality(checks: Sequence[Check]) -> str:
    judged = [check for check in checks if check.verdict in ("pass", "fail")]
    failed = [check for check in judged if check.verdict == "fail"]
    if failed:
        return (
            f"The model does not fit the real people held out: {len(failed)} of {len(judged)} "
            f"checks failed ({', '.join(check.name for check in failed)}). What to do: "
            f"{failed[0].advice}."
        )
    if judged:
        return f"None of {len(judged)} checks on the real people held out contradicts the model."
    return "Whether the model fits real people was not checked."


# ---------------------------------------------------------------------- real people


# ---------------------------------------------------------------------- simulated people


# ---------------------------------------------------------------------- another fit


# ---------------------------------------------------------------------- the parts in order


_PARTS = (
    Part("real people: predictions", True, seconds_of_predictions, predictions),
    Part(
        "real people: score tests",
        True,
        lambda study: 2 * study.seconds * len(study.data),
        directions,
    ),
    Part(
        "real people: behaviour",
        True,
        lambda study: 10 * study.seconds * len(study.data),
        behaviour,
    ),
    Part(
        "real people: surprises",
        True,
        lambda study: 10 * study.seconds * len(study.data),
        surprises,
    ),
    Part("simulated people: calibration", False, seconds_of_simulated, calibration),
    Part(
        "simulated people: exact posteriors",
        False,
        lambda study: 1000 * study.seconds * len(study.sizes),
        gold_standard,
    ),
    Part("real people: another objective", True, seconds_of_another_objective, another_objective),
)


# ---------------------------------------------------------------------- words, numbers, files


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _check_writable(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    probe = out / f".{uuid.uuid4().hex}"
    probe.touch()
    probe.unlink()


def _write(path: Path, text: str) -> Path:
    """Writes a file under another name and renames it, so that it is never seen half-written."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
