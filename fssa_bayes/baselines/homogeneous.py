"""The same utilities for everybody."""

from __future__ import annotations

import copy
from typing import Self

import pandas as pd
from torch import Tensor, nn

from fssa_bayes._random import seeded
from fssa_bayes.baselines.base import Baseline, count_features, fitted_attribute, log_prob_of_people
from fssa_bayes.data import Preferences
from fssa_bayes.inference import FitResult, fit
from fssa_bayes.model import HeterogeneousBTL, require_linear
from fssa_bayes.posterior import (
    Posterior,
)

__all__ = ["HomogeneousBTL"]


_LEAST_PEOPLE = 20  # People below whom none are held out to stop a network early.


class HomogeneousBTL(Baseline):
    r"""Gives everybody the same utilities, :math:`p(y) = \sigma(r(x_l) - r(x_r))`.

    Maximum likelihood by L-BFGS; a network is stopped early on held-out people.

    Args:
        utility: `"linear"`, `"bilinear"` or `"mlp"` (a network of the item), or a module as in
            :class:`HeterogeneousBTL`, which is copied for every fit.
        hidden_dim: Width of the networks.
        ties: As in :class:`HeterogeneousBTL`, like the next two.
        position_bias: Whether what stands on the left may have an advantage.
        lapses: Whether answers may be careless.

    Attributes:
        model: The fitted model, `latent_dim=0`.
        result: What the fit can say, such as :meth:`FitResult.ranking`.

    References:
        Bradley & Terry (1952), Rank analysis of incomplete block designs.

    Example:
        >>> from fssa_bayes.datasets import two_mode
        >>> data = two_mode.simulate(50, 8).data
        >>> HomogeneousBTL().fit(data, progress_bar=False).coefficients().index.tolist()
        ['x']
    """

    model: HeterogeneousBTL
    result: FitResult

    def __init__(
        self,
        utility: str | nn.Module = "linear",
        hidden_dim: int = 64,
        *,
        ties: str | None = None,
        position_bias: bool = False,
        lapses: bool = False,
    ) -> None:
        self.options = {
            "utility": utility,
            "hidden_dim": hidden_dim,
            "ties": ties,
            "position_bias": position_bias,
            "lapses": lapses,
        }
        with seeded(0):  # Complains of an option now, and not in a loop of fits.
            HeterogeneousBTL(1, 0, **self.options)

    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits by maximum likelihood, see :meth:`Baseline.fit`.

        Raises:
            ValueError: If the data do not fit the model, as ties where it has none.
        """
        with seeded(seed):
            model = self._build(data)
        result = fit_homogeneous(model, data, seed, progress_bar)
        self.model, self.result = model, result  # A fit that fails leaves the last one.
        return self

    def _build(self, data: Preferences) -> HeterogeneousBTL:
        return HeterogeneousBTL(count_features(data), 0, **copy.deepcopy(self.options))

    def predict(self, context: Preferences) -> Posterior:
        """Returns a posterior of one point: what is known of a person changes nothing."""
        return Posterior(fitted_attribute(self, "model"), None, context)

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""
        return log_prob_of_people(fitted_attribute(self, "model"), data)

    def coefficients(self) -> pd.DataFrame:
        """Tabulates the coefficients of a linear utility with three standard errors.

        Returns:
            One row a feature (index `term`), in nats per unit as given, and one for each parameter
            of the answers. Columns: `estimate`; `se_hessian`, the classical error, from the inverse
            Hessian, which takes a person's choices for independent; `se_outer_product`; and
            `se_sandwich`, with people as clusters, right where they are not.

        Raises:
            ValueError: If the utility is not linear.

        References:
            White (1982), Maximum likelihood estimation of misspecified models.
            Liang & Zeger (1986), Longitudinal data analysis using generalized linear models.
        """
        require_linear(fitted_attribute(self, "model"), "coefficients()")
        return self.result.population().droplevel("quantity")


def fit_homogeneous(
    model: HeterogeneousBTL, data: Preferences, seed: int, progress_bar: bool
) -> FitResult:
    few = model.utility.is_linear or len(data) < _LEAST_PEOPLE
    validation = None if few else 0.1
    return fit(model, None, data, seed=seed, validation=validation, progress_bar=progress_bar)
