r"""Do people simulated from a fitted model behave as the real ones do?

Simulation-based calibration asks whether an inference fits its model, and passes on a wrong model.
These checks ask whether the model fits people: the real choices against the choices of people drawn
from the model and asked about the same pairs. They look at what a heterogeneous model of paired
comparisons is for, how people agree and differ, and need no posterior.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences, user_batches
from fssa_bayes.model import BradleyTerry, HeterogeneousBTL, check_data
from fssa_bayes.posterior import PopulationDraws

__all__ = ["CHECKS", "predictive_checks"]

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

_TIES = "spread: ties"
_MAX_FEATURES = 8  # Features that have a check of their own.
_MAX_TRIPLES = 100_000
_MAX_WIDTH = 300  # Comparisons of a person whose products are taken; more are drawn from.
_MARGINAL_DRAWS = 500  # Draws of z that probabilities and covariances are averaged over.
_CHUNK = 2**22  # Weights, or simulated choices, held at once.


def predictive_checks(
    model: HeterogeneousBTL,
    data: Preferences,
    num_replicates: int = 400,
    *,
    level: float = 0.05,
    population: PopulationDraws | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Compares real choices with those of people simulated from the model on the same pairs.

    With e = y − p̄ the residual of a choice from its probability p̄ averaged over people (over those
    with the same covariates, where the model has any), a person's
    *spread* in the direction a is :math:`\sum_{n \ne m} a_{nm} e_n e_m`, here summed over people
    and divided by :math:`\sum |a_{nm}|`: an average covariance of two choices of one person, which
    only differences between people bring about.

    - `share of left`: share of choices of the left item (sees a position bias).
    - `share of ties`: share of ties, where the model has them.
    - `agreement on shared pairs`: probability that two people who judged the same pair agree.
    - `intransitive triples`: share of cycles among three items that one person compared with each
      other, repeated judgements averaged.
    - `spread: left`, a = 1: do people differ in their liking for the left side?
    - `spread: ties`, a = 1 and e = 1[tie] − P(tie): do people differ in how readily they
      call a tie, where the model has ties?
    - `spread: favourites`, a = s_n s_m with s the sign of p̄ − ½: do they differ in how often
      they choose what most people choose (consistency, lapses, taste)?
    - `spread: similar pairs`, a = d_n·d_m with d the difference of the items' standardised
      features: the score test of Λ = λI against the homogeneous model.
    - `spread: the model's directions`, a = c_nm / (v_n v_m) with c the model's own covariance of
      the two choices and v = p̄(1 − p̄): sees a between-person variance that is too small or too
      large as a whole. Not for a homogeneous model, which has no such directions.
    - `spread: NAME`, a = d_n d_m in the feature NAME alone; up to 8 features.

    Args:
        model: A fitted model, homogeneous or not.
        data: Real choices. People of the fit make the checks conservative; others do not, but then
            the error of the population's estimates counts as a difference, unless `population`
            is given.
        num_replicates: Number of simulated data sets.
        level: Probability that a check rejects any part of a model that is true: the verdicts are
            adjusted for the number of checks.
        population: Draws of the population's parameters, which the replicates take in turn, so
            that their uncertainty is part of the comparison; None holds them fixed.
        seed: Seed of the draws.

    Returns:
        One row a check (index `check`). Columns: `observed`; `replicated` and `sd`, mean and
        standard deviation over the replicates; `tail_probability`, two-sided, of this check alone,
        and `tail_error`, its Monte-Carlo standard error; `adjusted`, the same for the largest
        standardised deviation of all checks; `units`, the number of pairs, triples or people that
        the check rests on; `verdict`, `"as the model says"`, `"higher than the model says"`,
        `"lower …"`, or why it was skipped. A choice of ½ is left out, here and there.

    Raises:
        ValueError: If the data do not fit the model, an option is out of range, or nothing but
            half wins is there.

    References:
        Gelman, Meng & Stern (1996), Posterior predictive assessment of model fitness via realized
        discrepancies.
        Westfall & Young (1993), Resampling-based multiple testing, for the adjustment.
        Commenges & Jacqmin-Gadda (1997), Generalized score test of homogeneity based on correlated
        random effects models.
    """
    check_data(model, data)
    if not isinstance(num_replicates, int) or num_replicates < 20:
        raise ValueError(f"num_replicates must be an integer of at least 20, got {num_replicates}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    models = [model] if population is None else [member for member, _ in population.members]
    data = _decided(data)
    with seeded(seed), torch.no_grad():
        statistics, skipped = _statistics(model, data, seed)
        observed = statistics(data.choice[None].astype(np.float32))
        replicated = [
            statistics(choices) for choices in _simulate(models, data, num_replicates, seed)
        ]
    return _table(
        statistics.names,
        observed[0],
        np.concatenate(replicated),
        statistics.units,
        skipped,
        level,
    )


def _decided(data: Preferences) -> Preferences:
    """Leaves out half wins, which a model without ties never simulates."""
    keep = ~data.half_wins
    if keep.all() or data.ties == "keep":
        return data
    if not keep.any():
        raise ValueError("data must have choices other than half wins, got none")
    return _select(data, keep, data.ranking)


def _select(data: Preferences, keep: np.ndarray, ranking: np.ndarray | None = None) -> Preferences:
    """Keeps some comparisons (R,) of the same people, as pairs unless `ranking` is theirs."""
    person = data.person[keep]
    return Preferences(
        data.left[keep],
        data.right[keep],
        data.choice[keep],
        np.append(0, np.cumsum(np.bincount(person, minlength=len(data)))),
        items=data.items,
        num_items=data.num_items,
        item_names=data.item_names,
        feature_names=None if data.items is None else data.feature_names,
        user_names=data.user_names,
        covariates=data.covariates,
        covariate_names=None if data.covariates is None else data.covariate_names,
        ties=data.ties,
        ranking=None if ranking is None else ranking[keep],
    )


def _simulate(
    models: list[HeterogeneousBTL], data: Preferences, num: int, seed: int
) -> Iterator[np.ndarray]:
    """Yields choices (B, R) of new people on the same pairs, some replicates at a time."""
    size = max(1, min(num, _CHUNK // data.num_comparisons))
    rounds = [range(start, min(start + size, num)) for start in range(0, num, size)]
    if len(models) > 1:  # Replicate by replicate, each from the next population.
        rounds = [range(number, number + 1) for number in range(num)]
    for number, replicates in enumerate(rounds):
        model, count = models[number % len(models)], len(replicates)
        parts = []
        for _, batch in user_batches(data, count, model.device):
            z = model.prior(batch.num_users, batch.covariates).sample((count,))
            parts.append(model.choice(batch, z).sample()[:, batch.mask].cpu())
        yield torch.cat(parts, -1).numpy()


# ---------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class _Spread:
    """Holds what the residual products of a few people need.

    Attributes:
        rows: Numbers of their comparisons, in the order of `mask`.
        marginal: Probability of left, averaged over people, of each of these.
        tie: Probability of a tie, likewise, or None in a model without ties.
        mask: True where there is a comparison, (U, N).
        weights: Weights a (U, N, N) of each spread, with a zero diagonal.
    """

    rows: np.ndarray
    marginal: np.ndarray
    tie: np.ndarray | None
    mask: Tensor
    weights: dict[str, Tensor]

    def residuals(self, choices: np.ndarray, name: str) -> Tensor:
        """Returns residuals (B, U, N) of choices (B, R): those of ties for the spread of ties."""
        chosen = choices[:, self.rows]
        residual = (chosen == 0.5) - self.tie if name == _TIES else chosen - self.marginal
        padded = torch.zeros(len(choices), *self.mask.shape)
        padded[:, self.mask] = torch.from_numpy(residual.astype(np.float32))
        return padded


class _Statistics:
    """Computes the statistics (B, T) of choices (B, R).

    Attributes:
        names: Names of the T statistics.
        units: What each rests on: number of pairs of judgements, triples or people.
    """

    def __init__(
        self,
        data: Preferences,
        spreads: list[_Spread],
        pairs: _SharedPairs | None,
        triples: _Triples | None,
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


class _SharedPairs:
    """Computes how often two people agree on a pair that both judged.

    Pairs of judgements are counted over different people; sums over a pair, less sums over one
    person's repeated judgements of it.
    """

    def __init__(self, data: Preferences) -> None:
        pair, self.turned = _pairs(data)
        person = data.person
        everybody, alone = _indicator(pair), _indicator(pair * len(data) + person)
        self.groups = sparse.vstack([everybody, alone]).tocsr()
        self.sign = np.append(np.ones(everybody.shape[0]), -np.ones(alone.shape[0]))
        self.size = np.asarray(self.groups.sum(1)).ravel()
        # Ordered pairs of judgements of two people: n² of the pair less n² of each person.
        self.total = (self.sign * self.size**2).sum() / 2

    def __call__(self, choices: np.ndarray) -> np.ndarray:
        low_wins = np.where(self.turned, 1 - choices, choices).astype(np.float64)
        wins = self.groups @ low_wins.T
        agreed = wins**2 + (self.size[:, None] - wins) ** 2
        return (self.sign[:, None] * agreed).sum(0) / 2 / self.total


class _Triples:
    """Computes the share of cycles among triples that one person compared with each other.

    Attributes:
        edges: Numbers of the three person-and-pair groups of each triple, i–j, j–k and i–k, (T, 3).
    """

    def __init__(self, data: Preferences, seed: int) -> None:
        pair, self.turned = _pairs(data)
        person = data.person
        group = person * (pair.max() + 1) + pair
        first = np.unique(group, return_index=True)[1]
        self.mean = _indicator(group)
        self.mean = sparse.diags(1 / np.asarray(self.mean.sum(1)).ravel()) @ self.mean
        low = np.minimum(data.left, data.right)[first]
        high = np.maximum(data.left, data.right)[first]
        edges = _triangles(person[first], low, high)
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


def _pairs(data: Preferences) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the unordered pairs (R,), and tells where the higher item stands on the left."""
    low, high = np.minimum(data.left, data.right), np.maximum(data.left, data.right)
    _, pair = np.unique(low.astype(np.int64) * data.num_items + high, return_inverse=True)
    return pair, data.left == high


def _indicator(group: np.ndarray) -> sparse.csr_array:
    """Returns the matrix (G, R) that sums rows by their group."""
    _, position = np.unique(group, return_inverse=True)
    columns = np.arange(len(group))
    return sparse.csr_array((np.ones(len(group)), (position, columns)))


def _triangles(person: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
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


def _statistics(
    model: HeterogeneousBTL, data: Preferences, seed: int
) -> tuple[_Statistics, dict[str, str]]:
    """Prepares all statistics that the data allow, and says why others are skipped."""
    skipped: dict[str, str] = {}
    pairs = _SharedPairs(data)
    if not pairs.total:
        pairs = None
        skipped["agreement on shared pairs"] = "skipped: no two people judged the same pair"
    triples = _Triples(data, seed)
    if not len(triples.edges):
        triples = None
        skipped["intransitive triples"] = "skipped: nobody compared three items with each other"
    if not model.latent_dim:
        skipped["spread: the model's directions"] = "skipped: in the model all are alike"
    names = []
    if data.items is not None and data.num_features <= _MAX_FEATURES:
        names = [str(name) for name in data.feature_names]
    several = data.counts.max() > 1
    spreads = _spreads(model, data, names, seed) if several else []
    if not several:
        ties = [_TIES] if model.has_ties else []
        for name in (*CHECKS[3:], *ties, *(f"spread: {name}" for name in names)):
            skipped.setdefault(name, "skipped: nobody has two comparisons")
    return _Statistics(data, spreads, pairs, triples, model.has_ties), skipped


def _spreads(
    model: HeterogeneousBTL, data: Preferences, features: list[str], seed: int
) -> list[_Spread]:
    """Prepares the residual products, people with similar numbers of comparisons together."""
    draws = _MARGINAL_DRAWS if model.latent_dim else 1
    # The same people for every comparison, moved to where covariates, if any, put the person.
    z = model.average_prior(draws).sample().unsqueeze(1)
    scale = 1.0 if data.items is None else data.items.std(0).clamp(min=1e-12).to(model.device)
    keep = _at_most(data.counts, _MAX_WIDTH, seed)
    data, kept = _select(data, keep), np.flatnonzero(keep)
    order = np.argsort(data.counts, kind="stable")
    order = order[data.counts[order] > 1]
    spreads, start = [], 0
    while start < len(order):
        width = data.counts[order[start : start + 1024]]
        cells = np.arange(1, len(width) + 1) * width * np.maximum(width, draws)
        stop = start + max(1, int(np.searchsorted(cells, _CHUNK)))
        people, start = order[start:stop], stop
        batch = data.batch(people).to(model.device)
        everybody = (z + model.location(batch.covariates)).expand(-1, batch.num_users, -1)
        likelihood = model.choice(batch, everybody)
        prob = _expected_choice(likelihood)
        mean = prob.mean(0)
        tie = likelihood.outcomes.tie
        rows = [np.arange(data.offsets[u], data.offsets[u + 1]) for u in people]
        weights = _weights(model, batch, prob - mean, mean, scale, features)
        marginal = mean[batch.mask].cpu().numpy()
        if tie is not None:
            tie = tie.exp().mean(0)[batch.mask].cpu().numpy()
        numbers = kept[np.concatenate(rows)]
        spreads.append(_Spread(numbers, marginal, tie, batch.mask.cpu(), weights))
    return spreads


def _expected_choice(likelihood: BradleyTerry) -> Tensor:
    """Expectation of choices in which a tie counts ½, with shape (S, U, N)."""
    outcomes = likelihood.outcomes
    prob = outcomes.left.exp()
    return prob if outcomes.tie is None else prob + outcomes.tie.exp() / 2


def _at_most(counts: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Marks at most so many comparisons of each person, at random."""
    person = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((np.random.default_rng(seed).random(len(person)), person))
    place = np.empty(len(person), dtype=np.int64)
    place[order] = np.arange(len(person)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place < most


def _weights(
    model: HeterogeneousBTL,
    batch: Batch,
    deviation: Tensor,
    mean: Tensor,
    scale: Tensor | float,
    features: list[str],
) -> dict[str, Tensor]:
    """Returns the weights of each spread, (U, N, N), 0 on the diagonal and in the padding."""
    side = 2.0 * (mean > 0.5) - 1.0
    directions = {"left": torch.ones_like(mean).unsqueeze(-1), "favourites": side.unsqueeze(-1)}
    if batch.items.dtype == torch.int64:
        similar = _shared_items(batch)
    else:
        difference = (batch.items[batch.left] - batch.items[batch.right]) / scale
        directions |= {name: difference[..., [d]] for d, name in enumerate(features)}
        similar = difference @ difference.mT
    weights = {name: values @ values.mT for name, values in directions.items()}
    first = {"left": weights.pop("left"), "favourites": weights.pop("favourites")}
    if model.has_ties:
        first["ties"] = torch.ones_like(first["left"])
    weights = first | {
        "similar pairs": similar,
        **({"the model's directions": _own(deviation, mean)} if model.latent_dim else {}),
        **weights,
    }
    both = batch.mask.unsqueeze(-1) & batch.mask.unsqueeze(-2)
    both &= ~torch.eye(mean.shape[-1], dtype=torch.bool, device=mean.device)
    return {f"spread: {name}": (w * both).float().cpu() for name, w in weights.items()}


def _own(deviation: Tensor, mean: Tensor) -> Tensor:
    """Returns c_nm / (v_n v_m), from deviations (S, U, N) of probabilities from their mean."""
    variance = (mean * (1 - mean)).clamp(min=1e-3)
    covariance = torch.einsum("sun,sum->unm", deviation, deviation) / len(deviation)
    return covariance / variance.unsqueeze(-1) / variance.unsqueeze(-2)


def _shared_items(batch: Batch) -> Tensor:
    """Returns d_n·d_m where every item is its own feature: ±1 for each item in common."""

    def same(one: Tensor, other: Tensor) -> Tensor:
        return (one.unsqueeze(-1) == other.unsqueeze(-2)).float()

    left, right = batch.left, batch.right
    return same(left, left) + same(right, right) - same(left, right) - same(right, left)


# ---------------------------------------------------------------------- verdicts


def _table(
    names: list[str],
    observed: np.ndarray,
    replicated: np.ndarray,
    units: dict[str, int],
    skipped: dict[str, str],
    level: float,
) -> pd.DataFrame:
    """Compares observed statistics (T,) with replicated ones (B, T)."""
    count = len(replicated)
    mean, sd = replicated.mean(0), replicated.std(0, ddof=1)
    # The observed data are one of the replicates if the model is true, and are treated as one.
    pool = np.vstack([observed, replicated])
    spread = pool.std(0)
    deviation = np.abs(pool - pool.mean(0)) / np.where(spread > 0, spread, np.inf)
    worst = deviation.max(-1)
    adjusted = (worst[None, :] >= deviation[0][:, None] - 1e-9).mean(-1)
    higher = (1 + (replicated >= observed - 1e-12).sum(0)) / (1 + count)
    lower = (1 + (replicated <= observed + 1e-12).sum(0)) / (1 + count)
    tail = np.minimum(1.0, 2 * np.minimum(higher, lower))
    side = np.where(observed > mean, "higher", "lower")
    rows = {}
    for position, name in enumerate(names):
        rejected = adjusted[position] <= level
        rows[name] = {
            "observed": observed[position],
            "replicated": mean[position],
            "sd": sd[position],
            "tail_probability": tail[position],
            "tail_error": 2 * math.sqrt(tail[position] / 2 * (1 - tail[position] / 2) / count),
            "adjusted": adjusted[position],
            "units": units[name],
            "verdict": f"{side[position]} than the model says" if rejected else "as the model says",
        }
    for name, reason in skipped.items():
        rows[name] = {"units": 0, "verdict": reason}
    order = [name for name in CHECKS if name in rows]
    order += [name for name in rows if name not in order]
    columns = ["observed", "replicated", "sd", "tail_probability", "tail_error", "adjusted"]
    table = pd.DataFrame.from_dict(rows, orient="index").loc[order, [*columns, "units", "verdict"]]
    return table.rename_axis("check")
