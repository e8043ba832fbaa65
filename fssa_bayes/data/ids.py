"""Names of people, items, features and covariates: plain values that can be saved.

Whatever the type of a column, its names are read as Python's own values: text, integers, floats,
Booleans, and dates, times (as `pandas.Timestamp`, in UTC where they have a time zone), UUIDs, bytes
and decimal numbers. Names are compared as Python compares values: 1, 1.0 and `True` are one name,
"1" is another. Names of another kind, such as tuples, intervals and periods, are refused when they
are read: `.astype(str)` makes text of them. So is text that netCDF or UTF-8 cannot hold: with a NUL
character, or half a pair of surrogates.

An index of names has one form: int64, float64 or bool where all names fit, the text type of pandas
for text alone, and Python's values as objects otherwise.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import warnings
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd

__all__ = [
    "canonical_names",
    "explain_unknown",
    "factorise_names",
    "find_distinct",
    "find_names",
    "find_values",
    "join_names",
    "names_from_json",
    "names_to_json",
    "tell_objects_apart",
    "warn_of_lookalikes",
]

_RANGE = 2**63
_SAMPLE = 65_536  # Rows from which it is judged whether rows share objects.
_SHARED = 0.9  # Share of different objects among these up to which they do.
_TAGS: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "datetime": (pd.Timestamp, pd.Timestamp.isoformat, pd.Timestamp),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "uuid": (UUID, str, UUID),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "decimal": (Decimal, str, Decimal),
}


def canonical_names(argument: str, names: Sequence | np.ndarray | pd.Series | pd.Index) -> pd.Index:
    """Reads names as plain values, in the one form that an index of names has.

    Args:
        argument: What the names are, for messages.
        names: The names, in their order; repeated ones are kept.

    Returns:
        The names. The name of an index is kept.

    Raises:
        TypeError: If the names are one string, or a name is of a kind that cannot be saved.
        ValueError: If a name is missing, not finite or text that files cannot hold.
    """
    if isinstance(names, str | bytes):
        raise TypeError(f"{argument} must be a list of names, got the string {names!r}")
    dtype = getattr(names, "dtype", None)
    label = getattr(names, "name", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "iufb":
        return _number_index(argument, np.asarray(names), names).rename(label)
    # A NumPy array would list times as integers.
    values = list(names) if dtype is None else pd.Series(names, dtype=object).tolist()
    if set(map(type, values)) <= {str}:
        return _text_index(_check_text(argument, values)).rename(label)
    return _index([_plain(argument, value) for value in values]).rename(label)


def factorise_names(argument: str, column: pd.Series) -> tuple[np.ndarray, pd.Index]:
    """Reads a column of names.

    Args:
        argument: What the column is, for messages.
        column: The column, without missing values.

    Returns:
        The position of each row's name, (R,), and the distinct names in order of first appearance.

    Raises:
        TypeError: If a name is of a kind that cannot be saved.
        ValueError: If a name is missing, not finite or text that files cannot hold.
    """
    try:
        code, values = find_distinct(column)
    except TypeError as error:  # Lists and other values without a hash.
        raise TypeError(f"{argument} must hold names that can be saved: {error}") from error
    return code, canonical_names(argument, values)


def find_distinct(column: pd.Series) -> tuple[np.ndarray, Any]:
    """Finds the different values of a column, as Python compares values.

    Returns:
        The position of each row's value, (R,), and the different values in order of appearance, an
        array of NumPy's or of pandas' or an index.

    Raises:
        TypeError: If a value has no hash.
    """
    # An array, as pandas may make floats of the objects of a series.
    table = column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array
    if column.dtype != object:
        return pd.factorize(table, use_na_sentinel=False)
    place, first = tell_objects_apart(table)
    code, values = pd.factorize(table[first], use_na_sentinel=False)
    return code[place], values


def tell_objects_apart(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the objects of an array by where they are in memory, which needs no look at them.

    Tables hold the same text again and again, and often one object for all its rows. To hash ten
    million references to a hundred thousand texts takes five times as long as to tell their
    addresses apart.

    Args:
        values: Objects, with shape (R,).

    Returns:
        The position of each object, (R,), and the first row of each different one, in order. Where
        few of the first rows share an object, all count as different.
    """
    values = np.ascontiguousarray(values)
    address = np.ndarray(values.shape, np.intp, buffer=values.data)
    some = address[:_SAMPLE]
    if len(pd.unique(some)) > _SHARED * len(some):
        return np.arange(len(address)), np.arange(len(address))
    place, distinct = pd.factorize(address)
    first = np.empty(len(distinct), dtype=np.int64)
    first[place[::-1]] = np.arange(len(place))[::-1]
    return place, first


