r"""The heterogeneous Bradley–Terry–Luce model as a Pyro program."""

from __future__ import annotations

import math

import pandas as pd
import pyro
import torch
from pyro import distributions as dist
from pyro.distributions import transforms as T
from torch import Tensor, nn

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.model.distributional import DistributionalUtility, LinearDistributionalUtility
from fssa_bayes.model.distributions import BradleyTerry
from fssa_bayes.model.nn import PRECISIONS, flip_between
from fssa_bayes.model.utilities import (
    BilinearUtility,
    LinearUtility,
    MLPUtility,
    ModuleUtility,
    PreparedItems,
    Utility,
)

__all__ = ["UTILITIES", "HeterogeneousBTL"]

UTILITIES: dict[str, type[Utility]] = {
    "bilinear": BilinearUtility,
    "linear": LinearUtility,
    "mlp": MLPUtility,
    "distributional": DistributionalUtility,
    "distributional-linear": LinearDistributionalUtility,
}
"""Utilities by the name that they have as an argument of :class:`HeterogeneousBTL`."""

_START_TIE = math.log(0.5)  # A fifth of the answers between equals.
_START_LAPSE = math.log(0.05 / 0.95)


class HeterogeneousBTL(nn.Module):
    r"""Models the paired comparisons of people who differ by a latent factor z,

    .. math:: p(z, y \mid w) = \prod_u p(z_u \mid w_u) \prod_n
        \mathrm{BradleyTerry}(y_{un} \mid r(x_{un}^{l}, z_u) - r(x_{un}^{r}, z_u)).

    What an answer depends on beside the utilities is the same for everybody: with m the margin, to
    which `position_bias` adds b, `ties="davidson"` makes P(left) : P(right) : P(tie) as
    :math:`e^{m/2} : e^{-m/2} : ν`, and `lapses` makes an answer, with probability λ, uniform over
    the possible ones. log ν, b and logit λ are parameters, estimated with the rest. A ranking has
    the probability of Plackett and Luce, and none of these.

    Covariates w of a person, if there are any, move the prior: :math:`z_u = B \tilde w_u + ζ_u`
    with :math:`\tilde w` standardised by the people of the first fit and ζ drawn alike for
    everybody, N(0, I) or the learned p. B is estimated with the rest. For the linear utility the
    coefficients of a person are then :math:`β_u = w_0 + ΛB \tilde w_u + Λζ_u`: w0 are those of the
    average person, and the effect of covariates on coefficients, ΛB, is identified though B is
    not. Effects lie in the span of Λ: with fewer latent dimensions than features, covariates move
    coefficients only in directions in which people of the same covariates differ too, and
    `latent_dim=num_features` leaves every effect free.

    A Pyro program with one plate, `users`, and two sample sites: `z` with event shape (K,) and
    `choice` with event shape (N,). Its parameters are those of an ordinary module; :meth:`register`
    enters them into Pyro's parameter store for those who use `SVI`.

    Args:
        num_features: Number of item features D; the number of items where these have no features.
        latent_dim: Number of latent dimensions K; 0 is the homogeneous BTL model.
        utility: `"bilinear"`, r = φ(x)·ψ(z) with two MLP towers; `"linear"`, r = x·(w0 + Λz), whose
            coefficients have a covariance of rank `latent_dim` (all D for a full one);
            `"mlp"`, one network whose first layer adds item and user; a module that maps items
            (*, D) and z (*, K), broadcast, to utilities (*), in nats; or, with `latent_dim=0`,
            `"distributional"` or `"distributional-linear"`, see :class:`DistributionalUtility`.
        prior: `"normal"`, or `"flow"` for a learned p(z).
        hidden_dim: Width of the utility's networks.
        num_factors: Number of factors of the bilinear utility.
        ties: `"davidson"` for a model in which ½ is a tie, for data read with `ties="keep"`; None
            for one in which it is half a win each.
        position_bias: Whether what stands on the left may have an advantage, in nats.
        lapses: Whether answers may be careless.
        matmul_precision: Precision of the matrix products in the networks of the bilinear and the
            mlp utility, forward and backward: `"highest"`; `"tf32"`, on CUDA devices (elsewhere the
            same as `"highest"`); or `"bf16"`, which rounds to 8 binary digits, on a CPU too. It
            concerns float32 networks alone: margins, likelihoods and homogeneous fits (in double
            precision) are computed as ever. `python -m benchmarks precision` measures what it does
            to posterior means.
        num_covariates: Number of user covariates W that the prior depends on; 0 for none. Data
            come with them by `Preferences.from_dataframe(users=...)`.

    Attributes:
        config: The arguments it was built with; `"module"` stands for a utility of one's own, and
            `num_covariates` is there where it is not 0.
        log_tie: Davidson's log ν, or None.
        bias: Advantage of the left in nats, or None.
        lapse_logit: Logit of the lapse rate, or None.
        feature_names: Names of the features it was fitted to, or None.
        covariate_effect: B with shape (K, W), per standard deviation of the covariates, or None.
        covariate_names: Names of the covariates it was fitted to, or None.

    Raises:
        ValueError: If a size is out of range or a name unknown.

    References:
        Kobalczyk et al. (2024), Few-shot steerable alignment, arXiv 2412.13998.
        McFadden & Train (2000), Mixed MNL models for discrete response.
        Davidson (1970), On extending the Bradley-Terry model to accommodate ties in paired
        comparison experiments, JASA 65.

    Example:
        >>> model = HeterogeneousBTL(num_features=4, latent_dim=2, utility="linear")
        >>> model.prior(3).batch_shape, model.prior(3).event_shape
        (torch.Size([3]), torch.Size([2]))
    """

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        utility: str | nn.Module = "bilinear",
        prior: str = "normal",
        hidden_dim: int = 64,
        num_factors: int = 16,
        *,
        ties: str | None = None,
        position_bias: bool = False,
        lapses: bool = False,
        matmul_precision: str = "highest",
        num_covariates: int = 0,
    ) -> None:
        super().__init__()
        _check_at_least("num_features", num_features, 1)
        _check_at_least("latent_dim", latent_dim, 0)
        _check_at_least("hidden_dim", hidden_dim, 1)
        _check_at_least("num_factors", num_factors, 1)
        _check_answers(ties, position_bias, lapses)
        _check_at_least("num_covariates", num_covariates, 0)
        if num_covariates and not latent_dim:
            raise ValueError(
                f"latent_dim must be at least 1 with num_covariates={num_covariates}, got 0: "
                "covariates move the latent factor, which a homogeneous model does not have"
            )
        self.num_features = num_features
        self.latent_dim = latent_dim
        self.config = {
            "num_features": num_features,
            "latent_dim": latent_dim,
            "utility": "module" if isinstance(utility, nn.Module) else utility,
            "prior": prior,
            "hidden_dim": hidden_dim,
            "num_factors": num_factors,
            "ties": ties,
            "position_bias": position_bias,
            "lapses": lapses,
            "matmul_precision": matmul_precision,
        }
        if num_covariates:  # Without, files and caches are those of a model that knows of none.
            self.config["num_covariates"] = num_covariates
        self.utility = _build_utility(utility, num_features, latent_dim, self.config)
        if prior not in ("normal", "flow"):
            raise ValueError(f"prior must be 'normal' or 'flow', got {prior!r}")
        _set_precision(self.utility, matmul_precision)
        for name, start in (
            ("log_tie", None if ties is None else _START_TIE),
            ("bias", 0.0 if position_bias else None),
            ("lapse_logit", _START_LAPSE if lapses else None),
        ):
            value = None if start is None else nn.Parameter(torch.tensor(start))
            self.register_parameter(name, value)
        is_flow = prior == "flow" and latent_dim > 0
        self.prior_flow = nn.ModuleList(_prior_flow(latent_dim, hidden_dim) if is_flow else [])
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_scale", torch.ones(num_features))
        self.register_buffer("is_standardised", torch.tensor(False))
        self.register_buffer("_origin", torch.zeros(()))
        self.feature_names: pd.Index | None = None
        self.num_covariates = num_covariates
        effect = nn.Parameter(torch.zeros(latent_dim, num_covariates)) if num_covariates else None
        self.register_parameter("covariate_effect", effect)
        for name, value in (
            ("covariate_mean", torch.zeros(num_covariates)),
            ("covariate_scale", torch.ones(num_covariates)),
            ("covariates_are_standardised", torch.tensor(False)),
        ):
            self.register_buffer(name, value if num_covariates else None)
        self.covariate_names: pd.Index | None = None

    # ------------------------------------------------------------------ the graphical model

    def prior(self, num_users: int, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(z | w), with batch shape (U,) and event shape (K,).

        Args:
            num_users: Number of people U.
            covariates: Their covariates with shape (U, W), in original units; a model without
                covariates does not look at them.
        """
        shape = (num_users, self.latent_dim)
        base = dist.Normal(self._origin.expand(shape), 1.0 + self._origin).to_event(1)
        return self.push_forward(base, covariates)

    def push_forward(
        self, base: dist.TorchDistribution, covariates: Tensor | None = None
    ) -> dist.TorchDistribution:
        """Maps a distribution of the prior's standard normal variable to one of z."""
        transforms = self.prior_transforms(covariates)
        return dist.TransformedDistribution(base, transforms) if transforms else base

    def prior_transforms(self, covariates: Tensor | None = None) -> list:
        """Lists the maps that take the prior's standard normal variable to z, in order."""
        transforms = []
        if len(self.prior_flow):
            spline, *couplings = self.prior_flow
            transforms = [spline, *flip_between(couplings, self.latent_dim, self.device)]
        if self.num_covariates:
            # A learned prior is moved as a whole: its shape is the same for everybody. The cache
            # hands the flow its own draws back, which it need not invert.
            location = self.location(covariates)
            transforms.append(T.AffineTransform(location, 1.0, event_dim=1, cache_size=1))
        return transforms

    def location(self, covariates: Tensor | None) -> Tensor:
        """Returns where the prior is centred by covariates (U, W): B w̃ (U, K), or 0 without B."""
        if not self.num_covariates:
            return self._origin
        self.check_covariates(covariates)
        return self.standardise_covariates(covariates) @ self.covariate_effect.T

    def average_prior(self, num_users: int) -> dist.TorchDistribution:
        """Returns p(z | w) of as many people whose covariates, if any, are average."""
        average = None if self.covariate_mean is None else self.covariate_mean.expand(num_users, -1)
        return self.prior(num_users, average)

    def sample_population(self, num_users: int, data: Preferences) -> Tensor:
        """Draws z (U, K) of people at random; their covariates are those of people of the data."""
        covariates = None
        if self.num_covariates:
            self.check_covariates(data.covariates)
            covariates = data.covariates[torch.randint(len(data), (num_users,))]
        return self.prior(num_users, covariates).sample()

    def choice(
        self, batch: Batch, z: Tensor, prepared: PreparedItems | None = None
    ) -> BradleyTerry:
        """Returns p(choices | z), with batch shape (*, U), for z with shape (*, U, K).

        Args:
            batch: The comparisons.
            z: Latent factors with shape (*, U, K).
            prepared: What :meth:`prepare_items` returned for the batch's items, for a caller that
                needs it more than once; None to prepare the items here.
        """
        prepared = prepared or self.prepare_items(batch.items)
        self.check_z(z)
        lead = z.shape[:-2]
        flat = z.reshape(math.prod(lead), *z.shape[-2:])
        pairwise = self.utility.pairwise(*prepared, flat)

        def likelihood(choice: Tensor | None = None, **options: str) -> Tensor:
            value = pairwise(
                batch.left,
                batch.right,
                choice,
                batch.mask,
                position_bias=self.position_bias,
                **options,
            )
            return value.reshape(lead + value.shape[1:])

        self.check_rankings(batch.rankings is not None)
        return BradleyTerry(
            likelihood,
            batch.mask,
            z.shape[:-1],
            log_tie=self.log_tie,
            position_bias=self.bias,
            lapse_logit=self.lapse_logit,
            rankings=batch.rankings,
        )

    def forward(
        self, batch: Batch, observe: bool = True, prepared: PreparedItems | None = None
    ) -> Tensor:
        """Runs the generative program; `observe=False` leaves the choices to be drawn.

        `prepared` is as in :meth:`choice`.
        """
        with pyro.plate("users", batch.num_users, dim=-1):
            if self.latent_dim:
                z = pyro.sample("z", self.prior(batch.num_users, batch.covariates))
            else:
                z = self._origin.expand(batch.num_users, 0)
            return pyro.sample(
                "choice", self.choice(batch, z, prepared), obs=batch.choice if observe else None
            )

    def register(self) -> None:
        """Enters the parameters into Pyro's parameter store; for use within `SVI`'s program."""
        pyro.module("model", self)

    @property
    def has_ties(self) -> bool:
        """Whether a choice of ½ is a tie, and not half a win each."""
        return self.log_tie is not None

    @property
    def position_bias(self) -> Tensor | float:
        """Advantage of the left in nats, 0 for a model without one."""
        return 0.0 if self.bias is None else self.bias

    def answer_parameters(self) -> dict[str, nn.Parameter]:
        """Lists log ν, position bias and logit of the lapse rate by name, those the model has."""
        names = {
            "log nu": self.log_tie,
            "position bias": self.bias,
            "lapse logit": self.lapse_logit,
        }
        return {name: value for name, value in names.items() if value is not None}

    def population_parameters(self) -> list[nn.Parameter]:
        """Lists the parameters that describe the population and learn faster than networks."""
        of_prior = [] if self.covariate_effect is None else [self.covariate_effect]
        return [
            *self.utility.population_parameters(),
            *of_prior,
            *self.answer_parameters().values(),
        ]

    # ------------------------------------------------------------------ utilities

    def item_utility(self, items: Tensor, z: Tensor) -> Tensor:
        """Evaluates the utility of every item to every user.

        Args:
            items: Features with shape (M, D) in original units, or positions (M,).
            z: Latent factors with shape (*, U, K).

        Returns:
            Utilities in nats with shape (*, U, M), identified up to a constant per user and draw.
        """
        self.check_items(items)
        self.check_z(z)
        return self.utility(self.standardise(items), z)

    def prepare_items(self, items: Tensor) -> PreparedItems:
        """Standardises items (M, D) or (M,), and computes the utility's factors of them (M, F).

        Guide and model need both for the same items: whoever asks the two about one batch prepares
        its items once and hands them to both.
        """
        self.check_items(items)
        standardised = self.standardise(items)
        factors = self.utility.item_factors(standardised) if self.latent_dim else None
        return PreparedItems(standardised, factors)

    def standardise(self, items: Tensor) -> Tensor:
        """Centres and scales features (M, D); positions (M,) pass unchanged."""
        if items.dtype == torch.int64:
            return items
        return (items - self.feature_mean) / self.feature_scale

    def set_standardisation(self, items: Tensor | None) -> None:
        """Takes the features' mean and standard deviation from an item table, once.

        A later fit continues from the parameters, which are in units of the first.
        """
        if items is None or self.is_standardised:
            return
        scale = items.std(0, unbiased=False)
        self.feature_mean.copy_(items.mean(0))
        self.feature_scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))
        self.is_standardised.fill_(True)

    def standardise_covariates(self, covariates: Tensor) -> Tensor:
        """Centres and scales covariates (U, W)."""
        return (covariates.to(self.covariate_mean) - self.covariate_mean) / self.covariate_scale

    def set_covariate_standardisation(self, covariates: Tensor | None) -> None:
        """Takes the covariates' mean and standard deviation from people (U, W), once."""
        if not self.num_covariates or self.covariates_are_standardised:
            return
        wide = covariates.double()
        # A constant's standard deviation is rounding, at most.
        scale = wide.std(0, unbiased=False)
        scale = torch.where(scale > 1e-6 * wide.abs().amax(0), scale, torch.ones_like(scale))
        self.covariate_mean.copy_(wide.mean(0))
        self.covariate_scale.copy_(scale)
        self.covariates_are_standardised.fill_(True)

    @torch.no_grad()
    def take_units(self, data: Preferences) -> None:
        """Takes names of features and covariates from the data of a fit, and their units once."""
        self.set_standardisation(None if data.items is None else data.items.to(self.device))
        self.set_covariate_standardisation(data.covariates)
        self.feature_names = data.feature_names
        if self.num_covariates:
            self.covariate_names = data.covariate_names

    def check_covariates(self, covariates: Tensor | None) -> None:
        """Raises a ValueError unless there are the model's covariates, or the model has none."""
        if not self.num_covariates:
            return
        if covariates is None:
            raise ValueError(
                f"covariates must be given for a model with num_covariates={self.num_covariates}, "
                "got none: Preferences.from_dataframe(users=...) reads them with the comparisons"
            )
        if covariates.shape[-1] != self.num_covariates:
            raise ValueError(
                f"covariates must be the model's num_covariates={self.num_covariates}, "
                f"got {covariates.shape[-1]}"
            )

    def check_items(self, items: Tensor) -> None:
        """Raises a ValueError unless the item table has the model's number of features."""
        if items.dtype == torch.int64:
            if len(items) and int(items.max()) >= self.num_features:
                raise ValueError(
                    f"item positions must be below the model's num_features={self.num_features}, "
                    f"got {int(items.max())}"
                )
        elif items.shape[-1] != self.num_features:
            raise ValueError(
                f"items must have the model's num_features={self.num_features} features, "
                f"got {items.shape[-1]}"
            )

    def check_rankings(self, has_rankings: bool) -> None:
        """Raises a ValueError if there are rankings, and the model has no likelihood of them.

        A model with ties, position bias, lapses or a utility drawn afresh has none.
        """
        if has_rankings and self.utility.is_random:
            raise ValueError(
                "DistributionalBTL knows the probability of a pair, not that of a ranking, got "
                "rankings: break them into pairs (method='pairs', as_pairs())"
            )
        if has_rankings and (answers := list(self.answer_parameters())):
            raise ValueError(
                "rankings are scored by Plackett–Luce, which has no ties, position bias or "
                f"lapses, and the model has {', '.join(answers)}: build it without, or break the "
                "rankings into pairs (method='pairs', as_pairs())"
            )

    def check_z(self, z: Tensor) -> None:
        """Raises a ValueError unless z has the model's number of latent dimensions."""
        if z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"z must have the model's latent_dim={self.latent_dim} dimensions, "
                f"got shape {tuple(z.shape)}"
            )

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.feature_mean.device

    # ------------------------------------------------------------------ simulation

    def simulate(self, data: Preferences, *, seed: int = 0) -> tuple[Preferences, Tensor]:
        """Draws new people and their choices on the pairs of `data`.

        Args:
            data: Tells who is asked about which pairs; its choices are not looked at.
            seed: Seed of the draws; the global random state is left as it was.

        Returns:
            The same data with simulated choices, and the people's z with shape (U, K).
        """
        with seeded(seed), torch.no_grad():
            choices, factors = [], []
            for batch in data.batches(4096):
                moved = batch.to(self.device)
                z = self.prior(batch.num_users, batch.covariates).sample()
                choices.append(self.choice(moved, z).sample()[moved.mask].cpu())
                factors.append(z.cpu())
        ties = "keep" if self.has_ties else "half"
        simulated = data.with_choices(torch.cat(choices).numpy(), ties=ties)
        return simulated, torch.cat(factors)


