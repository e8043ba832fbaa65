"""Checks on people simulated from the model, which judge guide and weights."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from fssa_bayes import diagnostics, plots
from fssa_bayes.checks import CalibrationStudy, calibrate, simulate_people
from fssa_bayes.posterior import Posterior
from fssa_bayes.report.page import Figure, Section
from fssa_bayes.report.study import Study, draw_figure, need_guide
from fssa_bayes.report.verdicts import LEVEL, NOTHING, REFINE, Check, NotPossibleError
from fssa_bayes.report.words import with_headings
from fssa_bayes.sampling import MOST_PARETO_K, draw_posterior, grid, score_draws

__all__ = [
    "JOINT_PEOPLE",
    "SBC",
    "check_against_grid",
    "check_calibration",
    "check_joint_coverage",
    "draw_calibration",
    "judge_coverage",
    "judge_ess",
    "judge_guide_coverage",
    "judge_sbc",
    "judge_weights",
]

SBC = "simulation-based calibration of the posterior"
"""Name of the check that decides whether the posteriors are those of the fitted model."""

JOINT_PEOPLE = 500
"""People simulated at each number of known choices for the check of joint coverage, at most."""

_MOST_K = f"{MOST_PARETO_K:g}".removeprefix("0")


def check_calibration(study: Study) -> tuple[list[Check], Section]:
    """Studies the posteriors of people simulated from the model, by number of known choices."""
    calibration = calibrate(
        study.model,
        study.guide,
        study.data,
        sizes=study.sizes,
        num_users=study.num_users,
        num_samples=study.num_samples,
        seed=study.seed,
    )
    of_guide = []
    if study.guide is not None:
        of_guide = [
            judge_sbc(calibration, "guide"),
            judge_guide_coverage(calibration),
            judge_ess(calibration),
        ]
    checks = [
        judge_sbc(calibration, "corrected"),
        judge_coverage(calibration),
        *of_guide,
        judge_weights(calibration),
    ]
    tested = calibration.test("corrected").table
    table = tested.drop(columns=["users", "mean", "variance"])
    table = with_headings(table, group="known choices")
    text = (
        "The true values of people simulated from the fitted model must be spread evenly over "
        "their posteriors. These checks judge guide and importance weights; a wrong model passes "
        "them. In the table, scale is the posterior's standard deviation as a share of what it "
        "should be, and shift is the truth's mean distance from the posterior, in standard "
        "deviations.",
    )
    return checks, Section(
        "Simulated people: calibration", text, table, draw_calibration(calibration, tested)
    )


def draw_calibration(calibration: CalibrationStudy, tested: pd.DataFrame) -> list[Figure]:
    """Draws ranks, coverage, contraction and Pareto k-hat."""
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
            "Pareto k-hat of the importance weights of every simulated person: above "
            f"{_MOST_K} the weights cannot be relied upon.",
        ),
    ]


def judge_sbc(calibration: CalibrationStudy, posterior: str) -> Check:
    """Asks whether true values are spread evenly over the `"corrected"` or `"guide"` posterior."""
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
        REFINE if result.rejected else NOTHING,
        False,
    )


def judge_coverage(calibration: CalibrationStudy) -> Check:
    """Asks whether intervals of the corrected posterior hold the truth as often as they say."""
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
        NOTHING if good else REFINE,
        False,
    )


def judge_guide_coverage(calibration: CalibrationStudy) -> Check:
    """Asks whether intervals of the guide alone hold the truth as often as they say."""
    table = calibration.coverage("guide")
    off = (table["covered"] - table["level"]).abs().max()
    good = off <= 0.04
    return Check(
        "coverage of the guide alone",
        f"{100 * off:.1f} points off at the worst",
        "4 points",
        "pass" if good else "note",
        NOTHING if good else f"rely on the corrected posterior only, or {REFINE}",
        False,
    )


def judge_ess(calibration: CalibrationStudy) -> Check:
    """Asks how many of the guide's draws the importance weights waste."""
    ess = calibration.guide_relative_ess.mean(-1)
    worst = int(ess.argmin())
    good = ess[worst] >= 0.5
    return Check(
        "effective share of the guide's draws",
        f"{ess[worst]:.2f} on average at {calibration.sizes[worst]} known choices, the worst",
        "at least .5 (.85 is good)",
        "pass" if good else "note",
        NOTHING if ess[worst] >= 0.85 else f"right but wasteful: {REFINE}",
        False,
    )


