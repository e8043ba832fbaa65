"""The posterior of what a person prefers, given a few of their choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.data import Preferences, user_slices
from fssa_bayes.guide import NeuralProcessGuide, check_guide
from fssa_bayes.model import (
    HeterogeneousBTL,
    align,
    check_same_people,
    positions,
)
from fssa_bayes.posterior.alternatives import describe_alternatives, tabulate_alternatives
from fssa_bayes.posterior.choices import (
    ChoiceProbability,
    Likelihoods,
    describe_part,
    join_choices,
    score_part,
)
from fssa_bayes.posterior.coefficients import PersonalCoefficients
from fssa_bayes.posterior.doubts import warn_of_guide
from fssa_bayes.posterior.export import export_draws
from fssa_bayes.posterior.populations import (
    PopulationDraws,
    PopulationMixture,
    check_population,
)
from fssa_bayes.posterior.surprise import context_surprise
from fssa_bayes.posterior.utilities import (
    centred_utilities,
    check_size,
    check_utilities,
    difference_table,
    rank_table,
    read_items,
)
from fssa_bayes.sampling import (
    FALLBACKS,
    MOST_PARETO_K,
    Draws,
    ExactPosterior,
    check_draws,
    draw_corrected,
    draw_posterior,
    judge_guide,
    log_joint,
    map_people,
    name_mixture,
    pad_items,
    padded_draws,
    steady_backend,
)

if TYPE_CHECKING:
    from fssa_bayes._arviz import InferenceData

__all__ = ["Posterior"]


class Posterior(PersonalCoefficients):
    r"""Infers z for people the model need not have seen, from a few choices of each.

    Nothing is fitted. Proposals are drawn from a mixture m(z) that has the prior as a part, and get
    importance weights :math:`p(z)\,p(C|z) / m(z)`. Under a linear utility with a normal prior the
    other parts lie around the mode of each person's posterior, which Newton's method finds; for
    other models :math:`m = .8\,q(z|C) + .2\,p(z)`, where q is the guide. With one or two latent
    dimensions, and a bilinear utility or a flow as prior, people share draws of the prior where
    these suffice, and have correlated errors then.

    Args:
        model: A fitted model.
        guide: Its guide. It may be None for a model with `latent_dim=0`, and for a linear utility
            with a normal prior, whose corrected draws do not depend on the guide.
        context: The people and the choices that are known of them; empty contexts are allowed.
            Items without features, features and covariates are found by name, in any order: see
            :meth:`Preferences.for_model`.
        num_samples: Number of draws S of each person.
        seed: Seed of the draws. They follow from the seed, the person's name and context and the
            model, and not from other people or threads; on a CPU to the last bit, but for NUTS and
            for a `utility=` of your own.
        correct: `"psis"` weighs the draws, by Pareto-smoothed importance weights, so that they
            represent the model's posterior; None takes the guide's draws as they are.
        population: `"fixed"` holds the population's parameters at their estimates. Draws of the
            population, made by `FitResult.population_draws` or `FitResult.bootstrap`, give every
            posterior draw a population of its own; the weights then tell, too, how likely each
            population makes the context.
        fallback: What to do for people whose weights cannot be relied upon: their `pareto_k` is
            above .7, or fewer than 200 draws are effective (than a fifth of fewer than 1,000).
            `"draws"` takes 4, then 16 times as many draws, in milliseconds a person; `"nuts"`
            samples, in seconds or tens of seconds a person, those for whom these do not suffice;
            None does nothing. A fallback serves corrected draws of a fixed population alone.

    Attributes:
        context: The context in the items, features and covariates of the model.
        population: The draws of the population, or None where it is held fixed.
        method: How each person's draws were made, (U,): `"prior"`, by shared draws; `"mode +
            prior"` or `"guide + prior"`, by such a mixture; `"more draws"`; `"nuts"`; `"guide"`
            with `correct=None`; `"exact"` with `latent_dim=0`; after :meth:`from_draws` `"grid"`.

    Raises:
        ValueError: If `context` does not fit the model or an option is out of range.
        FloatingPointError: If the model gives a person no finite posterior.

    Warns:
        UserWarning: If draws come from a guide and a context is larger than any that it was trained
            for, if a guide fitted by `NeuralProcessELBO` is corrected, or if people are sampled by
            NUTS.

    References:
        Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR 25(72).
        Hesterberg (1995), Weighted average importance sampling and defensive mixture
        distributions, Technometrics 37(2).
    """

    def __init__(
        self,
        model: HeterogeneousBTL,
        guide: NeuralProcessGuide | None,
        context: Preferences,
        num_samples: int = 1000,
        *,
        seed: int = 0,
        correct: str | None = "psis",
        population: str | PopulationDraws = "fixed",
        fallback: str | None = "draws",
    ) -> None:
        context = align(model, context)
        check_guide(model, guide, may_lack=model.is_mixed_logit and correct is not None)
        check_draws(model, num_samples, correct)
        drawn = check_population(model, population, num_samples)
        if fallback not in FALLBACKS:
            raise ValueError(f"fallback must be one of {FALLBACKS}, got {fallback!r}")
        if guide is not None:
            warn_of_guide(model, guide, context, correct)
        members = () if drawn is None else drawn.members
        if not correct or not model.latent_dim or members:
            fallback, reliable = None, None
            draws = draw_posterior(
                model, guide, context, num_samples, seed=seed, correct=correct, populations=members
            )
            method = name_mixture(model) if correct or not model.latent_dim else "guide"
        else:
            draws, method, reliable = draw_corrected(
                model, guide, context, num_samples, fallback, seed
            )
        self._hold(model, guide, context, draws, method, reliable, seed=seed, correct=correct)
        self.num_samples, self.population, self.fallback = num_samples, drawn, fallback

    def _hold(
        self,
        model: HeterogeneousBTL,
        guide: NeuralProcessGuide | None,
        context: Preferences,
        draws: Draws,
        method: str | np.ndarray,
        reliable: Tensor | None,
        *,
        seed: int,
        correct: str | None,
    ) -> None:
        """Sets the attributes of a posterior of a fixed population from draws."""
        self.model = model
        self.guide = guide
        self.context = context
        self.num_samples = len(draws.z)
        self.seed = seed
        self.correct = correct
        self.population: PopulationDraws | None = None
        self.fallback: str | None = None
        self.method = np.full(len(context), method, dtype=object)
        self._draws = draws
        self._reliable = reliable

    @classmethod
    def from_draws(
        cls,
        model: HeterogeneousBTL,
        context: Preferences,
        exact: ExactPosterior,
        guide: NeuralProcessGuide | None = None,
        *,
        seed: int = 0,
    ) -> Posterior:
        """Makes a posterior of a gold standard, with all methods of a posterior.

        Args:
            model: The model that `exact` was computed for.
            context: The context that it was computed for.
            exact: The points or draws.
            guide: A guide that is to be judged, and its log-density of the draws exported, or None.
            seed: Seed of further draws, such as equally weighted draws of grid points.

        Returns:
            A posterior whose draws are those of `exact`; `pareto_k` and `relative_ess`, which judge
            importance weights, are NaN.

        Raises:
            ValueError: If model, context, guide and draws do not belong together.
        """
        context = align(model, context)
        check_same_people(context, exact.context)
        if exact.context is not context and exact.context.digest() != context.digest():
            raise ValueError("exact must be of this context, got one of other choices or items")
        model.check_z(exact.z)
        density = log_joint(model, context, exact.z[:1])
        if not torch.allclose(density, exact.log_joint[:1], rtol=1e-3, atol=0.1):
            raise ValueError("exact must be of this model, got one of other parameters")
        if guide is not None:
            check_guide(model, guide)
        posterior = cls.__new__(cls)
        posterior._hold(
            model,
            guide,
            context,
            exact.draws,
            exact.method,
            exact.converged,
            seed=seed,
            correct=exact.method,
        )
        return posterior

    def __repr__(self) -> str:
        return (
            f"Posterior({len(self.context)} people, {self.num_samples} draws, "
            f"correct={self.correct!r})"
        )

    @property
    def proposals(self) -> tuple[Tensor, Tensor]:
        """The draws (S, U, K) before resampling and their normalised log-weights (S, U)."""
        return self._without_population(self._draws.z), self._draws.log_weights

    @cached_property
    def _model(self) -> HeterogeneousBTL | PopulationMixture:
        """Evaluates the draws; with draws of the population, z has a column for its position."""
        if self.population is None:
            return self.model
        return PopulationMixture([model for model, _ in self.population.members])

    @cached_property
    def _resampled(self) -> Draws:
        return self._draws.resample(self.seed, self.context.keys)

    @property
    def z(self) -> Tensor:
        """Equally weighted draws with shape (S, U, K), resampled from the weighted ones.

        With populations from a bootstrap each draw is in the terms of its own refit.
        """
        return self._without_population(self._resampled.z)

    def _without_population(self, z: Tensor) -> Tensor:
        return z if self.population is None else z[..., :-1]

    @property
    def pareto_k(self) -> Tensor:
        """Pareto k-hat of the importance weights of the draws, with shape (U,).

        Above .7 the draws cannot be relied upon; 0 where no weight differs from another, as for an
        empty context; NaN where no weights were used. Of more draws it is that of all of them.
        """
        return self._draws.pareto_k

    @property
    def relative_ess(self) -> Tensor:
        """Effective sample size of the weighted draws as a share of their number, (U,).

        NaN where no weights were used.
        """
        return self._draws.relative_ess

    @cached_property
    def _judged_guide(self) -> tuple[Tensor, Tensor]:
        return judge_guide(
            self.model, self.guide, self.context, max(self.num_samples, 25), seed=self.seed
        )

    @property
    def guide_pareto_k(self) -> Tensor:
        """Pareto k-hat of p(z|C) / q(z|C) on draws of the guide alone, with shape (U,).

        Above .7 the guide misses part of that person's posterior: a judgement of the guide, whose
        draws are made when it is first asked for. NaN without a guide.
        """
        return self._judged_guide[0]

    @property
    def guide_relative_ess(self) -> Tensor:
        """Effective sample size of draws of the guide alone as a share of their number, (U,)."""
        return self._judged_guide[1]

    @property
    def reliable(self) -> Tensor:
        """Whether each person's draws can be relied upon, Boolean with shape (U,).

        Weighted draws are reliable where `pareto_k` is at most .7 and 200 draws are effective, or a
        fifth of fewer than 1,000 (shared draws whatever `pareto_k`: likelihoods are bounded); with
        `correct=None`, where `guide_pareto_k` is at most .7; chains and grids, if converged.
        """
        if self._reliable is None:
            if self.correct or not self.model.latent_dim:
                self._reliable = self._draws.enough_for(self.num_samples)
            else:
                self._reliable = self.guide_pareto_k <= MOST_PARETO_K
        return self._reliable

    def context_surprise(
        self,
        num_simulations: int = 2000,
        *,
        num_samples: int = 250,
        level: float = 0.05,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Tests whether each person's known choices look like those of people of the model.

        The log-probability of the context under the model, log p(C) with z integrated out, is
        compared with that of people drawn from the model who are asked about the same pairs. A
        person who answers at random where the model expects consistency, or who wants what nobody
        in training wanted, has a context of small probability; one who is more consistent than the
        model expects has not. Half wins are left out. Sources: `fssa_bayes.posterior.surprise`.

        Args:
            num_simulations: Simulated contexts a person at most; most people need fewer than 100.
            num_samples: Draws of z by which the probability of a context is estimated.
            level: Share of false alarms among the flags that is accepted.
            seed: Seed of the simulation.

        Returns:
            One row a person (index `user`). Columns: `comparisons` known; `log_evidence`, log p(C)
            in nats, with its `expected` value and `standard_deviation` over simulated contexts, of
            which there were `simulations`; `tail_probability`, the probability of a context that is
            no more probable, uniform for people of the model; `adjusted`, the tail probability
            adjusted for the number of people (Benjamini–Hochberg); `flag`, whether `adjusted` is at
            most `level`, which takes U / `level` simulations to flag one of U people alone.

        Raises:
            ValueError: If an option is out of range.
        """
        return context_surprise(
            self.model,
            self.guide,
            self.context,
            num_simulations=num_simulations,
            num_samples=num_samples,
            level=level,
            seed=seed,
        )

    def choice_prob(self, target: Preferences) -> ChoiceProbability:
        """Describes each person's probability of preferring left.

        In a ranking, left is preferred where it stands above right.

        Args:
            target: Comparisons of the same people in the same order; it may have its own item
                table. Their choices are not looked at.

        Returns:
            Weighted posterior mean, 5 % and 95 % quantiles, and both parts of the uncertainty.
        """
        target = self._check_target(target)
        return join_choices(self._over_people(describe_part, target), target)

    def alternative_prob(self, target: Preferences, *, level: float = 0.9) -> pd.DataFrame:
        """Tabulates how probable it is that a person chooses an alternative, or ranks it first.

        Args:
            target: Choice sets, rankings and comparisons, which are sets of two, of the same people
                in the same order; it may have its own item table.
            level: Probability of the intervals.

        Returns:
            One row an alternative (index `user`, `situation` of the person, `item`): `mean` and
            `lower`, `upper` quantile of its probability given z (in a choice of the worst, of being
            the worst); `chosen`, 1 for the answer and ½ for half a win or a tie; of the situation,
            in nats, `epistemic`, the mutual information of choice and z, and `aleatoric`, the
            expected entropy given z. With ties the rest of the probability is that of a tie.
        """
        describe, target = describe_alternatives(level), self._check_target(target)
        return tabulate_alternatives(self._over_people(describe, target), target)

    def log_score(self, target: Preferences) -> Tensor:
        """Scores each person's unseen choices by the log of the mean probability.

        Args:
            target: Comparisons of the same people in the same order.

        Returns:
            Mean over a person's judgements of log mean_z p(y | z), in nats, with shape (U,):
            marginal for each choice, not joint. A ranking is one judgement, with the probability of
            the whole ranking. Higher is better; NaN without comparisons.
        """
        return torch.cat(self._over_people(score_part, self._check_target(target)))

    def _check_target(self, target: Preferences) -> Preferences:
        target = align(self.model, target, needs_covariates=False)
        check_same_people(self.context, target)
        return target

    def likelihoods(self, target: Preferences) -> Iterator[Likelihoods]:
        """Iterates over the target, few enough people at a time to bound memory.

        Args:
            target: Comparisons of the same people in the same order.

        Yields:
            Which people, their comparisons, p(choices | z) under all draws with batch shape (S, U),
            and the draws' normalised log-weights (S, U), on the model's device. Draws of weight 0
            may follow the posterior's own.
        """
        target = target.for_model(self.model)
        for people in user_slices(target, self.num_samples):
            yield self._likelihood(target, people)

    @torch.no_grad()
    def _likelihood(self, target: Preferences, people: slice) -> Likelihoods:
        device = self.model.device
        batch = pad_items(target.batch(range(people.start, people.stop)).to(device))
        z, log_weights = padded_draws(self._draws, people, device)
        likelihood = self._model.choice(batch, z, backend=steady_backend(device))
        return people, batch, likelihood, log_weights

    def _over_people(self, evaluate: Callable[[Likelihoods], Any], target: Preferences) -> list:
        """Evaluates the likelihoods of a few people at a time, in order."""
        parts = list(user_slices(target, self.num_samples))
        return map_people(self.model.device, lambda u: evaluate(self._likelihood(target, u)), parts)

    def utility(
        self, items: Sequence | Tensor | None = None, users: Sequence | None = None
    ) -> Tensor:
        """Draws the utilities of items to people.

        Args:
            items: Names of items, or features of new ones, as a tensor, array or DataFrame with
                shape (M, D), whose columns are taken by name if they have names. None for all items
                of the context's table; for items without features these are all items of the model,
                whether a person has judged them or not.
            users: Names of people; everybody if None.

        Returns:
            Equally weighted draws in nats with shape (S, U, M), centred over the items given:
            utilities are identified up to a constant per person.

        Raises:
            ValueError: If a name is unknown, if items are unique to a person and no common set is
                named, or if the table would not fit in memory.
        """
        table, people = read_items(self.model, self.context, items), self._people(users)
        check_size("utility", (len(self.z), len(people), len(table)))
        draws = centred_utilities(self._model, self._resampled.z, table, people)
        chunks = [utility for _, utility in draws]
        return torch.cat(chunks, 1).cpu()

    def rank_prob(
        self, items: Sequence | Tensor | None = None, users: Sequence | None = None
    ) -> Tensor:
        """Computes the posterior probability that an item has a rank.

        Args:
            items: As in :meth:`utility`.
            users: Names of people; everybody if None.

        Returns:
            Probabilities with shape (U, M, M): entry [u, i, j] is the probability that item i is
            person u's choice number j + 1. Rows and columns sum to 1.

        Raises:
            ValueError: As in :meth:`utility`.
        """
        check_utilities(self.model, "rank_prob()")
        table, people = read_items(self.model, self.context, items), self._people(users)
        check_size("rank_prob", (len(people), len(table), len(table)))
        return rank_table(self._model, self._draws, table, people)

    def differences(
        self, items: Sequence | Tensor | None = None, users: Sequence | None = None
    ) -> pd.DataFrame:
        """Compares each person's utilities with the average of these people, item by item.

        Utilities are relative to choice noise, so a person can differ in direction (they like other
        things) or in scale (they choose more, or less, consistently).

        Args:
            items: As in :meth:`utility`, at least 3.
            users: Names of people; everybody if None. The average is theirs.

        Returns:
            One row a person (index `user`). Columns: `comparisons` known; `direction`, the
            correlation over the items of the person's utilities with the average person's, and
            `scale`, the standard deviation over the items of the person's utilities in nats; each
            as posterior median with `_lower` and `_upper`, the 5 % and 95 % quantiles.

        Raises:
            ValueError: As in :meth:`utility`, or if there are fewer than 3 items.
        """
        check_utilities(self.model, "differences()")
        table, people = read_items(self.model, self.context, items), self._people(users)
        if len(table) < 3:
            raise ValueError(f"items must be at least 3 to compare people by, got {len(table)}")
        table = difference_table(self._model, self._resampled.z, table, people)
        names = self.context.user_names[people.numpy()].rename("user")
        return pd.DataFrame(
            {"comparisons": self.context.counts[people.numpy()]} | table, index=names
        )

    def to_inference_data(
        self, target: Preferences | None = None, items: Sequence | None = None
    ) -> InferenceData:
        """Exports draws, likelihoods and data to ArviZ, for instance to save as netCDF.

        Draws are equally weighted, and comparisons of all people lie one after another, the
        coordinate `comparison_user` naming the person. Groups:

        - `posterior`: z; `coefficient` per unit of the features, for the linear utility; `utility`,
          centred over the items exported. `prior`: z and `coefficient` before any choice.
        - `posterior_predictive`: choices simulated on the pairs of the context.
        - `log_likelihood`: `choice`, of each comparison, and `per_user`, its sum.
        - `sample_stats`: `lp`, log p(z) p(C|z), and, with a guide, `log_q`, log q(z|C), of every
          draw; of every person `pareto_k` and `relative_ess`, which judge the weights, and with a
          guide `guide_pareto_k` and `guide_relative_ess`, which judge the guide.
        - `observed_data`, `constant_data`: choices; pairs, features and covariates.
        - `predictions`, `predictions_constant_data`: the probability `prob` that left is preferred,
          with ties that of one (`prob_tie`), and simulated choices on the pairs of `target`.

        `az.loo(..., var_name="choice")` leaves out one choice at a time and holds the population
        fixed. A homogeneous model has one draw, too few for it, and its log-likelihood is the
        score.

        Args:
            target: Unseen comparisons of the same people in the same order, to be predicted; their
                choices are not looked at.
            items: Names of the items whose utilities are exported; all items if None, provided
                that people share them and the table stays below 256 MiB.

        Returns:
            An `arviz.InferenceData`, or a `DataTree` from ArviZ 1.0 on.

        Raises:
            ValueError: If target or items do not fit the context, if the population was drawn
                too, or if the export would exceed 4 GiB.
        """
        if self.population is not None:
            raise ValueError(
                "to_inference_data() exports draws of one population: make the posterior with "
                "population='fixed'"
            )
        if target is not None:
            target = self._check_target(target)
        return export_draws(
            self.model,
            self.guide,
            self.context,
            lambda: self._resampled,
            num_samples=self.num_samples,
            seed=self.seed,
            correct=self.correct,
            target=target,
            items=items,
        )

    def _people(self, users: Sequence | None) -> Tensor:
        if users is None:
            return torch.arange(len(self.context))
        return positions("users", users, self.context.user_names)
