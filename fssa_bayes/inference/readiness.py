"""Checks of a fit's arguments before any work is done, and their defaults."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import (
    Preferences,
    check_unweighted,
    coarse_columns,
    constant_columns,
    covariate_rank,
    first_names,
)
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.inference.objectives import (
    ImportanceWeightedELBO,
    MaximumLikelihood,
    Objective,
    Sleep,
)
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population import (
    Separation,
    describe_divergence,
    describe_vanished,
    find_separation,
)

__all__ = [
    "check_options",
    "check_training_covariates",
    "check_training_data",
    "check_weights_are_used",
    "choose_stages",
    "choose_validation",
    "default_stages",
    "explain_validation",
    "warn_of_busy_people",
    "warn_of_divergence",
    "warn_of_separation",
    "warn_of_vanished_coefficients",
]

AUTO = "auto"
"""The value of `validation` and `processes` that leaves the choice to `fit`."""


def check_training_data(
    model: HeterogeneousBTL, guide: NeuralProcessGuide | None, data: Preferences
) -> None:
    """Raises a ValueError unless the model can be fitted to the people, and warns of idle columns.

    Args:
        model: The model.
        guide: Its guide; None if `latent_dim` is 0, or for the population of a mixed logit alone.
        data: The comparisons of the training people.
    """
    check_guide(model, guide, may_lack=model.is_mixed_logit)
    empty = np.flatnonzero(data.counts == 0)
    if len(empty):
        raise ValueError(
            f"every person must have comparisons, got none for user "
            f"{first_names(data.user_names[empty[:1]])} ({len(empty)} such people)"
        )
    if len(data) == 1 and model.latent_dim:
        raise ValueError(
            "a heterogeneous model needs at least 2 people to tell how they differ, got 1: "
            + ("use latent_dim=0" if model.personal is None else "use latent_dim=0 and personal=()")
        )
    if model.has_ties and not data.half_wins.any():
        dropped = f", {data.dropped_ties} having been dropped" if data.dropped_ties else ""
        raise ValueError(
            "data must have ties to fit a model with ties='davidson', got none in "
            f"{data.num_comparisons} comparisons{dropped}: read them with ties='keep'"
        )
    if model.latent_dim and not data.people_are_named:
        warnings.warn(
            "data name no people (user=None), so every row is taken for the only comparison of a "
            "person, which says next to nothing about how people differ: name them by user=, or "
            "use latent_dim=0",
            stacklevel=3,
        )
    if data.items is not None:
        check_columns("feature", "items", data.items, data.feature_names, stacklevel=4)
    if model.bias is not None:
        check_sides(data)
    check_training_covariates(model, data)


def check_options(
    learning_rate: float,
    population_learning_rate: float,
    checkpoint_interval: int,
    processes: str | None,
) -> None:
    """Raises a ValueError unless these arguments of `fit` are in range."""
    for argument, rate in (
        ("learning_rate", learning_rate),
        ("population_learning_rate", population_learning_rate),
    ):
        if not 0 < rate < math.inf:
            raise ValueError(f"{argument} must be positive, got {rate}")
    if not isinstance(checkpoint_interval, int) or checkpoint_interval < 1:
        raise ValueError(
            f"checkpoint_interval must be an integer of at least 1, got {checkpoint_interval!r}"
        )
    if processes not in (AUTO, None):
        raise ValueError(f"processes must be 'auto' or None, got {processes!r}")


def check_sides(data: Preferences) -> None:
    """Raises a ValueError unless either place won a comparison, so that a bias has an estimate."""
    won, names = data.choice, ("left", "right")
    alone = ~data.judgements.inside
    if data.side is not None:
        alone &= data.side != 0
        won = np.where(data.side == 1, won, 1 - won)
        names = "place of advantage", "other place"
        if not alone.any():
            raise ValueError(
                "position_bias=True needs comparisons with a side of 1 or -1, got 0 in all "
                f"{data.num_comparisons}: fit without position_bias"
            )
    won = won[alone]
    for value, place in zip((1, 0), names, strict=True):
        if len(won) and (won == value).all():
            hint = (
                ". Left and right are probably columns of winners and losers: read them by winner= "
                "and loser=, and"
            )
            raise ValueError(
                f"position_bias=True needs comparisons that either side won, got the {place} as "
                f"winner of all {len(won)}, which say nothing about a bias"
                f"{hint if data.side is None else ':'} fit without position_bias"
            )


def warn_of_separation(model: HeterogeneousBTL, data: Preferences) -> Separation | None:
    """Warns by name of estimates that separated choices put at infinity.

    Returns:
        The separation; None where it is not looked for.
    """
    if not model.utility.is_linear or model.penalty:
        return None
    separation = find_separation(model, data)
    if not separation:
        return separation
    warnings.warn(
        f"choices are separated, so that the likelihood has no maximum: {separation.message}. "
        "What the fit gives for these says where it stopped; estimates and errors of the others "
        "stand. Remedies: leave them out, or ask for more comparisons; where everybody is alike "
        "(latent_dim=0), penalty=0.5 of HomogeneousBTL and HeterogeneousBTL (--penalty 0.5 of "
        "`fssa-bayes rank` and `analyse`) keeps all estimates finite",
        stacklevel=3,
    )
    return separation


def warn_of_divergence(model: HeterogeneousBTL, data: Preferences) -> None:
    """Warns by name of estimates that ran off to infinity in a fit with lapses."""
    if message := describe_divergence(model, data):
        warnings.warn(
            "the likelihood of choices with lapses has no maximum here, as it counts answers "
            f"against large margins as lapses: {message}. What the fit gives for these says where "
            "it stopped. A remedy: penalty=0.5 keeps utilities finite, or a fit without lapses",
            stacklevel=3,
        )


def warn_of_vanished_coefficients(model: HeterogeneousBTL, data: Preferences) -> None:
    """Warns by name of log-normal coefficients, or a price, that are estimated at 0."""
    if message := describe_vanished(model, data):
        warnings.warn(message, stacklevel=3)


def check_columns(
    column: str, rows: str, table: Tensor, names: pd.Index, *, stacklevel: int
) -> None:
    """Warns of columns that are constant, or that vary by little more than their storage rounds.

    Args:
        column: What messages call a column.
        rows: What messages call the rows.
        table: The table.
        names: Names of its columns.
        stacklevel: As of `warnings.warn`, for a call from here.
    """
    kind = "single" if table.dtype == torch.float32 else "double"
    constant = names[constant_columns(table).numpy()].tolist()
    if constant:
        stored = " in single precision" if kind == "single" else ""
        warnings.warn(
            f"{column} {constant[0]!r} is the same for all {rows}{stored} ({len(constant)} such "
            f"{column}s): the data say nothing about its effect",
            stacklevel=stacklevel,
        )
    coarse = coarse_columns(table).numpy()
    if coarse.any():
        first = int(np.flatnonzero(coarse)[0])
        low, high = table[:, first].min().item(), table[:, first].max().item()
        warnings.warn(
            f"{column} {first_names(names[[first]])} varies by {high - low:.2g} around {low:.6g}, "
            f"of which {kind} precision keeps few digits ({int(coarse.sum())} such {column}s): "
            "subtract a constant from it before it is stored",
            stacklevel=stacklevel,
        )


def check_training_covariates(model: HeterogeneousBTL, data: Preferences) -> None:
    """Warns of covariates that are not used, constant or collinear."""
    if data.covariates is None:
        return
    if not model.num_covariates:
        warnings.warn("the model does not use the covariates of the people in data", stacklevel=4)
        return
    table = data.covariates.double()
    centred = table - table.mean(0)
    spread = ~constant_columns(table)
    check_columns("covariate", "people", data.covariates, data.covariate_names, stacklevel=5)
    varied = centred[:, spread]
    rank = covariate_rank(varied)
    if rank < varied.shape[1]:
        names = first_names(data.covariate_names[spread.numpy()])
        warnings.warn(
            f"the {varied.shape[1]} covariates {names} of {len(data)} people are collinear, of "
            f"rank {rank}: effects of one with the others held fixed are not identified "
            "and have no standard errors",
            stacklevel=4,
        )


def choose_stages(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    objective: Objective | Sequence[Objective] | None,
    steps: int | None,
    batch_size: int | None,
) -> list[Objective]:
    """Lists the stages of a fit, each a copy with the steps and batch size asked for.

    Args:
        model: The model.
        guide: Its guide, or None.
        objective: One objective or a list of them; None for :func:`default_stages`, or for maximum
            likelihood alone without a guide.
        steps: Steps of every stage, in place of the objectives' own.
        batch_size: People in a batch, in place of the objectives' own.

    Raises:
        TypeError: If `objective` is something else.
        ValueError: If a number is below 1, a homogeneous model is given another objective, or an
            objective lacks its guide.
    """
    if model.latent_dim == 0:
        if not (objective is None or isinstance(objective, MaximumLikelihood)):
            raise ValueError(
                f"objective must be MaximumLikelihood or None for latent_dim=0, got {objective!r}"
            )
        own = None if objective is None else objective.steps
        return [MaximumLikelihood(steps=own if steps is None else steps)]
    if objective is None:
        stages = [MaximumLikelihood()] if guide is None else default_stages(model)
    else:
        stages = list(objective) if isinstance(objective, Sequence) else [objective]
    if not stages or not all(isinstance(stage, Objective) for stage in stages):
        raise TypeError(f"objective must be an Objective or a list of them, got {objective!r}")
    if any(isinstance(stage, MaximumLikelihood) for stage in stages) and not model.is_mixed_logit:
        raise ValueError(
            "MaximumLikelihood of a model with latent factor needs utility='linear' and "
            f"prior='normal', got utility={model.config['utility']!r} and "
            f"prior={model.config['prior']!r}: ImportanceWeightedELBO serves any model"
        )
    if guide is None and (others := [s for s in stages if not isinstance(s, MaximumLikelihood)]):
        raise ValueError(
            f"guide must be given for {others[0].name}; without a guide the population alone is "
            "fitted, by MaximumLikelihood"
        )
    stages = [copy.copy(stage) for stage in stages]
    for stage in stages:
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if value is not None:
                if not isinstance(value, int) or value < 1:
                    raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
                setattr(stage, name, value)
    return stages


def check_weights_are_used(stages: Sequence[Objective], data: Preferences) -> None:
    """Raises a ValueError if people have weights that a stage would ignore."""
    for stage in stages:
        if not stage.weighs_people:
            check_unweighted(data, stage.name)


def warn_of_busy_people(stages: Sequence[Objective], data: Preferences) -> None:
    """Names the people who have more comparisons than contexts of a stage's steps are made for."""
    for stage in stages:
        most = stage.most_judgements(data) if isinstance(stage, Sleep) else math.inf
        busy = data.user_names[2 * data.judgement_counts > most]
        if len(busy):
            warnings.warn(
                f"{stage.name} simulates contexts of at most {most:,} {data.judgements.noun}, as "
                "memory is proportional to the largest. More than half of that (up to "
                f"{data.judgement_counts.max():,}) have the people {first_names(busy)}. A smaller "
                "batch_size allows larger contexts",
                stacklevel=3,
            )