def _prior_flow(latent_dim: int, hidden_dim: int) -> list[nn.Module]:
    """Builds a learned transform of the standard normal: a spline, then affine couplings.

    It starts near the identity; Pyro's own initial values put draws up to 40 from the origin.
    """
    spline = T.Spline(latent_dim, count_bins=8, bound=5.0, order="quadratic")
    couplings = []
    if latent_dim > 1:
        couplings = [T.affine_coupling(latent_dim, [hidden_dim]) for _ in range(2)]
    with torch.no_grad():
        spline.unnormalized_widths.mul_(0.1)
        spline.unnormalized_heights.mul_(0.1)
        spline.unnormalized_derivatives.mul_(0.1).add_(math.log(math.expm1(1.0)))
        for coupling in couplings:
            coupling.nn.layers[-1].weight.zero_()
            coupling.nn.layers[-1].bias.zero_()
    return [spline, *couplings]


def _check_answers(ties: str | None, position_bias: bool, lapses: bool) -> None:
    if ties not in (None, "davidson"):
        raise ValueError(f"ties must be None or 'davidson', got {ties!r}")
    for argument, value in (("position_bias", position_bias), ("lapses", lapses)):
        if not isinstance(value, bool):
            raise TypeError(f"{argument} must be True or False, got {value!r}")


def _build_utility(
    utility: str | nn.Module, num_features: int, latent_dim: int, config: dict
) -> Utility:
    """Builds a utility by its name, with the arguments of the model that it takes."""
    if isinstance(utility, nn.Module):
        return ModuleUtility(utility)
    if utility not in UTILITIES:
        *names, last = map(repr, UTILITIES)
        raise ValueError(f"utility must be {', '.join(names)}, {last} or a module, got {utility!r}")
    build = UTILITIES[utility]
    return build(num_features, latent_dim, **{name: config[name] for name in build.options})


def _set_precision(utility: Utility, precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"matmul_precision must be one of {PRECISIONS}, got {precision!r}")
    if precision != "highest" and not utility.has_precision:
        raise ValueError(
            "matmul_precision must be 'highest' for a utility without networks of this package's, "
            f"got {precision!r}"
        )
    for module in utility.modules():
        if hasattr(module, "precision"):
            module.precision = precision


def _check_at_least(argument: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{argument} must be an integer of at least {least}, got {value!r}")
