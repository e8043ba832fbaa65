"""Items ranked by a homogeneous linear model."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor

from fssa_bayes.data import Preferences, canonical_names, find_names
from fssa_bayes.model import HeterogeneousBTL, align, positions
from fssa_bayes.population.estimates import Estimates
from fssa_bayes.population.parameters import check_num_parameters, estimate_parameters

__all__ = ["draw_ranks", "item_estimates", "ranking_table", "with_tails"]

SCALES = {"nats": (1.0, 0.0), "elo": (400 / np.log(10), 1500.0)}
"""Units of a nat, and where 0 lies, of the scales of a ranking."""

_EQUAL = 1e-9  # Nats within which utilities are the same.
_MOST_PAIRS = 500  # Of items without a finite utility, whose order is looked up.
_SHARE = 1e-6  # Of the derivative of a utility: more without information, and it is not identified.


def ranking_table(
    model: HeterogeneousBTL,
    data: Preferences,
    items: Sequence | None = None,
    *,
    groups: Sequence | None = None,
    reference: Hashable | None = None,
    kind: str | None = None,
    level: float = 0.9,
    p_values: bool = False,
    num_draws: int = 1000,
    seed: int = 0,
    scale: str = "nats",
    sets: bool = False,
) -> pd.DataFrame:
    """Ranks items by a homogeneous linear model, with standard errors clustered by person.

    Args:
        model: A fitted model with `latent_dim=0` and linear utility.
        data: The comparisons the model was fitted to.
        items: Names of the items to rank; all if None.
        groups: A label for each of the items, which are then centred and ranked within their
            group. None is the connected components of the comparison graph, numbered from 0 for
            the largest, where items have no features, no `penalty` connects them, and there are
            several components and no reference.
        reference: An item of the table relative to which utilities stand, in place of the mean of
            the items ranked.
        kind: `"sandwich"`, with people as clusters and corrected where people are few, the default;
            `"hessian"`, the classical one; or `"outer_product"`: see :class:`Estimates`.
        level: Probability of the intervals.
        p_values: Whether there are columns `df`, `statistic` and `p_value`, of tests against 0.
        num_draws: Draws of the utilities from the estimate's approximate distribution, for ranks.
        seed: Seed of the draws.
        scale: `"nats"`, or `"elo"`: 400 / ln 10 points a nat, around 1500 for the mean of the items
            ranked, or for the reference. 400 points more are odds of 10 to 1.
        sets: Whether there is a column `set`: items that are not told apart from the best one of
            their set. The best item that is in no set yet begins one, and those behind it join as
            long as the interval of their difference from it, of probability `level`, holds 0. An
            interval is of one difference: nothing is corrected for their number.

    Returns:
        One row an item (index `item`), the best first, group by group. Columns: `group` where there
        are groups, −1 for items never compared; `utility`, in nats, centred over the items ranked
        or relative to the reference;
        `standard_error`; `lower` and `upper`, an interval, normal or of Student's t where people
        are few; `rank`, from 1; `rank_lower` and `rank_upper`, the quantiles of the rank of the
        same level. All of them are NaN, and the item stands last, where the data do not identify
        an item's place among those ranked, such as that of an item which nobody compared.

        Where choices are separated (:func:`fssa_bayes.population.find_separation`), an item that
        won everything has an infinite utility, and one that lost everything minus infinity, with
        an interval of one end; what has neither has NaN. Utilities of the others are those among
        the largest class of items with finite distances, as if the separated choices had not been
        made. They are ranked after the items at infinity and before those at minus infinity.
        Ranks of items without a finite utility are by the order that the choices put them in,
        without sampling error: where this is open the rank is NaN, and `rank_lower` and
        `rank_upper` are the places it leaves.

    Raises:
        ValueError: If the model is heterogeneous or not linear, an item or a scale is unknown,
            there are both groups and a reference, or there are too many coefficients for a dense
            information matrix.

    Warns:
        UserWarning: If errors rest on a single person's comparisons.

    References:
        White (1982), Maximum likelihood estimation of misspecified models.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {tuple(SCALES)}, got {scale!r}")
    if groups is None and reference is None:
        groups = _components(model, data, items)
    estimates, members = item_estimates(
        model, data, items, groups=groups, reference=reference, seed=seed
    )
    columns = estimates.describe(kind, level=level, p_values=p_values)
    utility = estimates.limits
    finite = [rows[np.isfinite(utility[rows].numpy())] for rows in members]
    rank, ranks = draw_ranks(estimates, finite, kind, num_draws, seed)
    tail = (1 - level) / 2
    table = pd.DataFrame(
        {
            "utility": utility,
            **columns,
            "rank": rank,
            "rank_lower": ranks.quantile(tail, -1, interpolation="nearest"),
            "rank_upper": ranks.quantile(1 - tail, -1, interpolation="nearest"),
        },
        index=estimates.names,
    )
    table.loc[~estimates.identified, ["rank_lower", "rank_upper"]] = np.nan
    place = rank.numpy()
    if not np.isfinite(table["utility"]).all():
        place = _rank_infinite(table, estimates, members)
    orders = [rows[place[rows].argsort(kind="stable")] for rows in members]
    if sets:
        table["set"] = _sets(table, estimates, orders, kind, level)
    unit, origin = SCALES[scale]
    if scale != "nats":
        table["standard_error"] *= unit
        for column in ("utility", "lower", "upper"):
            table[column] = origin + unit * table[column]
    if groups is not None:
        table.insert(0, "group", np.asarray(groups))
    return table.iloc[np.concatenate(orders)]


