"""Scores people's preferences: a pure function from an Arrow table to an Arrow table."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from fssa_bayes.data import Preferences, canonical_names, expand_levels, find_values, first_names
from fssa_bayes.io import load, read_folder
from fssa_bayes.posterior import (
    Likelihoods,
    Posterior,
    describe_part,
    weighted_mean,
    weighted_quantiles,
)
from fssa_bayes.sampling import FALLBACKS, check_draws
from fssa_bayes.scale.people import ColumnNames, People, check_columns, read_people, user_type

__all__ = ["Scorer", "model_digest", "output_schema", "score_table"]

_DRAWS_AT_ONCE = 2**22  # Draws × people × (dimensions + quantities) that are held at once.
_QUANTILES = (0.05, 0.95)
_TIES = ("drop", "half", "keep")
_QUANTITIES = ("utility", "probability", "best")


def model_digest(path: str | os.PathLike) -> str:
    """Returns a SHA-256 of a saved model: of its configuration and tensors, not of versions.

    Raises:
        FileNotFoundError: If there is no saved model.
        ValueError: If the folder is damaged or of another format version.
    """
    config, _ = read_folder(Path(path))
    known = {name: value for name, value in config.items() if name != "versions"}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Plan:
    """Says what is computed of every person.

    Attributes:
        among: Positions of the items whose utilities are computed, (M,).
        pairs: Positions of the items of each pair, (P, 2).
        shown: Whether utilities are written.
        best: How many of the best items are written.
    """

    among: np.ndarray
    pairs: np.ndarray
    shown: bool
    best: int

    @property
    def num_margins(self) -> int:
        """Number of margins that are computed of a person."""
        return max(len(self.among) - 1, 0) + len(self.pairs)

    @property
    def num_rows(self) -> int:
        """Number of rows that are written of a person."""
        return self.shown * len(self.among) + len(self.pairs) + self.best


class Scorer:
    """Holds a saved model and what is asked of it, and scores tables of people's comparisons.

    A person's numbers follow from the model, the seed, the person's name and the person's
    comparisons. They do not depend on other people, on the order of rows or on the process: on
    processors of one kind they are equal to the last bit.

    Args:
        model_dir: Folder of a model that :func:`fssa_bayes.save` wrote.
        user: Column that names the person: text or whole numbers.
        left: Column that names the left item.
        right: Column that names the right item.
        choice: Column with the answer: 1 / 0 / 0.5, Booleans (True: left), the words "left" /
            "right" / "tie" in any case, or the name of the preferred item (and "tie"), the same way
            in all rows of a person. A person whose choices can be read in two ways, as 1 where
            items are named 0 and 1, is not scored.
        items: Features of the items, one row an item, indexed by name; None where the model has an
            indicator for each item.
        among: Names of the items whose utilities are centred and of which the best are found; all
            items if None.
        utilities: Whether to write the utility of each of these items.
        pairs: Pairs of names, of which the probability that the first is preferred is written.
        best: Number of best items that are written, by mean utility.
        ties: `"drop"` leaves ties out, `"half"` counts them as half a win each, `"keep"` keeps them
            for a model with ties.
        num_samples: Number of draws of each person.
        seed: Seed of the draws.
        fallback: What is done for people whose draws do not suffice, as for
            :class:`fssa_bayes.Posterior`.
        device: Where the model is evaluated. Scores are equal to the last bit on CPUs alone.

    Raises:
        FileNotFoundError: If there is no saved model.
        ValueError: If the model is damaged, of another format version, has covariates of people or
            does not know an item, or an option is out of range.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike,
        *,
        user: str = "user",
        left: str = "left",
        right: str = "right",
        choice: str = "choice",
        items: pd.DataFrame | None = None,
        among: Sequence[Hashable] | None = None,
        utilities: bool = False,
        pairs: Sequence[tuple[Hashable, Hashable]] = (),
        best: int = 0,
        ties: str = "drop",
        num_samples: int = 1000,
        seed: int = 0,
        fallback: str | None = "draws",
        device: torch.device | str = "cpu",
    ) -> None:
        self.columns = ColumnNames(user, left, right, choice)
        self.model, self.guide = load(model_dir, device=device)
        if self.model.num_covariates:
            raise ValueError(
                f"model_dir={str(model_dir)!r} must hold a model without covariates of people, as "
                f"tables of comparisons have none, got {self.model.num_covariates} covariates: "
                "score these people by Posterior"
            )
        if ties not in _TIES or (ties == "keep" and not self.model.has_ties):
            rule = "must be one of" if ties not in _TIES else "needs a model with ties; choose from"
            raise ValueError(f"ties {rule} {_TIES}, got {ties!r}")
        if fallback not in FALLBACKS:
            raise ValueError(f"fallback must be one of {FALLBACKS}, got {fallback!r}")
        check_draws(self.model, num_samples, "psis")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
        self.ties, self.num_samples, self.seed, self.fallback = ties, num_samples, seed, fallback
        self._read_items(items)
        self._plan = self._make_plan(among, utilities, pairs, best)

    def _read_items(self, items: pd.DataFrame | None) -> None:
        """Takes names and features of the items."""
        if bool(self.model.is_standardised) != (items is not None):
            rule = "be given" if items is None else "be None"
            raise ValueError(
                f"items must {rule}: the model was fitted to items "
                f"{'with' if items is None else 'without'} features"
            )
        self._table: dict[str, object] = {}
        if items is None:
            if self.model.feature_names is None:
                raise ValueError("model_dir must hold a fitted model, got one without item names")
            self.items = self.model.feature_names
            self._table = {"num_items": len(self.items)}
        else:
            if not isinstance(items, pd.DataFrame):
                raise TypeError(f"items must be a pandas DataFrame, got {type(items).__name__}")
            table, levels = expand_levels("items", items)
            self.items = canonical_names("the index of items", table.index)
            self._table = {"items": table.to_numpy(), "feature_names": table.columns}
            self._table["feature_levels"] = levels
        self._table["item_names"] = self.items
        # Checked here once: names, features and that the model knows them.
        tiny = Preferences(
            np.array([0]), np.array([1]), np.array([1]), np.array([0, 1]), **self._table
        )
        tiny = tiny.for_model(self.model)
        self._table = {"item_names": tiny.item_names, "num_items": tiny.num_items}
        if tiny.items is not None:
            self._table |= {"items": tiny.items, "feature_names": tiny.feature_names}
            self._table["feature_levels"] = tiny.feature_levels
        kinds = {type(name) for name in self.items.tolist()}
        self._item_type = {frozenset([str]): pa.string(), frozenset([int]): pa.int64()}.get(
            frozenset(kinds)
        )
        if self._item_type is None:
            shown = sorted(kind.__name__ for kind in kinds)
            raise ValueError(f"names of items must be all text or all whole numbers, got {shown}")

    def _make_plan(
        self,
        among: Sequence[Hashable] | None,
        utilities: bool,
        pairs: Sequence[tuple[Hashable, Hashable]],
        best: int,
    ) -> _Plan:
        """Finds the items that are asked about."""
        if not (utilities or len(pairs) or best):
            raise ValueError("one of utilities, pairs and best must be asked for, got none of them")
        if isinstance(best, bool) or not isinstance(best, int) or best < 0:
            raise ValueError(f"best must be an integer of at least 0, got {best!r}")
        if any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
            raise ValueError(f"pairs must be pairs of names, got {list(pairs)!r}")
        place = np.arange(len(self.items))
        if among is not None:
            place = self._find("among", list(among))
        if not (utilities or best):
            place = place[:0]
        elif len(place) < 2 or len(np.unique(place)) < len(place):
            raise ValueError(f"among must name two or more different items, got {among!r}")
        elif self.model.utility.is_random:
            raise ValueError("utilities and best need a utility that is not random")
        if best > len(place):
            raise ValueError(f"best must be at most the number of items {len(place)}, got {best}")
        ends = self._find("pairs", [name for pair in pairs for name in pair]).reshape(-1, 2)
        if (ends[:, 0] == ends[:, 1]).any():
            raise ValueError(f"pairs must be of two different items, got {list(pairs)!r}")
        return _Plan(place, ends, bool(utilities), best)

    def _find(self, argument: str, names: list) -> np.ndarray:
        place = find_values(names, self.items) if names else np.zeros(0, dtype=np.int64)
        if (place < 0).any():
            unknown = [name for name, found in zip(names, place, strict=True) if found < 0]
            raise ValueError(
                f"{argument} must name items of the model, [{first_names(self.items)}], got "
                f"{unknown[:5]}"
            )
        return place

    def __call__(self, table: pa.Table) -> pa.Table:
        """Scores people: :meth:`score`, for engines that call an object."""
        return self.score(table)

    def schema(self, table: pa.Schema) -> pa.Schema:
        """Returns the columns of the result for a table of comparisons with given columns."""
        check_columns(table, self.columns)
        kind = user_type(table.field(self.columns.user).type, self.columns.user)
        return output_schema(kind, self._item_type)

    def score(self, table: pa.Table) -> pa.Table:
        """Scores people.

        Args:
            table: Comparisons, one a row in any order, with all rows of every person in it.

        Returns:
            Rows by person in the order of names, see :func:`score_table`.

        Raises:
            TypeError: If `table` is no Arrow table.
            ValueError: If a column is missing or nested, or people are not named by text or whole
                numbers.
        """
        if not isinstance(table, pa.Table):
            raise TypeError(
                f"table must be a pyarrow Table, got {type(table).__name__}; "
                "pyarrow.Table.from_pandas(df) makes one"
            )
        schema = self.schema(table.schema)
        people = read_people(table, self.columns, self.items, self.ties)
        width = self.model.latent_dim + self._plan.num_margins + 1
        size = max(1, _DRAWS_AT_ONCE // (self.num_samples * width))
        parts = []
        for start in range(0, len(people.names), size):
            stop = min(start + size, len(people.names))
            parts += self._score_slice(people, slice(start, stop), schema)
        parts += [self._failures(people.failed, people.reasons, schema)]
        whole = pa.concat_tables(parts)
        # People who failed stand among the others.
        return whole.take(_stable_order(whole["user"])) if people.failed else whole

    def _score_slice(self, people: People, part: slice, schema: pa.Schema) -> list[pa.Table]:
        """Scores some people, and a half of them each where one of them cannot be scored."""
        try:
            return [self._score_people(people, part, schema)]
        except FloatingPointError as error:
            if part.stop - part.start == 1:
                reason = f"the posterior is not finite: {error}"
                return [self._failures(people.names[part], [reason], schema)]
        middle = (part.start + part.stop) // 2
        halves = slice(part.start, middle), slice(middle, part.stop)
        return [table for half in halves for table in self._score_slice(people, half, schema)]

    @torch.no_grad()
    def _score_people(self, people: People, part: slice, schema: pa.Schema) -> pa.Table:
        rows, names = people.rows(part), people.names[part]
        context = Preferences(
            people.left[rows],
            people.right[rows],
            people.choice[rows],
            people.offsets[part.start : part.stop + 1] - people.offsets[part.start],
            user_names=names,
            ties="keep" if self.ties == "keep" else "half",
            **self._table,
        )
        with warnings.catch_warnings():  # The column `beyond_training` tells it by person.
            warnings.filterwarnings("ignore", "the largest context has")
            posterior = Posterior(
                self.model,
                self.guide,
                context,
                self.num_samples,
                seed=self.seed,
                fallback=self.fallback,
            )
        plan, parts = self._plan, []
        if len(plan.among):
            others, base = plan.among[1:], np.repeat(plan.among[:1], len(plan.among) - 1)
            # Whoever stands on the left: utilities do not depend on where an item stands.
            target = self._ask(names, others, base, side=0.0)
            parts += _join([self._describe_items(each) for each in posterior.likelihoods(target)])
        if len(plan.pairs):
            target = self._ask(names, *plan.pairs.T, side=1.0)
            found = [self._describe_pairs(each) for each in posterior.likelihoods(target)]
            # After the utilities and before the best items.
            parts[plan.shown : plan.shown] = _join(found)
        return self._arrange(names, parts, self._judge(posterior, context), schema)

    def _ask(self, names: list, left: np.ndarray, right: np.ndarray, *, side: float) -> Preferences:
        """Asks everybody the same pairs, of items (N,) given by position."""
        number, width = len(names), len(left)
        has_places = self.model.bias is not None
        return Preferences(
            np.tile(left, number),
            np.tile(right, number),
            np.ones(width * number),
            np.arange(number + 1) * width,
            user_names=names,
            side=np.full(width * number, side) if has_places else None,
            **self._table,
        )

    def _describe_items(self, part: Likelihoods) -> list[dict[str, Tensor]]:
        """Describes utilities of some people, and their best items, if asked for: (u, rows)."""
        (_, _, likelihood, log_weights), plan = part, self._plan
        margins, weights = likelihood.margin, log_weights.exp()
        utility = torch.cat([torch.zeros_like(margins[..., :1]), margins], -1)
        utility = utility - utility.mean(-1, keepdim=True)
        mean = weighted_mean(utility, weights)
        lower, upper = weighted_quantiles(utility, weights, _QUANTILES)
        every = {"place": torch.arange(len(plan.among), device=mean.device).expand_as(mean)}
        every |= {"mean": mean, "lower": lower, "upper": upper}
        kept = [every] if plan.shown else []
        if plan.best:
            best = mean.argsort(dim=-1, descending=True, stable=True)[:, : plan.best]
            first = (utility.argmax(-1, keepdim=True) == best).to(utility.dtype)
            own = {name: values.gather(1, best) for name, values in every.items()}
            kept.append(own | {"first": weighted_mean(first, weights)})
        return kept

    def _describe_pairs(self, part: Likelihoods) -> list[dict[str, Tensor]]:
        """Describes the probabilities of pairs of some people, (u, rows)."""
        prob = describe_part(part)[1]
        names = ("mean", "lower", "upper", "epistemic", "aleatoric")
        return [{name: getattr(prob, name) for name in names}]

    def _judge(self, posterior: Posterior, context: Preferences) -> dict[str, np.ndarray]:
        """Tells how far each person's draws can be relied upon, (U,) each."""
        relative = posterior.relative_ess
        beyond = np.zeros(len(context), dtype=bool)
        if self.guide is not None and int(self.guide.largest_context):
            by_guide = np.array(["guide" in method for method in posterior.method])
            beyond = (context.counts > int(self.guide.largest_context)) & by_guide
        return {
            "comparisons": context.counts,
            "ess": (relative * len(posterior.proposals[0])).numpy(),
            "pareto_k": posterior.pareto_k.numpy(),
            "reliable": posterior.reliable.numpy(),
            "beyond_training": beyond,
            "method": posterior.method,
        }

    def _arrange(
        self,
        names: list,
        parts: list[dict[str, Tensor]],
        per_person: dict[str, np.ndarray],
        schema: pa.Schema,
    ) -> pa.Table:
        """Lays the rows of people end to end: utilities, pairs and best items of each."""
        plan, people = self._plan, len(names)
        kind = np.repeat(np.arange(3), [plan.shown * len(plan.among), len(plan.pairs), plan.best])
        is_pair = np.tile(kind == 1, people)
        rank = np.tile(np.where(kind == 2, np.cumsum(kind == 2), 0), people)
        columns = {
            name: torch.cat([_fill(part, name) for part in parts], 1).numpy().ravel()
            for name in ("place", "mean", "lower", "upper", "first", "epistemic", "aleatoric")
        }
        item, place = np.zeros(len(rank), dtype=np.int64), columns.pop("place")
        other = item.copy()
        if len(plan.among):
            item[~is_pair] = plan.among[place[~is_pair].astype(np.int64)]
        item[is_pair], other[is_pair] = (np.tile(end, people) for end in plan.pairs.T)
        item_names = pa.array(self.items.tolist(), self._item_type)
        arrays = {
            "user": _repeat(pa.array(names, schema.field("user").type), len(kind)),
            "quantity": pa.array(_QUANTITIES).take(pa.array(np.tile(kind, people))),
            "item": item_names.take(pa.array(item)),
            "other": item_names.take(pa.array(other, mask=~is_pair)),
            "rank": pa.array(rank, mask=rank == 0),
            "reason": pa.nulls(len(rank), pa.string()),
        }
        for name, values in columns.items():
            arrays[name] = pa.array(values, mask=np.isnan(values))
        for name, values in per_person.items():
            mask = np.isnan(values) if values.dtype.kind == "f" else None
            arrays[name] = _repeat(pa.array(values, mask=mask), len(kind))
        columns = [arrays[name].cast(schema.field(name).type) for name in schema.names]
        return pa.table(columns, schema=schema)

    def _failures(self, names: list, reasons: list[str], schema: pa.Schema) -> pa.Table:
        """Lays out one row for each person who cannot be scored."""
        columns = {name: pa.nulls(len(names), schema.field(name).type) for name in schema.names}
        columns["user"] = pa.array(names, schema.field("user").type)
        columns["reason"] = pa.array(reasons, pa.string())
        return pa.table(columns, schema=schema)


def output_schema(user: pa.DataType, item: pa.DataType) -> pa.Schema:
    """Returns the columns of scores, whose people and items are named by values of two types."""
    single, whole = pa.float32(), pa.int32()
    return pa.schema(
        [
            ("user", user),
            ("quantity", pa.string()),
            ("item", item),
            ("other", item),
            ("rank", whole),
            *((name, single) for name in ("mean", "lower", "upper", "first")),
            *((name, single) for name in ("epistemic", "aleatoric")),
            ("comparisons", whole),
            ("ess", single),
            ("pareto_k", single),
            ("reliable", pa.bool_()),
            ("beyond_training", pa.bool_()),
            ("method", pa.string()),
            ("reason", pa.string()),
        ]
    )


def score_table(model_dir: str | os.PathLike, table: pa.Table, **options: object) -> pa.Table:
    """Scores the preferences of people by a saved model.

    Args:
        model_dir: Folder of a model that :func:`fssa_bayes.save` wrote.
        table: Comparisons, one a row in any order, with all rows of every person in it.
        **options: Arguments of :class:`Scorer`, such as `best=3` and `num_samples=250`.

    Returns:
        One row a person and quantity, people in the order of their names. Columns: `user`;
        `quantity`, `"utility"` of an item in nats, centred over the items of `among`,
        `"probability"` that `item` is preferred to `other`, with position bias and lapses, or
        `"best"`, the utility of the item with rank `rank`; their posterior `mean`, and `lower` and
        `upper`, the 5 % and 95 % quantiles; `first`, the probability that a best item is the
        person's first choice; of a pair, in nats, `epistemic`, the mutual information of choice and
        z, and `aleatoric`, the expected entropy given z. Of the person: `comparisons` known; `ess`,
        the number of effective draws; `pareto_k`, `reliable` and `method`, as for
        :class:`fssa_bayes.Posterior`; `beyond_training`, whether draws come from a guide that was
        trained for smaller contexts. Intervals hold the population at its estimates.

        A person who cannot be scored has one row, which is empty but for `user` and `reason`.

    Raises:
        FileNotFoundError: If there is no saved model.
        ValueError: If a column is missing, or as :class:`Scorer`.
    """
    return Scorer(model_dir, **options).score(table)


def _join(parts: list[list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    """Joins what is found of some people at a time, quantity by quantity."""
    return [
        {name: torch.cat([part[name].cpu() for part in same]) for name in same[0]}
        for same in zip(*parts, strict=True)
    ]


def _fill(part: dict[str, Tensor], name: str) -> Tensor:
    """Returns a column of a quantity, NaN where the quantity has none, (U, rows)."""
    return part.get(name, torch.full_like(part["mean"], torch.nan)).double()


def _repeat(values: pa.Array, times: int) -> pa.Array:
    """Repeats each value, one after another."""
    return values.take(pa.array(np.repeat(np.arange(len(values)), times)))


def _stable_order(column: pa.ChunkedArray) -> pa.Array:
    """Returns the order of the names, missing ones first, equal ones as they stand."""
    names = column.to_pylist()
    order = sorted(range(len(names)), key=lambda row: (names[row] is not None, names[row]))
    return pa.array(order, pa.int64())
