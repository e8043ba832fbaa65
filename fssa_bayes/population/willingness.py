"""What a population is willing to pay."""

from __future__ import annotations

from collections.abc import Hashable

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.population.sampled import population_draws
from fssa_bayes.posterior import find_price, payments

__all__ = ["willingness_to_pay"]


@torch.no_grad()
def willingness_to_pay(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    price: Hashable = None,
    *,
    level: float = 0.9,
    num_draws: int = 4096,
    num_populations: int = 100,
    num_samples: int = 1024,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Tabulates the distribution over people of −β_k / β_price, what a unit of a feature is worth.

    The ratio of normal coefficients has no mean, so that quantiles are given. Their standard errors
    are deviations over populations drawn by :func:`population_draws`.

    Args:
        model: A fitted model with linear utility and normal prior.
        guide: Its guide; None if `latent_dim` is 0.
        data: The comparisons the model was fitted to.
        price: Name of the feature that is the price; None for that of a model in
            willingness-to-pay space.
        level: Share of the people between `lower` and `upper`.
        num_draws: Number of people drawn from each population.
        num_populations: Number of populations.
        num_samples: Draws of each training person's z, for the standard errors.
        seed: Seed of the draws.

    Returns:
        One row a feature other than the price, in units of the price for a unit of the feature, of
        people with average covariates. Columns: `median`, `lower` and `upper`, each followed by its
        standard error (`se_median`, …); `price_positive`, the share of people with a price
        coefficient above 0, whose ratios mean nothing, and `se_price_positive`.

    Raises:
        ValueError: If the model is not linear with a normal prior, the price is no feature, or
            not named and the model in preference space, or `level` is not between 0 and 1.

    References:
        Train & Weeks (2005), Discrete choice models in preference space and willingness-to-pay
        space.
    """
    data = align(model, data)
    place = find_price(model, data, price, level, "willingness_to_pay()")
    populations = population_draws(
        model, guide, data, num=num_populations, num_samples=num_samples, seed=seed
    )
    noise = torch.quasirandom.SobolEngine(max(model.latent_dim, 1), scramble=True, seed=seed)
    noise = noise.draw(num_draws, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    noise = torch.special.ndtri(noise)[:, : model.latent_dim]
    tail = (1 - level) / 2
    levels = torch.tensor([0.5, tail, 1 - tail], dtype=torch.float64)

    def describe(member: HeterogeneousBTL) -> Tensor:
        beta = member.average_coefficients(noise).cpu()
        quantiles = torch.quantile(payments(beta, place), levels, dim=0)
        positive = (beta[:, place] > 0).double().mean().expand(1, quantiles.shape[1])
        return torch.cat([quantiles, positive])

    estimate = describe(model)
    error = torch.stack([describe(member) for member, _ in populations.members]).std(0)
    columns = {}
    for row, name in enumerate(("median", "lower", "upper", "price_positive")):
        columns[name], columns[f"se_{name}"] = estimate[row].numpy(), error[row].numpy()
    return pd.DataFrame(columns, index=data.feature_names.delete(place).rename("feature"))
