r"""Can I believe this posterior, for whom, and if not, what do I do?

:func:`diagnose` runs the checks of this library on one fitted model, within a budget of seconds,
and writes a table and one self-contained page. Every check says whether it could see that the model
is wrong: those on people simulated from the model itself cannot.
"""

from __future__ import annotations

import copy
import io
import math
import os
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import stats

from fssa_bayes import diagnostics, exact, plots
from fssa_bayes._random import seeded
from fssa_bayes.checks.calibration import (
    LEVELS,
    CalibrationStudy,
    calibrate,
    check_study,
    simulate_people,
)
from fssa_bayes.checks.held_out import HeldOut, predict_held_out, score_tests
from fssa_bayes.checks.predictive import predictive_checks
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.inference import fit
from fssa_bayes.inference.objectives import ImportanceWeightedELBO
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.model.agreement import check_data
from fssa_bayes.posterior import Posterior
from fssa_bayes.report.page import Figure, Section, render
from fssa_bayes.sampling.importance import person_log_marginal_likelihood, score_draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Check", "Report", "diagnose"]

REFINE = (
    "refine the guide, fit(model, guide, train, objective=Sleep(16, steps=1500), "
    "validation=None), or take more draws"
)
_SBC = "simulation-based calibration of the posterior"
REFIT = (
    "the model does not describe these people: try another utility, a larger latent_dim, ties, "
    "position_bias or lapses, and compare on people held out"
)

_LEVEL = 0.01
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
    study = _Study(model, guide, data, train, sizes, num_users, num_samples, seed)
    return _run(study, budget, out)


# ---------------------------------------------------------------------- running the checks


@dataclass
class _Study:
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
class _Part:
    """Holds one part of the report: what it would cost, and how it is made."""

    name: str
    sees_wrong_model: bool
    seconds: Callable[[_Study], float]
    run: Callable[[_Study], tuple[list[Check], Section]]


class _NotPossibleError(Exception):
    """Says why a part cannot be made of these data."""


def _run(study: _Study, budget: float, out: str | os.PathLike | None) -> Report:
    start = time.perf_counter()
    checks, sections, times = [], [], []
    for part in _PARTS:
        began = time.perf_counter()
        left = budget - (began - start)
        try:
            needed = part.seconds(study)
            if needed > left:
                raise _NotPossibleError(f"about {needed:.0f} s needed, {max(left, 0):.0f} s left")
            found, section = part.run(study)
        except (_NotPossibleError, ValueError) as reason:
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
    if any(check.name == _SBC and check.verdict == "pass" for check in checks):
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


def _real_predictions(study: _Study) -> tuple[list[Check], Section]:
    predictions = predict_held_out(
        study.model,
        study.guide,
        study.data,
        sizes=study.sizes,
        num_samples=study.num_samples,
        seed=study.seed,
    )
    last = predictions[-1]
    checks = [_check_gain(last)] if last.num_context else []
    checks += _check_agreements(predictions)
    missing = sorted(set(study.sizes) - {at.num_context for at in predictions})
    if missing:
        reason = "fewer than 20 people have a choice left to predict"
        sizes = ", ".join(map(str, missing))
        checks.append(Check(f"predictions at {sizes} known", "–", "–", "skipped", reason, True))
    figures = []
    enough = [at for at in predictions if (~at.prob.isnan()).sum() >= _LEAST_COMPARISONS]
    if enough:
        checks.append(_check_reliability(enough[-1]))
        figures.append(_reliability_figure(enough[-1]))
    else:
        reason = f"fewer than {_LEAST_COMPARISONS} choices to predict"
        checks.append(Check(_RELIABILITY, "–", "–", "skipped", reason, True))
    rows = []
    for at in predictions:
        score = diagnostics.clustered_mean(at.log_score, mask=~at.log_score.isnan())
        gain, error = at.gain()
        rows.append(
            {
                "known choices": at.num_context,
                "people": len(at.prob),
                "log score (nats)": f"{score.value:.4f} ± {score.standard_error:.4f}",
                "gain on knowing nothing (nats)": f"{gain:.4f} ± {error:.4f}",
            }
            | {f"{level:.0%} intervals hold": _covered(at.pit, level) for level in LEVELS}
        )
    text = (
        "Choices of people who took no part in the fit, by how many of theirs were known. Means "
        "are over people, ± one standard error clustered by person. The intervals are for each "
        "person's number of unseen choices that agree with the average person's: they hold too "
        "seldom where people differ more than the model says.",
    )
    return checks, Section("Real people: predictions", text, pd.DataFrame(rows), figures)


