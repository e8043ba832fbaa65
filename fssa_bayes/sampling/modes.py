r"""Modes of people's posteriors under a linear utility, by Newton's method.

The margin is linear in z, so that the log-posterior of a person,

.. math:: \log p(z \mid w) + \sum_n \log p(y_n \mid m_n(z)),

has the gradient :math:`J^T \partial_m \log p - (z - B \tilde w)` and, with J the derivative of the
margins, the information :math:`I + J^T \operatorname{diag}(-\partial_m^2 \log p)\, J`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fssa_bayes.data import Batch
from fssa_bayes.model import BradleyTerry, Derivatives, HeterogeneousBTL

__all__ = ["Modes", "find_modes"]

_ITERATIONS = 25
_HALVINGS = 12
_TOLERANCE = 1e-5  # Half the nats that a Newton step promises, below which there is none.


@dataclass(frozen=True)
class Modes:
    """Holds the modes of people's posteriors and the curvature there.

    Attributes:
        z: The modes, with shape (U, K).
        factor: Lower Cholesky factors of the information at the modes, with shape (U, K, K).
    """

    z: Tensor
    factor: Tensor


@torch.no_grad()
def find_modes(model: HeterogeneousBTL, batch: Batch, start: Tensor | None = None) -> Modes:
    """Finds the mode of each person's posterior under a linear utility and a normal prior.

    Parameters that are not finite give modes that are not.

    Args:
        model: The model.
        batch: The people's contexts, on the model's device.
        start: Where Newton's method starts, with shape (U, K); the prior's location if None, or
            for a person whose posterior is not finite there.
    """
    batch = batch.clean()
    items = model.prepare_items(batch.items)
    location = model.location(batch.covariates).double().expand(batch.num_users, model.latent_dim)
    eye = torch.eye(model.latent_dim, dtype=torch.float64, device=model.device)

    def choices(z: Tensor) -> BradleyTerry:
        return model.choice(batch, z.to(model.utility.mean.dtype).unsqueeze(0), items)

    def value(z: Tensor) -> Tensor:
        log_prob = choices(z).log_prob(batch.choice)[0].double()
        return log_prob - 0.5 * (z - location).square().sum(-1)

    z = location if start is None else start.double()
    height = value(z)
    lost = ~height.isfinite()
    if lost.any():
        z = torch.where(lost.unsqueeze(-1), location, z)
        height = value(z)
    jacobian = model.utility.margin_jacobian(items.items, batch.left, batch.right).double()
    for _ in range(_ITERATIONS):
        slope, information = _expand(choices(z).differentiate(batch.choice), jacobian)
        slope = slope - (z - location)
        factor = torch.linalg.cholesky_ex(information + eye).L
        step = torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
        if not (slope * step).sum(-1).max() > _TOLERANCE:
            break
        z, height = _climb(value, z, step, height)
    return Modes(z, factor)


def _expand(derivatives: Derivatives, jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """Returns slope (U, K) and information (U, K, K) of the log-likelihood, for one draw of z.

    Lapses make the likelihood of a choice convex far from the margin that it speaks for; such
    choices count as without information, so that the information is positive.

    Args:
        derivatives: Derivatives of the choices' log-probability by the margins.
        jacobian: Derivatives of the margins by z, with shape (U, N, K).
    """
    first, second = derivatives.first[0][0], derivatives.second[0][0][0]
    slope = torch.einsum("un,unk->uk", first, jacobian)
    information = torch.einsum("un,unk,unl->ukl", (-second).clamp(min=0), jacobian, jacobian)
    if len(derivatives.person):
        place = derivatives.place
        terms = first.flatten()[place].unsqueeze(-1) * jacobian.flatten(0, 1)[place]
        stage = terms.new_zeros(len(derivatives.person), terms.shape[-1])
        stage = stage.index_add(0, derivatives.stage, terms)
        products = stage.unsqueeze(-1) * stage.unsqueeze(-2)
        information = information.index_add(0, derivatives.person, products, alpha=-1)
    return slope, information


def _climb(
    value: Callable[[Tensor], Tensor], z: Tensor, step: Tensor, height: Tensor
) -> tuple[Tensor, Tensor]:
    """Takes Newton steps (U, K), halved for people whose log-posterior would fall."""
    length = torch.ones_like(height)
    for _ in range(_HALVINGS):
        new = z + length.unsqueeze(-1) * step
        reached = value(new)
        falls = ~(reached >= height - 1e-12)
        if not falls.any():
            return new, reached
        length = torch.where(falls, 0.5 * length, length)
    return torch.where(falls.unsqueeze(-1), z, new), torch.where(falls, height, reached)
