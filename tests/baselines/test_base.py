"""One interface: laws of probability, evidence, seeds and mistakes of every baseline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from class_people import CLASSES, OF_TINY_DATA, SHARES, people, simulate

from fssa_bayes import HeterogeneousBTL, Preferences
from fssa_bayes.baselines import (
    Baseline,
    DeterministicNeuralProcess,
    DistributionalBTL,
    HomogeneousBTL,
    MixtureBTL,
    OneModelPerLabel,
    choose_num_classes,
)
from fssa_bayes.comparison import compare, leave_users_out

BASELINES: dict[str, Callable[[Preferences], Baseline]] = {
    "homogeneous": lambda data: HomogeneousBTL(),
    "homogeneous mlp": lambda data: HomogeneousBTL("mlp", 8),
    "normal utilities": lambda data: DistributionalBTL(hidden_dim=8),
    "mixture": lambda data: MixtureBTL(2, num_restarts=2),
    "mixture of networks": lambda data: MixtureBTL(2, "mlp", 4, num_restarts=1, max_iterations=3),
    "per label": lambda data: OneModelPerLabel(pd.Series(np.arange(len(data)) % 2)),
    "deterministic": lambda data: DeterministicNeuralProcess(hidden_dim=8, steps=5),
}


@OF_TINY_DATA
@pytest.mark.parametrize("name", ["homogeneous", "mixture", "per label"])
def test_fits_of_less_than_a_second_show_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tqdm.std.time", lambda: 0.0)  # However busy the machine is.
    data = people()
    BASELINES[name](data).fit(data)
    assert capsys.readouterr().err == ""


@OF_TINY_DATA
@pytest.mark.parametrize("num_features", [2, None])
@pytest.mark.parametrize("name", BASELINES)
def test_predictions_obey_the_laws_of_probability(name: str, num_features: int | None) -> None:
    data = people(half_wins=True, num_features=num_features)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    baseline = BASELINES[name](data)
    assert baseline.fit(data, seed=5, progress_bar=False) is baseline
    context, target = data.split_context(2, seed=0)
    predictions = baseline.predict(context)
    prob, batch = predictions.choice_prob(target), target.batch()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.isnan(prob.mean), ~batch.mask)
    swapped = predictions.choice_prob(target.swap()).mean
    torch.testing.assert_close((prob.mean + swapped)[batch.mask], torch.ones(batch.mask.sum()))
    log_prob = torch.xlogy(batch.choice, prob.mean) + torch.xlogy(1 - batch.choice, swapped)
    expected = log_prob.masked_fill(~batch.mask, 0.0).sum(-1) / batch.num_comparisons
    torch.testing.assert_close(predictions.log_score(target), expected, rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(data))
    shuffled = baseline.predict(context.subset(order)).log_score(target.subset(order))
    torch.testing.assert_close(shuffled, expected[torch.from_numpy(order)], rtol=1e-4, atol=1e-5)


@OF_TINY_DATA
@pytest.mark.parametrize("name", [n for n in BASELINES if n != "deterministic"])
def test_evidence_is_the_chain_of_predictions(name: str) -> None:
    """log p(all choices) is the sum of log p(choice n | choices before it)."""
    data = people()
    baseline = BASELINES[name](data).fit(data, progress_bar=False)
    total = torch.zeros(len(data), dtype=torch.float64)
    shortest = int(data.counts.min())
    parts = [columns_of(data, slice(n, n + 1)) for n in range(shortest)]
    for number in range(shortest):
        context = columns_of(data, slice(0, number))
        total += baseline.predict(context).log_score(parts[number]).double()
    evidence = baseline.log_evidence(columns_of(data, slice(0, shortest)))
    assert evidence.dtype == torch.float64
    torch.testing.assert_close(evidence, total, rtol=1e-4, atol=1e-4)


def columns_of(data: Preferences, which: slice) -> Preferences:
    """Keeps some of everybody's comparisons, by their order."""
    rows = [np.arange(a, b)[which] for a, b in zip(data.offsets, data.offsets[1:], strict=False)]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
    flat = np.concatenate(rows).astype(int)
    return Preferences(
        data.left[flat], data.right[flat], data.choice[flat], offsets, items=data.items
    )


