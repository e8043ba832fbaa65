r"""Can I believe this posterior, for whom, and if not, what do I do?

:func:`diagnose` runs the checks of this library on one fitted model, within a budget of seconds,
and writes a table and one self-contained page. Every check says whether it could see that the model
is wrong: checks on people simulated from the model itself cannot.
"""

from __future__ import annotations

import math
import os
import time
import traceback
import uuid
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from fssa_bayes.checks import NotEnoughDataError, check_study
from fssa_bayes.data import Preferences, check_unweighted
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.report import real, refit, simulated
from fssa_bayes.report.page import Section
from fssa_bayes.report.report import Report
from fssa_bayes.report.study import Part, Study
from fssa_bayes.report.summary import summarise
from fssa_bayes.report.verdicts import Check, NotPossibleError

__all__ = ["PARTS", "describe_error", "diagnose", "run_parts"]

PARTS = (
    Part(
        "real people: predictions",
        True,
        lambda study: 3 * study.seconds * len(study.data) * len(study.sizes),
        real.check_predictions,
    ),
    Part(
        "real people: score tests",
        True,
        lambda study: 2 * study.seconds * len(study.data),
        real.check_directions,
    ),
    Part(
        "real people: behaviour",
        True,
        lambda study: 10 * study.seconds * len(study.data),
        real.check_behaviour,
    ),
    Part(
        "real people: surprises",
        True,
        lambda study: 10 * study.seconds * len(study.data),
        real.check_surprises,
    ),
    Part(
        "simulated people: calibration",
        False,
        lambda study: 2 * study.seconds * study.num_users * len(study.sizes),
        simulated.check_calibration,
    ),
    Part(
        "simulated people: exact posteriors",
        False,
        lambda study: 1000 * study.seconds * len(study.sizes),
        simulated.check_against_grid,
    ),
    Part(
        "simulated people: joint coverage",
        False,
        lambda study: (
            study.seconds * min(study.num_users, simulated.JOINT_PEOPLE) * len(study.sizes)
        ),
        simulated.check_joint_coverage,
    ),
    Part(
        "real people: another objective",
        True,
        refit.seconds_of_another_objective,
        refit.check_another_objective,
    ),
)
"""The parts of a report, in the order in which they spend the budget."""


def diagnose(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    out: str | os.PathLike | None = None,
    *,
    train: Preferences | None = None,
    budget: float = 300.0,
    sizes: Sequence[int] = (0, 1, 2, 4, 8, 16),
    num_users: int = 2000,
    num_samples: int = 1000,
    refit_steps: int = 400,
    seed: int = 0,
    title: str = "Can this posterior be believed?",
    about_data: Section | None = None,
) -> Report:
    """Checks the posteriors of a fitted model in every way that the budget allows.

    A check that stops with an exception has the verdict `"error"`, and the others go on.

    Args:
        model: A fitted model with latent factor.
        guide: Its guide; None for a mixed logit without one, whose checks of a guide are left out.
        data: People who took no part in the fit.
        out: Folder for `report.html`, `summary.md` and `checks.csv`; nothing is written if None.
        train: The people of the fit, for the comparison with a fit by another objective.
        budget: Seconds; a check that needs more than what is left is skipped and named.
        sizes: Numbers of known choices.
        num_users: People simulated at each number of known choices.
        num_samples: Draws S of each person's posterior.
        refit_steps: Steps of the fit by another objective.
        seed: Seed of people, splits and draws.
        title: Title of the report.
        about_data: A part of the report that describes the data, or None.

    Returns:
        The report, which is written when all checks are done.

    Raises:
        ValueError: If the data do not fit the model, or an option is out of range.
        OSError: If the folder cannot be written, before any work is done.
    """
    check_unweighted(data, "diagnose()")
    data = align(model, data)
    check_guide(model, guide, may_lack=model.is_mixed_logit)
    if model.latent_dim == 0:
        raise ValueError(
            "model must have latent_dim of at least 1 to be diagnosed, got 0: nothing is inferred "
            "from a person's choices"
        )
    if train is not None:
        check_unweighted(train, "diagnose()")
        train = align(model, train)
    if not isinstance(budget, int | float) or not budget > 0:
        raise ValueError(f"budget must be a positive number of seconds, got {budget!r}")
    for name, value, least in (("seed", seed, 0), ("refit_steps", refit_steps, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    sizes = tuple(sorted(check_study(model, sizes, num_users, num_samples)))
    if not all(torch.isfinite(value).all() for value in model.parameters()):
        raise ValueError("model must have finite parameters, got NaN or infinity")
    if out is not None:  # A folder that cannot be written is refused before any work is done.
        Path(out).mkdir(parents=True, exist_ok=True)
        probe = Path(out) / f".{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    study = Study(model, guide, data, train, sizes, num_users, num_samples, refit_steps, seed)
    checks, sections, times = run_parts(PARTS, study, budget)
    config = model.config
    footer = (
        f"fssa_bayes {metadata.version('fssa_bayes')}; {len(data)} people held out with "
        f"{data.num_comparisons} comparisons; utility {config['utility']}, "
        f"{config['latent_dim']} latent dimensions; {num_users} people simulated at each of "
        f"{', '.join(map(str, sizes))} known choices; {num_samples} draws a person; "
        f"seed {seed}; {''.join(f'{spent}; ' for spent in times)}budget {budget:g} s."
    )
    if about_data is not None:
        sections = [about_data, *sections]
    report = Report(title, sections, summarise(checks), footer, checks)
    if out is not None:
        report.write(out)
    return report


def run_parts(
    parts: Sequence[Part], study: Study, budget: float
) -> tuple[list[Check], list[Section], list[str]]:
    """Runs the parts of a report one after the other, as far as the budget reaches.

    A part that data or budget do not allow is skipped. Any other exception gives the verdict
    `"error"`: it is a fault of the part or of what the part was given, and must not read as if
    nothing contradicted the model.

    Args:
        parts: The parts.
        study: What the parts look at.
        budget: Seconds for all parts together.

    Returns:
        The checks, the sections of the page, and the time of each part in words.
    """
    start = time.perf_counter()
    checks, sections, times = [], [], []
    for part in parts:
        began = time.perf_counter()
        left = budget - (began - start)
        try:
            needed = part.seconds(study)
            if needed > left:
                whole = began - start + needed
                raise NotPossibleError(
                    f"about {needed:.0f} s needed, {max(left, 0):.0f} s left: a budget of "
                    f"{10 * math.ceil(whole / 10)} s reaches this check"
                )
            found, section = part.run(study)
        except (NotPossibleError, NotEnoughDataError) as reason:
            checks.append(Check(part.name, "–", "–", "skipped", str(reason), part.sees_wrong_model))
        except Exception as error:
            checks.append(describe_error(part, error))
        else:
            checks += found
            sections.append(section)
            times.append(f"{part.name} {time.perf_counter() - began:.0f} s")
    return checks, sections, times


def describe_error(part: Part, error: Exception) -> Check:
    """Makes the check of a part that stopped: type, message and place of the exception."""
    package = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    place = [frame for frame in frames if package in Path(frame.filename).parents][-1]
    file = Path(place.filename).relative_to(package).as_posix()
    return Check(
        part.name,
        f"{type(error).__name__}: {error}",
        "–",
        "error",
        f"mend the cause and diagnose again: this part judged nothing, it stopped in {file}, line "
        f"{place.lineno}",
        part.sees_wrong_model,
    )
