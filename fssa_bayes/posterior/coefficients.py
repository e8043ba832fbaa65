"""What is known of each person's coefficients under a linear utility, and of what they pay."""

from __future__ import annotations

from collections.abc import Hashable

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences, user_slices
from fssa_bayes.model import HeterogeneousBTL, require_linear
from fssa_bayes.posterior.choices import check_level, weighted_mean, weighted_quantiles
from fssa_bayes.posterior.populations import PopulationMixture
from fssa_bayes.posterior.willingness import find_price, payment_table
from fssa_bayes.sampling import Draws

__all__ = ["PersonalCoefficients"]


class PersonalCoefficients:
    """Describes the coefficients of people whose utility is linear: a base class of `Posterior`."""

    model: HeterogeneousBTL
    context: Preferences
    num_samples: int
    _model: HeterogeneousBTL | PopulationMixture
    _draws: Draws

    @torch.no_grad()
    def _draw_coefficients(self, people: slice) -> Tensor:
        """Returns draws of the coefficients of some people, with shape (S, u, D)."""
        z = self._draws.z[:, people].to(self.model.device)
        return self._model.coefficients(z).cpu()

    def coefficients(self, *, level: float = 0.9) -> pd.DataFrame:
        """Tabulates each person's coefficients, given the person's choices.

        They are the individual parameters (conditional means) of software for mixed logits, with
        standard deviations and intervals.

        Args:
            level: Probability of the intervals.

        Returns:
            One row a person and feature (index `user`, `feature`), in nats for a unit of the
            feature as it is given. Columns: posterior `mean` and `sd`; `lower` and `upper`
            quantile, of equal tails.

        Raises:
            ValueError: If the utility is not linear, items have no features, or `level` is not
                between 0 and 1.

        References:
            Train (2009), Discrete choice methods with simulation, chapter 11.
        """
        require_linear(self.model, "coefficients()")
        if self.context.items is None:
            raise ValueError("coefficients() needs items with features, got items without")
        check_level(level)
        levels = ((1 - level) / 2, (1 + level) / 2)
        parts = []
        for people in user_slices(self.context, self.num_samples):
            beta = self._draw_coefficients(people).double()
            weights = self._draws.log_weights[:, people].cpu().double().exp()
            mean = weighted_mean(beta, weights)
            sd = weighted_mean((beta - mean).square(), weights).sqrt()
            parts.append(torch.stack([mean, sd, *weighted_quantiles(beta, weights, levels)], -1))
        names = [self.context.user_names, self.context.feature_names]
        return pd.DataFrame(
            torch.cat(parts).flatten(0, 1).numpy(),
            index=pd.MultiIndex.from_product(names, names=["user", "feature"]),
            columns=["mean", "sd", "lower", "upper"],
        )

    def willingness_to_pay(self, price: Hashable = None, *, level: float = 0.9) -> pd.DataFrame:
        """Tabulates what each person pays for a unit of a feature: −β_k / β_price.

        Args:
            price: Name of the price; None for that of a model in willingness-to-pay space.
            level: Probability of the intervals.

        Returns:
            One row a person and feature other than the price (index `user`, `feature`), in units of
            the price for a unit of the feature. Columns: `median`; `lower` and `upper`, NaN where
            the price coefficient may well be positive; `price_positive`, the probability that it
            is, which must be below 5 % for an interval.

        Raises:
            ValueError: If the utility is not linear, the price is no feature of the items, or
                `level` is not between 0 and 1.
        """
        context = self.context
        place = find_price(self.model, context, price, level, "willingness_to_pay()")
        beta, log_weights = self._draw_coefficients(slice(None)), self._draws.log_weights
        names = context.user_names, context.feature_names
        return payment_table(beta, log_weights, place, level, *names)
