"""How comparisons are laid out in the rows and columns of a file, read as text.

A layout takes the cells that it needs, leaves out rows that lack one, turns text that means numbers
into numbers, and names the reader of `Preferences` that takes the rest.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._tables import as_text, list_names

__all__ = ["Part", "Source", "choose_layout"]

_MISSING_CHOICES = ("na", "n/a", "<na>", "nan", "null", "none")
_BOOLEANS = {"true": 1.0, "false": 0.0}
Path = str | os.PathLike[str]


class Source(NamedTuple):
    """Holds a file as it was read, and what is asked of it.

    Attributes:
        path: Path of the file, for messages.
        frame: Its cells, as text.
        roles: Names of columns by the roles that they were given.
        labels: Translation of the file's own words for choices, or None.
        ties: `"drop"`, `"half"` or `"keep"`.
        options: What layouts need beside columns of roles, by the name of the argument.
    """

    path: Path
    frame: pd.DataFrame
    roles: Mapping[str, str]
    labels: Mapping[str, str] | None
    ties: str
    options: Mapping[str, Any]


class Part(NamedTuple):
    """Holds what a layout takes from a file.

    Attributes:
        read: Reads the comparisons, given `items` and `users`.
        missing: Number of rows left out because a cell was empty, by column.
        people: Names of the people who have an answer; None where nobody is named.
        compared: Names of the items compared; None where the reader checks them.
    """

    read: Callable[..., Preferences]
    missing: dict[str, int]
    people: pd.Series | None
    compared: pd.DataFrame | None = None


def choose_layout(roles: Mapping[str, str], options: Mapping[str, Any]) -> Callable[[Source], Part]:
    """Returns the layout that columns and options make, or refuses what makes none."""
    given = {*roles, *(name for name, value in options.items() if value not in (None, False))}
    for needed, also, layout in _LAYOUTS:
        if needed <= given <= needed | also | {"user"}:
            return layout
    made = "; ".join(", ".join(sorted(needed)) for needed, _, _ in _LAYOUTS)
    raise ValueError(
        f"columns must be named for one of the layouts ({made}), got {', '.join(sorted(given))}"
    )


def _comparisons(source: Source) -> Part:
    """One row a comparison."""
    roles, labels = source.roles, source.labels
    chosen = roles.get("choice")
    complete, missing = _complete(source.path, _select(source), roles, labels or ())
    if labels is None and chosen:
        complete = complete.assign(**{chosen: _decode_choices(source.path, complete, roles)})
    complete = _decode_sides(complete, roles)
    pair = [roles[role] for role in ("left", "right", "winner", "loser") if role in roles]
    options = {"choice_labels": labels, "ties": source.ties}
    read = partial(Preferences.from_dataframe, complete, **roles, **options)
    return Part(read, missing, _people(complete, roles), complete[pair])


def _wins(source: Source) -> Part:
    """One row a pair, with numbers of wins."""
    roles, ties = source.roles, source.ties
    complete, missing = _complete(source.path, _select(source), roles, ())
    complete = _decode_sides(complete, roles)
    columns = {role: column for role, column in roles.items() if role != "tied"}
    if "tied" in roles and ties != "drop":
        columns["ties"] = roles["tied"]

    def read(**tables: pd.DataFrame | None) -> Preferences:
        data = Preferences.from_counts(complete, **columns, **tables)
        return data.with_choices(data.choice, ties=ties) if ties == "half" else data

    return Part(read, missing, _people(complete, roles), complete[[roles["left"], roles["right"]]])


def _pair_columns(source: Source) -> Part:
    """One row a person, one column a pair."""
    sep, user = source.options["pair_columns"], source.roles.get("user")
    named = source.frame.columns
    columns = [name for name in named if sep in name and name != user]
    if not columns:
        raise ValueError(
            f"{source.path} must have columns named like 'a{sep}b', got {list_names(named)}"
        )
    complete, missing = _complete_rows(source, columns)
    cells = complete[columns]
    nothing = cells.isin([""]) | cells.apply(lambda column: column.str.lower()).isin(
        [word for word in _MISSING_CHOICES if word not in (source.labels or ())]
    )
    cells = cells.mask(nothing, None)
    if source.labels is None:
        cells = _decode_cells(cells)
    complete = complete.drop(columns=columns).join(cells)
    read = partial(
        Preferences.from_pair_columns,
        complete,
        sep=sep,
        columns=columns,
        user=user,
        choice_labels=source.labels,
        ties=source.ties,
    )
    return Part(read, missing, _people(complete[cells.notna().any(axis=1)], source.roles))


def _decode_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Turns numbers and Booleans into floats, if all cells are such."""
    words = pd.unique(cells.to_numpy().ravel())
    words = [word for word in words if word is not None]
    for coding in _CODINGS:
        meaning = {word: coding(word) for word in words}
        if all(code in (0.0, 0.5, 1.0) for code in meaning.values()):
            return cells.apply(lambda column, meaning=meaning: column.map(meaning))
    return cells


