"""Uncertain utilities: distributional preference learning."""

from __future__ import annotations

import pandas as pd
import torch

from fssa_bayes.baselines.homogeneous import HomogeneousBaseline
from fssa_bayes.data import Preferences
from fssa_bayes.model import HeterogeneousBTL, align

__all__ = ["DistributionalBTL"]


class DistributionalBTL(HomogeneousBaseline):
    r"""Gives every item a distribution of utilities: distributional preference learning.

    The utility of an item is a normal variable, drawn anew for every choice:

    .. math:: p(y) = \Phi\!\left(\frac{\mu(x_l) - \mu(x_r)}
        {\sqrt{\sigma^2(x_l) + \sigma^2(x_r)}}\right).

    σ is kept between 1/20 and 20. Rankings have to be split into pairs, and ties are not part of
    the model. The model shows where people disagree, but not which person takes which side: a
    context changes nothing. The `utility` of its :class:`fssa_bayes.Posterior` are the means;
    neither `rank_prob` nor `differences` are defined, and :meth:`item_table` has the standard
    deviations.

    Args:
        utility: `"mlp"`, a network of the item with a head for each parameter, or `"linear"`.
        hidden_dim: Width of the network.

    Attributes:
        model: The fitted model.
        result: The result of the fit.

    References:
        Siththaranjan, Laidlaw & Hadfield-Menell (2024), Distributional preference learning,
        arXiv 2312.08358.
    """

    def __init__(self, utility: str = "mlp", hidden_dim: int = 64) -> None:
        if utility not in ("mlp", "linear"):
            raise ValueError(f"utility must be 'mlp' or 'linear', got {utility!r}")
        if not isinstance(hidden_dim, int) or hidden_dim < 1:
            raise ValueError(f"hidden_dim must be an integer of at least 1, got {hidden_dim!r}")
        self.utility, self.hidden_dim = utility, hidden_dim

    def build(self, data: Preferences) -> HeterogeneousBTL:
        """Returns a fresh model, see :meth:`HomogeneousBaseline.build`."""
        utility = "distributional-linear" if self.utility == "linear" else "distributional"
        return HeterogeneousBTL(data.num_features, 0, utility, hidden_dim=self.hidden_dim)

    @torch.no_grad()
    def item_table(self, data: Preferences) -> pd.DataFrame:
        """Tabulates mean and standard deviation of the items' utilities.

        Choices identify utilities up to origin and unit. The mean over the items is set to 0, and
        the geometric mean of the standard deviations to 1.

        Args:
            data: Comparisons with the item table.

        Returns:
            One row an item (index `item`). Columns: `mean` and `sd`.
        """
        model = self.fitted("model")
        data = align(model, data)
        items = torch.arange(data.num_items) if data.items is None else data.items
        mean, log_sd = model.utility.moments(model.standardise(items))
        unit = log_sd.mean()
        columns = {"mean": (mean - mean.mean()) / unit.exp(), "sd": (log_sd - unit).exp()}
        index = data.item_names.rename("item")
        return pd.DataFrame({key: value.numpy() for key, value in columns.items()}, index=index)
