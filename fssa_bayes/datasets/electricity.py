"""Stated choices between four electricity suppliers: 361 people, 4,308 choices, six features.

Features: `pf`, the price in cents per kWh where it is fixed; `cl`, the length of the contract in
years; `loc`, whether the company is local; `wk`, whether it is well known; `tod`, whether the price
is 11 cents by day and 5 by night; `seas`, whether it is 10 cents in summer, 8 in winter and 6
otherwise. The data come with the package, as they do with the R package logitr, under the MIT
licence (`files/NOTICE`).

References:
    Huber & Train (2001), On the similarity of classical and Bayesian estimates of individual mean
    partworths, Marketing Letters 12(3).
    Helveston (2023), logitr: Fast estimation of multinomial and mixed logit models with preference
    space and willingness-to-pay space utility parameterizations, Journal of Statistical Software
    105(10).
"""

from __future__ import annotations

import pandas as pd

from fssa_bayes.data import Preferences
from fssa_bayes.datasets._shipped import read_shipped, tabulate_shipped

__all__ = ["LOG_LIKELIHOOD", "read", "table"]

LOG_LIKELIHOOD = {"homogeneous": -4958.649, "normal": -3879.4, "correlated": -3667.8}
"""Maxima of the log-likelihood: logit (as xlogit and torch-choice print), six normal coefficients
without and with correlations (± .4)."""


def read() -> Preferences:
    """Reads the choices.

    Example:
        >>> data = read()
        >>> len(data), data.num_judgements, list(data.feature_names)
        (361, 4308, ['pf', 'cl', 'loc', 'wk', 'tod', 'seas'])
    """
    return read_shipped("electricity")


def table() -> pd.DataFrame:
    """Reads the choices as a long table, as mlogit, xlogit and logitr take it.

    Returns:
        One row an alternative on offer: `user`, `situation`, `alternative` (1 to 4), `chosen` (1
        or 0) and the features, for :meth:`Preferences.from_choices` and the command.
    """
    return tabulate_shipped("electricity")
