r"""Modes of people's posteriors under a linear utility, by Newton's method.

With J the derivatives of the margins m by z, the log-posterior of a person,

.. math:: \log p(z \mid w) + \sum_n \log p(y_n \mid m_n(z)),

has the gradient :math:`J^T \partial_m \log p - (z - B \tilde w)` and the information :math:`I + J^T
\operatorname{diag}(-\partial_m^2 \log p)\, J`, less the curvature of m where coefficients are
log-normal. Where parameters of the answers differ between people, J has rows for them too, and the
second derivatives are those by margins and parameters; where that information is indefinite, the
sum of the outer products of the choices' scores takes its place (Berndt, Hall, Hall & Hausman
1974).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fssa_bayes.data import Batch, Preferences, user_slices
from fssa_bayes.model import BradleyTerry, Derivatives, HeterogeneousBTL, StageShares
from fssa_bayes.sampling.steady import map_people

__all__ = ["Modes", "find_all_modes", "find_modes"]

_ITERATIONS = 25
_HALVINGS = 12
_GRID = 2.0**16
_DRAWS = 64  # A batch has as many people as fit with so many draws of each.
_TOLERANCE = 1e-6  # Half the nats that a Newton step promises, below which there is none.
_LEAST = 0.25  # Information where answers are personal: the prior has 1, and bounds what is wide.


@dataclass(frozen=True)
class Modes:
    """Holds the modes of people's posteriors and the curvature there.

    Attributes:
        z: The modes, with shape (U, K).
        factor: Lower Cholesky factors of the information at the modes, with shape (U, K, K). Where
            answers differ between people, log p(C | z) may curve upwards and leave next to no
            information in a direction: there the factor has 1/4, twice the prior's deviation.
    """

    z: Tensor
    factor: Tensor

    def of(self, people: slice) -> Modes:
        """Returns the modes of some people."""
        return Modes(self.z[people], self.factor[people])

    def rounded(self) -> Modes:
        """Rounds the modes to 2⁻¹⁶, and their factors to eight binary digits.

        Proposals about them do not depend on the last digits of sums over comparisons, whose order
        follows from who else is in a batch.
        """
        z = (self.z * _GRID).round() / _GRID
        return Modes(z, self.factor.bfloat16().to(self.factor))


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
    # In double precision everywhere: the order of a sum, which the other people decide, must not be
    # seen in a mode that is rounded.
    model = _in_double(model)
    batch = batch.clean().double()
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
    for _ in range(_ITERATIONS):
        slope, information = _expand(model, batch, items.items, choices(z), z)
        slope = slope - (z - location)
        factor, failed = torch.linalg.cholesky_ex(information[0] + eye)
        if model.personal is not None:  # A step by next to no information leads nowhere.
            failed = failed + (factor.diagonal(dim1=-2, dim2=-1).square() < _LEAST).any(-1)
        if failed.any():
            sure = torch.linalg.cholesky_ex(information[1] + eye).L
            factor = torch.where((failed > 0)[:, None, None], sure, factor)
        step = torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
        # A person stops alone, whoever else has still to climb.
        climbs = (slope * step).sum(-1, keepdim=True) > _TOLERANCE
        if not climbs.any():
            break
        z, height = _climb(value, z, step.where(climbs, 0.0), height)
    return Modes(z, factor if model.personal is None else _bound(factor))


def _bound(factor: Tensor) -> Tensor:
    """Raises the eigenvalues of the information L Lᵀ to a least one, given and returning L."""
    finite = factor.isfinite().flatten(1).all(1)
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    information = torch.where(finite[:, None, None], factor @ factor.mT, eye)
    eigenvalues, vectors = torch.linalg.eigh(information)
    raised = (vectors * eigenvalues.clamp(min=_LEAST).unsqueeze(-2)) @ vectors.mT
    low = finite & (eigenvalues[:, 0] < _LEAST)
    if not low.any():
        return factor
    return torch.where(low[:, None, None], torch.linalg.cholesky(raised), factor)


def find_all_modes(model: HeterogeneousBTL, data: Preferences) -> Modes:
    """Finds the rounded modes of all people, many at a time; see :func:`find_modes`.

    On a CPU each person's are the same in any order, subset and thread.
    """
    model = _in_double(model)  # Once for all parts.

    def find(people: slice) -> Modes:
        return find_modes(model, data.batch(range(people.start, people.stop)).to(model.device))

    parts = map_people(model.device, find, list(user_slices(data, _DRAWS)))
    z, factor = (torch.cat(part) for part in zip(*((m.z, m.factor) for m in parts), strict=True))
    return Modes(z, factor).rounded()


def _in_double(model: HeterogeneousBTL) -> HeterogeneousBTL:
    """Returns a model in double precision: a copy, unless the model is in it."""
    return model if model.dtype == torch.float64 else copy.deepcopy(model).double()


def _expand(
    model: HeterogeneousBTL, batch: Batch, items: Tensor, choices: BradleyTerry, z: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Returns slope (U, K) and information (U, K, K) of the log-likelihood at z (U, K).

    The information comes twice: the observed one, which may be indefinite, and without the
    curvature of the coefficients, which is positive. Lapses make the likelihood of a choice convex
    far from the margin that the choice speaks for; such choices count as without information.

    Args:
        model: The model.
        batch: The comparisons.
        items: Their items, standardised.
        choices: The distribution of the choices at z.
        z: Latent factors, one draw.
    """
    derivatives = choices.differentiate(batch.choice)
    if model.personal is not None:
        return _expand_personal(model, batch, items, choices, derivatives, z)
    narrow = z.to(model.utility.mean.dtype)
    jacobian = model.utility.margin_jacobian(items, batch.left, batch.right, narrow).double()
    first, second = derivatives.first[0][0], derivatives.second[0][0][0]
    slope = torch.einsum("un,unk->uk", first, jacobian)
    information = jacobian.mT @ ((-second).clamp(min=0).unsqueeze(-1) * jacobian)
    if derivatives.stages is not None:
        information = information - _stage_products(derivatives.stages, jacobian)
    if model.utility.map.is_identity:
        return slope, (information, information)
    difference = (items[batch.left] - items[batch.right]).double()
    weighted = torch.einsum("un,und->ud", first, difference)
    curvature = model.utility.margin_curvature(weighted.to(narrow.dtype), narrow).double()
    return slope, (information - curvature, information)


