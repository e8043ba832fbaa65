"""Stated choices between two train trips: 235 people, 2,929 choices, four features.

The file has one row per choice, with columns `id`, `choice` ("choice1" or "choice2") and, for each
option, price (cents of guilders), time (minutes), change (number) and comfort (class, 0 is best).
Several choice-model packages distribute it, as `Train`.

References:
    Ben-Akiva, Bolduc & Bradley (1993), Estimation of travel choice models with randomly
    distributed values of time, Transportation Research Record 1413.
"""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import pandas as pd

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._tables import check_file

__all__ = ["COEFFICIENTS", "LOG_LIKELIHOOD", "PRICE_FACTOR", "read"]

PRICE_FACTOR = 2.20371
"""Factor by which the published analyses multiply the price in guilders."""

LOG_LIKELIHOOD = {"homogeneous": -1724.150, "heterogeneous": -1349.3}
"""Maxima of the log-likelihood: logit (as R's mlogit prints), correlated-normal mixed logit."""

COEFFICIENTS = {
    "homogeneous": {"price": -0.0674, "time": -1.7206, "change": -0.3263, "comfort": -0.9457},
    "mean": {"price": -0.301, "time": -7.64, "change": -1.50, "comfort": -3.75},
    "sd": {"price": 0.187, "time": 4.88, "change": 1.94, "comfort": 3.01},
    "se of mean": {"price": 0.024, "time": 0.65, "change": 0.24, "comfort": 0.33},
    "se of sd": {"price": 0.023, "time": 0.71, "change": 0.23, "comfort": 0.35},
}
"""Published coefficients, in nats per unit of :func:`read`'s features."""

_FEATURES = ("price", "time", "change", "comfort")


def read(path: str | Path) -> Preferences:
    """Reads the choices from a csv file, which may be compressed.

    Args:
        path: The file.

    Returns:
        The comparisons, with the features price (guilders times 2.20371), time (hours), change
        and comfort.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no such table, or a column is missing.
    """
    check_file(path)
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError, EOFError, zlib.error) as error:  # Among them those of pandas.
        raise ValueError(
            f"path must be a csv file, {str(path)!r} cannot be read: {error}"
        ) from error
    columns = ["id", "choice", *(f"{name}{side}" for side in (1, 2) for name in _FEATURES)]
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(
            f"path must be a table of train choices: {path} has no column {missing[0]!r}; "
            f"its columns are {list(table.columns)}"
        )
    options = pd.concat(
        [
            table[[f"{name}{side}" for name in _FEATURES]].set_axis(_FEATURES, axis=1)
            for side in (1, 2)
        ],
        ignore_index=True,
    )
    items = options.drop_duplicates(ignore_index=True)
    position = options.merge(items.reset_index(), on=list(_FEATURES), how="left")["index"]
    items = items.assign(price=items["price"] / 100 * PRICE_FACTOR, time=items["time"] / 60).astype(
        float
    )
    comparisons = pd.DataFrame(
        {
            "person": table["id"],
            "first": position[: len(table)].to_numpy(),
            "second": position[len(table) :].to_numpy(),
            "choice": table["choice"],
        }
    )
    with warnings.catch_warnings():
        # A few people were offered the same trips more than once; each answer is a choice.
        warnings.filterwarnings("ignore", message=".* rows repeat an earlier row")
        return Preferences.from_dataframe(
            comparisons,
            user="person",
            left="first",
            right="second",
            choice="choice",
            items=items,
            choice_labels={"choice1": "left", "choice2": "right"},
        )
