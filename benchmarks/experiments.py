"""The experiments of the field's papers and the baselines, one function a table.

Every table is a function of the arguments that yields rows; `TABLES` lists them.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.crowds import crowds, size
from benchmarks.harness import Row, spread
from benchmarks.known_truth import clusters, hidden_context
from benchmarks.published import PublishedModel
from fssa_bayes import (
    HeterogeneousBTL,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    fit,
)
from fssa_bayes.baselines import (
    DeterministicNeuralProcess,
    DistributionalBTL,
    HomogeneousBTL,
    MixtureBTL,
)
from fssa_bayes.comparison import compare, leave_users_out
from fssa_bayes.datasets import train_choice as train_choices
from fssa_bayes.datasets import two_mode

CONTEXTS = (0, 1, 3, 5, 10)
OURS = "fssa_bayes"

# Takes a context and its target; returns P(left) (U, N), and the log score of each person (U,).
Predict = Callable[[Preferences, Preferences], tuple[Tensor, Tensor]]


def run(args: argparse.Namespace) -> Iterator[Row]:
    for table in TABLES:
        yield from table(args)


# Two modes.


def two_modes(args: argparse.Namespace) -> Iterator[Row]:
    """Ours and the baselines on the two-mode problem, on the same fresh people.

    The mixture has two classes, the form of the truth, which is not known in general.
    """
    people, fresh = (200, 60) if args.quick else (10_000, 3_000)
    values = defaultdict(list)
    for seed in args.seeds:
        data = two_mode.simulate(people, 20, seed=seed).data
        tests = {
            count: two_mode.simulate(fresh, count + 10, seed=1_000_000 + seed).data.split_context(
                count, seed=seed
            )
            for count in CONTEXTS
        }
        ours = {}
        for name, build in TWO_MODE_METHODS.items():
            start = time.process_time()
            predict = build(data, seed, args.quick)
            values[name, "fit", "CPU time", "s"].append(time.process_time() - start)
            for count, (context, target) in tests.items():
                prob, score = predict(context, target)
                rows = two_mode.compare_with_bayes(prob.flatten().numpy(), context, target)
                loss = -score.numpy()
                ours.setdefault(count, loss)
                figures = {
                    ("accuracy", "%"): 100 * rows["accuracy"],
                    ("log-loss", "nats"): loss,
                    ("log-loss above ours", "nats"): loss - ours[count],
                    ("log-loss above Bayes", "nats"): loss - rows["bayes_log_loss"],
                }
                case = f"two modes, {count} contexts"
                for (metric, unit), by_person in figures.items():
                    values[name, case, metric, unit].append(by_person.mean())
                    error = by_person.std(ddof=1) / np.sqrt(fresh)
                    values[name, case, f"{metric}: standard error", unit].append(error)
    for (name, case, metric, unit), figures in values.items():
        yield spread("experiments", case, name, metric, unit, figures)


def _ours(data: Preferences, seed: int, quick: bool) -> Predict:
    """Fits with the default objectives and steps, to everybody."""
    torch.manual_seed(seed)
    model = HeterogeneousBTL(1, latent_dim=2)
    guide = NeuralProcessGuide(model)
    steps = 20 if quick else None
    fit(model, guide, data, steps=steps, validation=None, seed=seed, progress_bar=False)
    return _predict_by(lambda context: Posterior(model, guide, context, seed=seed))


def _baseline(build: Callable[[bool], object], people: int | None) -> Callable[..., Predict]:
    """Fits a baseline, if it uses no minibatches to the first people only."""

    def fitted(data: Preferences, seed: int, quick: bool) -> Predict:
        some = data if people is None else data.subset(range(min(len(data), people)))
        baseline = build(quick).fit(some, seed=seed, progress_bar=False)
        return _predict_by(baseline.predict)

    return fitted


def _predict_by(posterior_of: Callable[[Preferences], Posterior]) -> Predict:
    def predict(context: Preferences, target: Preferences) -> tuple[Tensor, Tensor]:
        posterior = posterior_of(context)
        return posterior.choice_prob(target).mean, posterior.log_score(target)

    return predict


def _published(data: Preferences, seed: int, quick: bool) -> Predict:
    """Trains the published network by the published signal: the target's likelihood at one z."""
    steps = 20 if quick else 1000
    torch.manual_seed(seed)
    model = PublishedModel(1, 256)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        pairs, choice = _pairs(data.subset(rng.choice(len(data), 64, replace=False)))
        size = int(rng.integers(11))  # Known choices, of the first ten.
        margin = model.margin((pairs[:, :size], choice[:, :size]), pairs[:, 10:])
        loss = -F.logsigmoid((2 * choice[:, 10:] - 1) * margin).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()

    @torch.no_grad()
    def predict(context: Preferences, target: Preferences) -> tuple[Tensor, Tensor]:
        pairs, choice = _pairs(target)
        margin = model.margin(_pairs(context), pairs)
        return margin.sigmoid(), F.logsigmoid((2 * choice - 1) * margin).mean(-1)

    return predict


