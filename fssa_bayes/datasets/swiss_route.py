"""Stated choices between two train routes in Switzerland: 388 people, 3,492 choices, four features.

The file has one row per choice, with columns `user`, `left`, `right` and `choice` (1 where left was
chosen, 0 where right was). Features of the routes stand in a file of their own: `tt`, the travel
time in minutes; `tc`, the cost in Swiss francs; `hw`, the headway in minutes; `ch`, the number of
changes. Covariates of the people, in a third file: income of the household in francs, whether a car
is available, and indicators of the trip's purpose.

References:
    Vrtic & Axhausen (2003), The impact of tilting trains in Switzerland: a route choice model of
    regional and long distance public transport trips, 82nd annual meeting of the Transportation
    Research Board. The R package apollo distributes the data under the GPL 2.
"""

from __future__ import annotations

import os

from fssa_bayes.data import Preferences
from fssa_bayes.datasets import table
from fssa_bayes.datasets._choice_sets import beside

__all__ = ["FILE", "ITEMS", "LOG_LIKELIHOOD", "USERS", "read"]

FILE = "swiss_route.csv.gz"
"""Name of the file of choices."""

ITEMS = "swiss_route_items.csv.gz"
"""Name of the file of features."""

USERS = "swiss_route_users.csv"
"""Name of the file of covariates."""

LOG_LIKELIHOOD = {
    "homogeneous": -1665.689,
    "normal": -1464.5,
    "correlated": -1451.1,
    "log-normal": -1444.8,
    "correlated log-normal": -1406.5,
}
"""Maxima of the log-likelihood: logit (as torch-choice prints), four normal and four negative
log-normal coefficients without and with correlations (± .2 to .4)."""


def read(
    path: str | os.PathLike[str],
    items: str | os.PathLike[str] | None = None,
    users: str | os.PathLike[str] | None = None,
) -> Preferences:
    """Reads the choices, with the covariates of the people.

    Args:
        path: The file of choices.
        items: The file of features; None for the file :data:`ITEMS` in the folder of `path`.
        users: The file of covariates; None for the file :data:`USERS` in the folder of `path`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If one is no such table, or a route or a person is missing in it.
    """
    columns = {"user": "user", "left": "left", "right": "right", "choice": "choice"}
    items = beside(path, ITEMS) if items is None else items
    users = beside(path, USERS) if users is None else users
    return table.read(path, items=items, users=users, **columns).data