_RELIABILITY = "calibration of probabilities"
_LEAST_COMPARISONS = 200  # Fewer show no curve.


def _reliability_figure(at: HeldOut) -> Figure:
    curve = diagnostics.reliability(at.prob, at.choice, mask=~at.prob.isnan())
    ax = plots.reliability(
        curve.prob,
        curve.recalibrated,
        curve.weight,
        grid=curve.grid,
        lower=curve.consistency_lower,
        upper=curve.consistency_upper,
    )
    return _figure(
        ax,
        f"Held-out people, {at.num_context} known choices: the share of choices of the left item "
        "(isotonic estimate, a tie counting one half) against its forecast. Calibrated forecasts "
        "stay in the band.",
    )


def _check_gain(last: HeldOut) -> Check:
    gain, error = last.gain()
    verdict = "pass" if gain > 2 * error else "fail" if gain < -2.6 * error else "note"
    return Check(
        f"gain from {last.num_context} known choices",
        f"{gain:.4f} ± {error:.4f} nats a choice",
        "above 0 by 2 standard errors; below 0 by 2.6 fails",
        verdict,
        "use it" if verdict == "pass" else "knowing a person's choices does not help: " + REFIT,
        True,
    )


def _check_reliability(last: HeldOut) -> Check:
    error = diagnostics.expected_calibration_error(
        last.prob, last.choice, mask=~last.prob.isnan(), level=1 - _LEVEL
    )
    good = error.lower <= 0
    return Check(
        _RELIABILITY,
        f"expected calibration error {error.value:.3f} [{error.lower:.3f}, {error.upper:.3f}] at "
        f"{last.num_context} known choices",
        f"the {error.level:.0%} interval reaches 0",
        "pass" if good else "fail",
        "use them" if good else REFIT,
        True,
    )


def _check_agreements(predictions: Sequence[HeldOut]) -> list[Check]:
    pit = torch.cat([at.pit for at in predictions]).unsqueeze(-1)
    sizes = np.repeat([at.num_context for at in predictions], [len(at.pit) for at in predictions])
    result = diagnostics.sbc_test(pit, sizes, prob=1 - _LEVEL)
    worst = result.table.loc[result.table["p_value"].idxmin()]
    return [
        Check(
            "coverage of people's unseen choices",
            f"p = {result.p_value:.2g}"
            + (f", {worst['direction']} at {worst['group']}" if result.rejected else ""),
            f"p ≥ {_LEVEL} over all sizes together",
            "fail" if result.rejected else "pass",
            REFIT if result.rejected else "use the intervals",
            True,
        )
    ]


def _real_directions(study: _Study) -> tuple[list[Check], Section]:
    table = score_tests(
        study.model, study.guide, study.data, num_samples=study.num_samples, seed=study.seed
    )
    limit = _LEVEL / len(table)
    checks = []
    for name, row in table.dropna().iterrows():
        good = row["p"] >= limit
        checks.append(
            Check(
                f"score test: {name}",
                f"z = {row['z']:.1f} (p = {row['p']:.2g})",
                f"p ≥ {limit:.3g}",
                "pass" if good else "fail",
                "nothing" if good else f"{_MEANING[name][int(row['z'] < 0)]}: {REFIT}",
                True,
            )
        )
    text = (
        "Were the model right, none of these scores would differ from 0 by more than its standard "
        "error suggests: each is the slope of the held-out people's log-likelihood in a direction "
        "in which the model could be wrong.",
    )
    return checks, Section("Real people: directions to be wrong in", text, table.reset_index())


