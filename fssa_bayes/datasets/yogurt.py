"""Purchases of yogurt of four brands: 100 households, 2,412 choices, five features.

Features: `price`; `feat`, whether the brand was advertised in a newspaper; `hiland`, `weight` and
`yoplait`, indicators of the brand, the fourth being Dannon. Households bought 4 to 185 times. The
data come with the package, as they do with the R package logitr, under the MIT licence
(`files/NOTICE`).

References:
    Jain, Vilcassim & Chintagunta (1994), A random-coefficients logit brand-choice model applied to
    panel data, Journal of Business & Economic Statistics 12(3).
    Helveston (2023), logitr: Fast estimation of multinomial and mixed logit models with preference
    space and willingness-to-pay space utility parameterizations, Journal of Statistical Software
    105(10).
"""

from __future__ import annotations

import pandas as pd

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._shipped import read_shipped, tabulate_shipped

__all__ = ["LOG_LIKELIHOOD", "read", "table"]

LOG_LIKELIHOOD = {"homogeneous": -2656.888, "normal": -1245.7, "correlated": -1228.9}
"""Maxima of the log-likelihood: logit (as logitr and torch-choice print), a fixed coefficient of
the price and normal ones of the others without and with correlations (± .1)."""


def read() -> Preferences:
    """Reads the choices.

    Example:
        >>> data = read()
        >>> len(data), data.num_judgements, list(data.feature_names)
        (100, 2412, ['price', 'feat', 'hiland', 'weight', 'yoplait'])
    """
    return read_shipped("yogurt")


def table() -> pd.DataFrame:
    """Reads the choices as a long table, as mlogit, xlogit and logitr take it.

    Returns:
        One row an alternative on offer: `user`, `situation`, `alternative` (1 to 4), `chosen` (1
        or 0) and the features, for :meth:`Preferences.from_choices` and the command.
    """
    return tabulate_shipped("yogurt")
