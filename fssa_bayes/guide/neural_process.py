r"""The guide q(z | a few choices): a neural process encoder."""

from __future__ import annotations

import math
from functools import partial

import pyro
import torch
import torch.nn.functional as F
from pyro import distributions as dist
from pyro.distributions import transforms as T
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor, nn

from fssa_bayes.data import Batch
from fssa_bayes.guide.couplings import BentCoupling, HeavyNoise, Whitening
from fssa_bayes.guide.pairs import Pairs
from fssa_bayes.model import HeterogeneousBTL, PreparedItems
from fssa_bayes.model.nn import MLP, DeepSet, GatedHypernet, ItemLinear, flip_between

__all__ = ["NeuralProcessGuide", "check_guide"]

_POSTERIORS = ("normal", "multivariate_normal", "flow")
_COUPLINGS = {"affine": 2, "bent": 3}  # Parameters of each transformed dimension.
_NUM_COUPLINGS = 4
_SPLINE_BINS = 8


class NeuralProcessGuide(nn.Module):
    r"""Amortises the posterior of z: q(z | C) for any context C, in one pass of a network.

    A context is a set of (chosen, rejected) pairs, half a win each being both orders with weight
    ½. A set encoder summarises it. Every pair then sends, in view of the summary, a Gaussian
    potential with direction v, precision λ and shift a, and the potentials add up as independent
    observations do:

    .. math:: q(ε \mid C) = N(P^{-1} \textstyle\sum_n a_n v_n,\; P^{-1}), \quad
        P = I + \textstyle\sum_n λ_n v_n v_n^T,

    for ε the prior's standard normal variable. So the posterior of an empty context **is** the
    prior, by construction, and contexts longer than any in training concentrate it further.
    Conditional couplings, gated by n / (n + 1), bend the normal where `posterior="flow"`.

    A tie proper is shown to the encoder as both orders too. A ranking is shown as its pairs, with
    weight 2 / s where the winner was chosen among s items, as between equals such a choice tells as
    much as that many independent comparisons. Which item stood on the left it sees
    where the model has a position bias, and only there.

    The encoder sees the items' features and what the model makes of them (its item factors,
    without gradient), so it need not learn the utility a second time. Where covariates move the
    prior, ε is what they leave open of z, q(z | ∅) is p(z | w), and the encoder sees by how much
    they move z and the margin of every pair.

    Args:
        model: The model whose posterior is approximated. It is not part of the guide's parameters.
        posterior: `"normal"`, independent dimensions; `"multivariate_normal"`; or `"flow"`, a
            multivariate normal followed by conditional affine couplings (for K = 1, a spline),
            which can score outside values.
        hidden_dim: Width of the networks.
        coupling: For a flow, `"affine"`; or `"bent"`, whose couplings can give the two tails of a
            posterior different scales, act before the normal is put in its place and start from
            noise with heavier tails, so that fewer people have a high Pareto k-hat.

    Attributes:
        config: The arguments it was built with, but for the model, and the name of its encoder.
        objectives: Names of the objectives it was last fitted by.

    Raises:
        ValueError: If the model has no latent factor or a name is unknown.

    References:
        Garnelo et al. (2018), Neural processes, arXiv 1807.01622.
        Zaheer et al. (2017), Deep sets, arXiv 1703.06114.
        Volpp et al. (2021), Bayesian context aggregation for neural processes, ICLR.
        Dinh, Sohl-Dickstein & Bengio (2017), Density estimation using Real NVP, arXiv 1605.08803.
    """

    def __init__(
        self,
        model: HeterogeneousBTL,
        posterior: str = "flow",
        hidden_dim: int = 64,
        coupling: str = "affine",
    ) -> None:
        super().__init__()
        if model.latent_dim == 0:
            raise ValueError(
                "model must have latent_dim of at least 1, got 0: a homogeneous model needs no "
                "guide, pass guide=None"
            )
        if posterior not in _POSTERIORS:
            raise ValueError(f"posterior must be one of {_POSTERIORS}, got {posterior!r}")
        # A tuple hides the model from nn.Module: its parameters are not the guide's.
        self._model = (model,)
        self.posterior_family = posterior
        if coupling not in _COUPLINGS:
            raise ValueError(f"coupling must be one of {tuple(_COUPLINGS)}, got {coupling!r}")
        self.config = {
            "posterior": posterior,
            "hidden_dim": hidden_dim,
            "encoder": "deep_set",  # Saved models and checkpoints name it.
            "coupling": coupling,
        }
        self.objectives: list[str] = []
        width, factors = model.latent_dim, model.utility.num_item_factors
        self.chosen = _ItemEmbedding(model.num_features, factors, hidden_dim)
        self.rejected = _ItemEmbedding(model.num_features, factors, hidden_dim)
        # With a position bias a choice of the left item tells less, or more, than one of the right.
        has_bias = model.config["position_bias"]
        self.side = nn.Parameter(torch.zeros(hidden_dim)) if has_bias else None
        self.encoder = DeepSet(hidden_dim)
        self.potential = MLP(2 * hidden_dim, hidden_dim, width + 2)
        self.direction = nn.Linear(factors, width, bias=False)
        self.couplings = nn.ModuleList()
        self.spline = None
        if posterior == "flow" and (width > 1 or coupling == "bent"):
            halves = width // 2, width - width // 2
            self.couplings.extend(
                GatedHypernet(*halves, hidden_dim, hidden_dim, _COUPLINGS[coupling])
                for _ in range(_NUM_COUPLINGS)
            )
        elif posterior == "flow":
            self.spline = MLP(hidden_dim, hidden_dim, 3 * _SPLINE_BINS - 1)
        self.register_buffer("largest_context", torch.tensor(0))
        self.of_location, self.expected = None, None
        if model.num_covariates:  # Last, so that the other weights are drawn as ever.
            self.of_location = nn.Linear(width, hidden_dim, bias=False)
            self.expected = nn.Parameter(torch.zeros(hidden_dim))

    @property
    def model(self) -> HeterogeneousBTL:
        """The model whose posterior is approximated."""
        return self._model[0]

    def posterior(
        self, batch: Batch, prepared: PreparedItems | None = None
    ) -> dist.TorchDistribution:
        """Returns q(z | context), with batch shape (U,) and event shape (K,).

        Args:
            batch: The contexts.
            prepared: What the model's `prepare_items` returned for the batch's items; None to
                prepare the items here.
        """
        prepared = prepared or self.model.prepare_items(batch.items)
        pairs = Pairs(batch, self.direction.weight.dtype)
        items, factors = prepared.items, prepared.factors.detach()
        elements = self._embed(items, factors, pairs)
        if self.of_location is not None:
            elements = elements + self._embed_covariates(
                batch, PreparedItems(items, factors), pairs
            )
        summary = self.encoder(elements, pairs.weight, pairs.mask, pairs.count)
        base, loc, tril, inverse = self._normal(elements, summary, factors, pairs)
        if self.posterior_family == "flow":
            count = pairs.count.unsqueeze(-1)
            transforms = self._flow(summary, count / (count + 1.0))
            if self.config["coupling"] == "bent":  # Bent while white, then put in its place.
                transforms.append(Whitening(loc, tril, inverse))
                base = HeavyNoise(batch.num_comparisons > 0, loc.shape[-1], loc.dtype)
            base = dist.TransformedDistribution(base, transforms)
        return self.model.push_forward(base, batch.covariates)

    def location(self, batch: Batch, prepared: PreparedItems | None = None) -> Tensor:
        """Returns one point z for each person, with shape (U, K): the centre of q(z | context).

        The mean of the normal that the guide starts from, carried through its flow; the mean of
        q itself where there is no flow. Arguments are those of :meth:`posterior`.
        """
        distribution, transforms = self.posterior(batch, prepared), []
        while isinstance(distribution, dist.TransformedDistribution):
            transforms = [*distribution.transforms, *transforms]
            distribution = distribution.base_dist
        z = distribution.mean
        for transform in transforms:
            z = transform(z)
        return z

    def forward(
        self, batch: Batch, observe: bool = True, prepared: PreparedItems | None = None
    ) -> Tensor:
        """Samples z given the batch's comparisons, with the model's arguments, as Pyro expects."""
        with pyro.plate("users", batch.num_users, dim=-1):
            return pyro.sample("z", self.posterior(batch, prepared))

    def register(self) -> None:
        """Enters the parameters into Pyro's parameter store; to be called within `SVI`'s guide."""
        pyro.module("guide", self)

    def _embed(self, items: Tensor, factors: Tensor, pairs: Pairs) -> Tensor:
        """Embeds (chosen, rejected) pairs to shape (R, H)."""
        winner, loser = pairs.winner, pairs.loser
        if len(items) < len(winner):  # Items that repeat are embedded once.
            chosen, rejected = self.chosen(items, factors), self.rejected(items, factors)
            elements = F.embedding(winner, chosen) + F.embedding(loser, rejected)
        else:
            chosen = self.chosen(items[winner], factors[winner])
            elements = chosen + self.rejected(items[loser], factors[loser])
        return elements if self.side is None else elements + pairs.side * self.side

    def _embed_covariates(self, batch: Batch, prepared: PreparedItems, pairs: Pairs) -> Tensor:
        """Embeds by how much covariates move z and every pair's margin, with shape (R, H)."""
        with torch.no_grad():
            location = self.model.location(batch.covariates)
            z = torch.stack([location, torch.zeros_like(location)])
            moved, average = self.model.choice(batch.clean(), z, prepared).margin
        expected = pairs.of_chosen(moved - average) * self.expected
        return expected + self.of_location(location)[pairs.person]

    def _normal(
        self, elements: Tensor, summary: Tensor, factors: Tensor, pairs: Pairs
    ) -> tuple[dist.TorchDistribution, Tensor, Tensor, Tensor]:
        """Adds up the pairs' potentials to a normal distribution of the standard variable.

        Returns:
            The distribution, its mean (U, K), its scale's lower triangle and the inverse of that,
            both (U, K, K).
        """
        width = self.model.latent_dim
        seen = torch.cat([elements, summary[pairs.person]], -1)
        bend, precision, shift = self.potential(F.relu(seen)).split([width, 1, 1], -1)
        direction = bend + self.direction(factors[pairs.winner] - factors[pairs.loser])
        weight = pairs.weight[pairs.mask].unsqueeze(-1)
        precision, shift = weight * F.softplus(precision), weight * shift
        zero = summary.new_zeros(len(summary), width)
        total_shift = zero.index_add(0, pairs.person, shift * direction)
        if self.posterior_family == "normal" or width == 1:
            total = 1.0 + zero.index_add(0, pairs.person, precision * direction.square())
            loc, scale = total_shift / total, total.rsqrt()
            normal = dist.Normal(loc, scale).to_event(1)
            return normal, loc, scale.diag_embed(), total.sqrt().diag_embed()
        outer = (precision * direction).unsqueeze(-1) * direction.unsqueeze(-2)
        eye = torch.eye(width, device=zero.device, dtype=zero.dtype)
        total = eye.expand(len(summary), width, width).index_add(0, pairs.person, outer)
        # P = L Lᵀ, so ε = P⁻¹ shift + L⁻ᵀ noise; reversing the order twice makes L⁻ᵀ triangular.
        factor, failed = torch.linalg.cholesky_ex(total.flip(-2, -1))
        # P ≥ I fails only where something is not finite, and that must show.
        factor = factor.masked_fill(failed.bool()[:, None, None], torch.nan).flip(-2, -1)
        tril = torch.linalg.solve_triangular(factor, eye, upper=True).mT
        loc = (tril @ (tril.mT @ total_shift.unsqueeze(-1))).squeeze(-1)
        return dist.MultivariateNormal(loc, scale_tril=tril), loc, tril, factor.mT

    def _flow(self, summary: Tensor, gate: Tensor) -> list:
        if self.spline is not None:
            parameters = _gated_spline(gate * self.spline(summary))
            return [_Spline(lambda: parameters, bound=5.0, order="quadratic")]
        coupling = BentCoupling if self.config["coupling"] == "bent" else T.AffineCoupling
        couplings = [
            coupling(net.split_dim, partial(net, context=(summary, gate))) for net in self.couplings
        ]
        return flip_between(couplings, self.model.latent_dim, summary.device)


