"""Tables of `experiments` with known truth: what pooling hides, and who is of which type."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Row, spread
from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.datasets import clusters as cluster_data
from fssa_bayes.datasets import hidden_context as hidden_data
from fssa_bayes.diagnostics import clustered_mean

CONTEXTS = (0, 1, 3, 5, 10)
TARGETS = 10
BINS = 100
JUMP = 0.02
"""Half width of the interval around the jump at .8 that the smooth utilities are not judged on."""

Figures = dict[tuple[str, str, str, str], list[float]]


def hidden_context(args: argparse.Namespace) -> Iterator[Row]:
    """Pooled choices give the Borda score; a person's own choices give that person's utilities.

    Homogeneous BTL is fitted to contexts drawn anew for every item shown, as published: with a
    utility for each of 100 bins of items, and with a network on their middles. The heterogeneous
    model is fitted where the context belongs to the person. Utilities are compared by the Borda
    scores that their choice probabilities imply, which need no identification.
    """
    values: Figures = defaultdict(list)
    for seed in args.seeds:
        _pooled(values, seed, args)
        _two_modes(values, seed, args)
    for (case, *key), figures in values.items():
        yield spread("experiments", f"hidden context, {case}", *key, figures)


def clusters(args: argparse.Namespace) -> Iterator[Row]:
    """Accuracy on agreed and on controversial pairs by number of contexts, of fresh people."""
    users, fresh, steps = (200, 50, 10) if args.quick else (3_000, 1_000, 400)
    values: Figures = defaultdict(list)
    for seed in args.seeds:
        centres = cluster_data.means(seed=seed)
        train = cluster_data.simulate(users, 12, centres=centres, seed=seed).data
        model, guide = _fit(train, steps, seed, args)
        for count in CONTEXTS:
            people = cluster_data.simulate(
                fresh, count + TARGETS, centres=centres, seed=1_000_000 + seed
            )
            context, target = people.data.split_context(count, seed=seed)
            posterior = Posterior(model, guide, context, 500, seed=seed)
            prob = posterior.choice_prob(target).mean.double().numpy()
            divided = cluster_data.controversial(target, people.kind).reshape(prob.shape)
            _score_clusters(values, f"{count} contexts", prob, target, divided)
    for (case, *key), figures in values.items():
        yield spread("experiments", f"clusters, {case}", *key, figures)


def _score_clusters(
    values: Figures, case: str, prob: np.ndarray, target: Preferences, divided: np.ndarray
) -> None:
    choice = target.choice.reshape(prob.shape)
    right = np.where(prob == 0.5, 0.5, (prob > 0.5) == (choice > 0.5))
    log_loss = -np.log(np.where(choice > 0.5, prob, 1 - prob).clip(np.finfo(np.float32).tiny))
    person = np.broadcast_to(np.arange(len(prob))[:, None], prob.shape)
    for name, kept in (("controversial", divided), ("agreed", ~divided)):
        for metric, unit, factor, score in (
            ("accuracy", "%", 100, right),
            ("log-loss", "nats", 1, log_loss),
        ):
            mean = clustered_mean(score[kept], person[kept], average="comparison")
            values[case, name, metric, unit].append(factor * mean.value)
            key = (case, name, f"{metric}, standard error by person", unit)
            values[key].append(factor * mean.standard_error)


def _pooled(values: Figures, seed: int, args: argparse.Namespace) -> None:
    """Fits homogeneous models and compares their Borda scores with the closed form."""
    users = 300 if args.quick else 10_000
    data = hidden_data.simulate(users, 20, drawn="item", seed=seed).data
    middle = (np.arange(BINS) + 0.5) / BINS
    truth = hidden_data.borda(middle)
    smooth = np.abs(middle - hidden_data.THRESHOLD) > JUMP

    table = HeterogeneousBTL(BINS, latent_dim=0, utility="linear")
    fit(table, None, _binned(data), seed=seed, progress_bar=False)
    error = np.abs(_borda(table, torch.arange(BINS)) - truth)
    values["pooled", "homogeneous, 100 bins", "largest error of Borda score", ""].append(
        error.max()
    )

    torch.manual_seed(seed)
    network = HeterogeneousBTL(1, latent_dim=0, utility="mlp")
    items = torch.tensor(middle, dtype=torch.float32)[:, None]
    fit(network, None, _binned(data, items), validation=None, seed=seed, progress_bar=False)
    error = np.abs(_borda(network, items) - truth)
    for metric, kept in (("", slice(None)), (f", {JUMP} or more from .8", smooth)):
        key = ("pooled", "homogeneous, mlp", f"largest error of Borda score{metric}", "")
        values[key].append(error[kept].max())


def _two_modes(values: Figures, seed: int, args: argparse.Namespace) -> None:
    """Fits the heterogeneous model to people with a hidden type each, and looks for the types."""
    users, fresh, steps = (200, 50, 10) if args.quick else (6_000, 1_000, 600)
    train = hidden_data.simulate(users, 20, seed=seed).data
    model, guide = _fit(train, steps, seed, args)
    for count in CONTEXTS:
        people = hidden_data.simulate(fresh, count + TARGETS, seed=1_000_000 + seed)
        context, target = people.data.split_context(count, seed=seed)
        posterior = Posterior(model, guide, context, 500, seed=seed)
        score = -posterior.log_score(target).double().numpy()
        bayes = hidden_data.bayes_choice_prob(context, target)
        bayes = -np.log(np.where(target.choice > 0.5, bayes, 1 - bayes)).reshape(fresh, -1).mean(1)
        gap = clustered_mean((score - bayes)[:, None])
        key = (f"{count} contexts", "bilinear", "log-loss above Bayes", "nats")
        values[key].append(gap.value)
        values[*key[:2], "log-loss above Bayes, standard error by person", "nats"].append(
            gap.standard_error
        )
        if count in (0, 10):
            _modes(values, f"{count} contexts", posterior, people.type)


def _modes(values: Figures, case: str, posterior: Posterior, person_type: np.ndarray) -> None:
    """Measures how near the draws' Borda scores lie to one of the two types', .1 and .9 at .9.

    Of type 0 the score is a + .2 below .8 and .1 above; of type 1 it is a everywhere.
    """
    grid = ((np.arange(40) + 0.5) / 40).astype(np.float32)
    judged = list(range(min(200, len(person_type))))
    draws = posterior.utility(torch.from_numpy(grid)[:, None], users=judged)
    scores = _borda_of(draws[:100])
    above = scores[..., grid > hidden_data.THRESHOLD].mean(-1)
    low, high = above < 0.3, above > 0.7
    key = (case, "bilinear")
    values[*key, "draws near type 0 (mean score above .8 below .3)", ""].append(low.mean())
    values[*key, "draws near type 1 (mean score above .8 over .7)", ""].append(high.mean())
    if case == "0 contexts":
        return
    smooth = np.abs(grid - hidden_data.THRESHOLD) > JUMP
    for of_type, truth in ((0, np.where(grid < 0.8, grid + 0.2, 0.1)), (1, grid)):
        own = person_type[judged] == of_type
        error = np.abs(np.median(scores.mean(0)[own], axis=0) - truth)[smooth]
        metric = f"largest error of Borda score, type {of_type}, {JUMP} or more from .8"
        values[*key, metric, ""].append(error.max())


def _borda(model: HeterogeneousBTL, items: Tensor) -> np.ndarray:
    """Returns the Borda scores that a homogeneous model's choice probabilities imply, (M,)."""
    with torch.no_grad():
        utility = model.item_utility(items, torch.zeros(1, 0))
    return _borda_of(utility)[0]