def default_stages(model: HeterogeneousBTL) -> list[Objective]:
    """Lists the stages of a heterogeneous model: maximum likelihood where there is one."""
    if not model.is_mixed_logit:
        return [ImportanceWeightedELBO(), Sleep()]
    # Effective sample size of the guide's draws on the train-choice data after 500, 1,000 and 2,500
    # steps: .55, .72 and .80 given all choices, .75, .83 and .87 given five.
    return [MaximumLikelihood(), Sleep(steps=1000)]


def choose_validation(
    model: HeterogeneousBTL, data: Preferences, validation: float | str | None
) -> float | None:
    """Returns the share of the people who are held out, or None.

    Args:
        model: The model.
        data: The comparisons of the training people.
        validation: A share, None or `"auto"`: None for the linear utility and .1 for the others.

    Raises:
        ValueError: If the share is out of range, or the people are fewer than 10.
    """
    if validation == AUTO:
        validation = None if model.utility.is_linear else 0.1
    if validation is not None and not 0 < validation < 1:
        raise ValueError(f"validation must lie between 0 and 1 or be None, got {validation}")
    if validation is not None and len(data) < 10:
        raise ValueError(
            f"validation={validation} (the default but for the linear utility) needs at least 10 "
            f"people, got {len(data)}: pass validation=None"
        )
    return validation


def explain_validation(asked: float | str | None, chosen: float | None) -> str:
    """Says why nobody was held out; nothing if somebody was.

    Args:
        asked: The argument `validation` of a fit.
        chosen: What :func:`choose_validation` made of it.
    """
    if chosen is not None:
        return ""
    if asked == AUTO:
        return (
            "nobody was held out: validation='auto' fits everybody where the utility is linear; "
            "pass a share, such as validation=0.1"
        )
    return "nobody was held out: validation=None fits everybody; pass a share, such as 0.1"