def _ranked_items(source: Source) -> Part:
    """One row an item of a ranking."""
    path, roles = source.path, source.roles
    needed = {role: column for role, column in roles.items() if role != "rank"}
    complete, missing = _complete(path, _select(source), needed, ())
    complete = complete.assign(**{roles["rank"]: _numbers(path, complete[roles["rank"]])})
    read = partial(Preferences.from_rankings, complete, **roles)
    return Part(read, missing, _people(complete, roles))


def _wide_rankings(source: Source) -> Part:
    """One row a ranking."""
    name = "orderings" if source.options["orderings"] is not None else "ranks"
    columns, user = list(source.options[name]), source.roles.get("user")
    complete, missing = _complete_rows(source, columns)
    for column in columns:
        cells = complete[column].mask(complete[column] == "", None)
        is_name = name == "orderings"
        complete[column] = cells if is_name else _numbers(source.path, complete[column])
    read = partial(Preferences.from_rankings, complete, user=user, **{name: columns})
    given = complete[columns].notna().any(axis=1)
    return Part(read, missing, _people(complete[given], source.roles))


def _choice_sets(source: Source) -> Part:
    """One row an alternative on offer; an empty cell is refused, as a row is part of a set."""
    path, roles, options = source.path, source.roles, source.options
    features = list(options["features"] or ())
    wide = {f"feature {number}": column for number, column in enumerate(features, start=1)}
    cells = _select(source, wide)
    cells = cells.mask(cells == "", None)
    marks = [roles[role] for role in ("chosen", "worst", "available") if role in roles]
    cells = cells.assign(**{column: _decode_marks(cells[column]) for column in marks})
    read = partial(
        Preferences.from_choices,
        cells.assign(**{column: _numbers_or_words(path, cells[column]) for column in features}),
        **roles,
        features=features or None,
        constants=options["constants"],
        outside=options["outside"],
    )
    return Part(read, {}, _people(cells, roles))


def _decode_marks(column: pd.Series) -> pd.Series:
    """Turns true and false into 1 and 0, if no cell holds anything else."""
    words = column.dropna().str.lower()
    return words.map(_BOOLEANS).reindex(column.index) if words.isin(_BOOLEANS).all() else column


def _numbers_or_words(path: Path, column: pd.Series) -> pd.Series:
    """Reads a feature: words where no cell is a number, else numbers."""
    if pd.to_numeric(column, errors="coerce").isna().all():
        return column
    return _numbers(path, column, "features")


_PAIR = {"left", "right"}
_LAYOUTS: tuple[tuple[set[str], set[str], Callable[[Source], Part]], ...] = (
    (_PAIR | {"choice"}, {"side", "count"}, _comparisons),
    ({"winner", "loser"}, {"side", "count"}, _comparisons),
    (_PAIR | {"left_wins", "right_wins"}, {"side", "tied"}, _wins),
    ({"pair_columns"}, set(), _pair_columns),
    ({"user", "item", "rank"}, {"ranking"}, _ranked_items),
    ({"orderings"}, set(), _wide_rankings),
    ({"ranks"}, set(), _wide_rankings),
    (
        {"item", "chosen"},
        {"situation", "available", "worst", "features", "constants", "outside"},
        _choice_sets,
    ),
)


def _people(frame: pd.DataFrame, roles: Mapping[str, str]) -> pd.Series | None:
    return frame[roles["user"]] if "user" in roles else None