def _borda_of(utility: Tensor) -> np.ndarray:
    """Averages the chance to be preferred over all items, for utilities (*, M)."""
    utility = utility.double()
    return torch.sigmoid(utility.unsqueeze(-1) - utility.unsqueeze(-2)).mean(-1).numpy()


def _binned(data: Preferences, items: Tensor | None = None) -> Preferences:
    """Replaces items by the bin they fall into, with features or an indicator each.

    Pairs within a bin are left out.
    """
    position = np.minimum((data.items[:, 0].numpy() * BINS).astype(int), BINS - 1)
    left, right = position[data.left], position[data.right]
    kept = left != right
    person = data.person[kept]
    counts = np.bincount(person, minlength=len(data))
    return Preferences(
        left[kept],
        right[kept],
        data.choice[kept],
        np.append(0, counts.cumsum()),
        items=items,
        num_items=BINS,
    )


def _fit(
    train: Preferences, steps: int, seed: int, args: argparse.Namespace
) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    torch.manual_seed(seed)
    model = HeterogeneousBTL(train.num_features, latent_dim=2)
    guide = NeuralProcessGuide(model)
    fit(
        model,
        guide,
        train,
        objective=[ImportanceWeightedELBO(steps=steps), Sleep(steps=max(1, steps // 2))],
        learning_rate=5e-3,
        validation=None,
        seed=seed,
        device=args.device,
        progress_bar=False,
    )
    return model, guide