def join_names(first: pd.Index, second: pd.Index) -> pd.Index:
    """Lists the names of `first`, then those of `second` that are not among them."""
    new = second[find_names(second, first) < 0]
    if first.dtype == new.dtype != object:  # Of objects, pandas would make floats.
        return first.append(new)
    return _index([*first.tolist(), *new.tolist()]) if len(new) else first


def find_names(names: pd.Index, index: pd.Index) -> np.ndarray:
    """Finds the positions of names in an index of distinct names; −1 for unknown ones."""
    if names.dtype != index.dtype:  # Integers and floats together would be compared as floats.
        names, index = names.astype(object), index.astype(object)
    return index.get_indexer(names)


def find_values(values: list, index: pd.Index) -> np.ndarray:
    """Finds the positions of values in an index of distinct names; −1 also for what is no name."""
    try:
        return find_names(canonical_names("values", values), index)
    except (TypeError, ValueError):
        position = np.full(len(values), -1, dtype=np.int64)
    for place, value in enumerate(values):
        with contextlib.suppress(TypeError, ValueError):
            position[place] = find_names(canonical_names("values", [value]), index)[0]
    return position


def explain_unknown(name: object, names: pd.Index) -> str:
    """Tells which of `names` reads like an unknown name and has another type, for a message."""
    text = _read_like(name)
    alike = [other for other in names.tolist() if _read_like(other) == text]
    if not alike:
        return ""
    return (
        f"; {alike[0]!r} of type {type(alike[0]).__name__} is another name than {name!r} of type "
        f"{type(name).__name__}: give both columns one type, for example with astype(str)"
    )


def warn_of_lookalikes(what: str, names: pd.Index, *, stacklevel: int) -> None:
    """Warns of distinct names that read alike, such as 3 and "3", or a date and its midnight.

    Args:
        what: What the names are, for the message.
        names: Distinct names.
        stacklevel: As of `warnings.warn`, for a call from here.
    """
    if names.dtype != object or pd.api.types.infer_dtype(names) == "string":
        return  # Names of one kind.
    text = pd.Series([_read_like(name) for name in names.tolist()])
    again = np.flatnonzero(text.duplicated())
    if len(again):
        first = np.flatnonzero(text == text[again[0]])[0]
        shown = " and ".join(
            f"{names[place]!r} of type {type(names[place]).__name__}" for place in (first, again[0])
        )
        warnings.warn(
            f"{what} of different types read alike and are different names: {shown} ({len(again)} "
            "such names): give all columns one type, for example with astype(str)",
            stacklevel=stacklevel + 1,
        )


def _read_like(name: object) -> str:
    """Writes a name as people read it: a time at midnight as its date."""
    if isinstance(name, datetime.datetime) and name == name.normalize():
        return str(name.date())
    return str(name)


def names_to_json(names: pd.Index) -> list:
    """Lists names as JSON can hold them: what it has no word for as `{kind: text}`.

    Raises:
        TypeError: If a name is of another kind than those that are read.
    """
    return [_to_json(name) for name in canonical_names("names", names).tolist()]


def names_from_json(argument: str, values: object) -> pd.Index:
    """Reads what :func:`names_to_json` wrote.

    Raises:
        ValueError: If the values are no list of names.
    """
    if not isinstance(values, list):
        raise ValueError(f"{argument} must be a list of names, got {values!r}")
    try:
        return canonical_names(argument, [_from_json(value) for value in values])
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise ValueError(f"{argument} must be a list of names, got {values!r}") from error


def _to_json(name: object) -> object:
    for tag, (kind, write, _) in _TAGS.items():
        if isinstance(name, kind):
            return {tag: write(name)}
    return name


