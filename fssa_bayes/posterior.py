"""The posterior of what a person prefers, given a few of their choices."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.importance import (
    effective_sample_size,
    log_predictive,
    propose,
    user_batches,
)
from fssa_bayes.inference import check_data, check_guide
from fssa_bayes.inference_data import pareto_smooth
from fssa_bayes.model import HeterogeneousBTL

__all__ = ["ChoiceProbability", "Posterior"]

_MAX_BYTES = 4 * 2**30  # Largest table that a method returns.
_CHUNK = 2**24  # Utilities held at once while a table is built: 64 MB in float32.


@dataclass(frozen=True)
class ChoiceProbability:
    """Describes the posterior of the probability that left is preferred.

    Every field has shape (U, N), aligned with `target.batch()`, and is NaN in padding. Intervals
    are empirical-Bayes: the population parameters are fixed at their estimates.

    Attributes:
        mean: Posterior mean of σ(margin), the probability to bet on.
        lower: Posterior 5 % quantile of σ(margin).
        upper: Posterior 95 % quantile.
        epistemic: Mutual information of choice and z, in nats: what more choices of this person
            would teach.
        aleatoric: Expected entropy of the choice given z, in nats: what they would not.
    """

    mean: Tensor
    lower: Tensor
    upper: Tensor
    epistemic: Tensor
    aleatoric: Tensor


class Posterior:
    r"""Infers z for people the model need not have seen, from a few choices of each.

    No fitting: one pass of the guide, and importance weights :math:`p(z)\,p(C|z) / m(z)` with
    proposals :math:`m = .8\,q(z|C) + .2\,p(z)`.

    Args:
        model: A fitted model.
        guide: Its guide; None for a model with `latent_dim=0`.
        context: The people and the choices that are known of them; empty contexts are allowed.
        num_samples: Number of draws S of each person.
        seed: Seed of the draws.
        correct: `"psis"` weighs the draws, by Pareto-smoothed importance weights, so that they
            represent the model's posterior; None takes the guide's draws as they are.

    Raises:
        ValueError: If `context` does not fit the model or an option is out of range.
        FloatingPointError: If the model gives a person no finite posterior.

    Warns:
        UserWarning: If a context is larger than any the guide was trained for.

    References:
        Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25(72).
        Hesterberg (1995), Weighted average importance sampling and defensive mixture
        distributions, Technometrics 37(2).
    """

    def __init__(
        self,
        model: HeterogeneousBTL,
        guide: NeuralProcessGuide | None,
        context: Preferences,
        num_samples: int = 1000,
        *,
        seed: int = 0,
        correct: str | None = "psis",
    ) -> None:
        check_data(model, context)
        check_guide(model, guide)
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples must be an integer of at least 1, got {num_samples!r}")
        if correct == "psis" and model.latent_dim and num_samples < 25:
            raise ValueError(
                f"num_samples must be at least 25 for correct='psis', got {num_samples}"
            )
        if correct not in ("psis", None):
            raise ValueError(f"correct must be 'psis' or None, got {correct!r}")
        largest = 0 if guide is None else int(guide.largest_context)
        if guide is not None and context.counts.max() > largest > 0:
            warnings.warn(
                f"the largest context has {context.counts.max()} comparisons, and the guide was "
                f"trained for at most {largest}; look at pareto_k",
                stacklevel=2,
            )
        self.model = model
        self.guide = guide
        self.context = context
        self.num_samples = num_samples
        self.seed = seed
        self.correct = correct
        self._draw()

    def _draw(self) -> None:
        share = {} if self.correct else {"guide_share": 1.0}
        z, log_weights, log_ratio = [], [], []
        with seeded(self.seed):
            for batch in user_batches(self.context, self.num_samples, self.model.device):
                draws = propose(self.model, self.guide, batch, self.num_samples, **share)
                z.append(draws.z.cpu())
                log_weights.append(draws.log_weights.cpu())
                log_ratio.append(draws.log_ratio.cpu())
        self._z = torch.cat(z, 1)
        self._log_ratio = torch.cat(log_ratio, 1)
        log_weights = torch.cat(log_weights, 1).double()
        broken = ~(torch.isfinite(log_weights).any(0) & ~torch.isnan(log_weights).any(0))
        broken |= ~torch.isfinite(self._z).all(-1).all(0)
        if broken.any():
            first = self.context.user_names[int(broken.nonzero()[0])]
            raise FloatingPointError(
                f"the posterior of user {first!r} is not finite ({int(broken.sum())} such "
                "people): the model's parameters or features are out of range"
            )
        if self.correct and self.model.latent_dim:
            smoothed, _ = pareto_smooth(log_weights.T.numpy())
            self._log_weights = torch.from_numpy(smoothed).T.float()
        else:
            self._log_weights = torch.zeros_like(log_weights).log_softmax(0).float()

    def __repr__(self) -> str:
        return (
            f"Posterior({len(self.context)} people, {self.num_samples} draws, "
            f"correct={self.correct!r})"
        )

    # ------------------------------------------------------------------ draws

    @property
    def proposals(self) -> tuple[Tensor, Tensor]:
        """The draws (S, U, K) before resampling and their normalised log-weights (S, U)."""
        return self._z, self._log_weights

    @cached_property
    def z(self) -> Tensor:
        """Equally weighted draws with shape (S, U, K), resampled from the weighted ones."""
        if not self.correct or not self.model.latent_dim:
            return self._z
        rng = np.random.default_rng(self.seed)
        # Systematic resampling, in an order that is random for each person and not sorted.
        cumulative = self._log_weights.double().exp().cumsum(0).T.contiguous()
        draws, users, width = self._z.shape
        point = (np.arange(draws) + rng.random((users, 1))) / draws
        point = torch.from_numpy(point) * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, point).clamp(max=draws - 1)
        order = torch.from_numpy(rng.random((users, draws))).argsort(-1)
        index = index.gather(-1, order).T.unsqueeze(-1)
        return self._z.gather(0, index.expand(draws, users, width))

    @cached_property
    def pareto_k(self) -> Tensor:
        """Pareto k-hat of p(z|C) / q(z|C) on draws of the guide alone, with shape (U,).

        Above .7 the guide misses part of that person's posterior; 0 where no weight differs from
        another, as for an empty context.
        """
        _, pareto_k = pareto_smooth(self._log_ratio.double().T.numpy())
        return torch.from_numpy(pareto_k).float()

    @cached_property
    def relative_ess(self) -> Tensor:
        """Effective sample size of the guide's own draws as a share of their number, (U,)."""
        ratio = self._log_ratio.double()
        return (effective_sample_size(ratio) / len(ratio)).float()

    # ------------------------------------------------------------------ choices

    def choice_prob(self, target: Preferences) -> ChoiceProbability:
        """Describes each person's probability of preferring left.

        Args:
            target: Comparisons of the same people in the same order; it may have its own item
                table. Their choices are not looked at.

        Returns:
            Weighted posterior mean, 5 % and 95 % quantiles, and both parts of the uncertainty.
        """
        width = int(self._check_target(target).counts.max(initial=0))
        out = [torch.full((len(target), width), math.nan) for _ in fields(ChoiceProbability)]
        for people, batch, margin, log_weights in self._margins(target):
            weights = log_weights.exp().unsqueeze(-1)
            prob = torch.sigmoid(margin)
            mean = (weights * prob).sum(0).clamp(0, 1)
            lower, upper = _weighted_quantiles(margin, log_weights.exp(), (0.05, 0.95))
            aleatoric = (weights * _entropy(margin)).sum(0)
            total = torch.special.entr(mean) + torch.special.entr(1 - mean)
            values = (
                mean,
                torch.sigmoid(lower),
                torch.sigmoid(upper),
                (total - aleatoric).clamp(min=0),
                aleatoric,
            )
            for table, value in zip(out, values, strict=True):
                columns = batch.mask.shape[1]
                table[people, :columns] = value.masked_fill(~batch.mask, math.nan).cpu()
        return ChoiceProbability(*out)

    def log_score(self, target: Preferences) -> Tensor:
        """Scores each person's unseen choices by the log of the mean probability.

        Args:
            target: Comparisons of the same people in the same order.

        Returns:
            Mean over a person's comparisons of log mean_z p(y | z), in nats, with shape (U,):
            marginal for each choice, not joint. Higher is better; NaN without comparisons.
        """
        scores = [
            (log_predictive(margin, log_weights, batch.choice) * batch.mask).sum(-1)
            / batch.num_comparisons
            for _, batch, margin, log_weights in self._margins(self._check_target(target))
        ]
        return torch.cat(scores).cpu()

    def _check_target(self, target: Preferences) -> Preferences:
        check_data(self.model, target)
        if len(target) != len(self.context) or not target.user_names.equals(
            self.context.user_names
        ):
            raise ValueError(
                f"target must hold the same people as the context in the same order: "
                f"{len(self.context)} people beginning with {list(self.context.user_names[:3])}, "
                f"got {len(target)} beginning with {list(target.user_names[:3])}"
            )
        return target

    @torch.no_grad()
    def _margins(self, target: Preferences) -> Iterator[tuple[slice, Batch, Tensor, Tensor]]:
        start = 0
        for batch in user_batches(target, self.num_samples, self.model.device):
            people = slice(start, start + batch.num_users)
            start = people.stop
            z = self._z[:, people].to(self.model.device)
            margin = self.model.choice(batch, z).margin
            yield people, batch, margin, self._log_weights[:, people].to(self.model.device)

    # ------------------------------------------------------------------ items

    def utility(
        self, items: Sequence | Tensor | None = None, users: Sequence | None = None
    ) -> Tensor:
        """Draws the utilities of items to people.

        Args:
            items: Names of items of the context's table, or features of new ones, as a tensor,
                array or DataFrame with shape (M, D); all items of the table if None.
            users: Names of people; everybody if None.

        Returns:
            Equally weighted draws in nats with shape (S, U, M), centred over the items given:
            utilities are identified up to a constant per person.

        Raises:
            ValueError: If a name is unknown, if items are unique to a person and no common set is
                named, or if the table would not fit in memory.
        """
        table, people = self._items(items), self._people(users)
        draws = len(self._z)
        _check_size("utility", (draws, len(people), len(table)))
        chunks = [utility for _, utility in self._utilities(self.z, table, people)]
        return torch.cat(chunks, 1).cpu()

    def rank_prob(
        self, items: Sequence | Tensor | None = None, users: Sequence | None = None
    ) -> Tensor:
        """Computes the posterior probability that an item has a rank.

        Args:
            items: As in :meth:`utility`.
            users: Names of people; everybody if None.

        Returns:
            Probabilities with shape (U, M, M): entry [u, i, j] is the probability that item i is
            person u's choice number j + 1. Rows and columns sum to 1.

        Raises:
            ValueError: As in :meth:`utility`.
        """
        table, people = self._items(items), self._people(users)
        count = len(table)
        _check_size("rank_prob", (len(people), count, count))
        out = torch.zeros(len(people), count, count)
        weights = self._log_weights.exp()
        for where, utility in self._utilities(self._z, table, people):
            rank = utility.argsort(-1, descending=True).argsort(-1).permute(1, 2, 0).cpu()
            weight = weights[:, people[where]].T.unsqueeze(1).expand_as(rank)
            out[where].scatter_add_(-1, rank, weight)
        return out

    @torch.no_grad()
    def _utilities(
        self, z: Tensor, table: Tensor, people: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yields centred utilities (S, u, M) of a few people at a time."""
        size = max(1, _CHUNK // (len(z) * len(table)))
        table = table.to(self.model.device)
        for start in range(0, len(people), size):
            where = slice(start, start + size)
            utility = self.model.item_utility(table, z[:, people[where]].to(self.model.device))
            yield where, utility - utility.mean(-1, keepdim=True)

    def _items(self, items: Sequence | Tensor | None) -> Tensor:
        data = self.context
        if isinstance(items, pd.DataFrame) or (isinstance(items, np.ndarray) and items.ndim == 2):
            items = torch.tensor(np.asarray(items), dtype=torch.float32)
        if isinstance(items, Tensor):
            expected = (self.model.num_features,)
            if data.items is None or items.shape[1:] != expected or len(items) == 0:
                raise ValueError(
                    f"items must be names, or features with shape (M, {expected[0]}) where items "
                    f"have features, got shape {tuple(items.shape)}"
                )
            if not torch.isfinite(items).all():
                raise ValueError("items must be finite, got NaN or infinity")
            return items.to(torch.float32)
        if items is None:
            if not data.items_are_shared:
                raise ValueError(
                    "items must name a common set: every item of the table belongs to one person "
                    "only, so its utilities cannot be centred over a set common to people"
                )
            index = torch.arange(data.num_items)
        else:
            index = _positions("items", items, data.item_names)
        return index if data.items is None else data.items[index]

    def _people(self, users: Sequence | None) -> Tensor:
        if users is None:
            return torch.arange(len(self.context))
        return _positions("users", users, self.context.user_names)


def _positions(argument: str, names: Sequence, index) -> Tensor:
    if isinstance(names, str):
        raise TypeError(f"{argument} must be a list of names, got the string {names!r}")
    position = index.get_indexer(list(names))
    if len(position) == 0:
        raise ValueError(f"{argument} must have at least one name, got none")
    if (position < 0).any():
        unknown = list(names)[int(np.flatnonzero(position < 0)[0])]
        raise ValueError(f"{argument} must be known names, got {unknown!r}")
    return torch.from_numpy(position)


def _check_size(what: str, shape: tuple[int, int, int]) -> None:
    size = 4 * math.prod(shape)
    if size > _MAX_BYTES:
        raise ValueError(
            f"{what} would need {size / 2**30:.1f} GiB for a table of shape {shape}, more than "
            f"{_MAX_BYTES / 2**30:.0f} GiB: name fewer items= or users=, or take fewer draws"
        )


def _entropy(margin: Tensor) -> Tensor:
    """Entropy of a choice with log-odds `margin`, in nats, exact at both ends."""
    size = margin.abs()
    return torch.log1p(torch.exp(-size)) + size * torch.sigmoid(-size)


def _weighted_quantiles(values: Tensor, weights: Tensor, levels: tuple[float, ...]) -> list[Tensor]:
    """Inverts the weighted distribution function of values (S, U, N) with weights (S, U)."""
    # Draws last: sorting along the first dimension walks through memory in large strides.
    ordered, order = values.permute(1, 2, 0).contiguous().sort(-1)
    weights = weights.T.unsqueeze(1).expand_as(ordered).gather(-1, order)
    cumulative = weights.double().cumsum(-1)
    level = torch.tensor(levels, dtype=torch.float64, device=values.device) * cumulative[..., -1:]
    position = torch.searchsorted(cumulative, level).clamp(max=len(values) - 1)
    return list(ordered.gather(-1, position).unbind(-1))
