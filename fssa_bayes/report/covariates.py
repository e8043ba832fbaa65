"""The part of an analysis that tells what covariates do."""

from __future__ import annotations

import numpy as np

from fssa_bayes.data import Preferences
from fssa_bayes.inference import FitResult, ImportanceWeightedELBO
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population import covariate_effects
from fssa_bayes.report.alternatives import has_own_items
from fssa_bayes.report.page import Section
from fssa_bayes.report.people import common_items
from fssa_bayes.report.words import with_headings

__all__ = ["describe_covariates"]

_MAX_SHOWN = 12  # Items whose utilities are set against covariates.
_REFITS = 10  # Fits to people drawn with replacement, for standard errors of networks.
_MAX_COEFFICIENTS = 1500  # Most coefficients whose standard errors need no refits.


def describe_covariates(
    model: HeterogeneousBTL, data: Preferences, result: FitResult | None, steps: int, seed: int
) -> Section:
    """Tabulates what covariates do to utilities, and to the coefficients where these are few.

    Args:
        model: The model of individual people.
        data: All people, with covariates.
        result: The fit of the model; None where it was fitted before, and errors cannot be had.
        steps: Steps of each objective of that fit.
        seed: Seed of draws and refits.
    """
    heading = "What do covariates do?"
    if not model.num_covariates:
        return Section(heading, ["The model does not use the covariates of the people."])
    data = data.for_model(model)
    text = [
        "Covariates say where a person's tastes are to be expected before any choice: the gain at "
        "0 known choices, above, is what they predict."
    ]
    linear = model.utility.is_linear
    unknown, parts = np.zeros(model.num_covariates, dtype=bool), []
    if linear and result is not None and data.items is not None and data.num_features <= 30:
        effects = result.population(seed=seed).loc["effect"]
        missing = effects["se_sandwich"].isna().to_numpy()
        unknown = missing.reshape(model.num_covariates, -1).all(1)
        spanned = (
            f" With {model.latent_dim} latent dimensions effects lie in the directions in which "
            f"people differ ({data.num_features} latent dimensions leave them free)."
        )
        why = (
            "Change of the mean coefficient with a unit of the covariate, in nats per unit of the "
            "feature, the other covariates held fixed; errors are sandwich, with people as "
            f"clusters.{spanned if model.latent_dim < data.num_features else ''}"
        )
        table = effects[["estimate", "se_sandwich"]].rename_axis("effect").reset_index()
        table = with_headings(table)
        parts.append(Section("On coefficients", [why], table))
    items = common_items(data, _MAX_SHOWN)
    if has_own_items(data) or len(items) < 2:
        return Section(heading, text, parts=parts)
    small = model.num_features * (1 + model.latent_dim) <= _MAX_COEFFICIENTS
    draws, errors = None, "They have no standard errors: those need the people of the fit."
    if result is not None and linear and small:
        draws = result.population_draws(seed=seed)
        errors = (
            "Standard errors: normal approximation with the sandwich covariance; – for covariates "
            "none of whose effects above has one."
        )
    elif result is not None:
        objective = ImportanceWeightedELBO(16, steps=max(10, steps // 6))
        draws = result.bootstrap(_REFITS, seed=seed, objective=objective, validation=None)
        errors = (
            f"Standard errors: the spread of {_REFITS} refits to people drawn with replacement, "
            "themselves known to a quarter."
        )
    effects = covariate_effects(model, data, items, population=draws, seed=seed)
    if (
        linear and small
    ):  # Draws hold unidentified parameters at their estimates: no standard error.
        effects.loc[np.repeat(unknown, len(items)), ["utility_se", "wins_se"]] = np.nan
    why = (
        f"Change with a unit of the covariate, averaged over people, for the {len(items)} items "
        "compared most often: of the average utility, centred over these items, in nats; and of "
        "the probability that the item wins against another of them. All else, and the other "
        f"covariates, held fixed; associations, not causes. {errors}"
    )
    # The largest effect of one standard deviation of the covariate stands first.
    typical = data.covariates.std(0).repeat_interleave(len(items)).numpy()
    order = np.argsort(-(effects["wins"] * typical).abs().to_numpy())
    shown = with_headings(
        effects.iloc[order].head(12).reset_index(),
        utility="change of utility (nats)",
        wins="change of the probability of winning",
    )
    parts.append(Section("On items", [why], shown))
    return Section(heading, text, files={"covariates.csv": effects}, parts=parts)
