"""Classes of people, each with utilities of its own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fssa_bayes.baselines.base import (
    Baseline,
    Predictions,
    check_preferences,
    log_prob_of_people,
)
from fssa_bayes.baselines.em import EM, State
from fssa_bayes.baselines.homogeneous import HomogeneousBTL
from fssa_bayes.baselines.membership import (
    ClassMembership,
    CovariateTable,
    check_covariates_argument,
    find_separated_classes,
    null_of_design,
)
from fssa_bayes.baselines.membership_tables import (
    effect_estimates,
    membership_estimates,
    share_estimates,
)
from fssa_bayes.baselines.mixture_errors import (
    MixtureParameters,
    class_estimates,
    mixture_parameters,
)
from fssa_bayes.comparison.choice import choose_size
from fssa_bayes.data import (
    Preferences,
    check_unweighted,
    first_names,
    identified_covariates,
)
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population import Estimates, find_null
from fssa_bayes.posterior import PopulationMixture

__all__ = ["MixtureBTL", "choose_num_classes"]

_LEAST_LOG_SHARE = -700.0  # Of a class that nobody belongs to.
_SEPARATED = 15.0  # Nats per standard deviation above which a coefficient may have no maximum.


class MixtureBTL(Baseline):
    r"""Divides people into C classes, each with utilities of its own: a latent class model,

    .. math:: p(y_u) = \sum_c π_{uc} \prod_n \sigma(r_c(x_{un}^l) - r_c(x_{un}^r)).

    With `covariates` the shares of the classes depend on who a person is, by a multinomial logit:
    :math:`π_{uc} \propto \exp(γ_{c0} + γ_c \cdot \tilde w_u)`, w̃ the person's covariates,
    standardised; without, everybody has the same shares.

    EM makes short runs from several starts. The E-step computes each person's class probabilities.
    The M-step takes a few L-BFGS iterations of weighted maximum likelihood for each class, and
    Newton's iterations for the shares; it never lowers the likelihood. For a linear utility every
    run is followed by L-BFGS on the likelihood itself, which converges faster near a maximum. The
    best run is continued. With covariates, every run begins with shares that do not depend on them.
    The likelihood of a mixture has several maxima, some of them far lower: `history` tells how
    often the highest was found. Classes are numbered from the largest.

    A ranking has the probability of Plackett and Luce in every class. Likelihood alone is
    maximised, without a prior: a network, or items without features, needs many people in every
    class.

    Args:
        num_classes: Number of classes C; one is the homogeneous model.
        utility: As in :class:`HomogeneousBTL`, like the next four.
        hidden_dim: Width of the networks.
        ties: `"davidson"` for a model with ties; every class has its own ν, bias and lapse rate.
        position_bias: Whether the item on the left may have an advantage.
        lapses: Whether answers may be careless.
        covariates: On which covariates of people the shares depend: True for all of the data's,
            False for none, or a list of columns, as in the table `users` that the data were read
            with. A category has a coefficient for each level but its reference level.
        num_restarts: Number of starts.
        max_iterations: Largest number of EM iterations of a run.
        tolerance: Gain of the log-likelihood in nats a person at which EM ends.

    Attributes:
        models: The classes' models, the largest class first.
        weights: Shares π of the classes, averaged over the training people, with shape (C,).
        membership: Shares of the classes given covariates.
        history: One row an EM iteration: `restart`, `iteration`, `log_likelihood` in nats. For a
            linear utility the last rows of every start are those of L-BFGS. The rows of the start
            that was best come last.
        log_likelihood: The largest log-likelihood, of all training people together, in nats.
        data: The comparisons of the training people.

    Raises:
        ValueError: If an option is out of range.

    References:
        Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM
        algorithm, JRSS B 39(1).
        Greene & Hensher (2003), A latent class model for discrete choice analysis, Transportation
        Research B 37(8).
        Biernacki, Celeux & Govaert (2003), Choosing starting values for the EM algorithm for
        getting the highest likelihood in multivariate Gaussian mixture models, CSDA 41.
        Dayton & Macready (1988), Concomitant-variable latent-class models, JASA 83.
        Kamakura, Wedel & Agrawal (1994), Concomitant variable latent class models for conjoint
        analysis, International Journal of Research in Marketing 11(5).

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> rural = rng.integers(2, size=600)
        >>> taste = np.where(rng.random(600) < 0.2 + 0.6 * rural, 2.0, -2.0)  # Of 80 % and 20 %.
        >>> items = np.array([[0.0], [1.0]])
        >>> choice = rng.random(4800) < 1 / (1 + np.exp(-taste.repeat(8)))
        >>> pairs = np.ones(4800, int), np.zeros(4800, int), choice, np.arange(0, 4801, 8)
        >>> options = {"covariates": rural[:, None], "covariate_names": ["rural"]}
        >>> data = Preferences(*pairs, items=items, **options)
        >>> classes = MixtureBTL(2, covariates=True, num_restarts=2).fit(data, progress_bar=False)
        >>> kinds = pd.DataFrame({"rural": [0, 1]}, index=["town", "country"])
        >>> shares = classes.class_shares(kinds)["estimate"].round(1)
        >>> shares["town"].tolist(), shares["country"].tolist()
        ([0.2, 0.8], [0.8, 0.2])
    """

    models: list[HeterogeneousBTL]
    weights: Tensor
    membership: ClassMembership
    history: pd.DataFrame
    log_likelihood: float
    data: Preferences

    def __init__(
        self,
        num_classes: int,
        utility: str | nn.Module = "linear",
        hidden_dim: int = 64,
        *,
        ties: str | None = None,
        position_bias: bool = False,
        lapses: bool = False,
        covariates: bool | Sequence[Hashable] = False,
        num_restarts: int = 16,
        max_iterations: int = 300,
        tolerance: float = 1e-5,
    ) -> None:
        for argument, value in (
            ("num_classes", num_classes),
            ("num_restarts", num_restarts),
            ("max_iterations", max_iterations),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{argument} must be an integer of at least 1, got {value!r}")
        if not isinstance(tolerance, int | float) or not tolerance > 0:
            raise ValueError(f"tolerance must be a positive number, got {tolerance!r}")
        check_covariates_argument(covariates)
        self.covariates = covariates
        self._everybody = HomogeneousBTL(
            utility, hidden_dim, ties=ties, position_bias=position_bias, lapses=lapses
        )
        self.num_classes, self.num_restarts = num_classes, num_restarts
        self.max_iterations, self.tolerance = max_iterations, tolerance

    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits by EM, see :meth:`Baseline.fit`.

        Raises:
            ValueError: If there are fewer people than classes, the people lack a covariate, or the
                data do not fit the model, such as ties where the model has none.

        Warns:
            UserWarning: If EM has not settled after `max_iterations`, a class's coefficients
                suggest that its choices are separated, covariates tell for certain that people
                are not of a class, or covariates are constant or collinear.
        """
        check_preferences(data)
        check_unweighted(data, "MixtureBTL")
        if len(data) < self.num_classes:
            raise ValueError(
                f"data must have at least num_classes={self.num_classes} people, got {len(data)}"
            )
        table = CovariateTable.of(data, self.covariates)
        chosen = table.select(data)
        design = table.design(chosen)
        _warn_of_unidentified(table, chosen)
        with warnings.catch_warnings():
            if len(table):  # The shares use them, not the classes' utilities.
                warnings.filterwarnings("ignore", message="the model does not use the covariates")
            start = self._everybody.fit(data, seed=seed, progress_bar=False).model
        em = EM(start, data, self.num_classes, seed, design)
        restarts = self.num_restarts if self.num_classes > 1 else 1
        final, settled, history = em.search(
            restarts, self.max_iterations, self.tolerance, progress_bar=progress_bar
        )
        if not (settled or self.num_classes == 1):
            warnings.warn(
                f"EM has not settled after max_iterations={self.max_iterations}: the last "
                f"iteration gained more than tolerance={self.tolerance} nats a person",
                stacklevel=2,
            )
        self._take(em, final, table)
        self.history, self.data = pd.DataFrame(history), data
        self.log_likelihood = final.log_likelihood
        self._warn_of_separated_classes()
        utility = [m.utility for m in self.models if m.utility.is_linear]
        largest = max((u.mean.abs().max().item() for u in utility), default=0.0)
        if largest > _SEPARATED:
            warnings.warn(
                f"a coefficient of {largest:.0f} nats per standard deviation suggests that the "
                "choices of a class are separated (an item that never lost in it, say): the "
                "maximum of the likelihood may lie at infinity. Fewer classes may do",
                stacklevel=2,
            )
        return self

    def _take(self, em: EM, final: State, table: CovariateTable) -> None:
        """Takes the classes at the end of EM, the largest first."""
        share = em.shares(final).mean(0)
        order = share.argsort(descending=True)
        gamma = final.membership[order]
        gamma = (gamma - gamma[0]).clamp(min=_LEAST_LOG_SHARE)
        self.weights, self.membership = share[order], ClassMembership(table, gamma)
        self.models = [em.model_of(final.parameters[int(c)]) for c in order]

    def _warn_of_separated_classes(self) -> None:
        table, gamma = self.membership.table, self.membership.coefficients
        if not len(table) or self.num_classes == 1:
            return
        design = table.design(table.select(self.data))
        divergence = find_separated_classes(design, gamma)
        if divergence is None:
            return
        # Derivatives of the coefficients in the units given by those of the design.
        eye = torch.eye(gamma[1:].numel(), dtype=gamma.dtype).view(-1, *gamma[1:].shape)
        jacobian = torch.stack([table.in_given_units(one).flatten() for one in eye], -1)
        values = divergence.values(jacobian, jacobian @ divergence.point)
        infinite = (~values.isfinite()).view(self.num_classes - 1, -1).numpy()
        terms = pd.Index(["constant", *table.names], dtype=object)
        said = [
            f"{first_names(terms[which])} of class {number}"
            for number, which in enumerate(infinite, 2)
            if which.any()
        ]
        warnings.warn(
            f"covariates separate the classes: {'; '.join(said)} has no finite estimate (nobody "
            "with some level belongs to a class, say), and the class has a share of 0 or 1 among "
            "such people. Fewer classes or covariates may do",
            stacklevel=3,
        )

    @property
    def num_parameters(self) -> int:
        """Number of parameters that the data can tell: of the classes, and of their shares.

        Directions in which features, or covariates, are constant or collinear do not count, nor
        does the constant in utilities of items.
        """
        data, table = self.fitted("data"), self.membership.table
        design = table.design(table.select(data))
        of_shares = design.shape[1] - null_of_design(design).shape[1]
        first = self.models[0]
        each = sum(p.numel() for p in first.parameters() if p.requires_grad)
        null = find_null(first, data) if first.utility.is_linear else None
        each -= 0 if null is None else null.shape[1]
        return self.num_classes * each + (self.num_classes - 1) * of_shares

    @property
    def aic(self) -> float:
        """Akaike's information criterion, 2 P − 2 log L; the smaller the better."""
        return 2 * self.num_parameters - 2 * self.fitted("log_likelihood")

    @property
    def bic(self) -> float:
        """Schwarz's information criterion, P log U − 2 log L, of U people with comparisons."""
        people = int((self.fitted("data").counts > 0).sum())
        return self.num_parameters * math.log(people) - 2 * self.log_likelihood

    def predict(self, context: Preferences) -> Predictions:
        """Returns predictions averaged over classes, by their probabilities given the context."""
        log_weights = self.log_joint(context).log_softmax(-1).T.float()
        labels = torch.arange(self.num_classes, dtype=torch.float32)
        z = labels[:, None, None].expand(-1, len(context), 1)
        return Predictions(PopulationMixture(self.models), context, z, log_weights)

    def class_posterior(self, context: Preferences) -> pd.DataFrame:
        """Computes the probability that a person belongs to a class, given their known choices.

        Args:
            context: The people and their known choices, which may be none: then it is the share of
                the class among people with their covariates.

        Returns:
            One row a person (index `user`), one column a class from 1.

        Raises:
            ValueError: If people lack a covariate that the classes depend on.
        """
        prob = self.log_joint(context).log_softmax(-1).exp().numpy()
        columns = pd.RangeIndex(1, self.num_classes + 1, name="class")
        return pd.DataFrame(prob, index=context.user_names.rename("user"), columns=columns)

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""
        return self.log_joint(data).logsumexp(-1)

    def coefficients(
        self, *, kind: str | None = None, level: float | None = None, p_values: bool = False
    ) -> pd.DataFrame:
        """Tabulates every class's coefficients and share with standard errors.

        Args:
            kind: Errors of intervals and p-values: `"sandwich"`, the default, `"hessian"` or
                `"outer_product"`.
            level: Probability of an interval, in columns `lower` and `upper`; None for none.
            p_values: Whether there are columns `df`, `statistic` and `p_value`, of tests against 0.

        Returns:
            One row for each class's coefficients, in units of the features given (items without
            features are centred over all items), parameters of the answers, and `share`, the mean
            over the training people, whose covariates are held fixed (index `class`, from 1, and
            `term`). Columns: `estimate`, `se_hessian`, `se_outer_product` and `se_sandwich`, with
            people as clusters, as in :func:`fssa_bayes.population.population_table`.

        Raises:
            ValueError: If a utility is not linear, or there are too many parameters for a dense
                information matrix.
        """
        parameters = self._parameters("coefficients()")
        estimates = class_estimates(parameters, self.models, self.data)
        return _tabulate(estimates, kind, level, p_values)

    def membership_coefficients(
        self,
        *,
        reference: int = 1,
        kind: str | None = None,
        level: float | None = None,
        p_values: bool = False,
    ) -> pd.DataFrame:
        """Tabulates γ: what covariates do to the log odds of a class against another one.

        Args:
            reference: Number of the class that the others are compared with; 1 is the largest.
            kind: As in :meth:`coefficients`, like the next two.
            level: Probability of an interval.
            p_values: Whether there are tests against 0.

        Returns:
            For every other class a row `constant`, the log odds of people whose covariates are all
            0 (and categories at their reference level), and one for each covariate, the change of
            the log odds with a unit of it (index `class`, `term`). Columns as in
            :meth:`coefficients`. A covariate that is constant or collinear with the others has NaN;
            what has no finite estimate, as where nobody of some level belongs to a class, is ±inf,
            or NaN, without errors.

        Raises:
            ValueError: As :meth:`coefficients`, or if `reference` is no class, or there is one
                class.
        """
        parameters = self._parameters("membership_coefficients()", min_classes=2)
        classes = range(1, self.num_classes + 1)
        if isinstance(reference, bool) or reference not in classes:
            raise ValueError(
                f"reference must be a class from 1 to {self.num_classes}, got {reference!r}"
            )
        estimates = membership_estimates(parameters, self.membership, reference)
        return _tabulate(estimates, kind, level, p_values)

    def membership_effects(
        self, *, kind: str | None = None, level: float | None = None, p_values: bool = False
    ) -> pd.DataFrame:
        """Tabulates average marginal effects: changes of shares with a unit of each covariate.

        Everybody's covariate is set half a standard deviation higher and lower, all else as it is,
        and the difference of the average shares is divided by the standard deviation; a covariate
        with two values is set to the one and the other, and a level of a category is compared with
        the reference level. The effects of a covariate sum to 0 over classes.

        Returns:
            One row a covariate and class (index `covariate`, `class`). Arguments and columns are
            those of :meth:`coefficients`; a constant or collinear covariate has NaN.

        Raises:
            ValueError: As :meth:`coefficients`, or if the mixture has no covariates or one class.
        """
        parameters = self._parameters("membership_effects()", min_classes=2)
        if not len(self.membership.table):
            raise ValueError("membership_effects() needs covariates, got covariates=False")
        estimates, known = effect_estimates(parameters, self.membership, self.data)
        table = _tabulate(estimates, kind, level, p_values)
        table.iloc[np.flatnonzero(~known.numpy())] = np.nan
        return table

    def class_shares(
        self,
        users: pd.DataFrame | None = None,
        *,
        kind: str | None = None,
        level: float | None = None,
        p_values: bool = False,
    ) -> pd.DataFrame:
        """Tabulates the shares of the classes among people with given covariates.

        :meth:`class_posterior` gives them without errors, and given choices.

        Args:
            users: Covariates, one row a kind of person, with the columns that the mixture was
                fitted to; None for the mean over the training people.
            kind: As in :meth:`coefficients`, like the next two.
            level: Probability of an interval, symmetric around the share.
            p_values: Whether there are tests against 0.

        Returns:
            One row a class, or a row of `users` and class (index `user`, `class`). Columns as in
            :meth:`coefficients`.

        Raises:
            ValueError: As :meth:`coefficients`, if `users` lack a covariate, or have a level of a
                category that nobody had in the fit, or if the mixture has no covariates.
        """
        parameters = self._parameters("class_shares()")
        if users is not None and not len(self.membership.table):
            raise ValueError("users must be None for a mixture with covariates=False, got a table")
        return _tabulate(share_estimates(parameters, self.membership, users), kind, level, p_values)

    def _parameters(self, what: str, min_classes: int = 1) -> MixtureParameters:
        responsibility = self.log_joint(self.fitted("data")).log_softmax(-1).exp()
        if self.num_classes < min_classes:
            raise ValueError(f"{what} needs at least {min_classes} classes, got num_classes=1")
        return mixture_parameters(self.models, self.membership, responsibility, self.data, what)

    def log_joint(self, data: Preferences) -> Tensor:
        """Evaluates log π_uc p(choices | class c), (U, C), in nats."""
        models = self.fitted("models")
        log_share = self.membership.log_share(data)
        return torch.stack([log_prob_of_people(model, data) for model in models], -1) + log_share