def judge_weights(calibration: CalibrationStudy) -> Check:
    """Asks for how many people importance weights cannot be relied upon."""
    share = 1 - calibration.reliable.mean(-1)
    worst = int(share.argmax())
    good = share[worst] <= 0.01
    return Check(
        "simulated people whose draws cannot be relied upon",
        f"{share[worst]:.1%} at {calibration.sizes[worst]} known choices, the worst",
        "at most 1 %",
        "pass" if good else "note",
        NOTHING if good else f"look at posterior.reliable of every new person, or {REFINE}",
        False,
    )


def check_against_grid(study: Study) -> tuple[list[Check], Section]:
    """Compares guide and corrected posterior with exact posteriors on a grid."""
    if study.model.latent_dim > 2:
        raise NotPossibleError(
            "a grid needs at most 2 latent dimensions: compare a few people with exact.nuts"
        )
    need_guide(study)
    rows = []
    for size in study.sizes:
        people = simulate_people(study.model, study.data, size, 100, seed=study.seed + 1)
        gold = grid(study.model, people.context, num=61)
        log_guide = score_draws(study.guide, people.context, gold.z).double()
        # The grid's weights are posterior density times volume.
        log_density = gold.log_joint.double() - gold.log_evidence.double()
        volume = (gold.log_weights.double() - log_density).exp()
        divergence = diagnostics.kl_to_grid(log_density, log_guide, volume)
        ours = study.posterior(people.context, 4000).choice_prob(people.target).mean
        theirs = Posterior.from_draws(study.model, people.context, gold).choice_prob(people.target)
        distance = (ours - theirs.mean).square().nanmean().sqrt()
        rows.append(
            {
                "known choices": size,
                "KL(exact ‖ guide), nats": divergence.mean().item(),
                "standard error": (divergence.std() / len(divergence) ** 0.5).item(),
                "corrected probabilities, rms off": distance.item(),
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
            NOTHING if worst.iloc[1] <= 0.1 else REFINE,
            False,
        ),
        Check(
            "corrected choice probabilities against exact ones",
            f"{off:.4f} in root mean square at the worst size",
            "at most .02",
            "pass" if off <= 0.02 else "fail",
            NOTHING if off <= 0.02 else REFINE,
            False,
        ),
    ]
    text = ("100 simulated people at each size, against their exact posteriors on a grid.",)
    return checks, Section("Simulated people: exact posteriors", text, table)


def check_joint_coverage(study: Study) -> tuple[list[Check], Section]:
    """Asks whether the corrected posterior covers the true z, all latent factors together."""
    need_guide(study)
    people = min(study.num_users, JOINT_PEOPLE)
    results = []
    for size in study.sizes:
        known = simulate_people(study.model, study.data, size, people, seed=study.seed + 2)
        z, log_weights = study.posterior(known.context).proposals
        # A reference point has to depend on the context, and not on the draws that are tested.
        reference = draw_posterior(
            study.model, study.guide, known.context, 1, seed=study.seed + 1, correct=None
        ).z[0]
        share = LEVEL / len(study.sizes)
        results.append(
            diagnostics.tarp(z, log_weights, known.z, reference, prob=1 - share, seed=study.seed)
        )
    table = pd.DataFrame(
        {
            "known choices": study.sizes,
            "p": [result.p_value for result in results],
            "largest distance from the level": [
                float(np.abs(result.coverage - result.level).max()) for result in results
            ],
        }
    )
    p_value = min(1.0, len(results) * table["p"].min())
    worst = study.sizes[int(table["p"].idxmin())]
    good = not any(result.rejected for result in results)
    check = Check(
        "joint coverage of the latent factors (TARP)",
        f"p = {p_value:.2g}" + ("" if good else f", the worst at {worst} known choices"),
        f"p ≥ {LEVEL}, all sizes together",
        "pass" if good else "note",
        NOTHING if good else REFINE,
        False,
    )
    first = results[0]
    figure = draw_figure(
        plots.coverage_curve(
            first.level,
            np.stack([result.coverage for result in results], -1),
            first.lower,
            first.upper,
            [f"{size} known" for size in study.sizes],
            band_name="exact",
        ),
        "Corrected posterior: how often a ball around a reference point holds the true z, against "
        "the posterior mass of the ball. Curves of an exact posterior stay in the band.",
    )
    text = (
        f"{people} people simulated at each size. A ball around a reference point, one draw of the "
        "guide for that person, is as large as the distance to the true z; its posterior mass is "
        "spread evenly if the posterior is right. This sees a posterior whose latent factors are "
        "wrong together, even where each single margin is covered. A wrong model passes.",
    )
    return [check], Section("Simulated people: joint coverage", text, table, [figure])