def _expand_personal(
    model: HeterogeneousBTL,
    batch: Batch,
    items: Tensor,
    choices: BradleyTerry,
    derivatives: Derivatives,
    z: Tensor,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Does what :func:`_expand` does where parameters of the answers differ between people."""
    tastes = model.tastes(z).to(model.utility.mean.dtype)
    jacobian = model.utility.margin_jacobian(items, batch.left, batch.right, tastes).double()
    own = len(model.personal.names)
    jacobian = F.pad(jacobian, (0, own))
    columns = [1 + list(choices.answers).index(name) for name in model.personal.arguments]
    first = derivatives.first[0][0]
    by_answer = torch.stack([derivatives.first[i][0] for i in columns], -1)
    rows = model.personal.directions.double()
    score = first.unsqueeze(-1) * jacobian + by_answer @ rows
    second = derivatives.second
    information = -jacobian.mT @ (second[0][0][0].unsqueeze(-1) * jacobian)
    cross = -jacobian.mT @ torch.stack([second[0][i][0] for i in columns], -1) @ rows
    table = torch.stack(
        [torch.stack([second[i][j][0].sum(-1) for j in columns], -1) for i in columns], -1
    )
    information = information + cross + cross.mT - rows.T @ table @ rows
    if not model.utility.map.is_identity:
        difference = (items[batch.left] - items[batch.right]).double()
        weighted = torch.einsum("un,und->ud", first, difference)
        curvature = model.utility.margin_curvature(weighted.to(tastes.dtype), tastes).double()
        information = information - F.pad(curvature, (0, own, 0, own))
    return score.sum(1), (information, score.mT @ score)


def _stage_products(stages: StageShares, jacobian: Tensor) -> Tensor:
    """Sums the outer products of stages' mean directions, with shape (U, K, K)."""
    terms = stages.share[0].unsqueeze(-1) * jacobian.flatten(0, 1)[stages.place]
    mean = terms.new_zeros(len(stages.person), terms.shape[-1])
    mean = mean.index_add(0, stages.stage, terms)
    products = mean.unsqueeze(-1) * mean.unsqueeze(-2)
    total = terms.new_zeros(len(jacobian), *products.shape[1:])
    return total.index_add(0, stages.person, products)


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
