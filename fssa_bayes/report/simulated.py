"""Checks on people simulated from the model, which judge guide and weights."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from fssa_bayes import diagnostics, plots
from fssa_bayes.checks import CalibrationStudy, calibrate, simulate_people
from fssa_bayes.posterior import Posterior
from fssa_bayes.report.page import Figure, Section
from fssa_bayes.report.study import NotPossibleError, Study, draw_figure, root_mean_square
from fssa_bayes.report.verdicts import LEVEL, REFINE, Check
from fssa_bayes.sampling import grid, score_draws

__all__ = []


SBC = "simulation-based calibration of the posterior"


def calibration(study: Study) -> tuple[list[Check], Section]:
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
        draw_figure(
            plots.sbc_ecdf_difference(
                pit[worst], band.points, band.lower, band.upper, calibration.quantities
            ),
            f"Corrected posterior, {known}, where it is farthest from even: distribution of the "
            "truth's place in the posterior, minus what an exact posterior shows. The band holds "
            "for all quantities and sizes together.",
        ),
        draw_figure(
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
        draw_figure(
            plots.contraction(size, calibration.contraction.flatten()),
            "What choices teach: share of the prior variance of a margin that is gone.",
        ),
        draw_figure(
            plots.pareto_k(calibration.pareto_k.flatten(), size),
            "Pareto k-hat of every simulated person: above .7 the guide misses part of the "
            "posterior, and importance weights cannot be relied upon.",
        ),
    ]


def _check_sbc(calibration: CalibrationStudy, posterior: str) -> Check:
    result = calibration.test(posterior, prob=1 - LEVEL)
    worst = result.table.loc[result.table["p_value"].idxmin()]
    where = f", {worst['direction']}: {worst['quantity']}, {worst['group']} known choices"
    is_guide = posterior == "guide"
    bad = "note" if is_guide else "fail"
    return Check(
        "simulation-based calibration of the guide alone" if is_guide else SBC,
        f"p = {result.p_value:.2g}" + (where if result.rejected else ""),
        f"p ≥ {LEVEL}, all quantities and sizes together",
        bad if result.rejected else "pass",
        REFINE if result.rejected else "nothing",
        False,
    )


def _check_coverage(calibration: CalibrationStudy) -> Check:
    table = calibration.coverage("corrected")
    limit = float(stats.norm.isf(LEVEL / 2 / len(table)))
    worst = table.loc[table["z"].abs().idxmax()]
    good = abs(worst["z"]) <= limit
    within = (table["z"].abs() <= 3).mean()
    return Check(
        "coverage of 50, 80 and 95 % intervals",
        f"{within:.1%} of {len(table)} within 3 standard errors, the worst {worst['z']:.1f} off",
        f"the worst within {limit:.1f}, the {LEVEL:.0%} limit of that many",
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


def gold_standard(study: Study) -> tuple[list[Check], Section]:
    if study.model.latent_dim > 2:
        raise NotPossibleError(
            "a grid needs at most 2 latent dimensions: compare a few people with exact.nuts"
        )
    rows = []
    for size in study.sizes:
        people = simulate_people(study.model, study.data, size, 100, seed=study.seed + 1)
        gold = grid(study.model, people.context, num=61)
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
                "corrected probabilities, rms off": root_mean_square(ours - theirs.mean),
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


def seconds_of_simulated(study: Study) -> float:
    return 2 * study.seconds * study.num_users * len(study.sizes)