def _real_behaviour(study: _Study) -> tuple[list[Check], Section]:
    table = predictive_checks(
        study.model, study.data, num_replicates=400, level=_LEVEL, seed=study.seed
    )
    tried = table[table["adjusted"].notna()]
    if tried.empty:
        raise _NotPossibleError("no two people share a pair, and nobody has two comparisons")
    worst = tried["adjusted"].idxmin()
    good = tried.loc[worst, "adjusted"] >= _LEVEL
    check = Check(
        "people simulated from the model behave alike",
        f"{worst}: p = {tried.loc[worst, 'adjusted']:.2g}, {tried.loc[worst, 'verdict']}",
        f"p ≥ {_LEVEL}, adjusted for {len(tried)} comparisons",
        "pass" if good else "fail",
        "nothing" if good else REFIT,
        True,
    )
    text = (
        "The choices of people held out beside those of 400 sets of people simulated from the "
        "model and asked about the same pairs: how much people agree with each other, with "
        "themselves, and in which directions they differ. No posterior is needed here. The error "
        "of the estimated population counts as a difference.",
    )
    return [check], Section("Real people: behaviour", text, table.reset_index())


def _real_surprises(study: _Study) -> tuple[list[Check], Section]:
    posterior = study.posterior(study.data)
    table = posterior.context_surprise(seed=study.seed)
    flagged = table[table["flag"]]
    unreliable = posterior.context.user_names[~posterior.reliable.numpy()]
    checks = [
        Check(
            "people whose choices look like nobody's",
            f"{len(flagged)} of {len(table)} flagged"
            + (f": {_some(flagged.index)}" if len(flagged) else ""),
            "none, at most 5 % of the flags false",
            "note" if len(flagged) else "pass",
            "do not believe these people's posteriors: see posterior.context_surprise()"
            if len(flagged)
            else "nothing",
            True,
        ),
        Check(
            "people whose draws cannot be relied upon",
            f"{len(unreliable)} of {len(table)}"
            + (f": {_some(unreliable)}" if len(unreliable) else ""),
            "none",
            "note" if len(unreliable) else "pass",
            'Posterior(..., fallback="nuts") for these' if len(unreliable) else "nothing",
            False,
        ),
    ]
    text = (
        "For whom not to believe the posterior. A person is flagged whose choices have a smaller "
        "probability under the model than those of people simulated from it on the same pairs.",
    )
    columns = ["comparisons", "log_evidence", "expected", "standard_deviation", "adjusted"]
    shown = table.sort_values("tail_probability").head(10)[columns].reset_index()
    return checks, Section("Real people: whom the model does not know", text, shown)


_MEANING = {
    "difference between people": ("people differ more than the model says", "people differ less"),
    "consistency of choices": ("choices are more consistent than it says", "less consistent"),
    "left over right": ("left is chosen more than it says", "right is chosen more"),
    "lapses": (
        "some answers surprise as if made at random",
        "fewer answers are random than it says",
    ),
}


# ---------------------------------------------------------------------- simulated people


def _simulated(study: _Study) -> tuple[list[Check], Section]:
    calibration = calibrate(
        study.model,
        study.guide,
        study.data,
        sizes=study.sizes,
        num_users=study.num_users,
        num_samples=study.num_samples,
        seed=study.seed,
    )
    checks = [
        _check_sbc(calibration, "corrected"),
        _check_coverage(calibration),
        _check_sbc(calibration, "guide"),
        _check_guide_coverage(calibration),
        _check_ess(calibration),
        _check_pareto_k(calibration),
    ]
    tested = calibration.test("corrected").table
    table = tested.drop(columns=["users", "mean", "variance"])
    table = table.rename(columns={"group": "known choices"})
    text = (
        "People simulated from the fitted model: their true values must be spread evenly over "
        "their posteriors. These checks judge guide and importance weights. A wrong model passes "
        "them. scale is the posterior's standard deviation as a share of what it should be, shift "
        "the truth's mean distance from the posterior in standard deviations.",
    )
    return checks, Section(
        "Simulated people: calibration", text, table, _calibration_figures(calibration, tested)
    )