@pytest.mark.slow
@OF_TINY_DATA
@pytest.mark.parametrize("name", BASELINES)
def test_the_seed_decides(name: str) -> None:
    data = people()
    context, target = data.split_context(2, seed=0)
    scores = []
    for _ in range(2):
        torch.manual_seed(len(scores))
        baseline = BASELINES[name](data).fit(data, seed=2, progress_bar=False)
        scores.append(baseline.predict(context).log_score(target))
    assert torch.equal(*scores)


@pytest.mark.parametrize("name", BASELINES)
def test_mistakes_are_named(name: str) -> None:
    data = people(half_wins=True)
    kept = data.with_choices(data.choice, ties="keep")
    baseline = BASELINES[name](data)
    with pytest.raises(ValueError, match="must be fitted first"):
        baseline.predict(data)
    with pytest.raises(ValueError, match="data keeps ties"):
        baseline.fit(kept, progress_bar=False)
    with pytest.raises(TypeError, match="data must be Preferences"):
        baseline.fit("votes.csv", progress_bar=False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HomogeneousBTL("quadratic"), "utility must be"),
        (lambda: DistributionalBTL("bilinear"), "utility must be 'mlp' or 'linear'"),
        (lambda: DistributionalBTL(hidden_dim=0), "hidden_dim must be"),
        (lambda: MixtureBTL(0), "num_classes must be"),
        (lambda: MixtureBTL(2, num_restarts=0), "num_restarts must be"),
        (lambda: MixtureBTL(2, tolerance=0.0), "tolerance must be a positive number"),
        (lambda: MixtureBTL(25).fit(people()), "at least num_classes=25 people, got 24"),
        (lambda: DeterministicNeuralProcess(0), "latent_dim must be"),
        (lambda: OneModelPerLabel({0: "a"}).fit(people()), "none for user 1 .23 such people"),
        (lambda: choose_num_classes(MixtureBTL, people(), (2,)), "at least 2 numbers"),
    ],
)
def test_options_are_checked(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "build",
    [
        HomogeneousBTL,
        lambda: DistributionalBTL("linear"),
        lambda: DeterministicNeuralProcess(1, hidden_dim=8, steps=2),
    ],
)
def test_a_fit_that_fails_leaves_nothing_half_fitted(build: Callable[[], Baseline]) -> None:
    data, _ = simulate(CLASSES, SHARES, 20, 4)
    tied = data.with_choices(np.full(80, 0.5), ties="keep")
    baseline = build()
    with pytest.raises(ValueError, match="ties"):
        baseline.fit(tied, progress_bar=False)
    with pytest.raises(ValueError, match="must be fitted first"):
        baseline.predict(data)
    baseline.fit(data, progress_bar=False)
    before = baseline.predict(data).log_score(data)
    with pytest.raises(ValueError, match="ties"):
        baseline.fit(tied, progress_bar=False)
    assert torch.equal(baseline.predict(data).log_score(data), before)


def test_people_left_out_are_scored_by_fits_to_the_others() -> None:
    data, _ = simulate(CLASSES, SHARES, 40, 6, seed=2)
    score = leave_users_out(HomogeneousBTL, data, 2, seed=3)

    def build() -> tuple[HeterogeneousBTL, None]:
        return HeterogeneousBTL(2, 0, "linear"), None

    other = leave_users_out(build, data, 2, seed=3)
    np.testing.assert_allclose(score.values, other.values, rtol=1e-4)
    assert (score.unit, score.digest) == (other.unit, other.digest)
    assert compare({"a": score, "b": other})["elpd_diff"].abs().max() < 1e-2


def test_errors_name_people_labels_and_what_is_missing() -> None:
    data, _ = simulate(CLASSES, SHARES, 20, 4)
    with pytest.raises(ValueError, match=r"build must return .* got DeterministicNeuralProcess"):
        leave_users_out(lambda: DeterministicNeuralProcess(steps=1), data, 2)
    network = HomogeneousBTL("mlp", 4).fit(data, progress_bar=False)
    with pytest.raises(ValueError, match="needs utility='linear', .* got 'mlp'"):
        network.coefficients()
    with pytest.raises(ValueError, match=r"got none for user 1 \("):
        OneModelPerLabel({0: "a"}).fit(data)
    labels = pd.Series(np.arange(20) % 2)
    fitted = OneModelPerLabel(labels).fit(data.subset(np.arange(0, 20, 2)), progress_bar=False)
    with pytest.raises(ValueError, match=r"training people, \[0\], got 1$"):
        fitted.predict(data)
