"""The export of a posterior to ArviZ: groups, arrays and their size.

A choice from a set, or a ranking, of n items takes n − 1 places of the axis `comparison`, whose
`comparison_judgement` is the same. Each is a row of an item beside the base item of the set, as
:mod:`fssa_bayes.data.rankings` lays them out, and is simulated with the others as one event. In a
choice from a set the row of the chosen item has a `choice` of 1 and the others ½, and all have 0
where the base was chosen. `prob` is, by itself, the probability of left beside right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes._arviz import Group, build, coordinate
from fssa_bayes._random import Streams
from fssa_bayes.data import Batch, Preferences, user_batches
from fssa_bayes.guide import NeuralProcessGuide, push
from fssa_bayes.model import BradleyTerry, HeterogeneousBTL, positions
from fssa_bayes.posterior.utilities import centred_utilities
from fssa_bayes.sampling import Draws, judge_guide, score_draws

if TYPE_CHECKING:
    from fssa_bayes._arviz import InferenceData

__all__ = ["Exporter", "export_attributes", "export_draws", "shown_items"]

_STANDARDISATION = (
    "features are centred and scaled inside the model, see feature_mean and feature_scale; "
    "coefficients are in nats per unit of the features as given"
)
_INTERVALS = (
    "intervals are empirical-Bayes: the parameters of the population are fixed at their estimates"
)

_DRAW = ("chain", "draw")
_Variable = tuple[tuple[str, ...], np.ndarray]


def export_draws(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    draw: Callable[[], Draws],
    *,
    num_samples: int,
    seed: int,
    correct: str | None,
    target: Preferences | None,
    items: Sequence | None,
    max_bytes: int = 4 * 2**30,
    max_utility_bytes: int = 256 * 2**20,
) -> InferenceData:
    """Assembles the groups that `Posterior.to_inference_data` describes.

    Args:
        model: The model.
        guide: Its guide, or None.
        context: The people, and the choices that z was inferred from.
        draw: Returns equally weighted draws of z; called once all arguments have been checked.
        num_samples: Number of draws, 1 of which a model without latent factor has.
        seed: Seed of the prior's draws and of the simulated choices.
        correct: How the draws were corrected, for the record.
        target: Unseen comparisons of the same people, or None.
        items: Names of the items whose utilities are exported; None exports all items that people
            share, or none where the table would exceed `max_utility_bytes`.
        max_bytes: Largest export of what depends on draws.
        max_utility_bytes: Largest table of the utilities of all items, where `items` is None.

    Returns:
        An `arviz.InferenceData` or `DataTree`.

    Raises:
        ValueError: If an item is unknown or the export would exceed `max_bytes`.
    """
    count = num_samples if model.latent_dim else 1
    shown = shown_items(context, items, count, max_utility_bytes)
    _check_size(model, context, target, count, len(shown), max_bytes)
    exporter = Exporter(model, guide, context, draw(), seed, shown)
    observed, predictive, log_likelihood = exporter.observed()
    groups = {
        "posterior": exporter.posterior(),
        "prior": exporter.prior(),
        "posterior_predictive": predictive,
        "log_likelihood": log_likelihood,
        "sample_stats": exporter.sample_stats(),
        "observed_data": observed,
        "constant_data": exporter.constant_data(),
    }
    if target is not None:
        groups |= exporter.predictions(target)
    return build(groups, export_attributes(model, guide, num_samples, seed, correct))


class Exporter:
    """Makes the groups of an export, one a method.

    Args:
        model: The model.
        guide: Its guide, or None.
        context: The people and their known choices.
        draws: Equally weighted draws of their z.
        seed: Seed of the prior's draws and of simulated choices.
        shown: Positions of the items whose utilities are exported.
    """

    def __init__(
        self,
        model: HeterogeneousBTL,
        guide: NeuralProcessGuide | None,
        context: Preferences,
        draws: Draws,
        seed: int,
        shown: Tensor,
    ) -> None:
        self.model = model
        self.guide = guide
        self.context = context
        self.draws = draws
        self.shown = shown
        self.seed = seed
        self.coords = {
            "chain": (("chain",), np.zeros(1, dtype=np.int64)),
            "draw": (("draw",), np.arange(len(draws.z))),
            "user": (("user",), coordinate(context.user_names)),
            "latent": (("latent",), np.arange(model.latent_dim)),
            "feature": (("feature",), coordinate(context.feature_names)),
            "covariate": (("covariate",), coordinate(context.covariate_names)),
        }
        if model.personal is not None:
            labels = np.array(model.personal.labels)
            self.coords["answer_parameter"] = (("answer_parameter",), labels)

    def posterior(self) -> Group:
        """Returns z, coefficients where the utility is linear, and utilities."""
        data, variables = self.context, self._latent(self.draws.z)
        if len(self.shown):
            table = self.shown if data.items is None else data.items[self.shown]
            chunks = centred_utilities(self.model, self.draws.z, table, torch.arange(len(data)))
            utility = torch.cat([utility.cpu() for _, utility in chunks], 1).numpy()[None]
            variables["utility"] = (*_DRAW, "user", "item"), utility
        return Group(variables, self._coords(data, self.shown.numpy()))

    def prior(self) -> Group:
        """Returns draws of z from the prior, as many as from the posterior."""
        with torch.no_grad():
            noise = self._numbers("prior").normal(
                self.context.keys, len(self.draws.z), self.model.latent_dim, like=self.draws.z
            )
            moves = self.model.prior_transforms(self.context.covariates)
            z, _ = push(moves, noise.transpose(0, 1).to(self.model.device))
        return Group(self._latent(z.cpu()), self.coords)

    def _numbers(self, purpose: str) -> Streams:
        return Streams(self.seed, "export", purpose)

    @torch.no_grad()
    def observed(self) -> tuple[Group, Group, Group]:
        """Returns the choices, choices simulated from the posterior and log-likelihoods."""
        data, count = self.context, len(self.draws.z)
        log_prob = np.empty((1, count, data.num_comparisons), dtype=np.float32)
        total = np.empty((1, count, len(data)), dtype=np.float32)
        simulated = np.empty(log_prob.shape, dtype=_choice_dtype(self.model, data))
        numbers = self._numbers("posterior_predictive")
        for people, columns, batch, likelihood in _likelihoods(self.model, self.draws.z, data):
            value = likelihood.log_prob_each(batch.choice)
            total[0, :, people] = value.sum(-1).cpu()
            log_prob[0, :, columns] = value[:, batch.mask].cpu()
            simulated[0, :, columns] = _simulate(likelihood, batch, numbers).cpu()
        dims, coords = (*_DRAW, "comparison"), self._coords(data)
        likelihood = {"choice": (dims, log_prob), "per_user": ((*_DRAW, "user"), total)}
        observed = Group({"choice": (("comparison",), data.choice)}, coords)
        predictive = Group({"choice": (dims, simulated)}, coords)
        if data.has_rankings:  # A ranking is one observation, and stands at its first comparison.
            heads = data.judgement_heads
            likelihood["choice"] = (*_DRAW, "judgement"), log_prob[..., heads]
            person = np.repeat(coordinate(data.user_names), data.judgement_counts)
            coords = coords | {
                "judgement": (("judgement",), np.arange(len(heads))),
                "judgement_user": (("judgement",), person),
            }
        return observed, predictive, Group(likelihood, coords)

    def sample_stats(self) -> Group:
        """Returns log-densities of the draws, and how good weights and guide are."""
        draws, count = self.draws, max(len(self.draws.z), 25)
        people = {"pareto_k": draws.pareto_k, "relative_ess": draws.relative_ess}
        variables = {"lp": ((*_DRAW, "user"), draws.log_joint.numpy()[None])}
        if self.guide is not None:
            log_guide = score_draws(self.guide, self.context, draws.z)
            variables["log_q"] = (*_DRAW, "user"), log_guide.numpy()[None]
            judged = judge_guide(self.model, self.guide, self.context, count, seed=self.seed)
            people |= zip(("guide_pareto_k", "guide_relative_ess"), judged, strict=True)
        variables |= {name: (("user",), value.numpy()) for name, value in people.items()}
        return Group(variables, self.coords)

    def constant_data(self) -> Group:
        """Returns pairs, features and covariates, with means and scales of the latter two."""
        data = self.context
        variables, used = self._pairs(data, self.shown.numpy())
        if data.covariates is not None:
            variables["covariates"] = ("user", "covariate"), data.covariates.numpy()
        if self.model.num_covariates:
            variables["covariate_mean"] = ("covariate",), self.model.covariate_mean.cpu().numpy()
            variables["covariate_scale"] = ("covariate",), self.model.covariate_scale.cpu().numpy()
        if data.items is not None:
            variables["feature_mean"] = ("feature",), self.model.feature_mean.cpu().numpy()
            variables["feature_scale"] = ("feature",), self.model.feature_scale.cpu().numpy()
        return Group(variables, self._coords(data, used))

    @torch.no_grad()
    def predictions(self, target: Preferences) -> dict[str, Group]:
        """Returns probabilities and simulated choices of unseen comparisons, and their pairs."""
        prob = np.empty((1, len(self.draws.z), target.num_comparisons), dtype=np.float32)
        simulated = np.empty(prob.shape, dtype=_choice_dtype(self.model, target))
        dims = (*_DRAW, "comparison")
        variables = {"prob": (dims, prob), "choice": (dims, simulated)}
        if self.model.has_ties:
            variables["prob_tie"] = dims, np.empty_like(prob)
        numbers = self._numbers("predictions")
        for _, columns, batch, likelihood in _likelihoods(self.model, self.draws.z, target):
            prob[0, :, columns] = likelihood.mean[:, batch.mask].cpu()
            simulated[0, :, columns] = _simulate(likelihood, batch, numbers).cpu()
            if self.model.has_ties:
                prob_tie = likelihood.outcomes.tie.exp()
                variables["prob_tie"][1][0, :, columns] = prob_tie[:, batch.mask].cpu()
        pairs, used = self._pairs(target)
        return {
            "predictions": Group(variables, self._coords(target)),
            "predictions_constant_data": Group(pairs, self._coords(target, used)),
        }

    @torch.no_grad()
    def _latent(self, z: Tensor) -> dict[str, _Variable]:
        """Returns z (S, U, K), with the coefficients it stands for where utility is linear."""
        variables = {"z": ((*_DRAW, "user", "latent"), z.numpy()[None])}
        if _has_coefficients(self.model, self.context):
            beta = self.model.coefficients(z.to(self.model.device)).cpu().numpy()
            variables["coefficient"] = (*_DRAW, "user", "feature"), beta[None]
        if (personal := self.model.personal) is not None:
            own = self.model.answers(z.to(self.model.device))
            own = torch.cat([own[name] for name in personal.arguments], -1)
            variables["answer"] = (*_DRAW, "user", "answer_parameter"), own.cpu().numpy()[None]
        return variables

    def _pairs(
        self, data: Preferences, others: Sequence[int] = ()
    ) -> tuple[dict[str, _Variable], np.ndarray]:
        """Names the items compared, and lists the positions of these and other items."""
        names = coordinate(data.item_names)
        used = np.unique(np.concatenate([data.left, data.right, others]).astype(np.int64))
        variables = {
            "left": (("comparison",), names[data.left]),
            "right": (("comparison",), names[data.right]),
        }
        if data.items is not None:
            variables["item_features"] = ("item", "feature"), data.items[used].numpy()
        return variables, used

    def _coords(
        self, data: Preferences, items: Sequence[int] | np.ndarray = ()
    ) -> dict[str, _Variable]:
        """Adds coordinates of comparisons and of some items to those common to all groups."""
        person = np.repeat(coordinate(data.user_names), data.counts)
        judgement = np.arange(data.num_judgements)
        names = coordinate(data.item_names)[np.asarray(items, dtype=np.int64)]
        return self.coords | {
            "comparison": (("comparison",), np.arange(data.num_comparisons)),
            "comparison_user": (("comparison",), person),
            "comparison_judgement": (("comparison",), data.judgements.spread(judgement)),
            "item": (("item",), names),
        }


def shown_items(
    context: Preferences, items: Sequence | None, count: int, max_utility_bytes: int
) -> Tensor:
    """Returns the positions of the items whose utilities are exported, see :func:`export_draws`."""
    if isinstance(items, Tensor | pd.DataFrame | np.ndarray) and items.ndim > 1:
        raise TypeError(
            f"items must be a list of names of the context's items, got {type(items).__name__}"
        )
    if items is not None:
        return positions("items", items, context.item_names)
    small = 4 * count * len(context) * context.num_items <= max_utility_bytes
    shared = context.items is None or context.items_are_shared
    return torch.arange(context.num_items if small and shared else 0)


def _has_coefficients(model: HeterogeneousBTL, data: Preferences) -> bool:
    """Tells whether coefficients say more than utilities: not where an item is its own feature."""
    return model.utility.is_linear and data.items is not None


def _check_size(
    model: HeterogeneousBTL,
    context: Preferences,
    target: Preferences | None,
    count: int,
    num_items: int,
    max_bytes: int,
) -> None:
    """Raises a ValueError where what depends on the `count` draws exceeds `max_bytes`."""
    # z and coefficients of posterior and prior; lp, log_q and the log-likelihood of a person.
    width = 2 * model.latent_dim + num_items + 3
    width += 2 * model.num_features if _has_coefficients(model, context) else 0
    rows = context.num_comparisons + (0 if target is None else target.num_comparisons)
    # A comparison takes a float32 (log-likelihood or probability) and an int8 (simulated choice),
    # with ties another float32 (probability of a tie) and a float32 for the simulated choice.
    of_row = 12 if model.has_ties or context.has_rankings else 5
    size = count * (4 * width * len(context) + of_row * rows)
    if size > max_bytes:
        raise ValueError(
            f"the export would need {size / 2**30:.1f} GiB for {count} draws of {len(context)} "
            f"people with {rows} comparisons and {num_items} items, more than "
            f"{max_bytes / 2**30:.0f} GiB: take fewer draws (num_samples=), fewer people "
            "(context.subset(...)) or name fewer items="
        )


def _likelihoods(
    model: HeterogeneousBTL, z: Tensor, data: Preferences
) -> Iterator[tuple[slice, slice, Batch, BradleyTerry]]:
    """Yields likelihoods (S, u, N) of a few people at a time, with the columns of their choices."""
    for people, batch in user_batches(data, len(z), model.device):
        likelihood = model.choice(batch, z[:, people].to(model.device))
        columns = slice(data.offsets[people.start], data.offsets[people.stop])
        yield people, columns, batch, likelihood


def _simulate(likelihood: BradleyTerry, batch: Batch, numbers: Streams) -> Tensor:
    """Simulates the choices of a batch's comparisons under every draw, (S, R)."""
    draws, comparisons = likelihood.batch_shape[0], batch.mask.shape[1]
    # Comparison by comparison, so that a person's numbers do not depend on the padding.
    uniform = numbers.uniform(batch.keys, comparisons, draws, like=batch.choice)
    return likelihood.decide(uniform.permute(2, 0, 1))[:, batch.mask]


def _choice_dtype(model: HeterogeneousBTL, data: Preferences) -> type:
    """Returns the smallest type of a simulated choice: ties and pairs left open are ½."""
    return np.float32 if model.has_ties or data.has_rankings else np.int8


def export_attributes(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    num_samples: int,
    seed: int,
    correct: str | None,
) -> dict[str, Any]:
    """Returns what an export notes about versions, model and draws."""
    versions = {
        f"{name.replace('-', '_')}_version": metadata.version(name)
        for name in ("torch", "pyro-ppl", "arviz")
    }
    return versions | {
        "inference_library": "fssa_bayes",
        "inference_library_version": metadata.version("fssa_bayes"),
        "utility": model.config["utility"],
        "latent_dim": model.latent_dim,
        "prior": model.config["prior"],
        "ties": model.config["ties"],
        **{name: parameter.item() for name, parameter in model.answer_parameters().items()},
        "guide": None if guide is None else guide.posterior_family,
        "correct": correct,
        "seed": seed,
        "num_samples": num_samples,
        "standardisation": _STANDARDISATION,
        "intervals": _INTERVALS,
    }