def _warn_of_unidentified(table: CovariateTable, covariates: Tensor) -> None:
    """Names covariates (U, W) that are constant or collinear, whose coefficients are NaN."""
    if not len(table):
        return
    constant = covariates.std(0, unbiased=False) == 0
    collinear = ~identified_covariates(covariates) & ~constant
    said = [
        f"{first_names(table.names[which.numpy()])} {what}"
        for which, what in ((constant, "the same for everybody"), (collinear, "collinear"))
        if which.any()
    ]
    if said:
        warnings.warn(
            f"of the covariates of people, {', and '.join(said)}: their coefficients are not "
            "identified, and are NaN. Leave some of them out",
            stacklevel=3,
        )


def _tabulate(
    estimates: Estimates, kind: str | None, level: float | None, p_values: bool
) -> pd.DataFrame:
    columns = estimates.three_errors()
    if level is not None or p_values:
        columns |= estimates.describe(kind, level=level, p_values=p_values)
        del columns["standard_error"]  # One of the three.
    return pd.DataFrame(columns, index=estimates.names)


def choose_num_classes(
    build: Callable[[int], MixtureBTL],
    data: Preferences,
    num_classes: Sequence[int] = (1, 2, 3, 4),
    num_folds: int = 5,
    *,
    criterion: str = "held_out",
    seed: int = 0,
) -> tuple[int, pd.DataFrame]:
    """Chooses the number of classes, by default by how well other people's choices are predicted.

    Args:
        build: Takes a number of classes and returns a mixture, not yet fitted.
        data: The comparisons of all people.
        num_classes: Numbers to choose from, at least two.
        num_folds: Folds of :func:`fssa_bayes.comparison.leave_users_out`.
        criterion: `"held_out"`, or `"bic"` for the smallest information criterion of one fit each
            to everybody, which counts the coefficients of covariates as parameters.
        seed: Seed of folds and fits.

    Returns:
        The number and a table by `num_classes`: the comparison of
        :func:`fssa_bayes.comparison.choice.choose_size`, or `log_likelihood`, `num_parameters`,
        `aic` and `bic`.

    Raises:
        ValueError: If there are fewer than two different numbers, or no such criterion.
    """
    numbers = sorted(set(num_classes))
    if len(numbers) < 2 or numbers[0] < 1:
        raise ValueError(f"num_classes must be at least 2 numbers from 1 up, got {num_classes}")
    if criterion not in ("held_out", "bic"):
        raise ValueError(f"criterion must be 'held_out' or 'bic', got {criterion!r}")
    if criterion == "bic":
        fits = [build(number).fit(data, seed=seed, progress_bar=False) for number in numbers]
        names = ["log_likelihood", "num_parameters", "aic", "bic"]
        index = pd.Index(numbers, name="num_classes")
        table = pd.DataFrame(
            {name: [getattr(one, name) for one in fits] for name in names}, index=index
        )
        return int(table["bic"].idxmin()), table
    chosen, table = choose_size(build, data, numbers, num_folds, seed=seed)
    return chosen, table.rename_axis("num_classes")
