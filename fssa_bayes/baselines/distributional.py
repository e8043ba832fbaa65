"""Uncertain utilities: distributional preference learning."""

from __future__ import annotations

import math
from typing import Self

import pandas as pd
import torch
from torch import Tensor, nn

from fssa_bayes._random import seeded
from fssa_bayes.baselines.base import Baseline, count_features, fitted_attribute, log_prob_of_people
from fssa_bayes.baselines.homogeneous import fit_homogeneous
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.inference import FitResult
from fssa_bayes.model import BradleyTerry, HeterogeneousBTL, PreparedItems, check_data
from fssa_bayes.model.nn import ItemLinear, tower
from fssa_bayes.posterior import (
    Posterior,
)

__all__ = ["DistributionalBTL"]


# Where nobody disagrees σ would go to 0 and the slopes with it to infinity; μ is free, so that any
# probability is still possible.
_LARGEST_LOG_SD = 3.0


_FAR = 30.0  # Standard deviations from which the series is exact to the digits of a float32.


_NO_SPREAD = (
    "of a DistributionalBTL would take the mean utilities for the utilities, which it does not "
    "know: see item_table(data) for means and standard deviations, choice_prob(target) for pairs"
)


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

    model: _DistributionalModel
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
            features = count_features(data)
            hidden_dim = None if self.utility == "linear" else self.hidden_dim
            model = _DistributionalModel(features, _NormalHead(features, hidden_dim))
        result = fit_homogeneous(model, data, seed, progress_bar)
        self.model, self.result = model, result  # A fit that fails leaves the last one.
        return self

    def predict(self, context: Preferences) -> Posterior:
        """Returns a posterior of one point: what is known of a person changes nothing.

        Its `utility` are the means; it has neither `rank_prob` nor `differences`, see `item_table`.
        """
        return _PosteriorOfMeans(fitted_attribute(self, "model"), None, context)

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
        mean, log_sd = model.head.moments(model.standardise(items))
        unit = log_sd.mean()
        columns = {"mean": (mean - mean.mean()) / unit.exp(), "sd": (log_sd - unit).exp()}
        index = data.item_names.rename("item")
        return pd.DataFrame({key: value.numpy() for key, value in columns.items()}, index=index)


class _PosteriorOfMeans(Posterior):
    """Knows the items' mean utilities alone, and so says nothing that depends on their spread."""

    def rank_prob(self, *_args: object, **_options: object) -> Tensor:
        """Raises a ValueError."""
        raise ValueError(f"rank_prob() {_NO_SPREAD}")

    def differences(self, *_args: object, **_options: object) -> pd.DataFrame:
        """Raises a ValueError."""
        raise ValueError(f"differences() {_NO_SPREAD}")


class _NormalHead(nn.Module):
    """Gives items normal utilities, N(μ(x), σ²(x)).

    Args:
        num_features: Number of item features D.
        hidden_dim: Width of the network; None for a linear map that starts at 0.
    """

    def __init__(self, num_features: int, hidden_dim: int | None) -> None:
        super().__init__()
        if hidden_dim is None:
            self.net = ItemLinear(num_features, 2)
            nn.init.zeros_(self.net.weight)
            nn.init.zeros_(self.net.bias)
        else:
            self.net = tower(num_features, hidden_dim, hidden_dim, 2)

    def forward(self, items: Tensor, z: Tensor) -> Tensor:
        """Returns the mean utilities, which are the same for all z: (*, U, M)."""
        mean, _ = self.moments(items)
        return mean.expand(*z.shape[:-2], len(mean))

    def moments(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Returns μ and log σ, each with shape (M,)."""
        mean, raw = self.net(items).unbind(-1)
        return mean, _LARGEST_LOG_SD * torch.tanh(raw / _LARGEST_LOG_SD)

    def margin(self, items: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Evaluates logit Φ(…) = log Φ(t) − log Φ(−t) with shape (U, N), exact in both tails."""
        mean, log_sd = self.moments(items)
        log_scale = torch.logaddexp(2 * log_sd[left], 2 * log_sd[right]) / 2
        return _probit_logit((mean[left] - mean[right]) * torch.exp(-log_scale))


def _probit_logit(t: Tensor) -> Tensor:
    """Evaluates logit Φ(t), exact in both tails, with gradients that are.

    Far out log Φ(−t) is −t²/2 − log t − log √(2π) − 1/t² + …, and log Φ(t) is 0.
    """
    far = t.abs() > _FAR
    near = t.masked_fill(far, 0.0)  # Neither form may spoil the other's gradient.
    size = t.abs().masked_fill(~far, 1.0)
    tail = size.square() / 2 + size.log() + math.log(2 * math.pi) / 2 + size.square().reciprocal()
    inner = torch.special.log_ndtr(near) - torch.special.log_ndtr(-near)
    return torch.where(far, t.sign() * tail, inner)


class _DistributionalModel(HeterogeneousBTL):
    """Puts an item's distribution of utility where the homogeneous model has a number.

    A choice has the probability σ(m) of any margin m that is its logit; so everything that fits
    and scores a homogeneous model does so with this one.
    """

    def __init__(self, num_features: int, head: _NormalHead) -> None:
        super().__init__(num_features, 0, utility=head)

    def check_rankings(self, has_rankings: bool) -> None:
        """Raises a ValueError if there are rankings, of which the model has no likelihood."""
        if has_rankings:
            raise ValueError(
                "DistributionalBTL knows the probability of a pair, not that of a ranking, got "
                "rankings: break them into pairs (method='pairs', as_pairs())"
            )

    @property
    def head(self) -> _NormalHead:
        """Maps items to the parameters of their distributions."""
        return self.utility.module

    def choice(
        self, batch: Batch, z: Tensor, prepared: PreparedItems | None = None
    ) -> BradleyTerry:
        """Returns p(choices), the same for all z (*, U, 0), with batch shape (*, U)."""
        self.check_items(batch.items)
        self.check_z(z)
        self.check_rankings(batch.rankings is not None)
        batch = batch.clean()
        margin = self.head.margin(self.standardise(batch.items), batch.left, batch.right)
        return BradleyTerry.from_margin(margin.expand(*z.shape[:-2], *margin.shape), batch.mask)
