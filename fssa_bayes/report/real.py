"""Checks on real people held out, which can see a wrong model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from fssa_bayes import diagnostics, plots
from fssa_bayes.checks import (
    LEAST_PEOPLE,
    LEVELS,
    HeldOut,
    predict_held_out,
    predictive_checks,
    score_tests,
)
from fssa_bayes.data import first_names
from fssa_bayes.report.page import Figure, Section
from fssa_bayes.report.study import Study, draw_figure, need_guide, share_covered
from fssa_bayes.report.verdicts import LEVEL, NOTHING, REFIT, Check
from fssa_bayes.report.words import with_headings

__all__ = [
    "check_behaviour",
    "check_directions",
    "check_predictions",
    "check_surprises",
    "draw_reliability",
    "judge_coverage",
    "judge_gain",
    "judge_reliability",
]

_RELIABILITY = "calibration of probabilities"
_LEAST_COMPARISONS = 200  # Fewest comparisons for a reliability curve.

# What a positive score means, and a negative one.
_MEANING = {
    "difference between people": ("people differ more than the model says", "people differ less"),
    "consistency of choices": ("choices are more consistent than it says", "less consistent"),
    "left over right": ("left is chosen more than it says", "right is chosen more"),
    "lapses": (
        "some answers surprise as if made at random",
        "fewer answers are random than it says",
    ),
}


def check_predictions(study: Study) -> tuple[list[Check], Section]:
    """Scores unseen choices by the number of known ones: gain, coverage and calibration."""
    predictions = predict_held_out(
        study.model,
        study.guide,
        study.data,
        sizes=study.sizes,
        num_samples=study.num_samples,
        seed=study.seed,
    )
    last = predictions[-1]
    checks = [judge_gain(last)] if last.num_context else []
    checks.append(judge_coverage(predictions))
    missing = sorted(set(study.sizes) - {at.num_context for at in predictions})
    if missing:
        reason = f"fewer than {LEAST_PEOPLE} people have a choice left to predict"
        sizes = ", ".join(map(str, missing))
        checks.append(Check(f"predictions at {sizes} known", "–", "–", "skipped", reason, True))
    figures = []
    enough = [at for at in predictions if (~at.prob.isnan()).sum() >= _LEAST_COMPARISONS]
    if enough:
        checks.append(judge_reliability(enough[-1]))
        figures.append(draw_reliability(enough[-1]))
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
            | {f"{level:.0%} intervals hold": share_covered(at.pit, level) for level in LEVELS}
        )
    text = (
        "Choices of people who took no part in the fit, by the number of known choices. Means are "
        "over people, ± one standard error clustered by person. The intervals are for each "
        "person's number of unseen choices that agree with the average person's; intervals hold "
        "too seldom where people differ more than the model says.",
    )
    return checks, Section("Real people: predictions", text, pd.DataFrame(rows), figures)


def draw_reliability(at: HeldOut) -> Figure:
    """Draws the reliability of probabilities at one number of known choices."""
    curve = diagnostics.reliability(at.prob, at.choice, mask=~at.prob.isnan())
    ax = plots.reliability(
        curve.prob,
        curve.recalibrated,
        curve.weight,
        grid=curve.grid,
        lower=curve.consistency_lower,
        upper=curve.consistency_upper,
    )
    return draw_figure(
        ax,
        f"Held-out people, {at.num_context} known choices: the share of choices of the left item "
        "(isotonic estimate, a tie counting one half) against its forecast. Calibrated forecasts "
        "stay in the band.",
    )


def judge_gain(last: HeldOut) -> Check:
    """Asks whether known choices improve predictions, at the largest number of known choices."""
    gain, error = last.gain()
    verdict = "pass" if gain > 2 * error else "fail" if gain < -2.6 * error else "note"
    return Check(
        f"gain from {last.num_context} known choices",
        f"{gain:.4f} ± {error:.4f} nats a choice",
        "above 0 by 2 standard errors; below 0 by 2.6 fails",
        verdict,
        NOTHING if verdict == "pass" else "knowing a person's choices does not help: " + REFIT,
        True,
    )


def judge_reliability(last: HeldOut) -> Check:
    """Asks whether probabilities are calibrated, at the largest number of known choices."""
    error = diagnostics.expected_calibration_error(
        last.prob, last.choice, mask=~last.prob.isnan(), level=1 - LEVEL
    )
    good = error.lower <= 0
    return Check(
        _RELIABILITY,
        f"expected calibration error {error.value:.3f} [{error.lower:.3f}, {error.upper:.3f}] at "
        f"{last.num_context} known choices",
        f"the {error.level:.0%} interval reaches 0",
        "pass" if good else "fail",
        NOTHING if good else REFIT,
        True,
    )


def judge_coverage(predictions: Sequence[HeldOut]) -> Check:
    """Asks whether intervals for the number of agreements with the average person hold."""
    pit = torch.cat([at.pit for at in predictions]).unsqueeze(-1)
    sizes = np.repeat([at.num_context for at in predictions], [len(at.pit) for at in predictions])
    result = diagnostics.sbc_test(pit, sizes, prob=1 - LEVEL)
    worst = result.table.loc[result.table["p_value"].idxmin()]
    return Check(
        "coverage of people's unseen choices",
        f"p = {result.p_value:.2g}"
        + (f", {worst['direction']} at {worst['group']}" if result.rejected else ""),
        f"p ≥ {LEVEL} over all sizes together",
        "fail" if result.rejected else "pass",
        REFIT if result.rejected else NOTHING,
        True,
    )


def check_directions(study: Study) -> tuple[list[Check], Section]:
    """Tests the directions in which the model could be wrong."""
    table = score_tests(
        study.model, study.guide, study.data, num_samples=study.num_samples, seed=study.seed
    )
    limit = LEVEL / len(table)
    checks = []
    for name, row in table.dropna().iterrows():
        good = row["p"] >= limit
        checks.append(
            Check(
                f"score test: {name}",
                f"z = {row['z']:.1f} (p = {row['p']:.2g})",
                f"p ≥ {limit:.3g}",
                "pass" if good else "fail",
                NOTHING if good else f"{_MEANING[name][int(row['z'] < 0)]}: {REFIT}",
                True,
            )
        )
    text = (
        "Each score is the slope of the held-out people's log-likelihood in a direction in which "
        "the model could be wrong. Under a right model a score differs from 0 by no more than its "
        "standard error suggests.",
    )
    return checks, Section(
        "Real people: directions to be wrong in", text, with_headings(table.reset_index())
    )


def check_behaviour(study: Study) -> tuple[list[Check], Section]:
    """Compares real choices with those of people simulated from the model."""
    table = predictive_checks(
        study.model, study.data, num_replicates=400, level=LEVEL, seed=study.seed
    )
    tried = table[table["adjusted"].notna()]
    worst = tried["adjusted"].idxmin()
    good = tried.loc[worst, "adjusted"] >= LEVEL
    check = Check(
        "people simulated from the model behave alike",
        f"{worst}: p = {tried.loc[worst, 'adjusted']:.2g}, {tried.loc[worst, 'verdict']}",
        f"p ≥ {LEVEL}, adjusted for {len(tried)} comparisons",
        "pass" if good else "fail",
        NOTHING if good else REFIT,
        True,
    )
    text = (
        "The choices of people held out beside those of 400 sets of people simulated from the "
        "model and asked about the same pairs: how much people agree with each other and with "
        "themselves, and in which directions people differ. No posterior is needed here. The "
        "error of the estimated population counts as a difference.",
    )
    return [check], Section("Real people: behaviour", text, with_headings(table.reset_index()))


def check_surprises(study: Study) -> tuple[list[Check], Section]:
    """Names the people whose posteriors are not to be believed."""
    need_guide(study)
    posterior = study.posterior(study.data)
    table = posterior.context_surprise(seed=study.seed)
    flagged = table[table["flag"]]
    unreliable = posterior.context.user_names[~posterior.reliable.numpy()]
    checks = [
        Check(
            "people whose choices look like nobody's",
            f"{len(flagged)} of {len(table)} flagged"
            + (f": {first_names(flagged.index)}" if len(flagged) else ""),
            "none, at most 5 % of the flags false",
            "note" if len(flagged) else "pass",
            "do not believe these people's posteriors: see posterior.context_surprise()"
            if len(flagged)
            else NOTHING,
            True,
        ),
        Check(
            "people whose draws cannot be relied upon",
            f"{len(unreliable)} of {len(table)}"
            + (f": {first_names(unreliable)}" if len(unreliable) else ""),
            "none",
            "note" if len(unreliable) else "pass",
            'Posterior(..., fallback="nuts") for these' if len(unreliable) else NOTHING,
            False,
        ),
    ]
    text = (
        "People whose posterior is not to be believed. A person is flagged whose choices have a "
        "smaller probability under the model than choices of people simulated from the model on "
        "the same pairs.",
    )
    columns = ["comparisons", "log_evidence", "expected", "standard_deviation", "adjusted"]
    shown = with_headings(table.sort_values("tail_probability").head(10)[columns].reset_index())
    return checks, Section("Real people: whom the model does not know", text, shown)
