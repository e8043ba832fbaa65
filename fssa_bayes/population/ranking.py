"""Items ranked by a homogeneous linear model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences, canonical_names, find_names
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.population.information import population_information
from fssa_bayes.population.parameters import check_num_parameters
from fssa_bayes.population.standard_errors import find_unidentified, invert_information

__all__ = ["draw_ranks", "ranking_table"]

_NORMAL_95 = 1.6448536269514722  # 95 % quantile of the standard normal.


def ranking_table(
    model: HeterogeneousBTL,
    data: Preferences,
    items: Sequence | None = None,
    *,
    groups: Sequence | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Ranks items by a homogeneous linear model, with standard errors clustered by person.

    Args:
        model: A fitted model with `latent_dim=0` and linear utility.
        data: The comparisons the model was fitted to.
        items: Names of the items to rank; all if None.
        groups: A label for each of the items, which are then centred and ranked within their
            group, as where groups were never compared with each other.
        num_draws: Draws of the coefficients from the estimate's normal approximation, for ranks.
        seed: Seed of the draws.

    Returns:
        One row an item (index `item`), the best first, group by group. Columns: `group` where there
        are groups; `utility`, centred over the items ranked, in nats; `standard_error`, the
        sandwich with people as clusters; `lower` and `upper`, a 90 % interval; `rank`, from 1;
        `rank_lower` and `rank_upper`, the 5 % and 95 % quantiles of the rank. Errors and intervals
        are NaN where the data do not identify an item's place among those ranked, as across
        components of the comparison graph.

    Raises:
        ValueError: If the model is heterogeneous or not linear, an item is unknown, or there are
            too many coefficients for a dense information matrix.

    References:
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    if not model.utility.is_linear or model.latent_dim:
        raise ValueError(
            "ranking() needs utility='linear' and latent_dim=0, whose maximum of the likelihood "
            f"has a standard error, got utility={model.config['utility']!r} and "
            f"latent_dim={model.latent_dim}"
        )
    check_num_parameters("ranking()", model.num_features)
    data = align(model, data)
    names = data.item_names if items is None else canonical_names("items", items)
    position = find_names(names, data.item_names)
    if len(names) == 0 or (position < 0).any():
        unknown = names[position < 0][:1].tolist()
        raise ValueError(f"items must be known names, at least one, got {unknown}")
    if groups is not None and len(groups) != len(names):
        raise ValueError(f"groups must have one label an item, {len(names)}, got {len(groups)}")
    rotation = torch.zeros(0, 0, dtype=torch.float64)
    outer, information = population_information(model, None, data, rotation, 1, seed)
    inverse = invert_information(information)  # Places that are not identified become NaN below.
    covariance = inverse @ outer @ inverse

    if data.items is None:
        design = torch.eye(data.num_items, dtype=torch.float64)[position]
    else:
        design = model.standardise(data.items[position].to(model.device)).double().cpu()
    members = [np.arange(len(names))]
    if groups is not None:
        members = list(pd.Series(groups).groupby(groups, sort=False).indices.values())
    for rows in members:
        design[rows] -= design[rows].mean(0)
    utility = design @ model.utility.mean.detach().double().cpu()
    design = torch.nn.functional.pad(design, (0, len(inverse) - design.shape[1]))
    # A square root of the sandwich covariance, whatever its rank.
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root = design @ (vectors * eigenvalues.clamp(min=0).sqrt())
    error = root.square().sum(-1).sqrt()
    rank, ranks = draw_ranks(utility, root, members, num_draws, seed)
    table = pd.DataFrame(
        {
            "utility": utility,
            "standard_error": error,
            "lower": utility - _NORMAL_95 * error,
            "upper": utility + _NORMAL_95 * error,
            "rank": rank,
            "rank_lower": ranks.quantile(0.05, -1, interpolation="nearest"),
            "rank_upper": ranks.quantile(0.95, -1, interpolation="nearest"),
        },
        index=names.rename("item"),
    )
    unknown = find_unidentified(design, inverse, information, share=1e-6).numpy()
    table.loc[unknown, ["standard_error", "lower", "upper", "rank_lower", "rank_upper"]] = np.nan
    if groups is None:
        return table.sort_values("rank")
    table.insert(0, "group", np.asarray(groups))
    return table.iloc[np.concatenate([rows[rank[rows].argsort()] for rows in members])]


def draw_ranks(
    utility: Tensor, root: Tensor, members: Sequence[np.ndarray], num_draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Ranks items by their utilities, and by normal draws of the utilities.

    Args:
        utility: Estimates with shape (M,).
        root: A square root of their covariance, with shape (M, P).
        members: Positions of the items of each group. Items are ranked within their group.
        num_draws: Number of draws.
        seed: Seed of the draws.

    Returns:
        Ranks by the estimates, from 1, with shape (M,), and by the draws, (M, num_draws).
    """
    noise = torch.randn(
        root.shape[1], num_draws, generator=torch.Generator().manual_seed(seed), dtype=root.dtype
    )
    draws = torch.cat([utility.unsqueeze(-1), utility.unsqueeze(-1) + root @ noise], -1)
    ranks = torch.empty_like(draws)
    for rows in members:
        ranks[rows] = 1 + (-draws[rows]).argsort(0).argsort(0).double()
    return ranks[:, 0].long(), ranks[:, 1:]