def _sets(
    table: pd.DataFrame,
    estimates: Estimates,
    orders: Sequence[np.ndarray],
    kind: str | None,
    level: float,
) -> np.ndarray:
    """Numbers sets of items that are not told apart from the best of them, (M,), in each group.

    Arguments are those of :func:`ranking_table`, and the items of each group, the best first. NaN
    where an item's utility is not finite or has no error.
    """
    uncertainty, utility = estimates.uncertainty, table["utility"].to_numpy()
    kind = uncertainty.choose(kind)
    known = np.isfinite(utility) & np.isfinite(table["standard_error"].to_numpy())
    number = np.full(len(table), np.nan)
    for order in orders:
        rest, last = order[known[order]], 0
        while len(rest):
            jacobian = estimates.jacobian[rest[:1]] - estimates.jacobian[rest]
            error = uncertainty.standard_errors(jacobian, kind).numpy()
            freedom = uncertainty.degrees_of_freedom(jacobian, kind).numpy()
            width = special.stdtrit(freedom, 0.5 + level / 2) * error
            apart = utility[rest[0]] - utility[rest] > width
            apart[0] = False  # The difference of an item from itself has no error.
            size = int(apart.argmax()) if apart.any() else len(rest)
            number[rest[:size]] = last = last + 1
            rest = rest[size:]
    return number


def item_estimates(
    model: HeterogeneousBTL,
    data: Preferences,
    items: Sequence | None = None,
    *,
    groups: Sequence | None = None,
    reference: Hashable | None = None,
    seed: int = 0,
) -> tuple[Estimates, list[np.ndarray]]:
    """Estimates utilities of items by a homogeneous linear model.

    Arguments are those of :func:`ranking_table`.

    Returns:
        The utilities, and the positions of the items of each group.
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
    if groups is not None and reference is not None:
        raise ValueError(f"reference must be None where there are groups, got {reference!r}")
    members = [np.arange(len(names))]
    if groups is not None:
        members = list(pd.Series(groups).groupby(groups, sort=False).indices.values())
    design = _design(model, data, position)
    estimate = estimate_parameters(model, data, 1, seed, "ranking()", quiet=True)
    width = len(estimate.theta) - design.shape[1]
    if reference is not None:
        design -= _design(model, data, positions("reference", [reference], data.item_names).numpy())
    else:
        limit = estimate.uncertainty.limit
        labels = _label(model, data, position)
        # Without groups the largest component has the mean; what nobody compared is never in it.
        among = labels >= 0
        if groups is None:
            among = labels == labels[among].min(initial=len(data.item_names))
        for rows in members:
            base = design[rows[among[rows]]]
            if not len(base):
                continue
            if limit is not None:  # Those that are at infinity are no part of the mean.
                base = base[limit.reference(torch.nn.functional.pad(base, (0, width)))]
            design[rows] -= base.mean(0)
    values = design @ estimate.theta[: design.shape[1]]
    jacobian = torch.nn.functional.pad(design, (0, width))
    uncertainty = replace(estimate.uncertainty, share=_SHARE)
    return Estimates(names.rename("item"), values, jacobian, uncertainty), members


def _label(model: HeterogeneousBTL, data: Preferences, position: np.ndarray) -> np.ndarray:
    """Labels the components of items, −1 where nobody compared them; 0 if the model links all."""
    if data.items is not None or model.penalty:
        return np.zeros(len(position), dtype=np.int64)
    return data.components()[position]


def _components(
    model: HeterogeneousBTL, data: Preferences, items: Sequence | None
) -> np.ndarray | None:
    """Labels the items by component where they are of several; else None."""
    data = align(model, data)
    names = data.item_names if items is None else canonical_names("items", items)
    position = find_names(names, data.item_names)
    labels = _label(model, data, position[position >= 0])
    several = len(labels) == len(names) and len(np.unique(labels[labels >= 0])) > 1
    return labels if several else None


def _rank_infinite(
    table: pd.DataFrame, estimates: Estimates, members: Sequence[np.ndarray]
) -> np.ndarray:
    """Ranks items without a finite utility, in place, and moves the ranks of the others.

    Returns:
        Places by which the items of a group are sorted, with shape (M,).
    """
    utility, told = table["utility"].to_numpy(), estimates.uncertainty.told(estimates.jacobian)
    columns = ["rank", "rank_lower", "rank_upper"]
    ranks = table[columns].to_numpy(dtype=float)
    ranks[~np.isfinite(utility)] = np.nan
    place = np.full(len(table), np.inf)
    for rows in members:
        rows = rows[told.numpy()[rows]]
        finite = rows[np.isfinite(utility[rows])]
        others = rows[~np.isfinite(utility[rows])]
        sign = np.sign(np.nan_to_num(utility[others], posinf=1, neginf=-1))
        above = (sign > 0).sum()
        ranks[finite] += [above, above, above + (sign == 0).sum()]
        place[finite] = ranks[finite, 0]
        order = _order(estimates, others)
        first = 1 + (order > 0).sum(0) + len(finite) * (sign < 0)
        last = len(rows) - (order < 0).sum(0) - len(finite) * (sign > 0)
        ranks[others, 1], ranks[others, 2] = first, last
        ranks[others, 0] = np.where(first == last, first, np.nan)
        is_placed = (first == last) | (sign != 0)
        place[others] = np.where(is_placed, (first + last) / 2, np.inf)
    table[columns] = ranks
    return place


def _order(estimates: Estimates, rows: np.ndarray) -> np.ndarray:
    """Tells where item i of some stands infinitely above (1) or below (−1) item j, (i, j)."""
    order = np.zeros((len(rows), len(rows)), dtype=np.int64)
    limit = estimates.uncertainty.limit
    if limit is None:
        return order
    upper, lower = np.triu_indices(len(rows), 1)
    if len(upper) > _MOST_PAIRS:  # Those at infinity are above those at minus infinity.
        sign = np.sign(np.nan_to_num(estimates.limits.numpy()[rows], posinf=1, neginf=-1))
        return ((sign[:, None] - sign) / 2).astype(np.int64)
    jacobian = estimates.jacobian
    order[upper, lower] = limit.signs(jacobian[rows[upper]] - jacobian[rows[lower]])
    return order - order.T


def _design(model: HeterogeneousBTL, data: Preferences, position: np.ndarray) -> Tensor:
    """Returns the derivatives of items' utilities by the coefficients of the model, (M, D)."""
    if data.items is None:
        return torch.eye(data.num_items, dtype=torch.float64)[position]
    return model.standardise(data.items[position].to(model.device)).double().cpu()