def _calibration_figures(calibration: CalibrationStudy, tested: pd.DataFrame) -> list[Figure]:
    sizes, people = calibration.sizes, calibration.pareto_k.shape[1]
    worst = sizes.index(int(tested.loc[tested["p_value"].idxmin(), "group"]))
    pit = calibration.pit["corrected"]
    band = diagnostics.ecdf_band(people, pit.shape[-1] * len(sizes))
    levels = np.linspace(0.05, 0.95, 19)
    distance = (pit[..., :-2] - 0.5).abs().flatten(1)
    covered = np.stack([(distance < level / 2).double().mean(-1) for level in levels])
    error = 2 * np.sqrt(levels * (1 - levels) / people)
    size = np.repeat(sizes, people)
    known = f"{sizes[worst]} known choices"
    return [
        _figure(
            plots.sbc_ecdf_difference(
                pit[worst], band.points, band.lower, band.upper, calibration.quantities
            ),
            f"Corrected posterior, {known}, where it is farthest from even: distribution of the "
            "truth's place in the posterior, minus what an exact posterior shows. The band holds "
            "for all quantities and sizes together.",
        ),
        _figure(
            plots.coverage_curve(
                levels,
                covered,
                (levels - error).clip(0),
                (levels + error).clip(max=1),
                [f"{size} known" for size in sizes],
                band_name="exact, ± 2 s.e.",
            ),
            "Corrected posterior: how often intervals for the margins of pairs hold the truth; the "
            "band is of one pair at one size.",
        ),
        _figure(
            plots.contraction(size, calibration.contraction.flatten()),
            "What choices teach: share of the prior variance of a margin that is gone.",
        ),
        _figure(
            plots.pareto_k(calibration.pareto_k.flatten(), size),
            "Pareto k-hat of every simulated person: above .7 the guide misses part of the "
            "posterior, and importance weights cannot be relied upon.",
        ),
    ]


def _check_sbc(calibration: CalibrationStudy, posterior: str) -> Check:
    result = calibration.test(posterior, prob=1 - _LEVEL)
    worst = result.table.loc[result.table["p_value"].idxmin()]
    where = f", {worst['direction']}: {worst['quantity']}, {worst['group']} known choices"
    is_guide = posterior == "guide"
    bad = "note" if is_guide else "fail"
    return Check(
        "simulation-based calibration of the guide alone" if is_guide else _SBC,
        f"p = {result.p_value:.2g}" + (where if result.rejected else ""),
        f"p ≥ {_LEVEL}, all quantities and sizes together",
        bad if result.rejected else "pass",
        REFINE if result.rejected else "nothing",
        False,
    )


def _check_coverage(calibration: CalibrationStudy) -> Check:
    table = calibration.coverage("corrected")
    limit = float(stats.norm.isf(_LEVEL / 2 / len(table)))
    worst = table.loc[table["z"].abs().idxmax()]
    good = abs(worst["z"]) <= limit
    within = (table["z"].abs() <= 3).mean()
    return Check(
        "coverage of 50, 80 and 95 % intervals",
        f"{within:.1%} of {len(table)} within 3 standard errors, the worst {worst['z']:.1f} off",
        f"the worst within {limit:.1f}, the {_LEVEL:.0%} limit of that many",
        "pass" if good else "fail",
        "use the intervals" if good else REFINE,
        False,
    )


def _check_guide_coverage(calibration: CalibrationStudy) -> Check:
    table = calibration.coverage("guide")
    off = (table["covered"] - table["level"]).abs().max()
    good = off <= 0.04
    return Check(
        "coverage of the guide alone",
        f"{100 * off:.1f} points off at the worst",
        "4 points",
        "pass" if good else "note",
        "nothing" if good else f"rely on the corrected posterior only, or {REFINE}",
        False,
    )


def _check_ess(calibration: CalibrationStudy) -> Check:
    ess = calibration.relative_ess.mean(-1)
    worst = int(ess.argmin())
    good = ess[worst] >= 0.5
    return Check(
        "effective share of the guide's draws",
        f"{ess[worst]:.2f} on average at {calibration.sizes[worst]} known choices, the worst",
        "at least .5 (.85 is good)",
        "pass" if good else "note",
        "nothing" if ess[worst] >= 0.85 else f"right but wasteful: {REFINE}",
        False,
    )