def _from_json(value: object) -> object:
    if not isinstance(value, dict):
        return value
    ((tag, text),) = value.items()
    return _TAGS[tag][2](text)


def _plain(argument: str, value: object) -> object:
    """Returns a name as a value of Python's own types, equal to it."""
    if value is None or value is pd.NA or value is pd.NaT:
        raise ValueError(f"{argument} must have no missing names, got {value!r}")
    for kind, convert in _KINDS:
        if isinstance(value, kind) and not isinstance(value, np.timedelta64):  # An integer too.
            plain = convert(value)
            if isinstance(plain, str):
                _check_text(argument, [plain])
            if isinstance(plain, float | Decimal) and not math.isfinite(plain):
                raise ValueError(f"{argument} must have finite numbers as names, got {value!r}")
            return plain
    raise TypeError(
        f"{argument} must be text, numbers, Booleans, dates, times, UUIDs or bytes, which can be "
        f"saved, got {value!r} of type {type(value).__name__}: make text of them first, for "
        "example with astype(str)"
    )


def _check_text(argument: str, values: list[str]) -> list[str]:
    """Returns texts after a check that files can hold them."""
    text = "".join(values)
    if "\0" in text or not _is_utf8(text):
        wrong = next(value for value in values if "\0" in value or not _is_utf8(value))
        raise ValueError(
            f"{argument} must be names that UTF-8 can hold, without NUL characters, got {wrong!r}"
        )
    return values


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # Half a pair of surrogates.
        return False
    return True


def _plain_float(value: float) -> int | float:
    value = float(value)
    return int(value) if value.is_integer() and abs(value) < _RANGE else value


def _plain_decimal(value: Decimal) -> int | float | Decimal:
    if value.is_finite() and value == float(value):
        return _plain_float(float(value))
    return value


def _plain_time(value: datetime.datetime | np.datetime64) -> pd.Timestamp:
    time = pd.Timestamp(value)
    return time if time.tzinfo is None else time.tz_convert("UTC")


# A time is a date, and a Boolean an integer: the narrower kind comes first.
_KINDS: tuple[tuple[Any, Callable[[Any], object]], ...] = (
    (str, str.__str__),
    (bool | np.bool_, bool),
    (int | np.integer, int),
    (float | np.floating, _plain_float),
    (Decimal, _plain_decimal),
    (datetime.datetime | np.datetime64, _plain_time),
    (datetime.date, lambda value: datetime.date(value.year, value.month, value.day)),
    (UUID, lambda value: value),
    (bytes, bytes),
)


def _number_index(argument: str, values: np.ndarray, names: object) -> pd.Index:
    """Returns the index of numbers in a NumPy array, or of Booleans."""
    if values.dtype == np.int64:
        return names if isinstance(names, pd.RangeIndex) else pd.Index(values)
    if values.dtype.kind == "b":
        return pd.Index(values)
    if values.dtype.kind in "iu":
        fits = not len(values) or values.max() < _RANGE
        return pd.Index(values.astype(np.int64) if fits else values.astype(object), copy=False)
    values = values.astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        _plain(argument, None if np.isnan(values[wrong[0]]) else float(values[wrong[0]]))
    whole = (values == np.floor(values)) & (np.abs(values) < _RANGE)
    return pd.Index(values.astype(np.int64) if whole.all() else values)


def _text_index(values: list[str]) -> pd.Index:
    return pd.Index(values, dtype=None if values else object)


def _index(values: list) -> pd.Index:
    """Returns the index of plain values, which depends on the values alone."""
    kinds = set(map(type, values))
    if kinds <= {str}:
        return _text_index(values)
    if kinds == {bool}:
        return pd.Index(values, dtype=bool)
    if kinds <= {bool, int, float}:
        values = [int(value) if isinstance(value, bool) else value for value in values]
        dtype: type = object
        if float not in kinds:
            dtype = np.int64 if all(-_RANGE <= value < _RANGE for value in values) else object
        elif all(abs(value) <= 2**1023 and value == float(value) for value in values):
            dtype = np.float64
        return pd.Index(values, dtype=dtype)
    table = np.empty(len(values), dtype=object)  # Not an array of arrays, whatever the values.
    table[:] = values
    return pd.Index(table, dtype=object)