def _pairs(data: Preferences) -> tuple[Tensor, Tensor]:
    """Returns pairs (U, N, 2, D) and choices (U, N) of people with as many comparisons each."""
    batch = data.batch()
    return data.items[_rows(data)], batch.choice


def _rows(data: Preferences) -> Tensor:
    pairs = np.stack([data.left, data.right], -1).astype(np.int64)
    return torch.from_numpy(pairs.reshape(len(data), -1, 2))


TWO_MODE_METHODS: dict[str, Callable[..., Predict]] = {
    OURS: _ours,
    "BTL": _baseline(lambda quick: HomogeneousBTL("mlp", 32), 1_000),
    "DPL": _baseline(lambda quick: DistributionalBTL(hidden_dim=32), 1_000),
    "mixture of 2": _baseline(
        lambda quick: MixtureBTL(
            2, "mlp", 16, num_restarts=1, max_iterations=5 if quick else 60, tolerance=1e-3
        ),
        400,
    ),
    "published signal": _baseline(
        lambda quick: DeterministicNeuralProcess(steps=20 if quick else 1000), None
    ),
    "published network": _published,
}


# Train choices.


def train_choice(args: argparse.Namespace) -> Iterator[Row]:
    """A mixture of 3 classes against random coefficients on held-out people; standard errors.

    Random coefficients are fitted in 250 steps a stage.
    """
    if args.data is None:
        print("experiments: train_choice skipped, it needs --data PATH")
        return
    data = train_choices.read(args.data)
    yield from _homogeneous_errors(data)
    values = defaultdict(list)
    for seed in args.seeds:
        scores = {
            name: leave_users_out(
                lambda build=build: build(args.quick),
                data,
                2 if args.quick else 5,
                seed=seed,
                fit_options={"steps": 5 if args.quick else 250},
            )
            for name, build in TRAIN_MODELS.items()
        }
        table = compare(scores)
        for name, score in scores.items():
            values[name, "elpd"].append(score.total)
            values[name, "its standard error"].append(score.standard_error)
            values[name, "below the best"].append(table.loc[name, "elpd_diff"])
            values[name, "standard error of that"].append(table.loc[name, "dse"])
    for (name, metric), figures in values.items():
        case = "train choice, left out"
        yield spread("experiments", case, name, metric, "nats", figures)


def _homogeneous_errors(data: Preferences) -> Iterator[Row]:
    baseline = HomogeneousBTL().fit(data, progress_bar=False)
    case, name = "train choice", "BTL"
    value = baseline.log_evidence(data).sum().item()
    yield spread("experiments", case, name, "log-likelihood", "nats", [value])
    for term, row in baseline.coefficients().iterrows():
        for column, number in row.items():
            yield spread("experiments", case, name, f"{term}: {column}", "nats", [number])


def _random_coefficients(quick: bool) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    model = HeterogeneousBTL(4, latent_dim=4, utility="linear")
    return model, NeuralProcessGuide(model, "multivariate_normal")


TRAIN_MODELS: dict[str, Callable[[bool], object]] = {
    "random coefficients": _random_coefficients,
    "mixture of 3": lambda quick: MixtureBTL(3, num_restarts=2 if quick else 20),
    "BTL": lambda quick: HomogeneousBTL(),
}

TABLES = (two_modes, train_choice, hidden_context, clusters, crowds, size)
