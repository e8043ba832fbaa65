r"""The guide q(z | a few choices): a neural process encoder."""

from __future__ import annotations

import math
from functools import partial

import pyro
import torch
import torch.nn.functional as F
from pyro import distributions as dist
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor, nn

from fssa_bayes.data import Batch
from fssa_bayes.guide.couplings import AffineCoupling, BentCoupling, HeavyNoise
from fssa_bayes.guide.density import Encoding, NoiseDensity
from fssa_bayes.guide.gaussian import FromPrecision
from fssa_bayes.guide.pairs import Pairs
from fssa_bayes.model import HeterogeneousBTL, PreparedItems
from fssa_bayes.model.nn import (
    MLP,
    DeepSet,
    GatedHypernet,
    ItemLinear,
    flip_between,
    perceptron,
    row_product,
    steady_softplus,
)

__all__ = ["GatedSpline", "ItemEmbedding", "NeuralProcessGuide", "check_guide"]

_POSTERIORS = ("normal", "multivariate_normal", "flow")
_COUPLINGS = {"affine": 2, "bent": 3}  # Parameters of each transformed dimension.
_NUM_COUPLINGS = 4
_SPLINE_BINS = 8
_LEAST_DRAWS = 64


class NeuralProcessGuide(nn.Module):
    r"""Amortises the posterior of z: q(z | C) for any context C, in one pass of a network.

    A context is a set of (chosen, rejected) pairs, half a win each being both orders with weight
    ½. A set encoder summarises it. Given the summary, every pair has a Gaussian potential with
    direction v, precision λ and shift a, and the potentials add up as independent observations do:

    .. math:: q(ε \mid C) = N(P^{-1} \textstyle\sum_n a_n v_n,\; P^{-1}), \quad
        P = I + \textstyle\sum_n λ_n v_n v_n^T,

    for ε the prior's standard normal variable. The posterior of an empty context **is** the prior,
    by construction, and contexts longer than any in training concentrate it further. With
    `posterior="flow"`, conditional couplings gated by n / (n + 1) transform the normal.

    A tie proper is both orders too. A ranking is its pairs, with weight 2 / s where the winner was
    chosen among s items: between equals such a choice tells as much as that many independent
    comparisons. The encoder sees which item had the advantage of its place if the model has a
    position bias, and not otherwise.

    The encoder sees the items' features and what the model makes of them (its item factors,
    without gradient), so it need not learn the utility a second time. With covariates, q(z | ∅) is
    p(z | w), and the encoder sees by how much they move z and the margin of every pair.

    Args:
        model: The model whose posterior is approximated. It is not part of the guide's parameters.
        posterior: `"normal"`, independent dimensions; `"multivariate_normal"`; or `"flow"`, a
            multivariate normal followed by conditional affine couplings (for K = 1, a spline),
            which can score outside values.
        hidden_dim: Width of the networks.
        coupling: For a flow, `"affine"`; or `"bent"`, whose couplings can give the two tails of a
            posterior different scales, act in whitened coordinates and start from noise with
            heavier tails, so that fewer people have a high Pareto k-hat.

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
            "encoder": "deep_set",  # Saved models and checkpoints hold this entry.
            "coupling": coupling,
        }
        self.objectives: list[str] = []
        width, factors = model.latent_dim, model.utility.num_item_factors
        self.chosen = ItemEmbedding(model.num_features, factors, hidden_dim)
        self.rejected = ItemEmbedding(model.num_features, factors, hidden_dim)
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
        if model.num_covariates:  # Last, so that other initial weights do not depend on covariates.
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
            prepared: The result of the model's `prepare` for the batch, or of its `prepare_items`
                for the batch's items; None to prepare the items here.
        """
        encoding = self.encode(batch, prepared)
        loc, tril = encoding.loc, encoding.scale_tril
        if self._has_independent_dimensions:
            base = dist.Normal(loc, tril.diagonal(dim1=-2, dim2=-1)).to_event(1)
        else:
            base = dist.MultivariateNormal(loc, scale_tril=tril)
        if self.posterior_family == "flow":
            transforms = self.conditional_flow(encoding)
            if self.config["coupling"] == "bent":  # In whitened coordinates; then scale and shift.
                transforms.append(encoding.whitening())
                base = HeavyNoise(encoding.is_known, loc.shape[-1], loc.dtype)
            base = dist.TransformedDistribution(base, transforms)
        shared = None if prepared is None else prepared.transforms
        return self.model.push_forward(base, batch.covariates, shared)

    def noise_density(
        self, batch: Batch, prepared: PreparedItems | None = None, num_users: int | None = None
    ) -> NoiseDensity:
        """Returns q(ε | context) of the first people of a batch, all if `num_users` is None.

        Other arguments are those of :meth:`posterior`, whose z is a function of ε.
        """
        encoding = self.encode(batch, prepared).for_draws(num_users)
        transforms, is_heavy = self.conditional_flow(encoding), self.config["coupling"] == "bent"
        # Bent couplings act in whitened coordinates, affine ones after scale and shift.
        transforms.insert(len(transforms) if is_heavy else 0, encoding.whitening())
        return NoiseDensity(transforms, encoding.loc, encoding.is_known if is_heavy else None)

    def encode(self, batch: Batch, prepared: PreparedItems | None = None) -> Encoding:
        """Encodes contexts to the parameters of q(ε | context); see :meth:`posterior`."""
        prepared = prepared or self.model.prepare_items(batch.items)
        pairs = Pairs(batch, self.direction.weight.dtype)
        items, factors = prepared.items, prepared.factors.detach()
        elements = self.embed_pairs(items, factors, pairs)
        if self.of_location is not None:
            elements = elements + self.embed_covariates(batch, PreparedItems(items, factors), pairs)
        elements = F.relu(elements)
        summary = self.encoder(elements, pairs.weight, pairs.mask, pairs.count)
        if self.spline is not None:
            conditions = (self.spline(summary),)
        else:
            conditions = tuple(net.context(summary) for net in self.couplings)
        count = pairs.count.unsqueeze(-1)
        return Encoding(
            *self.add_potentials(elements, summary, factors, pairs),
            gate=count / (count + 1.0),
            is_known=batch.num_comparisons > 0,
            conditions=conditions,
        )

    def location(self, batch: Batch, prepared: PreparedItems | None = None) -> Tensor:
        """Returns one point z for each person, with shape (U, K): the centre of q(z | context).

        The mean of the normal base, mapped through the flow; the mean of q where there is no flow.
        Arguments are those of :meth:`posterior`.
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

    def embed_pairs(self, items: Tensor, factors: Tensor, pairs: Pairs) -> Tensor:
        """Embeds (chosen, rejected) pairs to shape (R, H)."""
        winner, loser = pairs.winner, pairs.loser
        if len(items) < len(winner):  # Items that repeat are embedded once.
            chosen, rejected = self.chosen(items, factors), self.rejected(items, factors)
            elements = F.embedding(winner, chosen) + F.embedding(loser, rejected)
        elif items.dtype == torch.int64:
            chosen = self.chosen(items[winner], factors[winner])
            elements = chosen + self.rejected(items[loser], factors[loser])
        else:  # Both embeddings by one product.
            seen = torch.cat([items, factors], -1)
            seen = torch.cat([seen.index_select(0, winner), seen.index_select(0, loser)], -1)
            parts = (*self.chosen.weights(), *self.rejected.weights())
            bias = self.chosen.features.bias + self.rejected.features.bias
            elements = F.linear(seen, torch.cat(parts, -1), bias)
        return elements if self.side is None else elements + pairs.side * self.side

    def embed_covariates(self, batch: Batch, prepared: PreparedItems, pairs: Pairs) -> Tensor:
        """Embeds the shifts of z and of each pair's margin by the covariates, with shape (R, H)."""
        # Products of few draws round differently, depending on the number of comparisons.
        draws, backend = (2, None) if torch.is_grad_enabled() else (_LEAST_DRAWS, "chunked")
        with torch.no_grad():
            location = self.model.location(batch.covariates)
            z = location.new_zeros(len(location), draws, location.shape[-1]).transpose(0, 1)
            z[0] = location
            moved, average = self.model.choice(batch.clean(), z, prepared, backend).margin[:2]
        expected = pairs.of_chosen(moved - average) * self.expected
        return expected + self.of_location(location)[pairs.person]

    def add_potentials(
        self, elements: Tensor, summary: Tensor, factors: Tensor, pairs: Pairs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Adds up the pairs' potentials to a normal distribution of ε.

        Returns:
            Its mean (U, K), its triangular scale and the inverse of that scale, both (U, K, K).
        """
        width = self.model.latent_dim
        first, _, second = self.potential
        # The first layer sees elements and summary; the summary's part is that of all elements.
        of_elements, of_summary = first.weight.chunk(2, -1)
        added = row_product(F.relu(summary), of_summary).index_select(0, pairs.person)
        layers = [of_elements, first.bias, second.weight, second.bias]
        potentials = perceptron(elements, layers, added=added)
        bend, precision, shift = potentials.split([width, 1, 1], -1)
        difference = factors.index_select(0, pairs.winner) - factors.index_select(0, pairs.loser)
        direction = bend + row_product(difference, self.direction.weight)
        weight = pairs.weight[pairs.mask].unsqueeze(-1)
        precision, shift = weight * steady_softplus(precision), weight * shift
        zero = summary.new_zeros(len(summary), width)
        total_shift = zero.index_add(0, pairs.person, shift * direction)
        if self._has_independent_dimensions:
            total = 1.0 + zero.index_add(0, pairs.person, precision * direction.square())
            return total_shift / total, total.rsqrt().diag_embed(), total.sqrt().diag_embed()
        outer = (precision * direction).unsqueeze(-1) * direction.unsqueeze(-2)
        eye = torch.eye(width, device=zero.device, dtype=zero.dtype)
        total = eye.expand(len(summary), width, width).index_add(0, pairs.person, outer)
        return FromPrecision.apply(total, total_shift)

    @property
    def _has_independent_dimensions(self) -> bool:
        return self.posterior_family == "normal" or self.model.latent_dim == 1

    def conditional_flow(self, encoding: Encoding) -> list:
        """Lists the transforms of a flow given an encoding; none where there is no flow."""
        gate, conditions = encoding.gate, encoding.conditions
        if self.spline is not None:
            # Numbers (*, 3 B − 1): widths, heights and slopes (*, 1, ·), the identity at 0.
            bins = [_SPLINE_BINS, _SPLINE_BINS, _SPLINE_BINS - 1]
            parts = (gate * conditions[0]).split(bins, -1)
            widths, heights, slopes = (part.unsqueeze(-2) for part in parts)
            slopes = steady_softplus(slopes + math.log(math.expm1(1.0)))
            parameters = widths.softmax(-1), heights.softmax(-1), slopes, None
            return [GatedSpline(lambda: parameters, bound=5.0, order="quadratic")]
        coupling = BentCoupling if self.config["coupling"] == "bent" else AffineCoupling
        couplings = [
            coupling(net.split_dim, partial(net, context=(condition, gate)))
            for net, condition in zip(self.couplings, conditions, strict=True)
        ]
        return flip_between(couplings, self.model.latent_dim, gate.device)


class ItemEmbedding(nn.Module):
    """Embeds items by their features and by the model's factors of them."""

    def __init__(self, num_features: int, num_factors: int, hidden_dim: int) -> None:
        super().__init__()
        self.features = ItemLinear(num_features, hidden_dim)
        self.factors = nn.Linear(num_factors, hidden_dim, bias=False)

    def forward(self, items: Tensor, factors: Tensor) -> Tensor:
        """Returns embeddings (R, H) of items (R, D) or (R,) with factors (R, F)."""
        return self.features(items) + self.factors(factors)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Returns the weights of features (H, D) and of factors (H, F)."""
        return self.features.weight, self.factors.weight


class GatedSpline(ConditionedSpline):
    """A spline that can be the identity, which Pyro's least slope of .001 prevents at its ends."""

    def spline_op(self, x: Tensor, **options) -> tuple[Tensor, Tensor]:
        return super().spline_op(x, min_derivative=0.0, **options)


def check_guide(
    model: HeterogeneousBTL, guide: NeuralProcessGuide | None, *, may_lack: bool = False
) -> None:
    """Raises an error unless `guide` is the model's, or None for a homogeneous model.

    `may_lack` allows None for a heterogeneous model too.
    """
    if guide is not None and guide.model is not model:
        raise ValueError("guide must be the guide of this model, got one of another model")
    if guide is None and may_lack:
        return
    if (guide is None) != (model.latent_dim == 0):
        raise ValueError(
            f"guide must be {'None' if guide is not None else 'given'} for a model with "
            f"latent_dim={model.latent_dim}"
        )