def _check_pareto_k(calibration: CalibrationStudy) -> Check:
    share = (calibration.pareto_k > 0.7).float().mean(-1)
    worst = int(share.argmax())
    good = share[worst] <= 0.01
    return Check(
        "people whose Pareto k-hat is above .7",
        f"{share[worst]:.1%} at {calibration.sizes[worst]} known choices, the worst",
        "at most 1 %",
        "pass" if good else "note",
        "nothing" if good else f"look at posterior.pareto_k of every new person, or {REFINE}",
        False,
    )


def _gold_standard(study: _Study) -> tuple[list[Check], Section]:
    if study.model.latent_dim > 2:
        raise _NotPossibleError(
            "a grid needs at most 2 latent dimensions: compare a few people with exact.nuts"
        )
    rows = []
    for size in study.sizes:
        people = simulate_people(study.model, study.data, size, 100, seed=study.seed + 1)
        gold = exact.grid(study.model, people.context, num=61)
        log_guide = score_draws(study.guide, people.context, gold.z).double()
        divergence = (
            gold.log_weights.double().exp() * (gold.log_joint - gold.log_evidence - log_guide)
        ).sum(0)
        ours = study.posterior(people.context, 4000).choice_prob(people.target).mean
        theirs = Posterior.from_draws(study.model, people.context, gold).choice_prob(people.target)
        rows.append(
            {
                "known choices": size,
                "KL(exact ‖ guide), nats": divergence.mean().item(),
                "standard error": (divergence.std() / len(divergence) ** 0.5).item(),
                "corrected probabilities, rms off": _rms(ours - theirs.mean),
            }
        )
    table = pd.DataFrame(rows)
    worst = table.loc[table["KL(exact ‖ guide), nats"].idxmax()]
    off = table["corrected probabilities, rms off"].max()
    checks = [
        Check(
            "distance of the guide from the exact posterior",
            f"{worst.iloc[1]:.3f} ± {worst.iloc[2]:.3f} nats at {worst.iloc[0]:.0f} known choices",
            "at most .1 nats",
            "pass" if worst.iloc[1] <= 0.1 else "note",
            "nothing" if worst.iloc[1] <= 0.1 else REFINE,
            False,
        ),
        Check(
            "corrected choice probabilities against exact ones",
            f"{off:.4f} in root mean square at the worst size",
            "at most .02",
            "pass" if off <= 0.02 else "fail",
            "nothing" if off <= 0.02 else REFINE,
            False,
        ),
    ]
    text = ("100 simulated people at each size, against their exact posteriors on a grid.",)
    return checks, Section("Simulated people: exact posteriors", text, table)


# ---------------------------------------------------------------------- another fit


def _another_objective(study: _Study) -> tuple[list[Check], Section]:
    model, guide = _continued(study, _REFIT_STEPS)
    before, after = _spread(study.model, study), _spread(model, study)
    gain = _log_evidence(model, guide, study) - _log_evidence(study.model, study.guide, study)
    mean, error = gain.mean().item(), (gain.std() / len(gain) ** 0.5).item()
    good = mean <= 2.6 * error
    check = Check(
        "the fit continued with 64 particles",
        f"held-out people gain {mean:.4f} ± {error:.4f} nats each, their differences grow by "
        f"{100 * (after / before - 1):.1f} %",
        "no gain beyond 2.6 standard errors",
        "pass" if good else "fail",
        "nothing"
        if good
        else "the first fit had not found the maximum: fit with more steps and particles, "
        "objective=[ImportanceWeightedELBO(64), Sleep()]",
        True,
    )
    text = (
        "An objective that shrinks the differences between people passes every check on simulated "
        f"people. The fit was continued for {_REFIT_STEPS} steps with another one, the importance-"
        "weighted bound with 64 particles, and both were scored by the log marginal likelihood of "
        "the people held out. Differences are the standard deviation between people of the margin "
        "of a pair, the mean over pairs.",
    )
    table = pd.DataFrame(
        {
            "fit": ["as given", "continued"],
            "differences between people (nats)": [before, after],
            "held-out gain a person (nats)": ["–", f"{mean:.4f} ± {error:.4f}"],
        }
    )
    return [check], Section("Real people: another objective", text, table)