def draw_ranks(
    estimates: Estimates,
    members: Sequence[np.ndarray],
    kind: str | None,
    num_draws: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Ranks items by their utilities, and by draws of the utilities.

    Draws are normal; where people are few each utility is turned into one of Student's t, so that
    the draws of an item have the quantiles of its interval.

    Args:
        estimates: Utilities of the items, M.
        members: Positions of the items of each group, those without a finite utility left out.
            Items are ranked within their group.
        kind: Kind of the covariance, as :class:`Estimates` has it.
        num_draws: Number of draws.
        seed: Seed of the draws.

    Returns:
        Ranks by the estimates, from 1, with shape (M,), and by the draws, (M, num_draws).
    """
    uncertainty = estimates.uncertainty
    kind = uncertainty.choose(kind)
    root = uncertainty.root(estimates.jacobian, kind)
    noise = torch.randn(
        root.shape[1], num_draws, generator=torch.Generator().manual_seed(seed), dtype=root.dtype
    )
    moved = with_tails(root @ noise, root.square().sum(-1).sqrt(), estimates, kind)
    utility = estimates.values.unsqueeze(-1)
    draws = torch.cat([utility, utility + moved], -1)
    ranks = torch.zeros_like(draws)
    for rows in members:
        ranks[rows] = _rank(draws[rows])
    return ranks[:, 0].long(), ranks[:, 1:]


def _rank(values: Tensor) -> Tensor:
    """Ranks values (M, S) from 1, the largest first; equal ones share the best of their ranks."""
    columns = values.T.contiguous()
    ordered = columns.sort(-1).values.contiguous()
    above = torch.searchsorted(ordered, columns + _EQUAL, right=True)
    return (1 + len(values) - above).T.double()


def with_tails(
    moved: Tensor, error: Tensor, estimates: Estimates, kind: str | None = None
) -> Tensor:
    """Gives normal draws (M, S) with standard deviations (M,) the quantiles of Student's t."""
    df = torch.from_numpy(estimates.degrees_of_freedom(kind))
    few = torch.isfinite(df) & (error > 0)
    if not few.any():
        return moved
    standard = (moved[few] / error[few, None]).numpy()
    # Far out the quantile of a probability that rounds to 1 is infinite: take the other tail.
    size = -special.stdtrit(df[few, None].numpy(), special.ndtr(-np.abs(standard)))
    moved = moved.clone()
    moved[few] = torch.from_numpy(np.sign(standard) * size) * error[few, None]
    return moved