def _select(source: Source, more: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Takes the columns of the roles, and of more roles, in their order, as text."""
    path, frame, roles = source.path, source.frame, {**source.roles, **(more or {})}
    for role, column in roles.items():
        if column not in frame.columns:
            raise ValueError(
                f"{role}={column!r} is not a column of {path}; its columns are "
                f"{list_names(frame.columns)}"
            )
    if len(frame) == 0:
        raise ValueError(f"{path} must have at least one row, got a header alone")
    return pd.DataFrame({column: as_text(path, frame[column]) for column in roles.values()})


def _complete_rows(source: Source, columns: Sequence[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Takes columns whose cells may be empty, beside those of the roles, in which none may be."""
    wide = {f"column {number}": column for number, column in enumerate(columns, start=1)}
    return _complete(source.path, _select(source, wide), source.roles, (), 5)


def _complete(
    path: Path,
    frame: pd.DataFrame,
    roles: Mapping[str, str],
    labels: Iterable[str],
    stacklevel: int = 4,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Leaves out rows with an empty cell of a role, and counts them by the first such column."""
    columns = list(roles.values())
    empty = frame[columns] == ""
    if "choice" in roles:
        left, right, choice = (frame[roles[role]] for role in ("left", "right", "choice"))
        nothing = choice.str.lower().isin(_MISSING_CHOICES) & ~choice.isin(list(labels))
        empty[choice.name] |= nothing & (choice != left) & (choice != right)
    lost = empty.any(axis=1)
    if not lost.any():
        return frame, {}
    first = np.array(columns)[empty[lost].to_numpy().argmax(1)]
    missing = {column: int((first == column).sum()) for column in columns if column in first}
    shown = ", ".join(f"{count} in {column!r}" for column, count in missing.items())
    if lost.all():
        raise ValueError(
            f"{path} must have a row without empty cells, got {len(frame)} rows with one ({shown})"
        )
    warnings.warn(
        f"{path}: {lost.sum()} of {len(frame)} rows have an empty cell and were left out ({shown})",
        stacklevel=stacklevel,
    )
    return frame[~lost].copy(), missing


def _decode_sides(frame: pd.DataFrame, roles: Mapping[str, str]) -> pd.DataFrame:
    """Turns true and false in the column of sides into 1 and 0."""
    if "side" not in roles:
        return frame
    side = frame[roles["side"]].map(lambda word: _BOOLEANS.get(word.lower(), word))
    return frame.assign(**{roles["side"]: side})


def _numbers(path: Path, column: pd.Series, what: str = "ranks") -> pd.Series:
    """Reads numbers, NaN where a cell is empty."""
    column = column.mask(column == "", None)
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = np.flatnonzero(numbers.isna() & column.notna())
    if len(wrong):
        raise ValueError(
            f"{path} must hold numbers in the column {column.name!r} of {what}, got "
            f"{column.iloc[wrong[0]]!r} at row {column.index[wrong[0]]} ({len(wrong)} such rows)"
        )
    return numbers.astype(float)


def _decode_choices(path: Path, frame: pd.DataFrame, roles: Mapping[str, str]) -> pd.Series:
    """Turns numbers and Booleans in the choice column into floats, unless they are item names.

    A column with some of them is turned as well, so that the message of what refuses it points at
    the cell that is none.
    """
    left, right, choice = (frame[roles[role]] for role in ("left", "right", "choice"))
    named = _preferred_side(left, right, choice)
    words = choice.unique()
    for coding in _CODINGS:
        meaning = {word: coding(word) for word in words if coding(word) in (0.0, 0.5, 1.0)}
        if len(meaning) == len(words):
            _check_unambiguous(path, choice, named, choice.map(meaning).to_numpy(dtype=float))
        if len(meaning) == len(words) or (meaning and np.isnan(named).any()):
            return choice.map(lambda word, meaning=meaning: meaning.get(word, word))
    return choice


def _preferred_side(left: pd.Series, right: pd.Series, choice: pd.Series) -> np.ndarray:
    """Reads the choice column as the preferred item's name: 1, 0 or ½, NaN where it is none."""
    meanings = [choice == left, choice == right, choice == "tie"]
    return np.select(meanings, [1.0, 0.0, 0.5], np.nan)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return np.nan


def _boolean(word: str) -> float:
    return _BOOLEANS.get(word.lower(), np.nan)


_CODINGS = (_number, _boolean)


def _check_unambiguous(path: Path, choice: pd.Series, named: np.ndarray, code: np.ndarray) -> None:
    if np.isnan(named).any() or (named == code).all():
        return
    row = np.flatnonzero(named != code)[0]
    words = {1.0: "left", 0.0: "right", 0.5: "a tie"}
    raise ValueError(
        f"{path}: choice is ambiguous, {choice.iloc[row]!r} at row {choice.index[row]} says "
        f"{words[code[row]]} as a number or Boolean and {words[named[row]]} as the name of the "
        "preferred item; choice_labels={'1': 'left', '0': 'right'} settles it for numbers, other "
        "item names for names"
    )
