"""Checks on real people held out, which can see a wrong model."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from fssa_bayes import diagnostics, plots
from fssa_bayes._random import seeded
from fssa_bayes.checks import LEVELS, HeldOut, predict_held_out, predictive_checks, score_tests
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference import ImportanceWeightedELBO, fit
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.report.page import Figure, Section
from fssa_bayes.report.study import NotPossibleError, Study, draw_figure, first_names, share_covered
from fssa_bayes.report.verdicts import LEVEL, REFIT, Check
from fssa_bayes.sampling import person_log_marginal_likelihood

__all__ = []


def predictions(study: Study) -> tuple[list[Check], Section]:
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
            | {f"{level:.0%} intervals hold": share_covered(at.pit, level) for level in LEVELS}
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
    return draw_figure(
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
        last.prob, last.choice, mask=~last.prob.isnan(), level=1 - LEVEL
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
    result = diagnostics.sbc_test(pit, sizes, prob=1 - LEVEL)
    worst = result.table.loc[result.table["p_value"].idxmin()]
    return [
        Check(
            "coverage of people's unseen choices",
            f"p = {result.p_value:.2g}"
            + (f", {worst['direction']} at {worst['group']}" if result.rejected else ""),
            f"p ≥ {LEVEL} over all sizes together",
            "fail" if result.rejected else "pass",
            REFIT if result.rejected else "use the intervals",
            True,
        )
    ]


def directions(study: Study) -> tuple[list[Check], Section]:
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


def behaviour(study: Study) -> tuple[list[Check], Section]:
    table = predictive_checks(
        study.model, study.data, num_replicates=400, level=LEVEL, seed=study.seed
    )
    tried = table[table["adjusted"].notna()]
    if tried.empty:
        raise NotPossibleError("no two people share a pair, and nobody has two comparisons")
    worst = tried["adjusted"].idxmin()
    good = tried.loc[worst, "adjusted"] >= LEVEL
    check = Check(
        "people simulated from the model behave alike",
        f"{worst}: p = {tried.loc[worst, 'adjusted']:.2g}, {tried.loc[worst, 'verdict']}",
        f"p ≥ {LEVEL}, adjusted for {len(tried)} comparisons",
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


def surprises(study: Study) -> tuple[list[Check], Section]:
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
            else "nothing",
            True,
        ),
        Check(
            "people whose draws cannot be relied upon",
            f"{len(unreliable)} of {len(table)}"
            + (f": {first_names(unreliable)}" if len(unreliable) else ""),
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


def another_objective(study: Study) -> tuple[list[Check], Section]:
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


def _continued(study: Study, steps: int) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    if study.train is None:
        raise NotPossibleError("pass train=, the people of the fit")
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


def seconds_of_another_objective(study: Study) -> float:
    start = time.perf_counter()
    _continued(study, 10)
    scoring = 4 * study.seconds * len(study.data)
    return (time.perf_counter() - start) / 10 * _REFIT_STEPS + scoring


@torch.no_grad()
def _spread(model: HeterogeneousBTL, study: Study) -> float:
    """Standard deviation between people of a pair's margin, in nats, the mean over 200 pairs."""
    rng = np.random.default_rng(study.seed)
    pairs = study.data.as_pairs()
    pairs = pairs.imagine(rng.integers(pairs.num_comparisons, size=(1, 200)))
    with seeded(study.seed):
        z = model.sample_population(1000, study.data).unsqueeze(1)
    return model.choice(pairs.batch().to(model.device), z).margin.std(0).mean().item()


def _log_evidence(model: HeterogeneousBTL, guide: NeuralProcessGuide, study: Study) -> torch.Tensor:
    """Log marginal likelihood of every person held out, in nats, with shape (U,), in one round."""
    draws = study.num_samples
    with seeded(study.seed):
        values, *_ = person_log_marginal_likelihood(
            model, guide, study.data, draws, target_error=math.inf, max_samples=draws
        )
    return values.cpu()


def seconds_of_predictions(study: Study) -> float:
    return 3 * study.seconds * len(study.data) * len(study.sizes)
