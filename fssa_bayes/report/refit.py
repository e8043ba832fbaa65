"""A check on real people by another fit, which can see an objective that shrinks differences."""

from __future__ import annotations

import copy
import math
import time

import numpy as np
import pandas as pd
import torch

from fssa_bayes._random import seeded
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference import ImportanceWeightedELBO, fit
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.report.page import Section
from fssa_bayes.report.study import Study, need_guide
from fssa_bayes.report.verdicts import NOTHING, Check, NotPossibleError
from fssa_bayes.sampling import person_log_marginal_likelihood

__all__ = [
    "check_another_objective",
    "continue_fit",
    "log_evidence",
    "seconds_of_another_objective",
    "spread_between_people",
]


def check_another_objective(study: Study) -> tuple[list[Check], Section]:
    """Continues the fit with another objective, and asks whether people held out gain by it."""
    model, guide = continue_fit(study, study.refit_steps)
    before = spread_between_people(study.model, study)
    after = spread_between_people(model, study)
    gain = log_evidence(model, guide, study) - log_evidence(study.model, study.guide, study)
    mean, error = gain.mean().item(), (gain.std() / len(gain) ** 0.5).item()
    good = mean <= 2.6 * error
    check = Check(
        "the fit continued with 64 particles",
        f"held-out people gain {mean:.4f} ± {error:.4f} nats each, their differences grow by "
        f"{100 * (after / before - 1):.1f} %",
        "no gain beyond 2.6 standard errors",
        "pass" if good else "fail",
        NOTHING
        if good
        else "the first fit had not found the maximum: fit with more steps and particles, "
        "objective=[ImportanceWeightedELBO(64), Sleep()]",
        True,
    )
    text = (
        "An objective that shrinks the differences between people passes every check on simulated "
        f"people. The fit was continued for {study.refit_steps} steps with another objective, the "
        "importance-weighted bound with 64 particles, and both fits were scored by the log "
        "marginal likelihood of the people held out. Differences are the standard deviation "
        "between people of the margin of a pair, the mean over pairs.",
    )
    table = pd.DataFrame(
        {
            "fit": ["as given", "continued"],
            "differences between people (nats)": [before, after],
            "held-out gain a person (nats)": ["–", f"{mean:.4f} ± {error:.4f}"],
        }
    )
    return [check], Section("Real people: another objective", text, table)


def continue_fit(study: Study, steps: int) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """Fits copies of model and guide for more steps, by the bound with 64 particles.

    Raises:
        NotPossibleError: If the people of the fit are not given, or are none that can be fitted to.
    """
    train = study.train
    if train is None:
        raise NotPossibleError("pass train=, the people of the fit")
    if len(train) < 2 or not (train.counts > 0).all():
        raise NotPossibleError("train must hold at least 2 people, all with comparisons")
    if study.model.has_ties and not train.half_wins.any():
        raise NotPossibleError("train must hold ties to fit a model with ties: ties='keep'")
    need_guide(study)
    model, guide = copy.deepcopy((study.model, study.guide))
    objective = ImportanceWeightedELBO(num_particles=64, steps=steps)
    fit(
        model,
        guide,
        train,
        objective=objective,
        validation=None,
        seed=study.seed,
        progress_bar=False,
    )
    return model, guide


def seconds_of_another_objective(study: Study) -> float:
    """Estimates the seconds of the check from the time of 10 steps."""
    start = time.perf_counter()
    continue_fit(study, 10)
    scoring = 4 * study.seconds * len(study.data)
    return (time.perf_counter() - start) / 10 * study.refit_steps + scoring


@torch.no_grad()
def spread_between_people(model: HeterogeneousBTL, study: Study) -> float:
    """Computes the standard deviation between people of a pair's margin, over 200 pairs."""
    rng = np.random.default_rng(study.seed)
    pairs = study.data.as_pairs()
    pairs = pairs.imagine(rng.integers(pairs.num_comparisons, size=(1, 200)))
    with seeded(study.seed):
        z = model.sample_population(1000, study.data).unsqueeze(1)
    return model.choice(pairs.batch().to(model.device), z).margin.std(0).mean().item()


def log_evidence(model: HeterogeneousBTL, guide: NeuralProcessGuide, study: Study) -> torch.Tensor:
    """Estimates the log marginal likelihood of every person held out, in nats, (U,)."""
    draws = study.num_samples  # One round: draws are not doubled until an error is reached.
    values, *_ = person_log_marginal_likelihood(
        model, guide, study.data, draws, math.inf, max_samples=draws, seed=study.seed
    )
    return values.cpu()
