"""Uncertain utilities: distributional preference learning."""

from __future__ import annotations

from typing import Self

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes._random import seeded
from fssa_bayes.baselines.base import Baseline, count_features, fitted_attribute, log_prob_of_people
from fssa_bayes.baselines.homogeneous import fit_homogeneous
from fssa_bayes.data import Preferences
from fssa_bayes.inference import FitResult
from fssa_bayes.model import HeterogeneousBTL, check_data
from fssa_bayes.posterior import Posterior

__all__ = ["DistributionalBTL"]


class DistributionalBTL(Baseline):
    r"""Gives every item a distribution of utilities: distributional preference learning.

    Whoever judges an item draws its utility, a normal variable, afresh:

    .. math:: p(y) = \Phi\!\left(\frac{\mu(x_l) - \mu(x_r)}
        {\sqrt{\sigma^2(x_l) + \sigma^2(x_r)}}\right).

    σ is kept between 1/20 and 20. Rankings have to be broken into pairs. The model shows where
    people disagree and does not know who is who: a context changes nothing.

    Args:
        utility: `"mlp"`, a network of the item with a head for each parameter, or `"linear"`.
        hidden_dim: Width of the network.

    Attributes:
        model: The fitted model.
        result: What the fit can say.

    References:
        Siththaranjan, Laidlaw & Hadfield-Menell (2024), Distributional preference learning,
        arXiv 2312.08358.
    """

    model: HeterogeneousBTL
    result: FitResult

    def __init__(self, utility: str = "mlp", hidden_dim: int = 64) -> None:
        if utility not in ("mlp", "linear"):
            raise ValueError(f"utility must be 'mlp' or 'linear', got {utility!r}")
        if not isinstance(hidden_dim, int) or hidden_dim < 1:
            raise ValueError(f"hidden_dim must be an integer of at least 1, got {hidden_dim!r}")
        self.utility, self.hidden_dim = utility, hidden_dim

    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits by maximum likelihood, see :meth:`Baseline.fit`.

        Raises:
            ValueError: If the data keep ties, of which the model knows none, or hold rankings.
        """
        with seeded(seed):
            utility = "distributional-linear" if self.utility == "linear" else "distributional"
            model = HeterogeneousBTL(count_features(data), 0, utility, hidden_dim=self.hidden_dim)
        result = fit_homogeneous(model, data, seed, progress_bar)
        self.model, self.result = model, result  # A fit that fails leaves the last one.
        return self

    def predict(self, context: Preferences) -> Posterior:
        """Returns a posterior of one point: what is known of a person changes nothing.

        Its `utility` are the means; it has neither `rank_prob` nor `differences`, see `item_table`.
        """
        return Posterior(fitted_attribute(self, "model"), None, context)

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""
        return log_prob_of_people(fitted_attribute(self, "model"), data)

    @torch.no_grad()
    def item_table(self, data: Preferences) -> pd.DataFrame:
        """Tabulates mean and standard deviation of the items' utilities.

        Choices tell utilities up to origin and unit: the mean over the items is 0, and the
        geometric mean of the standard deviations 1.

        Args:
            data: Comparisons with the item table.

        Returns:
            One row an item (index `item`). Columns: `mean` and `sd`.
        """
        model = fitted_attribute(self, "model")
        check_data(model, data)
        items = torch.arange(data.num_items) if data.items is None else data.items
        mean, log_sd = model.utility.moments(model.standardise(items))
        unit = log_sd.mean()
        columns = {"mean": (mean - mean.mean()) / unit.exp(), "sd": (log_sd - unit).exp()}
        index = data.item_names.rename("item")
        return pd.DataFrame({key: value.numpy() for key, value in columns.items()}, index=index)
