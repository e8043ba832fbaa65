"""The average person beside a model of individuals."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL

__all__ = ["fit_average"]


def fit_average(
    model: HeterogeneousBTL, data: Preferences, fit: Callable[..., object], *, seed: int
) -> HeterogeneousBTL:
    """Fits the homogeneous model with the utility, the answers and the units of another one.

    Args:
        model: The other model, with linear utility.
        data: The comparisons it was fitted to.
        fit: The function :func:`fssa_bayes.fit`.
        seed: Seed of the fit.
    """
    config = model.config | {"latent_dim": 0, "prior": "normal", "num_covariates": 0}
    config["personal"] = ()
    if model.utility.map.is_identity:  # Which coefficients differ, and how, says nothing of it.
        config = {k: v for k, v in config.items() if k not in ("coefficients", "correlation")}
    average = HeterogeneousBTL(**config).to(model.device)
    with torch.no_grad():
        for name in ("feature_mean", "feature_scale", "is_standardised"):
            getattr(average, name).copy_(getattr(model, name))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the model does not use the covariates")
        fit(average, None, data, seed=seed, progress_bar=False, processes=None)
    return average
