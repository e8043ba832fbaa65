"""Statistics of how people agree and differ, of real choices and of simulated ones alike."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fssa_bayes.checks.spreads import TIES, Spread, prepare_spreads
from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL

__all__ = [
    "CHECKS",
    "SharedPairs",
    "Statistics",
    "Triples",
    "indicate_groups",
    "list_triangles",
    "number_pairs",
    "prepare_statistics",
]

CHECKS = (
    "share of left",
    "agreement on shared pairs",
    "intransitive triples",
    "spread: left",
    "spread: favourites",
    "spread: similar pairs",
    "spread: the model's directions",
)
"""Checks that are always tried.

`share of ties` and `spread: ties` join them for a model with ties, `spread: NAME` of each feature
where there are few.
"""

_MAX_FEATURES = 8  # Features that have a check of their own.
_MAX_TRIPLES = 100_000


def prepare_statistics(
    model: HeterogeneousBTL, data: Preferences, seed: int, *, marginal_draws: int = 500
) -> tuple[Statistics, dict[str, str]]:
    """Prepares all statistics that the data allow.

    Args:
        model: The model.
        data: Whose pairs they are; the choices are not looked at.
        seed: Seed of what is drawn where there is too much: triples, a person's comparisons.
        marginal_draws: Draws of z over which probabilities of the spreads are averaged.

    Returns:
        The statistics; and, by the name of each other check, why it is skipped.
    """
    skipped: dict[str, str] = {}
    pairs = SharedPairs(data)
    if not pairs.total:
        pairs = None
        skipped["agreement on shared pairs"] = "skipped: no two people judged the same pair"
    triples = Triples(data, seed)
    if not len(triples.edges):
        triples = None
        skipped["intransitive triples"] = "skipped: nobody compared three items with each other"
    if not model.latent_dim:
        skipped["spread: the model's directions"] = "skipped: in the model all are alike"
    names = []
    if data.items is not None and data.num_features <= _MAX_FEATURES:
        names = [str(name) for name in data.feature_names]
    several = data.counts.max() > 1
    spreads = (
        prepare_spreads(model, data, names, seed, marginal_draws=marginal_draws) if several else []
    )
    if not several:
        ties = [TIES] if model.has_ties else []
        for name in (*CHECKS[3:], *ties, *(f"spread: {name}" for name in names)):
            skipped.setdefault(name, "skipped: nobody has two comparisons")
    return Statistics(data, spreads, pairs, triples, model.has_ties), skipped


class Statistics:
    """Computes the statistics (B, T) of choices (B, R).

    Attributes:
        names: Names of the T statistics.
        units: Number of pairs of judgements, triples or people that each statistic rests on.
    """

    def __init__(
        self,
        data: Preferences,
        spreads: list[Spread],
        pairs: SharedPairs | None,
        triples: Triples | None,
        has_ties: bool,
    ) -> None:
        self.spreads = spreads
        self.sizes = {
            name: sum(part.weights[name].abs().sum(dtype=torch.float64).item() for part in spreads)
            for name in (spreads[0].weights if spreads else ())
        }
        self.pairs, self.triples = pairs, triples
        several = int((data.counts > 1).sum())
        self.has_ties = has_ties
        self.units = {"share of left": data.num_comparisons}
        if has_ties:
            self.units["share of ties"] = data.num_comparisons
        if pairs is not None:
            self.units["agreement on shared pairs"] = int(pairs.total)
        if triples is not None:
            self.units["intransitive triples"] = len(triples.edges)
        self.units |= dict.fromkeys(self.sizes, several)
        self.names = list(self.units)

    def __call__(self, choices: np.ndarray) -> np.ndarray:
        choices = choices.clip(0, 1)  # In the rows of rankings, who stands above counts.
        columns = [choices.mean(-1, dtype=np.float64)]
        if self.has_ties:
            columns.append((choices == 0.5).mean(-1, dtype=np.float64))
        if self.pairs is not None:
            columns.append(self.pairs(choices))
        if self.triples is not None:
            columns.append(self.triples(choices))
        totals: dict[str, Tensor] = {}
        for part in self.spreads:
            for name, weights in part.weights.items():
                padded = part.residuals(choices, name)
                # Σ a_nm e_n e_m of each replicate, people as the batch of a matrix product.
                product = torch.bmm(padded.transpose(0, 1), weights).transpose(0, 1)
                value = (product * padded).sum((1, 2)).double()
                totals[name] = totals.get(name, 0.0) + value
        columns += [total.numpy() / max(self.sizes[name], 1e-300) for name, total in totals.items()]
        return np.stack(columns, -1)


class SharedPairs:
    """Computes how often two people agree on a pair that both judged.

    Pairs of judgements are counted over different people: sums over all judgements of a pair, less
    sums over one person's repeated judgements of the pair.

    Attributes:
        total: Number of pairs of judgements by two people.
    """

    def __init__(self, data: Preferences) -> None:
        pair, self.turned = number_pairs(data)
        person = np.repeat(np.arange(len(data)), data.counts)
        everybody, alone = indicate_groups(pair), indicate_groups(pair * len(data) + person)
        self.groups = sparse.vstack([everybody, alone]).tocsr()
        self.sign = np.append(np.ones(everybody.shape[0]), -np.ones(alone.shape[0]))
        self.size = np.asarray(self.groups.sum(1)).ravel()
        # Of n judgements of a pair there are n² ordered pairs; those of one person are subtracted.
        self.total = (self.sign * self.size**2).sum() / 2

    def __call__(self, choices: np.ndarray) -> np.ndarray:
        low_wins = np.where(self.turned, 1 - choices, choices).astype(np.float64)
        wins = self.groups @ low_wins.T
        agreed = wins**2 + (self.size[:, None] - wins) ** 2
        return (self.sign[:, None] * agreed).sum(0) / 2 / self.total


class Triples:
    """Computes the share of cycles among triples that one person compared with each other.

    Attributes:
        edges: Numbers of the three person-and-pair groups of each triple, i–j, j–k and i–k, (T, 3);
            100,000 triples are drawn where there are more.
    """

    def __init__(self, data: Preferences, seed: int) -> None:
        pair, self.turned = number_pairs(data)
        person = np.repeat(np.arange(len(data)), data.counts)
        group = person * (pair.max() + 1) + pair
        first = np.unique(group, return_index=True)[1]
        self.mean = indicate_groups(group)
        self.mean = sparse.diags(1 / np.asarray(self.mean.sum(1)).ravel()) @ self.mean
        low = np.minimum(data.left, data.right)[first]
        high = np.maximum(data.left, data.right)[first]
        edges = list_triangles(person[first], low, high)
        if len(edges) > _MAX_TRIPLES:
            chosen = np.random.default_rng(seed).choice(len(edges), _MAX_TRIPLES, replace=False)
            edges = edges[np.sort(chosen)]
        self.edges = edges

    def __call__(self, choices: np.ndarray) -> np.ndarray:
        low_wins = np.where(self.turned, 1 - choices, choices).astype(np.float64)
        prob = self.mean @ low_wins.T
        first, second, across = (prob[self.edges[:, side]] for side in range(3))
        cycle = first * second * (1 - across) + (1 - first) * (1 - second) * across
        return cycle.mean(0)


def number_pairs(data: Preferences) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the unordered pairs (R,), and marks where the left item has the higher number."""
    low, high = np.minimum(data.left, data.right), np.maximum(data.left, data.right)
    _, pair = np.unique(low.astype(np.int64) * data.num_items + high, return_inverse=True)
    return pair, data.left == high


def indicate_groups(group: np.ndarray) -> sparse.csr_array:
    """Returns the matrix (G, R) that sums rows by their group."""
    _, position = np.unique(group, return_inverse=True)
    columns = np.arange(len(group))
    return sparse.csr_array((np.ones(len(group)), (position, columns)))


def list_triangles(person: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Lists edges i–j, j–k, i–k with i < j < k of the same person, as edge numbers (T, 3)."""
    found = []
    order = np.argsort(person, kind="stable")
    for edges in np.split(order, np.flatnonzero(np.diff(person[order])) + 1):
        number = {(low[e], high[e]): e for e in edges}
        above: dict[int, list[int]] = {}
        for i, j in number:
            above.setdefault(i, []).append(j)
        for (i, j), first in number.items():
            for k in above.get(j, ()):
                if (i, k) in number:
                    found.append((first, number[j, k], number[i, k]))
    return np.array(found, dtype=np.int64).reshape(-1, 3)