_REFIT_STEPS = 400


def _continued(study: _Study, steps: int) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    if study.train is None:
        raise _NotPossibleError("pass train=, the people of the fit")
    model, guide = copy.deepcopy((study.model, study.guide))
    objective = ImportanceWeightedELBO(num_particles=64, steps=steps)
    fit(
        model,
        guide,
        study.train,
        objective=objective,
        validation=None,
        seed=study.seed,
        progress_bar=False,
    )
    return model, guide


def _seconds_of_another_objective(study: _Study) -> float:
    start = time.perf_counter()
    _continued(study, 10)
    scoring = 4 * study.seconds * len(study.data)
    return (time.perf_counter() - start) / 10 * _REFIT_STEPS + scoring


@torch.no_grad()
def _spread(model: HeterogeneousBTL, study: _Study) -> float:
    """Standard deviation between people of a pair's margin, in nats, the mean over 200 pairs."""
    rng = np.random.default_rng(study.seed)
    pairs = study.data.as_pairs()
    pairs = pairs.imagine(rng.integers(pairs.num_comparisons, size=(1, 200)))
    with seeded(study.seed):
        z = model.sample_population(1000, study.data).unsqueeze(1)
    return model.choice(pairs.batch().to(model.device), z).margin.std(0).mean().item()


def _log_evidence(
    model: HeterogeneousBTL, guide: NeuralProcessGuide, study: _Study
) -> torch.Tensor:
    """Log marginal likelihood of every person held out, in nats, with shape (U,), in one round."""
    draws = study.num_samples
    with seeded(study.seed):
        values, *_ = person_log_marginal_likelihood(
            model, guide, study.data, draws, target_error=math.inf, max_samples=draws
        )
    return values.cpu()


# ---------------------------------------------------------------------- the parts in order


def _seconds_of_predictions(study: _Study) -> float:
    return 3 * study.seconds * len(study.data) * len(study.sizes)


def _seconds_of_simulated(study: _Study) -> float:
    return 2 * study.seconds * study.num_users * len(study.sizes)


_PARTS = (
    _Part("real people: predictions", True, _seconds_of_predictions, _real_predictions),
    _Part(
        "real people: score tests",
        True,
        lambda study: 2 * study.seconds * len(study.data),
        _real_directions,
    ),
    _Part(
        "real people: behaviour",
        True,
        lambda study: 10 * study.seconds * len(study.data),
        _real_behaviour,
    ),
    _Part(
        "real people: surprises",
        True,
        lambda study: 10 * study.seconds * len(study.data),
        _real_surprises,
    ),
    _Part("simulated people: calibration", False, _seconds_of_simulated, _simulated),
    _Part(
        "simulated people: exact posteriors",
        False,
        lambda study: 1000 * study.seconds * len(study.sizes),
        _gold_standard,
    ),
    _Part(
        "real people: another objective", True, _seconds_of_another_objective, _another_objective
    ),
)


# ---------------------------------------------------------------------- words, numbers, files


def _figure(ax: Axes, caption: str) -> Figure:
    import matplotlib.pyplot as plt

    picture = io.BytesIO()
    ax.figure.savefig(picture, format="png", dpi=150, bbox_inches="tight")
    plt.close(ax.figure)
    return Figure(picture.getvalue(), caption)


def _covered(pit: torch.Tensor, level: float) -> str:
    covered = ((pit - 0.5).abs() < level / 2).double().mean().item()
    error = (level * (1 - level) / len(pit)) ** 0.5
    return f"{covered:.1%} ± {error:.1%}"


def _rms(difference: torch.Tensor) -> float:
    return difference.square().nanmean().sqrt().item()


def _some(names: pd.Index) -> str:
    more = ", …" if len(names) > 5 else ""
    return ", ".join(map(str, names[:5])) + more


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
