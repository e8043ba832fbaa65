"""Choices in their codings: numbers, words, or the names of items, read once for each value."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from fssa_bayes.data.ids import find_names, find_values, join_names, tell_objects_apart
from fssa_bayes.data.names import show_cell
from fssa_bayes.data.readers.columns import Columns

__all__ = ["NAMED", "decode_choices", "decode_flags", "read_values"]

NAMED = "name of the preferred item"
"""What the coding of choices by names of items is called in messages."""

_WORDS = {"left": 1.0, "right": 0.0, "tie": 0.5}
_START = 1000
_NUMBERS = bool | np.bool_ | int | float | np.number | Decimal | str


def decode_choices(
    table: Columns, columns: Mapping[str, str], labels: Mapping[Any, str] | None
) -> np.ndarray:
    """Translates the choice column into 1, 0 and ½, refusing what has no or two meanings.

    Args:
        table: The comparisons.
        columns: Names of the columns `left`, `right` and `choice`; and `user`, if there is one.
        labels: Translation of the data's own words, or None.
    """
    choice = table.df[columns["choice"]]
    code, values = _list_values(table, columns["choice"])
    if labels is not None:
        return _decode_labels(choice, code, values, labels)
    used = np.zeros(len(values), dtype=bool)
    used[code] = True
    meanings = read_values(values)
    fitting = {n: one[code] for n, one in meanings.items() if not np.isnan(one[used]).any()}
    # Most columns without names show that in their first rows.
    start = _decode_names(table, columns, code[:_START], values)
    if not (fitting and np.isnan(start).any()):
        named = _decode_names(table, columns, code, values)
        if not np.isnan(named).any():
            fitting[NAMED] = named
    if not fitting:
        codings = {name: one[code] for name, one in meanings.items()} | {NAMED: named}
        best = min(codings, key=lambda name: np.isnan(codings[name]).sum())
        row = np.flatnonzero(np.isnan(codings[best]))[0]
        user = f" (user {show_cell(table.df[columns['user']], row)})" if "user" in columns else ""
        raise ValueError(
            f"choice must be 1 / 0 / 0.5, a Boolean, 'left' / 'right' / 'tie' or the preferred "
            f"item's name, the same way in every row, got {show_cell(choice, row)} at row "
            f"{table.df.index[row]}{user}; choice_labels translates the data's own words and "
            "numbers"
        )
    first, *others = fitting.values()
    if any((other != first).any() for other in others):
        row = next(np.flatnonzero(other != first)[0] for other in others if (other != first).any())
        raise ValueError(
            f"choice is ambiguous: {show_cell(choice, row)} at row {table.df.index[row]} can be "
            f"read as {' or as '.join(fitting)}; choice_labels={{…: 'left', …: 'right'}} settles it"
        )
    return first


def read_values(values: list) -> dict[str, np.ndarray]:
    """Reads different choices, Python values, by each coding that needs no names of items.

    Args:
        values: The different choices, V.

    Returns:
        What the values mean by the name of the coding, numbers before words: 1, 0 or ½, NaN where
        a value has no such meaning, single precision with shape (V,).
    """
    return {
        "numbers 1 / 0 / 0.5": _translate(_parse_number, values),
        'words "left" / "right" / "tie"': _translate(_word, values),
    }


def _list_values(table: Columns, column: str) -> tuple[np.ndarray, list]:
    """Returns the position of each row's value, (R,), among the different values."""
    code, found = table.values(column)
    values = pd.Series(found).astype(object).tolist()
    cells = table.df[column]
    if cells.dtype != object or not any(_is_number(v) and v in (0, 1) for v in values):
        return code, values
    # True equals 1, so that both have one code, but True is no name of an item.
    place, first = tell_objects_apart(cells.to_numpy())
    is_true, is_bool = (
        np.array([isinstance(v, bool | np.bool_) and v in kept for v in cells.iloc[first]])[place]
        for kept in ((True,), (True, False))
    )
    values = [int(v) if isinstance(v, bool | np.bool_) else v for v in values]
    return np.where(is_bool, len(values) + is_true, code), [*values, False, True]


def _is_number(value: object) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, str)


def _translate(meaning: Callable[[object], float], values: list) -> np.ndarray:
    """Returns 1, 0 or ½ for each value, NaN where it has no such meaning, single precision."""
    with np.errstate(over="ignore"):
        table = np.array([meaning(value) for value in values]).astype(np.float32)
    return np.where(np.isin(table, (0, 0.5, 1)), table, np.float32(np.nan))


def _word(value: object) -> float:
    """Reads "left", "right" or "tie" in any case, with blanks around it or not; else NaN."""
    return _WORDS.get(value.strip().lower(), np.nan) if isinstance(value, str) else np.nan


def decode_flags(column: pd.Series) -> np.ndarray:
    """Reads 1, 0 and Booleans, numbers also as text; NaN for anything else, with shape (R,)."""
    code, values = pd.factorize(column, use_na_sentinel=False)
    flags = np.array([_parse_number(value) for value in values], dtype=np.float64)
    return np.where(np.isin(flags, (0, 1)), flags, np.nan)[code]


def _parse_number(value: object) -> float:
    """Reads a number, a Boolean, or text such as "1" or "0.5"; NaN for anything else."""
    try:
        return float(value) if isinstance(value, _NUMBERS) else np.nan
    except ValueError:  # Text that is no number.
        return np.nan


def _decode_names(
    table: Columns, columns: Mapping[str, str], code: np.ndarray, values: list
) -> np.ndarray:
    """Returns which item of its row a choice names: 1, 0, ½ for the word "tie", else NaN.

    Args:
        table: The comparisons.
        columns: Names of the columns `left` and `right`.
        code: Positions of the choices of the first Q rows among the values, (Q,).
        values: The different choices.
    """
    sides = [table.names(f"column {columns[side]!r}", columns[side]) for side in ("left", "right")]
    names = join_names(sides[0][1], sides[1][1])
    position = find_values(values, names)
    position[[isinstance(value, bool | np.bool_) for value in values]] = -1
    ties = np.array([_word(value) == 0.5 for value in values])
    answer = np.where(ties, np.float32(0.5), np.float32(np.nan))[code]
    if (position >= 0).any():
        chosen = position[code]
        left, right = (find_names(own, names)[place[: len(code)]] for place, own in sides)
        answer[chosen == right] = 0.0
        answer[chosen == left] = 1.0
    return answer


def _decode_labels(
    choice: pd.Series, code: np.ndarray, values: list, labels: Mapping[Any, str]
) -> np.ndarray:
    if not isinstance(labels, Mapping):
        raise TypeError(
            "choice_labels must be a mapping such as {'a1': 'left', 'a2': 'right'}, "
            f"got {type(labels).__name__}"
        )
    wrong = [value for value in labels.values() if value not in _WORDS]
    if wrong:
        raise ValueError(
            f"choice_labels must translate into 'left', 'right' or 'tie', got {wrong[0]!r}"
        )
    meaning = {label: _WORDS[word] for label, word in labels.items()}
    known = [meaning.get(v, np.nan) if isinstance(v, Hashable) else np.nan for v in values]
    answer = np.array(known, dtype=np.float32)[code]
    unknown = np.flatnonzero(np.isnan(answer))
    if len(unknown):
        raise ValueError(
            f"choice_labels has no translation for {show_cell(choice, unknown[0])} at row "
            f"{choice.index[unknown[0]]} ({len(unknown)} such rows); it knows {list(labels)}"
        )
    return answer
