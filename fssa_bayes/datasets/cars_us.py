"""Stated choices between three cars: 384 car buyers of the US, 5,760 choices, sixteen features.

The file has one row per car on offer, with columns `user`, `situation`, `item` and `rank` (1 for
the chosen car, else empty). Features of the cars stand in a file of their own: indicators of the
drive (hybrid, plug-in hybrids and battery cars by range in miles, a combustion engine being the
reference), of fast charging and of the brand's origin (German being the reference); the price in
thousands of dollars, the operating cost in cents per mile and the time to 60 mph in seconds.

References:
    Helveston, Liu, Feit, Fuchs, Klampfl & Michalek (2015), Will subsidies drive electric vehicle
    adoption? Measuring consumer preferences in the U.S. and China, Transportation Research Part A
    73. The R package logitr, https://github.com/jhelvy/logitr, distributes it under the MIT
    licence.
"""

from __future__ import annotations

import os

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._choice_sets import beside, read_choice_sets

__all__ = ["FILE", "ITEMS", "LOG_LIKELIHOOD", "read"]

FILE = "cars_us.csv.gz"
"""Name of the file of choices."""

ITEMS = "cars_us_items.csv.gz"
"""Name of the file of features."""

LOG_LIKELIHOOD = {"homogeneous": -4616.952, "normal": -4333.8}
"""Maxima of the log-likelihood: logit (as logitr prints), a fixed coefficient of the price and
fifteen normal ones without correlations (± .5)."""


def read(path: str | os.PathLike[str], items: str | os.PathLike[str] | None = None) -> Preferences:
    """Reads the choices.

    Args:
        path: The file of choices.
        items: The file of features; None for the file :data:`ITEMS` in the folder of `path`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If one is no such table, or a car has no features.
    """
    return read_choice_sets(path, beside(path, ITEMS) if items is None else items)