class _ItemEmbedding(nn.Module):
    """Embeds items by their features and by the model's factors of them."""

    def __init__(self, num_features: int, num_factors: int, hidden_dim: int) -> None:
        super().__init__()
        self.features = ItemLinear(num_features, hidden_dim)
        self.factors = nn.Linear(num_factors, hidden_dim, bias=False)

    def forward(self, items: Tensor, factors: Tensor) -> Tensor:
        """Returns embeddings (R, H) of items (R, D) or (R,) with factors (R, F)."""
        return self.features(items) + self.factors(factors)


class _Spline(ConditionedSpline):
    """A spline that can be the identity: Pyro's least slope of .001 would bend it at its ends."""

    def spline_op(self, x: Tensor, **options) -> tuple[Tensor, Tensor]:
        return super().spline_op(x, min_derivative=0.0, **options)


def _gated_spline(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    """Turns (U, 3 B − 1) numbers into widths, heights and slopes (U, 1, ·): the identity at 0."""
    parts = parameters.split([_SPLINE_BINS, _SPLINE_BINS, _SPLINE_BINS - 1], -1)
    widths, heights, slopes = (part.unsqueeze(-2) for part in parts)
    slopes = F.softplus(slopes + math.log(math.expm1(1.0)))
    return widths.softmax(-1), heights.softmax(-1), slopes, None


def check_guide(model: HeterogeneousBTL, guide: NeuralProcessGuide | None) -> None:
    """Raises an error unless `guide` is the model's, or None for a homogeneous model."""
    if guide is not None and guide.model is not model:
        raise ValueError("guide must be the guide of this model, got one of another model")
    if (guide is None) != (model.latent_dim == 0):
        raise ValueError(
            f"guide must be {'None' if guide is not None else 'given'} for a model with "
            f"latent_dim={model.latent_dim}"
        )
