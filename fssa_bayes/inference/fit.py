"""Fitting a model and its guide to the comparisons of many people."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference.average import fit_average
from fssa_bayes.inference.convergence import Convergence, describe_convergence
from fssa_bayes.inference.objectives import Objective
from fssa_bayes.inference.processes import Processes, find_processes
from fssa_bayes.inference.readiness import (
    AUTO,
    check_options,
    check_training_data,
    check_weights_are_used,
    choose_stages,
    choose_validation,
    explain_validation,
    warn_of_busy_people,
    warn_of_divergence,
    warn_of_separation,
    warn_of_vanished_coefficients,
)
from fssa_bayes.inference.state import describe_fit, meet
from fssa_bayes.inference.training import Fitter, plan
from fssa_bayes.io import Checkpoints
from fssa_bayes.model import HeterogeneousBTL, align, check_same_people
from fssa_bayes.population import (
    Estimates,
    cautious_population,
    covariate_effects,
    describe_few_people,
    has_population_estimates,
    item_estimates,
    population_draws,
    population_estimates,
    population_table,
    ranking_table,
    willingness_to_pay,
)
from fssa_bayes.posterior import PopulationDraws, Posterior, export_draws
from fssa_bayes.sampling import (
    Draws,
    Estimate,
    check_draws,
    draw_posterior,
    estimate_log_marginal_likelihood,
)

if TYPE_CHECKING:
    from fssa_bayes._arviz import InferenceData

__all__ = ["FitResult", "fit"]


@dataclass
class FitResult:
    """Holds a fitted model and what the fit can say about it.

    Attributes:
        model: The fitted model.
        guide: The fitted guide, or None for a homogeneous model.
        data: The comparisons the model was fitted to.
        history: One row a step: `stage`, `step`, `loss` (nats per person) and, where held-out
            people were scored, `validation_log_score` (nats per held-out person, by the stage's
            own objective).
        held_out: Log-loss of held-out people's unseen choices after each stage (nats per
            comparison, contexts of random size), for the raw guide and the importance-corrected
            posterior, with standard errors by person, without weights; None where nobody was.
        held_out_note: Why `held_out` is None; empty where it is not.
    """

    model: HeterogeneousBTL = field(repr=False)
    guide: NeuralProcessGuide | None = field(repr=False)
    data: Preferences
    history: pd.DataFrame = field(repr=False)
    held_out: pd.DataFrame | None = None
    held_out_note: str = "nobody was held out"

    def log_marginal_likelihood(
        self,
        data: Preferences | None = None,
        num_samples: int = 1000,
        *,
        seed: int = 0,
        target_error: float = 0.3,
        max_samples: int = 64_000,
    ) -> Estimate:
        """Estimates the log marginal likelihood by importance sampling, summed over people.

        Args:
            data: The comparisons; those of the fit if None.
            num_samples: Draws of each person's z to begin with.
            seed: Seed of the draws.
            target_error: Standard error in nats below which no more draws are taken.
            max_samples: Largest number of draws of a person.

        Returns:
            The estimate with its Monte-Carlo standard error, its bias (log of a mean) and the
            smallest effective sample size of a person.

        Warns:
            UserWarning: If `max_samples` is reached before the standard error is.
        """
        data = self.data if data is None else data
        data = align(self.model, data)
        estimate = estimate_log_marginal_likelihood(
            self.model, self.guide, data, num_samples, target_error, max_samples, seed
        )
        if estimate.standard_error > target_error:
            warnings.warn(
                f"the standard error of the log marginal likelihood is "
                f"{estimate.standard_error:.2f} after {max_samples} draws a person, above "
                f"target_error={target_error}",
                stacklevel=2,
            )
        return estimate

    def population(
        self,
        num_samples: int = 1024,
        *,
        reference: Hashable | None = None,
        kind: str | None = None,
        level: float | None = None,
        p_values: bool = False,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Estimates mean, standard deviation and correlation of coefficients, covariates' effects.

        See :func:`fssa_bayes.population.population_table` for arguments, columns, errors, sources.
        """
        return population_table(
            self.model,
            self.data,
            reference=reference,
            kind=kind,
            level=level,
            p_values=p_values,
            num_samples=num_samples,
            seed=seed,
        )

    def convergence(
        self, *, num_draws: int = 512, num_samples: int = 1024, seed: int = 1
    ) -> Convergence:
        """Judges by fresh draws how close a mixed logit's fit came to its maximum.

        See :func:`fssa_bayes.inference.describe_convergence` for arguments, errors and sources.
        """
        options = {"num_draws": num_draws, "num_samples": num_samples, "seed": seed}
        return describe_convergence(self.model, self.data, self.history, **options)

    def estimates(
        self,
        of: str = "population",
        *,
        reference: Hashable | None = None,
        num_samples: int = 1024,
        seed: int = 0,
    ) -> Estimates:
        """Returns estimates with their covariance, from which all tables have their errors.

        Args:
            of: `"population"` for the quantities of :meth:`population` that have a meaning, which
                for a homogeneous model are named by their terms alone; `"items"` for the utilities
                of all items in a homogeneous model.
            reference: An item relative to which utilities stand, in place of the mean of all items.
                Where items have features, of `"items"` alone.
            num_samples: Draws of each person's z.
            seed: Seed of the draws.

        Raises:
            ValueError: As :meth:`population` and :meth:`ranking`, or if `of` is neither.
        """
        if of == "items":
            return item_estimates(self.model, self.data, reference=reference, seed=seed)[0]
        if of != "population":
            raise ValueError(f"of must be 'population' or 'items', got {of!r}")
        return population_estimates(
            self.model,
            self.data,
            reference=reference,
            num_samples=num_samples,
            seed=seed,
        )

    def vcov(self, kind: str | None = None, **options: object) -> pd.DataFrame:
        """Tabulates the covariance of estimates, in nats squared for utilities.

        Args:
            kind: `"sandwich"`, `"hessian"` or `"outer_product"`, see
                :class:`fssa_bayes.population.Estimates`, whose corrections for few people hold.
            **options: Arguments of :meth:`estimates`, such as `of` and `reference`.

        Returns:
            One row and column a quantity: utilities of items that sum to zero, or are relative to
            `reference`; or coefficients of features; and the parameters of the answers.
        """
        return self.estimates(**options).vcov(kind)

    def contrast(
        self, weights: object, *, kind: str | None = None, level: float = 0.9, **options: object
    ) -> pd.DataFrame:
        """Estimates differences and other linear combinations, with errors, intervals, p-values.

        Args:
            weights: A pair of names, a mapping from names to weights, a list of these or a
                DataFrame, see :meth:`fssa_bayes.population.Estimates.contrast`.
            kind: As in :meth:`vcov`.
            level: Probability of the intervals.
            **options: Arguments of :meth:`estimates`.

        Example:
            >>> data = Preferences([0, 0, 0, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 2, 4], num_items=2)
            >>> result = fit(HeterogeneousBTL(2, 0, "linear"), None, data, progress_bar=False)
            >>> result.contrast((0, 1), kind="hessian").round(3).iloc[0][:2].tolist()
            [1.099, 1.155]
        """
        return self.estimates(**options).contrast(weights, kind=kind, level=level)

    def covariate_effects(
        self,
        items: Sequence | None = None,
        *,
        population: PopulationDraws | str | None = AUTO,
        num_draws: int = 4000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Tabulates how average utilities change with a unit of each covariate.

        For any utility; see :func:`fssa_bayes.population.covariate_effects` for arguments, columns
        and errors.

        Args:
            items: Names of the items, see there.
            population: Draws of the population's parameters, for standard errors. `"auto"` is
                :meth:`population_draws` where the utility is linear and the prior normal, and None
                otherwise, with a warning that names :meth:`bootstrap`. None leaves errors out.
            num_draws: Number of draws of a person.
            seed: Seed of the draws.
        """
        if isinstance(population, str):
            population = self._choose_population(population, seed)
        return covariate_effects(
            self.model, self.data, items, population=population, num_draws=num_draws, seed=seed
        )

    def _choose_population(self, population: str, seed: int) -> PopulationDraws | None:
        """Draws the population for the errors of effects, where that is possible."""
        if population != AUTO:
            raise ValueError(f"population must be 'auto', draws or None, got {population!r}")
        if not self.model.num_covariates:
            return None  # Refused by covariate_effects().
        if has_population_estimates(self.model):
            return self.population_draws(seed=seed)
        warnings.warn(
            "effects of covariates have no standard errors, as the population of this model cannot "
            "be drawn: pass population=result.bootstrap() for errors, or population=None",
            stacklevel=3,
        )
        return None

    def willingness_to_pay(
        self,
        price: Hashable = None,
        *,
        level: float = 0.9,
        num_populations: int = 100,
        num_samples: int = 1024,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Tabulates what people pay for a unit of each feature, with standard errors.

        See :func:`fssa_bayes.population.willingness_to_pay` for arguments, columns and errors.
        """
        return willingness_to_pay(
            self.model,
            self.guide,
            self.data,
            price,
            level=level,
            num_populations=num_populations,
            num_samples=num_samples,
            seed=seed,
        )

    def population_draws(
        self, num: int = 50, num_samples: int = 1024, *, seed: int = 0
    ) -> PopulationDraws:
        """Draws the linear utility's population, for `Posterior(..., population=...)`.

        See :func:`fssa_bayes.population.population_draws` for arguments, errors and sources.
        """
        return population_draws(
            self.model, self.guide, self.data, num=num, num_samples=num_samples, seed=seed
        )

    def posterior(
        self,
        context: Preferences,
        num_samples: int = 1000,
        *,
        population: str | PopulationDraws = AUTO,
        seed: int = 0,
        **options: object,
    ) -> Posterior:
        """Infers z for people of whom a few choices are known, as :class:`fssa_bayes.Posterior`.

        Args:
            context: The people and the choices that are known of them; empty contexts are allowed.
            num_samples: Number of draws of each person.
            population: `"auto"` for that of :meth:`choose_population`; or as for the posterior.
            seed: Seed of the draws.
            **options: Other arguments of the posterior.

        Returns:
            The posterior; its attribute `population` tells what was done.

        Raises:
            ValueError: As the posterior and :meth:`population_draws`.
        """
        if isinstance(population, str) and population == AUTO:
            population = self.choose_population(min(50, num_samples), seed=seed)
        options |= {"population": population, "seed": seed}
        return Posterior(self.model, self.guide, context, num_samples, **options)

    def choose_population(
        self, num: int = 50, num_samples: int = 1000, *, seed: int = 0
    ) -> str | PopulationDraws:
        """Draws populations where people are few, for `Posterior(..., population=...)`.

        Below 20 people for each parameter of a linear utility's population, people differ in some
        of the populations and are alike in the others, as far as the data do not tell which; see
        :func:`fssa_bayes.population.cautious_population` for arguments, errors and sources.

        Returns:
            The populations, or `"fixed"` where people are enough or the population cannot be drawn.
        """
        average = partial(fit_average, self.model, self.data, fit, seed=seed)
        options = {"num": num, "num_samples": num_samples, "seed": seed}
        return cautious_population(self.model, self.guide, self.data, average, **options)

    def bootstrap(self, num: int = 20, *, seed: int = 0, **options: object) -> PopulationDraws:
        """Refits the model to people drawn with replacement, for `Posterior(population=...)`.

        For any utility. Every refit starts from the parameters of this fit, so that it needs fewer
        steps. A network fitted from other initial weights could end elsewhere, which the spread of
        the refits does not include.

        Args:
            num: Number of refits.
            seed: Seed of the people drawn; refit r is fitted with seed + r.
            **options: Arguments of :func:`fit`, such as `steps`, `objective` and `validation`.

        Returns:
            The populations.

        Raises:
            ValueError: If `num` is below 2, or as :func:`fit`.

        References:
            Efron & Tibshirani (1993), An introduction to the bootstrap, chapter 8.
        """
        if not isinstance(num, int) or num < 2:
            raise ValueError(f"num must be an integer of at least 2, got {num!r}")
        rng = np.random.default_rng(seed)
        members = []
        for refit in range(num):
            people = self.data.subset(rng.integers(len(self.data), size=len(self.data)))
            model, guide = copy.deepcopy((self.model, self.guide))
            alone = {"seed": seed + refit, "progress_bar": False, "processes": None}
            fit(model, guide, people, **alone | options)
            members.append((model, guide))
        return PopulationDraws(tuple(members), f"{num} refits to people drawn with replacement")

    def to_inference_data(
        self,
        target: Preferences | None = None,
        items: Sequence | None = None,
        num_samples: int = 1000,
        *,
        seed: int = 0,
    ) -> InferenceData:
        """Exports the posteriors of the people of the fit, given all their comparisons, to ArviZ.

        See :meth:`fssa_bayes.Posterior.to_inference_data` for groups, arguments and errors. The
        draws are those of `Posterior(..., fallback=None)`.

        Args:
            target: Unseen comparisons of the same people, to be predicted, or None.
            items: Names of the items whose utilities are exported; all items if None, unless that
                is too many.
            num_samples: Number of importance-corrected draws of each person.
            seed: Seed of the draws.

        Returns:
            An `arviz.InferenceData`, or a `DataTree` from ArviZ 1.0 on.
        """
        model, guide, data = self.model, self.guide, self.data
        check_draws(model, num_samples, "psis")
        if target is not None:
            target = align(model, target, needs_covariates=False)
            check_same_people(data, target)

        def draw() -> Draws:
            draws = draw_posterior(model, guide, data, num_samples, seed=seed, correct="psis")
            return draws.resample(seed, data.keys)

        options = {"num_samples": num_samples, "seed": seed, "correct": "psis"}
        return export_draws(model, guide, data, draw, target=target, items=items, **options)

    def ranking(
        self,
        items: Sequence | None = None,
        *,
        groups: Sequence | None = None,
        reference: Hashable | None = None,
        kind: str | None = None,
        level: float = 0.9,
        p_values: bool = False,
        num_draws: int = 1000,
        seed: int = 0,
        scale: str = "nats",
        sets: bool = False,
    ) -> pd.DataFrame:
        """Ranks items by a homogeneous linear model, with standard errors clustered by person.

        See :func:`fssa_bayes.population.ranking_table` for arguments, columns, errors and sources.
        """
        return ranking_table(
            self.model,
            self.data,
            items,
            groups=groups,
            reference=reference,
            kind=kind,
            level=level,
            p_values=p_values,
            num_draws=num_draws,
            seed=seed,
            scale=scale,
            sets=sets,
        )


def fit(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    *,
    objective: Objective | Sequence[Objective] | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float = 3e-3,
    population_learning_rate: float | None = None,
    validation: float | str | None = AUTO,
    refit: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress_bar: bool = True,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_interval: int = 100,
    processes: str | None = AUTO,
) -> FitResult:
    """Fits a model and its guide to the comparisons of many people, in place.

    Maximum likelihood is found to convergence: of a homogeneous model with linear utility by
    Newton's method, otherwise by L-BFGS. The other objectives are optimised by Adam, with warm-up,
    cosine decay and gradient clipping.

    Args:
        model: The model; it starts from the parameters it has.
        guide: Its guide; None for `latent_dim=0`. None for a linear utility with a normal prior
            fits the population alone, without posteriors of people.
        data: The comparisons of the training people.
        objective: One objective or a list of stages. None is `[ImportanceWeightedELBO(), Sleep()]`,
            and `[MaximumLikelihood(), Sleep()]` for the linear utility with a normal prior. A
            homogeneous model has maximum likelihood as its only objective.
        steps: Steps of every stage, in place of the objectives' own; for a homogeneous model the
            largest number of iterations.
        batch_size: People in a batch, in place of the objectives' own.
        learning_rate: Peak learning rate of the networks.
        population_learning_rate: That of the linear utility's w0 and Λ and of the covariates' B;
            ten times the networks' if None.
        validation: Share of the people who are held out to stop a stage early, or None to use
            everybody for a fixed number of steps. `"auto"` is None for the linear utility and .1
            for the others.
        refit: Whether to fit everybody afresh for the number of steps found by `validation`.
        seed: Seed of draws, batches and held-out people. Initial weights are drawn where model and
            guide are built: call `torch.manual_seed` there. The global random state and the
            parameter store of Pyro are left as they were.
        device: Where to fit, for example `"cuda"`; where the model is if None.
        progress_bar: Whether to show progress, of a fit of more than a second.
        checkpoint: A folder that keeps the last states of this fit, or None. A fit that finds its
            own checkpoint there goes on from it and ends with the same parameters (bitwise on a
            CPU) as one that was never interrupted; a finished one returns at once. Maximum
            likelihood, which takes seconds, begins its stage again. One fit at a time uses a
            folder; a state that cannot be written is left out with a warning.
        checkpoint_interval: Steps from one checkpoint to the next.
        processes: `"auto"` divides the people of every step among the processes of `torchrun` or
            of a group of `torch.distributed`. All call `fit` with the same data, take the first
            one's parameters and end with those of a single process, but for rounding. The first
            alone shows progress and writes `checkpoint`. None fits in this process alone.

    Returns:
        The result; `model` and `guide` themselves are changed.

    Raises:
        ValueError: If data, model and guide do not fit each other, an option is out of range, or
            `checkpoint` holds a fit of another model, other data or other options.
        FileExistsError: If `checkpoint` is a file, or another fit is using it.
        ConnectionError: If another process of the fit has ended.
        FloatingPointError: If the loss or its gradient is not finite, or the loss is negative
            beyond chance where it bounds −log of the probability of choices; the message names
            objective and step, and the parameters are those before the step.

    Warns:
        UserWarning: If people are few for the parameters of a linear utility's population, so that
            :meth:`FitResult.posterior` draws the population, if a person has so many comparisons
            that contexts of `Sleep` must be shorter, if a checkpoint cannot be written, if the
            model does not use the covariates of the people, if these are constant or collinear, if
            choices are separated, so that some estimates of a linear utility are infinite (by name,
            before the fit), if maximum likelihood did not converge, if a log-normal coefficient or
            the price of willingness-to-pay space is estimated at 0 for everybody (by name), or if
            `Sleep` costs held-out accuracy.

    Example:
        >>> from fssa_bayes.datasets import two_mode
        >>> data = two_mode.simulate(num_users=50, num_comparisons=6, seed=0).data
        >>> model = HeterogeneousBTL(data.num_features, latent_dim=2)
        >>> guide = NeuralProcessGuide(model)
        >>> result = fit(model, guide, data, steps=5, validation=None, progress_bar=False)
        >>> sorted(result.history["stage"].unique())
        ['ImportanceWeightedELBO', 'Sleep']
    """
    data = align(model, data)
    check_training_data(model, guide, data)
    stages = choose_stages(model, guide, objective, steps, batch_size)
    asked, validation = validation, choose_validation(model, data, validation)
    if guide is None and model.latent_dim and validation is not None:
        raise ValueError(
            f"validation must be None without a guide, which predicts held-out choices, got "
            f"{validation}"
        )
    check_weights_are_used(stages, data)
    warn_of_busy_people(stages, data)
    if population_learning_rate is None:
        population_learning_rate = 10 * learning_rate
    rates = learning_rate, population_learning_rate
    check_options(*rates, checkpoint_interval, processes)
    group = Processes() if processes is None else find_processes()
    if group.size > 1:
        meet(group, model, guide, data, stages, rates, validation, refit, seed)
    kept: AbstractContextManager[Checkpoints | None] = nullcontext()
    if checkpoint is not None and group.is_first:
        about = describe_fit(model, guide, data, stages, rates, validation, refit, seed)
        kept = Checkpoints(checkpoint, about)
    with kept as checkpoints:
        if device is not None:
            model.to(device)
            if guide is not None:
                guide.to(device)
        model.take_units(data)
        separation = warn_of_separation(model, data)
        if few := describe_few_people(model, data):
            warnings.warn(
                f"{few}: posteriors of individuals that hold the population at its estimate are "
                "too sure of it; result.posterior(context) draws the population",
                stacklevel=2,
            )
        legs = plan(stages, data, validation, refit, seed)
        fitter = Fitter(
            *(model, guide, legs, rates, seed, progress_bar and group.is_first),
            *(checkpoints, checkpoint_interval),
            separation=separation,
            processes=group,
        )
        fitter.run()
    warn_of_divergence(model, data)
    warn_of_vanished_coefficients(model, data)
    history, note = pd.DataFrame(fitter.history), explain_validation(asked, validation)
    return FitResult(model, guide, data, history, fitter.held_out(), note)
