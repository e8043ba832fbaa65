r"""Which estimates run off to infinity in a fit with lapses, found from where the fit stopped.

With lapses every answer keeps a probability, so that the likelihood may rise for ever although
every item won and lost: answers against a large margin count as lapses. No graph of wins tells
this, as the likelihood is not concave. Along a direction in which the likelihood rises to an end,
its curvature vanishes with the exponential of the margins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences, first_names
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population.events import list_answers, scale_rows
from fssa_bayes.population.separation import label_rows

__all__ = ["Divergence", "find_divergence"]

_FLAT = 1e-6  # Mean curvature of the answers along a direction, as at margins of 14 nats.
_ROUNDING = 1e-3  # Share of a quantity's derivative along flat directions that is rounding.
_SETTLED = 1e-4  # Length of a derivative from which a quantity of flat directions has a limit.


@dataclass(frozen=True, eq=False)
class Divergence:
    """Tells of quantities, by their derivatives, which are at infinity in a fit with lapses.

    Attributes:
        directions: Orthonormal directions along which the likelihood is flat although answers
            depend on them, with shape (P, R), R ≥ 1.
        point: Where the fit stopped, with shape (P,).
        is_penalised: False: no prior keeps these estimates finite.
        far: Nats from which a quantity is at infinity, for a derivative of unit length.
    """

    directions: Tensor
    point: Tensor
    is_penalised: bool = False
    far: float = 10.0

    def reference(self, jacobian: Tensor) -> Tensor:
        """Tells which of some quantities the others are compared with, with shape (M,).

        They are the largest class with finite distances, or all where no two have one.
        """
        labels = label_rows((jacobian @ self.directions).numpy(), _ROUNDING)
        sizes = np.bincount(labels)
        largest = labels == sizes.argmax()
        return torch.from_numpy(largest if sizes.max() > 1 else np.ones_like(largest))

    def estimable(self, jacobian: Tensor) -> Tensor:
        """Tells which quantities have a finite estimate with an error, with shape (Q,)."""
        flat = (jacobian @ self.directions).norm(dim=-1)
        return flat <= _ROUNDING * jacobian.norm(dim=-1)

    def values(self, jacobian: Tensor, values: Tensor) -> Tensor:
        """Puts ±inf in place of values (Q,) of infinite estimates, NaN where neither is clear.

        A lapse rate that goes to 0 stays.
        """
        length = jacobian.norm(dim=-1)
        limit = torch.where(values.abs() > self.far * length, values.sign() * torch.inf, torch.nan)
        stays = self.estimable(jacobian) | (length < _SETTLED)
        return torch.where(stays, values, limit)

    def signs(self, jacobian: Tensor) -> np.ndarray:
        """Tells where quantities go: 1 to infinity, −1 to minus infinity, 0 neither, (Q,)."""
        limits = self.values(jacobian, jacobian @ self.point)
        return (limits.sign() * limits.isinf()).nan_to_num().numpy().astype(np.int64)

    def bounds(
        self, jacobian: Tensor, values: np.ndarray, level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns lower and upper bounds of quantities whose values (Q,) are ±inf, else NaN.

        The finite ends are NaN: the likelihood has several maxima, which a profile may miss.
        """
        lower = np.where(np.isneginf(values), -np.inf, np.nan)
        return lower, np.where(np.isposinf(values), np.inf, np.nan)

    def remove(self, information: Tensor) -> Tensor:
        """Takes the flat directions out of an information matrix (P, P)."""
        outside = torch.eye(len(information), dtype=information.dtype)
        outside -= self.directions @ self.directions.T
        return outside @ information @ outside

    def describe(self, data: Preferences, answers: list[str]) -> str:
        """Says which coefficients and parameters of answers are infinite; `""` for none.

        A lapse rate of 0 is an estimate, of which nothing is said.

        Args:
            data: Names the coefficients.
            answers: Names of the answers' parameters.
        """
        jacobian = torch.eye(len(self.point), dtype=torch.float64)
        names, number = [*data.feature_names, *answers], data.num_features
        if data.items is None:
            items = jacobian[:number]
            jacobian[:number] = items - items[self.reference(items)].mean(0)
        values = self.values(jacobian, jacobian @ self.point).numpy()
        names, values = pd.Index(names[:-1], dtype=object), values[:-1]
        kinds = {
            "at infinity": np.isposinf(values),
            "at minus infinity": np.isneginf(values),
            "without a finite estimate": np.isnan(values),
        }
        said = [f"{first_names(names[which])} {kind}" for kind, which in kinds.items()]
        return "; ".join(
            one for one, which in zip(said, kinds.values(), strict=True) if which.any()
        )


def find_divergence(
    model: HeterogeneousBTL, data: Preferences, information: Tensor, theta: Tensor
) -> Divergence | None:
    """Finds directions in which the likelihood is flat where a fit with lapses stopped.

    Args:
        model: A homogeneous model with lapses, where its fit stopped.
        data: The comparisons the model was fitted to.
        information: Observed information there, with the lapse logit last, (P, P).
        theta: The parameters there, (P,).

    Returns:
        The divergence; None where there is no such direction.
    """
    events = list_answers(model, data).events()
    gram = events.rows.T @ scale_rows(events.rows, events.weight[events.event])
    gram = gram if isinstance(gram, np.ndarray) else gram.toarray()
    # Information of answers with unit curvature: that of margins, and of the lapse logit.
    whole = torch.from_numpy(gram)
    whole = torch.block_diag(whole, torch.tensor(events.weight.sum(), dtype=whole.dtype))
    eigenvalues, vectors = torch.linalg.eigh(whole)
    seen = eigenvalues > 1e-9 * eigenvalues[-1]
    root = vectors[:, seen] / eigenvalues[seen].sqrt()
    curvature, vectors = torch.linalg.eigh(root.T @ information @ root)
    flat = root @ vectors[:, curvature.abs() < _FLAT]
    if flat.shape[1] == 0:
        return None
    return Divergence(torch.linalg.qr(flat).Q, theta)
