"""Choices of many people, read by the coding that all choices of a person have."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fssa_bayes.data import NAMED, find_values, read_values

__all__ = ["read_choices"]


def read_choices(
    code: np.ndarray,
    values: list,
    left: np.ndarray,
    right: np.ndarray,
    person: np.ndarray,
    items: pd.Index,
) -> tuple[np.ndarray, dict[int, str]]:
    """Reads the choices of each person as `Preferences.from_dataframe` would read them alone.

    A coding (numbers, words, or names of items) is a person's if every choice of the person has a
    meaning in it. What a person's choices mean does not depend on other people.

    Args:
        code: Position of each comparison's choice among the values, (R,).
        values: The different choices, Python values.
        left: Position of each comparison's left item, (R,).
        right: The same for the right item.
        person: Number of the person of each comparison, from 0, (R,).
        items: Names of the items.

    Returns:
        1, 0 or ½ for each comparison, (R,), and why the choices of some people cannot be read, by
        number of the person. All comparisons of these people have NaN.
    """
    if not len(code):
        return np.zeros(0), {}
    meanings = read_values(values)
    codings = [*meanings, NAMED]
    readings = [meaning[code] for meaning in meanings.values()]
    readings = np.stack([*readings, _read_names(code, values, left, right, items)])
    lacks = np.isnan(readings)
    fits = np.stack([np.bincount(person, lack) == 0 for lack in lacks])[:, person]
    fitting = np.where(fits, readings, np.nan)
    choice = fitting[0]
    for other in fitting[1:]:
        choice = np.where(np.isnan(choice), other, choice)

    ambiguous = (fits & (fitting != choice)).any(0)
    wrong = np.flatnonzero(lacks.all(0) | ambiguous)
    _, first = np.unique(person[wrong] * len(values) + code[wrong], return_index=True)
    reasons: dict[int, str] = {}
    for row in wrong[first].tolist():
        value, one = values[code[row]], int(person[row])
        if ambiguous[row]:
            found = [name for name, fit in zip(codings, fits[:, row], strict=True) if fit]
            reason = (
                f"choice {value!r} is ambiguous: it can be read as {' or as '.join(found)}; "
                "Booleans have one meaning alone"
            )
        else:
            reason = (
                f"choice {value!r} is not one of 1, 0, 0.5, left, right, tie and the names of the "
                "two items"
            )
        # The least reason does not depend on the order of rows.
        reasons[one] = min(reason, reasons.get(one, reason))
    mixed = "choices are coded in several ways: numbers, words and names of items do not mix"
    for one in np.unique(person[~fits.any(0)]).tolist():
        reasons.setdefault(one, mixed)
    unread = np.zeros(person.max() + 1, dtype=bool)
    unread[list(reasons)] = True
    return np.where(unread[person], np.nan, choice), reasons


def _read_names(
    code: np.ndarray, values: list, left: np.ndarray, right: np.ndarray, items: pd.Index
) -> np.ndarray:
    """Returns 1 or 0 where a choice names the left or the right item, ½ for "tie", else NaN."""
    # True equals 1, and would be its name; NaN is no name.
    may_name = [not isinstance(value, bool) and value == value for value in values]
    position = np.full(len(values), -1, dtype=np.int64)
    if any(may_name):
        named = [value for value, may in zip(values, may_name, strict=True) if may]
        position[may_name] = find_values(named, items)
    ties = [isinstance(value, str) and value.strip().lower() == "tie" for value in values]
    answer = np.where(ties, 0.5, np.nan)[code]
    chosen = position[code]
    answer[chosen == right] = 0.0
    answer[chosen == left] = 1.0
    return answer
