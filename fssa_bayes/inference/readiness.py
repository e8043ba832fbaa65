"""What a fit asks of its arguments before any work is done."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import numpy as np

from fssa_bayes.data import Preferences, covariate_rank
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.inference.objectives import (
    ImportanceWeightedELBO,
    MaximumLikelihood,
    Objective,
    Sleep,
)
from fssa_bayes.model import HeterogeneousBTL, some_names

__all__ = []


def check_training_data(
    model: HeterogeneousBTL, guide: NeuralProcessGuide | None, data: Preferences
) -> None:
    check_guide(model, guide)
    empty = np.flatnonzero(data.counts == 0)
    if len(empty):
        raise ValueError(
            f"every person must have comparisons, got none for user "
            f"{data.user_names[empty[0]]!r} ({len(empty)} such people)"
        )
    if len(data) == 1 and model.latent_dim:
        raise ValueError(
            "a heterogeneous model needs at least 2 people to tell how they differ, got 1: "
            "use latent_dim=0"
        )
    if model.has_ties and not data.half_wins.any():
        dropped = f", {data.dropped_ties} having been dropped" if data.dropped_ties else ""
        raise ValueError(
            "data must have ties to fit a model with ties='davidson', got none in "
            f"{data.num_comparisons} comparisons{dropped}: read them with ties='keep'"
        )
    constant = [] if data.items is None else data.feature_names[(data.items.std(0) == 0).numpy()]
    if len(constant):
        warnings.warn(
            f"feature {constant[0]!r} is the same for all items ({len(constant)} such features): "
            "the data say nothing about its effect",
            stacklevel=3,
        )
    _check_training_covariates(model, data)


def _check_training_covariates(model: HeterogeneousBTL, data: Preferences) -> None:
    """Warns of covariates that have no effect, or none of their own."""
    if data.covariates is None:
        return
    if not model.num_covariates:
        warnings.warn("the model does not use the covariates of the people in data", stacklevel=4)
        return
    table = data.covariates.double()
    centred = table - table.mean(0)
    spread = centred.abs().amax(0) > 1e-6 * table.abs().amax(0)
    if not spread.all():
        constant = data.covariate_names[(~spread).numpy()]
        warnings.warn(
            f"covariate {constant[0]!r} is the same for all people ({len(constant)} such "
            "covariates): the data say nothing about its effect",
            stacklevel=4,
        )
    varied = centred[:, spread]
    rank = covariate_rank(varied)
    if rank < varied.shape[1]:
        names = some_names(data.covariate_names[spread.numpy()])
        warnings.warn(
            f"the {varied.shape[1]} covariates {names} of {len(data)} people are collinear, of "
            f"rank {rank}: effects of one with the others held fixed are not identified "
            "and have no standard errors",
            stacklevel=4,
        )


def choose_stages(
    model: HeterogeneousBTL,
    objective: Objective | Sequence[Objective] | None,
    steps: int | None,
    batch_size: int | None,
) -> list[Objective]:
    if model.latent_dim == 0:
        if objective is not None:
            raise ValueError(
                "objective must be None for latent_dim=0, which is fitted by maximum likelihood, "
                f"got {objective!r}"
            )
        return [MaximumLikelihood(steps=steps)]
    if objective is None:
        stages = _default_stages(model)
    else:
        stages = list(objective) if isinstance(objective, Sequence) else [objective]
    if not stages or not all(isinstance(stage, Objective) for stage in stages):
        raise TypeError(f"objective must be an Objective or a list of them, got {objective!r}")
    stages = [copy.copy(stage) for stage in stages]
    for stage in stages:
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if value is not None:
                if not isinstance(value, int) or value < 1:
                    raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
                setattr(stage, name, value)
    return stages


def _default_stages(model: HeterogeneousBTL) -> list[Objective]:
    if not model.utility.is_linear:
        return [ImportanceWeightedELBO(), Sleep()]
    # A likelihood is quoted from a linear fit, so its bound must be tight. Many particles starve
    # the guide of gradient; taught by Sleep first, it needs fewer (train-choice data: effective
    # sample size .25 to .49 with 128 particles alone, .52 to .59 with 64 after Sleep).
    return [
        ImportanceWeightedELBO(16, steps=600),
        Sleep(steps=300),
        ImportanceWeightedELBO(64, steps=1100, batch_size=128),
        Sleep(steps=500),
    ]
