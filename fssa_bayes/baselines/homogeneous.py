"""The same utilities for everybody."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Hashable
from typing import Self

import pandas as pd
from torch import Tensor, nn

from fssa_bayes._random import seeded
from fssa_bayes.baselines.base import Baseline, check_preferences, log_prob_of_people
from fssa_bayes.data import Preferences
from fssa_bayes.inference import FitResult, fit
from fssa_bayes.model import HeterogeneousBTL, require_linear
from fssa_bayes.posterior import Posterior

__all__ = ["HomogeneousBTL", "HomogeneousBaseline"]

_LEAST_PEOPLE = 20  # With fewer people none are held out to stop a network early.


class HomogeneousBaseline(Baseline):
    """Fits one model without z to everybody, by maximum likelihood.

    Attributes:
        model: The fitted model, `latent_dim=0`.
        result: The result of the fit.
    """

    model: HeterogeneousBTL
    result: FitResult

    @abstractmethod
    def build(self, data: Preferences) -> HeterogeneousBTL:
        """Returns a fresh model for the data, with `latent_dim=0`."""

    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits by maximum likelihood, see :meth:`Baseline.fit`.

        If the fit raises an error, the model of the fit before it remains.

        Raises:
            ValueError: If the data do not fit the model, such as ties where the model has none.
        """
        check_preferences(data)
        with seeded(seed):
            model = self.build(data)
        result = fit(
            model,
            None,
            data,
            seed=seed,
            validation=None if len(data) < _LEAST_PEOPLE else "auto",
            progress_bar=progress_bar,
        )
        self.model, self.result = model, result
        return self

    def predict(self, context: Preferences) -> Posterior:
        """Returns a posterior of one point: the known choices of a person change nothing."""
        return Posterior(self.fitted("model"), None, context)

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""
        return log_prob_of_people(self.fitted("model"), data)


class HomogeneousBTL(HomogeneousBaseline):
    r"""Gives everybody the same utilities, :math:`p(y) = \sigma(r(x_l) - r(x_r))`.

    Maximum likelihood; a network is stopped early on held-out people.

    Args:
        utility: `"linear"`, `"bilinear"` or `"mlp"` (a network of the item), or a module as in
            :class:`HeterogeneousBTL`, which is copied for every fit.
        hidden_dim: Width of the networks.
        ties: As in :class:`HeterogeneousBTL`, like the next two.
        position_bias: Whether the item on the left may have an advantage.
        lapses: Whether answers may be careless.
        penalty: Weight of a prior on the coefficients of the linear utility, as in
            :class:`HeterogeneousBTL`: a remedy where an item won or lost everything.

    Attributes:
        model: The fitted model, `latent_dim=0`.
        result: The result of the fit, with methods such as :meth:`FitResult.ranking`.

    References:
        Bradley & Terry (1952), Rank analysis of incomplete block designs.

    Example:
        >>> from fssa_bayes.datasets import two_mode
        >>> data = two_mode.simulate(50, 8).data
        >>> HomogeneousBTL().fit(data, progress_bar=False).coefficients().index.tolist()
        ['x']
    """

    def __init__(
        self,
        utility: str | nn.Module = "linear",
        hidden_dim: int = 64,
        *,
        ties: str | None = None,
        position_bias: bool = False,
        lapses: bool = False,
        penalty: float = 0.0,
    ) -> None:
        self.options = {
            "utility": utility,
            "hidden_dim": hidden_dim,
            "ties": ties,
            "position_bias": position_bias,
            "lapses": lapses,
            "penalty": penalty,
        }
        with seeded(0):  # A wrong option is refused now, and not in a loop of fits.
            HeterogeneousBTL(1, 0, **self.options)

    def build(self, data: Preferences) -> HeterogeneousBTL:
        """Returns a fresh model, see :meth:`HomogeneousBaseline.build`."""
        return HeterogeneousBTL(data.num_features, 0, **copy.deepcopy(self.options))

    def coefficients(
        self,
        *,
        reference: Hashable | None = None,
        kind: str | None = None,
        level: float | None = None,
        p_values: bool = False,
    ) -> pd.DataFrame:
        """Tabulates the coefficients of a linear utility with three standard errors.

        Args:
            reference: An item, where items have no features: the others are relative to the item.
            kind: Errors of intervals and p-values: `"sandwich"`, the default, `"hessian"` or
                `"outer_product"`.
            level: Probability of an interval, in columns `lower` and `upper`; None for none.
            p_values: Whether there are columns `df`, `statistic` and `p_value`, of tests against 0.

        Returns:
            One row a feature (index `term`), in nats per unit as given, and one for each parameter
            of the answers. Columns: `estimate`; `se_hessian`, the classical error, from the inverse
            Hessian, which takes a person's choices for independent; `se_outer_product`; and
            `se_sandwich`, with people as clusters, which is right for dependent choices too, and
            corrected where people are few (see :class:`fssa_bayes.population.Estimates`).

        Raises:
            ValueError: If the utility is not linear, or `reference` is no item.

        References:
            White (1982), Maximum likelihood estimation of misspecified models.
            Liang & Zeger (1986), Longitudinal data analysis using generalized linear models.
        """
        require_linear(self.fitted("model"), "coefficients()")
        table = self.result.population(
            reference=reference, kind=kind, level=level, p_values=p_values
        )
        return table.droplevel("quantity")

    def vcov(self, kind: str | None = None, **options: object) -> pd.DataFrame:
        """Tabulates the covariance of the estimates, see :meth:`fssa_bayes.FitResult.vcov`."""
        self.fitted("model")
        return self.result.vcov(kind, **options)

    def contrast(self, weights: object, **options: object) -> pd.DataFrame:
        """Estimates differences of items or coefficients, see :meth:`FitResult.contrast`."""
        self.fitted("model")
        return self.result.contrast(weights, **options)
