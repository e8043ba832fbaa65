r"""The heterogeneous Bradley–Terry–Luce model as a Pyro program."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Self

import pandas as pd
import pyro
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences, canonical_names, column_moments
from fssa_bayes.model.coefficients import check_taste, count_random, describe_taste
from fssa_bayes.model.distributions import BradleyTerry, bind_margin
from fssa_bayes.model.named import UTILITIES, build_utility
from fssa_bayes.model.personal import PersonalAnswers, check_personal, name_personal
from fssa_bayes.model.prior import LatentPrior
from fssa_bayes.model.utilities import PreparedItems

__all__ = ["UTILITIES", "HeterogeneousBTL", "build_utility"]

_START_TIE = math.log(0.5)  # Ties are a fifth of the answers between equal items.
_START_LAPSE = math.log(0.05 / 0.95)


class HeterogeneousBTL(LatentPrior):
    r"""Models the paired comparisons of people who differ by a latent factor z,

    .. math:: p(z, y \mid w) = \prod_u p(z_u \mid w_u) \prod_n
        \mathrm{BradleyTerry}(y_{un} \mid r(x_{un}^{l}, z_u) - r(x_{un}^{r}, z_u)).

    What an answer depends on beside the utilities is the same for everybody, unless `personal` says
    otherwise: with m the margin, to which `position_bias` adds b (or s b with the `side` s of a
    comparison, 1, 0 or −1, where data have sides), `ties="davidson"` makes P(left) : P(right) :
    P(tie) as :math:`e^{m/2} : e^{-m/2} : ν`, and `lapses` makes an answer, with probability λ,
    uniform over the possible ones. log ν, b and logit λ are parameters, estimated with the rest. A
    ranking has the probability of Plackett and Luce, and none of these.

    `personal` lets some of these differ between people: log ν, b, logit λ, and the logarithm of a
    scale by which a person's margins (before b) are multiplied, whose mean is 0. They are normal
    over people, :math:`a + Γ z_u`, and correlated with tastes and each other, all but lapses
    and scale, whose correlations only third moments of choices would tell. Each has one dimension
    of z of its own after those of tastes: z has `latent_dim` + `len(personal)` dimensions.

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
        latent_dim: Number of latent dimensions K; 0 is the homogeneous BTL model. With `personal`,
            the number of those of tastes; the attribute counts them all.
            None, for the linear utility, is the number of coefficients that are not fixed.
        utility: `"bilinear"`, r = φ(x)·ψ(z) with two MLP towers; `"linear"`, r = x·(w0 + Λz), whose
            coefficients have a covariance of rank `latent_dim` (all D for a full one);
            `"mlp"`, one network whose first layer adds item and user; a module that maps items
            (*, D) and z (*, K), broadcast, to utilities (*), in nats; or, with `latent_dim=0`,
            `"distributional"` or `"distributional-linear"`, see
            :class:`fssa_bayes.model.distributional.DistributionalUtility`.
        prior: `"normal"`, or `"flow"` for a learned p(z).
        hidden_dim: Width of the utility's networks.
        num_factors: Number of factors of the bilinear utility.
        ties: `"davidson"` for a model in which ½ is a tie, for data read with `ties="keep"`; None
            for one in which it is half a win each.
        position_bias: Whether the item on the left may have an advantage, in nats.
        lapses: Whether some answers may be given at random.
        matmul_precision: Precision of the matrix products in the networks of the bilinear and the
            mlp utility, forward and backward: `"highest"`; `"tf32"`, on CUDA devices (elsewhere the
            same as `"highest"`); or `"bf16"`, which rounds to 8 binary digits, on a CPU too. It
            concerns float32 networks alone: margins, likelihoods and homogeneous fits (in double
            precision) do not depend on it. `python -m benchmarks precision` measures what it does
            to posterior means.
        num_covariates: Number of user covariates W that the prior depends on; 0 for none. Data
            come with them by `Preferences.from_dataframe(users=...)`.
        coefficients: Distributions over people of the linear utility's coefficients, by feature
            name or position: `"normal"`, as all that are not named; `"lognormal"`, always positive;
            `"-lognormal"`, always negative; `"fixed"`, the same for everybody. Log-normal
            coefficients are exp(w0 + Λz), where w0 + Λz is normal.
        correlation: Whether coefficients are correlated: `"full"`, or `"none"`.
        price: Feature, by name or position, of a linear utility in willingness-to-pay space: the
            other coefficients are −β_price ω, and `coefficients` are the distributions of ω, what a
            person pays for one unit more, and of β_price. None for preference space.
        feature_names: Names of the features, for a model that is told of features by name before
            it has seen data.
        penalty: Weight p of a prior on the coefficients of a linear utility with `latent_dim=0`; 0
            for none. Where items have no features, each item wins and loses p comparisons against
            a hypothetical item of utility 0, as the pseudo-rankings of the R package PlackettLuce
            with `npseudo=p`. Coefficients of features, per standard deviation, and a position bias
            have the same prior, which is log-F(2p, 2p): normal around 0, nearly, with tails that
            are wider. All estimates are then finite. ½ is a usual choice.
        personal: Which of `"ties"`, `"position_bias"`, `"lapses"` and `"scale"` differ between
            people; the first three imply that the model has them. Needs `prior="normal"`. With
            `correlation="none"` they are not correlated, else they are.

    Attributes:
        config: The arguments it was built with; `"module"` stands for a module that was given, and
            `num_covariates`, `penalty` and `personal` are there where they are not 0 or empty.
        personal: How the answers' parameters differ between people, or None.
        log_tie: Davidson's log ν, or None.
        bias: Advantage of the left in nats, or None.
        lapse_logit: Logit of the lapse rate, or None.
        feature_names: Names of the features it was fitted to, or None.
        feature_levels: Levels of the categorical ones by column, the reference level first.
        covariate_levels: The same of the covariates.
        covariate_effect: B with shape (K, W), per standard deviation of the covariates, or None.
        covariate_names: Names of the covariates it was fitted to, or None.

    Raises:
        ValueError: If a size is out of range or a name unknown.

    References:
        Kobalczyk et al. (2024), Few-shot steerable alignment, arXiv 2412.13998.
        McFadden & Train (2000), Mixed MNL models for discrete response.
        Davidson (1970), On extending the Bradley-Terry model to accommodate ties in paired
        comparison experiments, JASA 65.
        Train & Weeks (2005), Discrete choice models in preference space and willingness-to-pay
        space.
        Greenland & Mansournia (2015), Penalization, bias reduction, and default priors in logistic
        and related categorical and survival regressions, Statistics in Medicine 34.
        Turner, van Etten, Firth & Kosmidis (2020), Modelling rankings in R: the PlackettLuce
        package, Computational Statistics 35.

    Example:
        >>> model = HeterogeneousBTL(num_features=4, latent_dim=2, utility="linear")
        >>> model.prior(3).batch_shape, model.prior(3).event_shape
        (torch.Size([3]), torch.Size([2]))
    """

    def __init__(
        self,
        num_features: int,
        latent_dim: int | None,
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
        coefficients: Mapping[str | int, str] | Sequence[str] | None = None,
        correlation: str = "full",
        price: str | int | None = None,
        feature_names: Sequence | None = None,
        penalty: float = 0.0,
        personal: Sequence[str] = (),
    ) -> None:
        super().__init__()
        personal = name_personal(personal)
        ties = "davidson" if "ties" in personal else ties
        position_bias = True if "position_bias" in personal else position_bias
        lapses = True if "lapses" in personal else lapses
        taste = describe_taste(
            num_features, utility, coefficients, correlation, price, feature_names
        )
        if latent_dim is None and utility == "linear":
            latent_dim = count_random(taste, num_features)
        for argument, value, least in (
            ("num_features", num_features, 1),
            ("latent_dim", latent_dim, 0),
            ("hidden_dim", hidden_dim, 1),
            ("num_factors", num_factors, 1),
            ("num_covariates", num_covariates, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{argument} must be an integer of at least {least}, got {value!r}"
                )
        if ties not in (None, "davidson"):
            raise ValueError(f"ties must be None or 'davidson', got {ties!r}")
        for argument, value in (("position_bias", position_bias), ("lapses", lapses)):
            if not isinstance(value, bool):
                raise TypeError(f"{argument} must be True or False, got {value!r}")
        if prior not in ("normal", "flow"):
            raise ValueError(f"prior must be 'normal' or 'flow', got {prior!r}")
        if personal:
            most = count_random(taste, num_features) if utility == "linear" else None
            check_personal(personal, latent_dim, utility, prior, most)
        if num_covariates and not latent_dim + len(personal):
            raise ValueError(
                f"latent_dim must be at least 1 with num_covariates={num_covariates}, got 0: "
                "covariates move the latent factor, which a homogeneous model does not have"
            )
        if not isinstance(penalty, int | float) or not 0 <= penalty < math.inf:
            raise ValueError(f"penalty must be a number of at least 0, got {penalty!r}")
        if penalty and (latent_dim or personal or utility != "linear"):
            raise ValueError(
                f"penalty={penalty} needs utility='linear', latent_dim=0 and personal=(), got "
                f"utility={utility!r}, latent_dim={latent_dim} and personal={personal}"
            )
        self.num_features = num_features
        self.penalty = float(penalty)
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
        check_taste(taste, latent_dim, num_features)
        self.config |= taste
        if num_covariates:  # Older files and caches do not have this entry.
            self.config["num_covariates"] = num_covariates
        if penalty:
            self.config["penalty"] = self.penalty
        if personal:
            self.config["personal"] = list(personal)
        self.utility = build_utility(utility, num_features, latent_dim, self.config)
        self.utility.set_precision(matmul_precision)
        for name, start in (
            ("log_tie", None if ties is None else _START_TIE),
            ("bias", 0.0 if position_bias else None),
            ("lapse_logit", _START_LAPSE if lapses else None),
        ):
            value = None if start is None else nn.Parameter(torch.tensor(start))
            self.register_parameter(name, value)
        self.register_buffer("feature_mean", torch.zeros(num_features, dtype=torch.float64))
        self.register_buffer("feature_scale", torch.ones(num_features, dtype=torch.float64))
        self.register_buffer("is_standardised", torch.tensor(False))
        self.feature_names: pd.Index | None = None
        self.feature_levels: dict[Hashable, tuple] = {}
        self.covariate_levels: dict[Hashable, tuple] = {}
        if feature_names is not None:
            self.feature_names = canonical_names("feature_names", feature_names)
        self.taste_dim = latent_dim
        self.personal: PersonalAnswers | None = None
        if personal:
            is_correlated = correlation == "full"
            self.personal = PersonalAnswers(personal, latent_dim, is_correlated=is_correlated)
        self.build_prior(
            latent_dim + len(personal),
            hidden_dim,
            is_learned=prior == "flow",
            num_covariates=num_covariates,
        )

    @classmethod
    def for_data(
        cls, data: Preferences, latent_dim: int | None, *, seed: int = 0, **options: object
    ) -> Self:
        """Builds a model for data: sizes and names from the data, initial weights from a seed.

        Args:
            data: The comparisons, which give the number of features, that of covariates, the names
                of both, and `ties="davidson"` where ties are answers of their own.
            latent_dim: Number of latent dimensions K.
            seed: Seed of the initial weights; the global random state does not change.
            **options: Other arguments of the model, or the same in place of the data's.

        Returns:
            The model, not yet fitted.

        Raises:
            ValueError: As the model's own arguments.
        """
        has_ties = data.ties == "keep" and bool(data.half_wins.any())
        is_homogeneous = latent_dim == 0 and not options.get("personal")
        of_data = {
            "ties": "davidson" if has_ties else None,
            "num_covariates": 0 if is_homogeneous else data.num_covariates,
        }
        if options.get("utility") == "linear":
            of_data["feature_names"] = data.feature_names
        with seeded(seed):
            model = cls(data.num_features, latent_dim, **(of_data | options))
        model.take_names(data)
        return model

    def choice(
        self,
        batch: Batch,
        z: Tensor,
        prepared: PreparedItems | None = None,
        backend: str | None = None,
        validate_args: bool | None = None,
    ) -> BradleyTerry:
        """Returns p(choices | z), with batch shape (*, U), for z with shape (*, U, K).

        Args:
            batch: The comparisons.
            z: Latent factors with shape (*, U, K).
            prepared: The result of :meth:`prepare_items` for the batch's items, for a caller that
                needs it more than once; None to prepare the items here.
            backend: Backend of :mod:`fssa_bayes.kernels`; None for the fastest at this size.
            validate_args: Whether choices are checked when they are scored; None for PyTorch's
                default.
        """
        prepared = prepared or self.prepare_items(batch.items)
        self.check_z(z)
        lead = z.shape[:-2]
        flat = z.reshape(math.prod(lead), *z.shape[-2:])
        pairwise = self.utility.pairwise(prepared.items, prepared.factors, self.tastes(flat))

        answers, names = self.answers(flat), () if self.personal is None else self.personal.names
        has_sides = batch.side is not None and self.bias is not None
        moves_margins = has_sides or "scale" in names or "position_bias" in names
        bias = 0.0 if moves_margins else self.position_bias

        def likelihood(choice: Tensor | None = None, **options: str) -> Tensor:
            pairs = batch.left, batch.right
            options = {"backend": backend} | options
            if moves_margins:  # The kernels have one bias for all comparisons.
                margin = pairwise(*pairs, None, batch.mask, output="margin", backend=backend)
                if "log_scale" in answers:
                    margin = margin * answers["log_scale"].exp()
                if has_sides:
                    side = batch.side.masked_fill(~batch.mask, 0.0).to(margin)
                    margin = margin + answers["position_bias"] * side
                elif self.bias is not None:
                    margin = margin + answers["position_bias"]
                value = bind_margin(margin, batch.mask)(choice, **options)
            else:
                value = pairwise(*pairs, choice, batch.mask, position_bias=bias, **options)
            return value.reshape(lead + value.shape[1:])

        self.check_rankings(batch.rankings is not None)
        return BradleyTerry(
            likelihood,
            batch.mask,
            z.shape[:-1],
            validate_args,
            rankings=batch.rankings,
            side=batch.side,
            **{k: x.reshape(lead + x.shape[1:]) if x.ndim else x for k, x in answers.items()},
        )

    def forward(
        self, batch: Batch, observe: bool = True, prepared: PreparedItems | None = None
    ) -> Tensor:
        """Runs the generative program; `observe=False` leaves the choices to be drawn.

        `prepared` is as in :meth:`choice`, or the result of :meth:`prepare`.
        """
        with pyro.plate("users", batch.num_users, dim=-1):
            if self.latent_dim:
                transforms = None if prepared is None else prepared.transforms
                prior = self.prior(batch.num_users, batch.covariates, transforms)
                z = pyro.sample("z", prior)
            else:
                z = self._origin.expand(batch.num_users, 0)
            return pyro.sample(
                "choice", self.choice(batch, z, prepared), obs=batch.choice if observe else None
            )

    def register(self) -> None:
        """Enters the parameters into Pyro's parameter store; for use within `SVI`'s program."""
        pyro.module("model", self)

    @property
    def is_mixed_logit(self) -> bool:
        """Whether the utility is linear and the prior normal, in one or more latent dimensions.

        The mode of a person's posterior is then found by Newton's method.
        """
        return self.latent_dim > 0 and self.utility.is_linear and not len(self.prior_flow)

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

    def answers(self, z: Tensor) -> dict[str, Tensor]:
        """Returns the parameters of the answers that the model has, by their names in code.

        Args:
            z: Latent factors with shape (*, U, K).

        Returns:
            `log_tie`, `position_bias`, `lapse_logit` and `log_scale` as far as the model has them:
            scalars, and those that differ between people with shape (*, U, 1).
        """
        shared = {"log_tie": self.log_tie, "position_bias": self.bias}
        shared["lapse_logit"] = self.lapse_logit
        answers = {name: value for name, value in shared.items() if value is not None}
        if self.personal is not None:
            for name, deviation in self.personal.deviations(z).items():
                answers[name] = answers[name] + deviation if name in answers else deviation
        return answers

    def tastes(self, z: Tensor) -> Tensor:
        """Returns the dimensions of z (*, K) that are of tastes; all where nothing is personal."""
        if self.personal is None:
            return z
        if z.ndim == 3 and z.shape[1] > 1 and z.stride(1) == 0:  # Draws that people share.
            return z[:, :1, : self.taste_dim].contiguous().expand(-1, z.shape[1], -1)
        # The draws of a person lie side by side as before.
        by_person = z.movedim(0, -2)[..., : self.taste_dim].contiguous()
        return by_person.movedim(-2, 0)

    def log_prior(self) -> Tensor:
        r"""Evaluates the log-density of the prior that `penalty` p puts on utilities, but for a
        constant: :math:`p \sum_k \log σ(w_k) + \log σ(−w_k)`.

        The sum is over coefficients, of standardised features, and the position bias.
        """
        parameters = [] if not self.penalty else [self.utility.mean]
        if self.penalty and self.bias is not None:
            parameters.append(self.bias.reshape(1))
        total = sum(((F.logsigmoid(w) + F.logsigmoid(-w)).sum() for w in parameters), self._origin)
        return self.penalty * total

    def population_parameters(self) -> list[nn.Parameter]:
        """Lists the parameters that describe the population and learn faster than networks."""
        return [
            *self.utility.population_parameters(),
            *self.prior_parameters(),
            *self.answer_parameters().values(),
            *self.personal_parameters(),
        ]

    def personal_parameters(self) -> list[nn.Parameter]:
        """Lists the loadings of what differs between people beside tastes: Γ, if there is one."""
        return [] if self.personal is None else [self.personal.loading]

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
        return self.utility(self.standardise(items), self.tastes(z))

    def coefficients(self, z: Tensor) -> Tensor:
        """Returns the coefficients (*, U, D) of a linear utility, in units of the features given.

        Args:
            z: Latent factors with shape (*, U, K).
        """
        beta = self.utility.coefficients(self.tastes(z))
        return beta / self.feature_scale.to(beta.dtype)

    def average_coefficients(self, noise: Tensor) -> Tensor:
        """Returns coefficients (S, D) of people with average covariates, in double precision.

        Args:
            noise: Draws of the prior's standard normal variable, with shape (S, K).
        """
        utility = self.utility
        noise = self.tastes(noise.to(self.device))
        eta = utility.mean.double() + noise @ utility.directions.double().T
        return utility.map(eta) / self.feature_scale

    def prepare_items(self, items: Tensor) -> PreparedItems:
        """Standardises items (M, D) or (M,), and computes the utility's factors of them (M, F).

        Guide and model need both for the same items: a caller of both prepares the items of a batch
        once and passes the result to each.
        """
        self.check_items(items)
        standardised = self.standardise(items)
        factors = self.utility.item_factors(standardised) if self.latent_dim else None
        return PreparedItems(standardised, factors)

    def prepare(self, batch: Batch) -> PreparedItems:
        """Prepares the items of a batch, and the maps to z that prior and guide are to share."""
        transforms = self.prior_transforms(batch.covariates)
        return self.prepare_items(batch.items)._replace(transforms=transforms)

    def standardise(self, items: Tensor) -> Tensor:
        """Centres and scales features (M, D), in double precision before they get the model's.

        Positions (M,) pass unchanged.
        """
        if items.dtype == torch.int64:
            return items
        return (items - self.feature_mean).div_(self.feature_scale).to(self.dtype)

    def set_standardisation(self, items: Tensor | None) -> None:
        """Takes the features' mean and standard deviation from an item table, once.

        A later fit continues from the parameters, which are in units of the first.
        """
        if items is None or self.is_standardised:
            return
        mean, scale = column_moments(items)
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(scale.where(scale > 0, 1.0))
        self.is_standardised.fill_(True)

    @torch.no_grad()
    def take_units(self, data: Preferences) -> None:
        """Takes names of features and covariates from the data of a fit, and their units once."""
        self.set_standardisation(data.items)
        self.set_covariate_standardisation(data.covariates)
        self.take_names(data)

    def take_names(self, data: Preferences) -> None:
        """Takes the names of features and covariates from data."""
        self.feature_names = data.feature_names
        self.feature_levels = dict(data.feature_levels)
        if self.num_covariates:
            self.covariate_names = data.covariate_names
            self.covariate_levels = dict(data.covariate_levels)

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

        A model with ties, position bias, lapses or a random utility has none.
        """
        if has_rankings and self.utility.is_random:
            raise ValueError(
                "a random utility gives the probability of a pair, not that of a ranking, got "
                "rankings: break them into pairs (method='pairs', as_pairs())"
            )
        answers = list(self.answer_parameters())
        if self.personal is not None:
            answers += [label for label in self.personal.labels if label not in answers]
        if has_rankings and answers:
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

    def simulate(self, data: Preferences, *, seed: int = 0) -> tuple[Preferences, Tensor]:
        """Draws new people and their choices on the pairs of `data`.

        Args:
            data: Who is asked about which pairs; the choices are not read.
            seed: Seed of the draws; the global random state does not change.

        Returns:
            The same data with simulated choices, and the people's z with shape (U, K).
        """
        with seeded(seed), torch.no_grad():
            choices, factors = [], []
            for batch in data.for_model(self).batches(4096):
                moved = batch.to(self.device)
                z = self.prior(batch.num_users, batch.covariates).sample()
                choices.append(self.choice(moved, z).sample()[moved.mask].cpu())
                factors.append(z.cpu())
        ties = "keep" if self.has_ties else "half"
        simulated = data.with_choices(torch.cat(choices).numpy(), ties=ties)
        return simulated, torch.cat(factors)
