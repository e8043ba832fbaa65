"""The baselines: closed forms, finite differences, recovery, and one interface for all."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special
from torch import Tensor

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences
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
from fssa_bayes.io import load, save

MakeData = Callable[..., Preferences]

CLASSES = np.array([[2.0, -1.0], [-1.5, 0.5]])  # Coefficients, in nats per unit.
SHARES = np.array([0.65, 0.35])


def simulate(
    coefficients: np.ndarray,
    shares: np.ndarray,
    num_users: int,
    num_comparisons: int,
    *,
    seed: int = 0,
) -> tuple[Preferences, np.ndarray]:
    """Draws people of classes with linear utilities; returns the class of each too."""
    rng = np.random.default_rng(seed)
    member = rng.choice(len(shares), size=num_users, p=shares)
    total = num_users * num_comparisons
    items = rng.normal([1.0, -2.0], [1.0, 1.5], size=(2 * total, 2)).astype(np.float32)
    left, right = np.arange(0, 2 * total, 2), np.arange(1, 2 * total, 2)
    beta = coefficients[np.repeat(member, num_comparisons)]
    margin = ((items[left] - items[right]) * beta).sum(-1)
    choice = rng.random(total) < special.expit(margin)
    offsets = np.arange(0, total + 1, num_comparisons)
    return Preferences(left, right, choice, offsets, items=items), member


@pytest.fixture(scope="module")
def two_classes() -> tuple[Preferences, np.ndarray]:
    return simulate(CLASSES, SHARES, 400, 8)


@pytest.fixture(scope="module")
def mixture(two_classes: tuple[Preferences, np.ndarray]) -> MixtureBTL:
    return MixtureBTL(2, num_restarts=3).fit(two_classes[0], seed=1, progress_bar=False)


# ---------------------------------------------------------------------- the same interface


BASELINES: dict[str, Callable[[Preferences], Baseline]] = {
    "homogeneous": lambda data: HomogeneousBTL(),
    "homogeneous mlp": lambda data: HomogeneousBTL("mlp", 8),
    "normal utilities": lambda data: DistributionalBTL(hidden_dim=8),
    "mixture": lambda data: MixtureBTL(2, num_restarts=2),
    "mixture of networks": lambda data: MixtureBTL(2, "mlp", 4, num_restarts=1, max_iterations=3),
    "per label": lambda data: OneModelPerLabel(pd.Series(np.arange(len(data)) % 2)),
    "deterministic": lambda data: DeterministicNeuralProcess(hidden_dim=8, steps=5),
}
OF_TINY_DATA = pytest.mark.filterwarnings(
    "ignore:EM has not settled:UserWarning",
    "ignore:a coefficient of:UserWarning",
    "ignore:maximum likelihood did not converge:UserWarning",  # Networks of 24 people.
)


def people(half_wins: bool = False, num_features: int | None = 2) -> Preferences:
    """Draws 24 people with 4 to 7 choices at random among 9 items."""
    rng = np.random.default_rng(3)
    counts = rng.integers(4, 8, size=24)
    total = counts.sum()
    left = rng.integers(9, size=total)
    right = (left + rng.integers(1, 9, size=total)) % 9
    choice = rng.integers(3, size=total) / 2 if half_wins else rng.integers(2, size=total)
    items = None if num_features is None else rng.normal(size=(9, num_features))
    offsets = np.concatenate([[0], counts.cumsum()])
    return Preferences(left, right, choice, offsets, items=items, num_items=9)


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
    parts = [_columns(data, slice(n, n + 1)) for n in range(shortest)]
    for number in range(shortest):
        context = _columns(data, slice(0, number))
        total += baseline.predict(context).log_score(parts[number]).double()
    evidence = baseline.log_evidence(_columns(data, slice(0, shortest)))
    assert evidence.dtype == torch.float64
    torch.testing.assert_close(evidence, total, rtol=1e-4, atol=1e-4)


def _columns(data: Preferences, which: slice) -> Preferences:
    """Keeps some of everybody's comparisons, by their order."""
    rows = [np.arange(a, b)[which] for a, b in zip(data.offsets, data.offsets[1:], strict=False)]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
    flat = np.concatenate(rows).astype(int)
    return Preferences(
        data.left[flat], data.right[flat], data.choice[flat], offsets, items=data.items
    )


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


# ---------------------------------------------------------------------- homogeneous BTL


def test_classical_and_sandwich_errors_by_hand() -> None:
    """Two items: the coefficient is logit(share), with the errors of a share of clusters."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 7, size=60)
    total = counts.sum()
    habit = np.repeat(rng.random(60), counts)  # People repeat themselves.
    choice = rng.random(total) < habit
    items = np.array([[0.0], [1.0]])
    offsets = np.concatenate([[0], counts.cumsum()])
    ones, zeros = np.ones(total, dtype=int), np.zeros(total, dtype=int)
    data = Preferences(ones, zeros, choice, offsets, items=items)
    table = HomogeneousBTL().fit(data, progress_bar=False).coefficients()
    share = choice.mean()
    information = total * share * (1 - share)
    score = np.add.reduceat(choice - share, offsets[:-1])
    row = table.iloc[0]
    assert row["estimate"] == pytest.approx(special.logit(share), rel=1e-5)
    assert row["se_hessian"] == pytest.approx(information**-0.5, rel=1e-5)
    assert row["se_sandwich"] == pytest.approx((score**2).sum() ** 0.5 / information, rel=1e-5)
    assert row["se_sandwich"] > 1.15 * row["se_hessian"]


def test_sandwich_is_the_spread_of_refits_and_the_classical_error_is_not(
    two_classes: tuple[Preferences, np.ndarray],
) -> None:
    """People differ, which the homogeneous model does not know: resampling people tells."""
    data = two_classes[0].subset(range(200))
    table = HomogeneousBTL().fit(data, progress_bar=False).coefficients()
    rng = np.random.default_rng(0)
    refits = []
    for _ in range(120):
        sample = data.subset(rng.integers(200, size=200))
        refit = HomogeneousBTL().fit(sample, progress_bar=False)
        refits.append((refit.model.utility.mean / refit.model.feature_scale).detach().numpy())
    spread = np.std(refits, axis=0, ddof=1)
    # The relative standard error of a spread of 120 values is 6.5 %.
    np.testing.assert_allclose(table["se_sandwich"], spread, rtol=0.25)
    assert (spread > 1.4 * table["se_hessian"]).all()


def test_errors_agree_where_the_model_is_true() -> None:
    data, _ = simulate(CLASSES[:1], np.ones(1), 3000, 5, seed=4)
    table = HomogeneousBTL().fit(data, progress_bar=False).coefficients()
    np.testing.assert_allclose(table["se_sandwich"], table["se_hessian"], rtol=0.06)
    assert (np.abs(table["estimate"] - CLASSES[0]) < 3 * table["se_hessian"]).all()


@OF_TINY_DATA
def test_a_network_has_no_coefficients() -> None:
    baseline = HomogeneousBTL("mlp", 4).fit(people(), progress_bar=False)
    with pytest.raises(ValueError, match="utility='linear'"):
        baseline.coefficients()
    assert isinstance(baseline.predict(people()), Posterior)


# ---------------------------------------------------------------------- uncertain utilities


def fitted_head(parameters: Tensor) -> tuple[DistributionalBTL, Preferences]:
    """Returns a model of items without features whose parameters are given, (M, 2)."""
    count = len(parameters)
    pairs = np.array([(i, j) for i in range(count) for j in range(count) if i != j])
    data = Preferences(
        pairs[:, 0], pairs[:, 1], np.arange(len(pairs)) % 2, [0, len(pairs)], num_items=count
    )
    baseline = DistributionalBTL("linear")
    baseline.model = HeterogeneousBTL(count, 0, "distributional-linear")
    with torch.no_grad():
        baseline.model.utility.net.weight.copy_(parameters.T)
        baseline.model.utility.net.bias.zero_()
    return baseline, data


def unbounded(log_sd: Tensor) -> Tensor:
    """Inverts the bound of log σ, 3 tanh(x / 3)."""
    return 3 * torch.atanh(log_sd / 3)


def test_equal_variances_are_a_probit() -> None:
    mean = torch.tensor([0.0, 0.7, -1.9, 3.1])
    log_sd = torch.full((4,), math.log(1.7))
    baseline, data = fitted_head(torch.stack([mean, unbounded(log_sd)], -1))
    prob = baseline.predict(data).choice_prob(data).mean[0].numpy()
    difference = (mean[data.left] - mean[data.right]).numpy()
    np.testing.assert_allclose(prob, special.ndtr(difference / (1.7 * math.sqrt(2))), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.05, 1.0, 100.0])
def test_normal_utilities_by_their_closed_form_and_in_the_tails(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 4 * scale * torch.randn(6, generator=generator)
    log_sd = 0.5 * torch.randn(6, generator=generator)
    baseline, data = fitted_head(torch.stack([mean, unbounded(log_sd)], -1))
    left, right = torch.from_numpy(data.left), torch.from_numpy(data.right)
    sd = log_sd.double().exp()
    t = (mean[left] - mean[right]).double() / (sd[left].square() + sd[right].square()).sqrt()
    batch = data.batch()
    choice = baseline.model.choice(batch, torch.zeros(1, 1, 0))
    log_prob = choice.log_prob_each(batch.choice)[0, 0].detach().double()
    expected = special.log_ndtr(((2 * batch.choice[0] - 1) * t).numpy())
    np.testing.assert_allclose(log_prob.numpy(), expected, rtol=2e-5, atol=1e-7)
    if scale == 100:
        assert expected.min() < -1e4  # Where 1 − Φ is nothing but rounding.
    choice.log_prob(batch.choice).sum().backward()
    assert torch.isfinite(baseline.model.utility.net.weight.grad).all()


def test_normal_utilities_are_recovered() -> None:
    """Item 3 divides people; its spread shows, although its mean is that of item 1."""
    rng = np.random.default_rng(0)
    mean, sd = np.array([0.0, 1.0, 2.0, 1.0]), np.array([0.7, 0.7, 0.7, 2.5])
    total = 40_000
    left = rng.integers(4, size=total)
    right = (left + rng.integers(1, 4, size=total)) % 4
    noise = rng.normal(size=(2, total))
    choice = mean[left] + sd[left] * noise[0] > mean[right] + sd[right] * noise[1]
    data = Preferences(left, right, choice, np.arange(0, total + 1, 20), num_items=4)
    table = DistributionalBTL("linear").fit(data, progress_bar=False).item_table(data)
    unit = np.exp(np.log(sd).mean())
    np.testing.assert_allclose(table["sd"], sd / unit, rtol=0.12)
    np.testing.assert_allclose(table["mean"], (mean - mean.mean()) / unit, atol=0.06)


# ---------------------------------------------------------------------- mixtures


def test_em_recovers_classes_and_shares(
    mixture: MixtureBTL, two_classes: tuple[Preferences, np.ndarray]
) -> None:
    data, member = two_classes
    table = mixture.coefficients()
    truth = np.concatenate([[*CLASSES[c], SHARES[c]] for c in (0, 1)])
    for form in ("se_hessian", "se_outer_product", "se_sandwich"):
        assert (np.abs(table["estimate"] - truth) < 3 * table[form]).all()
    assert table.index.get_level_values("term").tolist() == ["0", "1", "share"] * 2
    posterior = mixture.class_posterior(data)
    np.testing.assert_allclose(posterior.sum(axis=1), 1, rtol=1e-9)
    assert (posterior[2].to_numpy() > 0.5).astype(int)[member == 1].mean() > 0.85
    # Class probabilities are calibrated: their mean is the share.
    np.testing.assert_allclose(posterior.mean(), mixture.weights, atol=1e-3)


@pytest.mark.parametrize(("utility", "restarts"), [("linear", 3), ("mlp", 1)])
@OF_TINY_DATA
def test_em_never_falls(
    utility: str, restarts: int, two_classes: tuple[Preferences, np.ndarray]
) -> None:
    data = two_classes[0].subset(range(60))
    baseline = MixtureBTL(3, utility, 4, num_restarts=restarts, max_iterations=40)
    baseline.fit(data, seed=3, progress_bar=False)
    for _, run in baseline.history.groupby("restart"):
        steps = run["log_likelihood"].diff().dropna()
        assert len(steps) > 5
        assert steps.min() > -1e-9 * abs(run["log_likelihood"].iloc[0])
    assert run["iteration"].is_monotonic_increasing
    # Where it ends, shares are means of class probabilities.
    shares = baseline.class_posterior(data).mean()
    np.testing.assert_allclose(shares, baseline.weights, atol=0.02)
    largest = baseline.history["log_likelihood"].max()
    assert baseline.log_likelihood == pytest.approx(largest, rel=1e-9)
    assert baseline.log_evidence(data).sum().item() == pytest.approx(largest, rel=1e-5)


def test_one_class_is_the_homogeneous_model(two_classes: tuple[Preferences, np.ndarray]) -> None:
    data = two_classes[0].subset(range(100))
    one, single = MixtureBTL(1).fit(data, progress_bar=False), HomogeneousBTL()
    single.fit(data, progress_bar=False)
    columns = ["estimate", "se_hessian", "se_outer_product", "se_sandwich"]
    shown = one.coefficients().loc[1].drop("share")[columns]
    np.testing.assert_allclose(shown, single.coefficients()[columns], rtol=1e-4)
    torch.testing.assert_close(one.log_evidence(data), single.log_evidence(data), rtol=1e-6, atol=0)


def test_errors_of_a_mixture_by_finite_differences(
    mixture: MixtureBTL, two_classes: tuple[Preferences, np.ndarray]
) -> None:
    """The Hessian and people's scores of the log-likelihood, written out with NumPy."""
    data, _ = two_classes
    difference = (data.items[data.left] - data.items[data.right]).double().numpy()
    sign = 2 * data.choice.astype(float) - 1

    def evidence(theta: np.ndarray) -> np.ndarray:
        share = np.array([1 - special.expit(theta[4]), special.expit(theta[4])])
        columns = [
            np.add.reduceat(-np.logaddexp(0, -sign * (difference @ beta)), data.offsets[:-1])
            for beta in (theta[:2], theta[2:4])
        ]
        return special.logsumexp(np.stack(columns, -1) + np.log(share), axis=-1)

    table = mixture.coefficients()
    estimate = table["estimate"].to_numpy()
    theta = np.array([*estimate[:2], *estimate[3:5], special.logit(estimate[5])])
    step = 1e-4 * np.eye(5)
    score = np.stack([(evidence(theta + h) - evidence(theta - h)) / 2e-4 for h in step], -1)
    assert np.abs(score.sum(0)).max() < 0.05  # It is a maximum.

    def slope(at: np.ndarray) -> np.ndarray:
        return np.array([(evidence(at + h) - evidence(at - h)).sum() / 2e-4 for h in step])

    hessian = np.stack([(slope(theta + h) - slope(theta - h)) / 2e-4 for h in step])
    bread, meat = np.linalg.inv(-(hessian + hessian.T) / 2), score.T @ score
    to_share = np.diag([1, 1, 1, 1, estimate[5] * (1 - estimate[5])])
    forms = {
        "se_hessian": bread,
        "se_outer_product": np.linalg.inv(meat),
        "se_sandwich": bread @ meat @ bread,
    }
    for form, covariance in forms.items():
        expected = np.sqrt(np.diag(to_share @ covariance @ to_share))
        shown = table[form].to_numpy()[[0, 1, 3, 4, 5]]
        np.testing.assert_allclose(shown, expected, rtol=2e-3)


def test_class_probabilities_follow_from_what_is_known(mixture: MixtureBTL) -> None:
    """One telling comparison: Bayes' rule by hand; none: the shares."""
    items = np.array([[1.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    data = Preferences([0], [1], [1], [0, 1, 1], items=items)
    posterior = mixture.class_posterior(data).to_numpy()
    np.testing.assert_allclose(posterior[1], mixture.weights, rtol=1e-6)
    table = mixture.coefficients()["estimate"]
    joint = mixture.weights.numpy() * special.expit([table[1, "0"], table[2, "0"]])
    np.testing.assert_allclose(posterior[0], joint / joint.sum(), rtol=1e-5)
    target = Preferences([1, 1], [0, 0], [0, 1], [0, 1, 2], items=items)
    prob = mixture.predict(data).choice_prob(target)
    chances = special.expit([-table[1, "0"], -table[2, "0"]])
    np.testing.assert_allclose(prob.mean[:, 0], posterior @ chances, rtol=1e-5)
    np.testing.assert_allclose(prob.lower[:, 0], chances.min(), rtol=1e-5)


@pytest.mark.parametrize("options", [{"ties": "davidson"}, {"position_bias": True}])
def test_a_mixture_with_other_answers(options: dict) -> None:
    """One class: the likelihood and the errors of the homogeneous model with such answers."""
    data = people(half_wins=True)
    data = data.with_choices(data.choice, ties="keep" if "ties" in options else "half")
    one = MixtureBTL(1, **options).fit(data, progress_bar=False)
    single = HomogeneousBTL(**options).fit(data, progress_bar=False)
    shown = one.coefficients().loc[1].drop("share")
    np.testing.assert_allclose(shown, single.coefficients(), rtol=1e-3)
    context, target = data.split_context(2, seed=0)
    tie = one.predict(context).choice_prob(target).tie
    expected = single.predict(context).choice_prob(target).tie
    torch.testing.assert_close(tie, expected, equal_nan=True, rtol=1e-4, atol=1e-6)


@OF_TINY_DATA
def test_separated_choices_and_too_few_iterations_are_said() -> None:
    items = np.array([[0.0], [0.1], [10.0]])
    ones, zeros = np.ones(40, dtype=int), np.zeros(40, dtype=int)
    choice = np.repeat(np.arange(8) % 2, 5)  # Half the people never take item 1, half always.
    data = Preferences(ones, zeros, choice, np.arange(0, 41, 5), items=items)
    with pytest.warns(UserWarning, match="choices of a class are separated"):
        MixtureBTL(2, num_restarts=1).fit(data, progress_bar=False)
    with pytest.warns(UserWarning, match="EM has not settled after max_iterations=2"):
        MixtureBTL(2, "mlp", 4, num_restarts=1, max_iterations=2).fit(people(), progress_bar=False)


@pytest.mark.slow
def test_the_number_of_classes_is_found(two_classes: tuple[Preferences, np.ndarray]) -> None:
    data = two_classes[0].subset(range(240))

    def build(number: int) -> MixtureBTL:
        return MixtureBTL(number, num_restarts=2, max_iterations=40)

    chosen, table = choose_num_classes(build, data, (1, 2, 3), num_folds=3)
    assert chosen == 2
    assert table.loc[1, "elpd_diff"] > 5 * table.loc[1, "dse"]


def test_people_left_out_are_scored_by_fits_to_the_others() -> None:
    data, _ = simulate(CLASSES, SHARES, 40, 6, seed=2)
    score = leave_users_out(HomogeneousBTL, data, 2, seed=3)

    def build() -> tuple[HeterogeneousBTL, None]:
        return HeterogeneousBTL(2, 0, "linear"), None

    other = leave_users_out(build, data, 2, seed=3)
    np.testing.assert_allclose(score.values, other.values, rtol=1e-4)
    assert (score.unit, score.digest) == (other.unit, other.digest)
    assert compare({"a": score, "b": other})["elpd_diff"].abs().max() < 1e-2


# ---------------------------------------------------------------------- labels and the signal


def test_the_oracle_is_separate_fits(two_classes: tuple[Preferences, np.ndarray]) -> None:
    data, member = two_classes
    labels = pd.Series(np.where(member == 0, "many", "few"))
    oracle = OneModelPerLabel(labels).fit(data, progress_bar=False)
    context, target = data.split_context(3, seed=0)
    prob, score = oracle.predict(context).choice_prob(target), oracle.predict(context)
    evidence = oracle.log_evidence(data)
    for number, label in enumerate(("many", "few")):
        own = np.flatnonzero(member == number)
        single = HomogeneousBTL().fit(data.subset(own), progress_bar=False)
        pd.testing.assert_frame_equal(oracle.coefficients().loc[label], single.coefficients())
        predictions = single.predict(context.subset(own))
        assert torch.equal(prob.mean[own], predictions.choice_prob(target.subset(own)).mean)
        assert torch.equal(score.log_score(target)[own], predictions.log_score(target.subset(own)))
        assert torch.equal(evidence[own], single.log_evidence(data.subset(own)))
    with pytest.raises(TypeError, match="labels must be a mapping"):
        OneModelPerLabel(["many", "few"])
    strange = OneModelPerLabel(labels.mask(labels.index == 7, "none of these"))
    strange.members = oracle.members
    with pytest.raises(ValueError, match="got 'none of these'"):
        strange.predict(context)


def test_the_published_signal_predicts_at_one_point() -> None:
    data = people()
    baseline = DeterministicNeuralProcess(hidden_dim=8, steps=5).fit(data, progress_bar=False)
    context, target = data.split_context(3, seed=0)
    z = baseline.guide.location(context.batch())
    batch = target.batch()
    expected = baseline.model.choice(batch, z.unsqueeze(0)).mean[0]
    prob = baseline.predict(context).choice_prob(target)
    torch.testing.assert_close(prob.mean[batch.mask], expected[batch.mask])
    assert torch.equal(prob.lower[batch.mask], prob.upper[batch.mask])
    assert prob.epistemic[batch.mask].max() < 1e-6
    assert baseline.result.history["stage"].unique().tolist() == ["PredictiveLikelihood"]


def test_a_baseline_can_be_fitted_again() -> None:
    """A module of one's own is copied, so that a fit does not start from another's end."""
    first = HomogeneousBTL().fit(people(), progress_bar=False)
    before = copy.deepcopy(first.coefficients())
    first.fit(people().subset(range(7)), progress_bar=False)
    first.fit(people(), progress_bar=False)
    pd.testing.assert_frame_equal(first.coefficients(), before)


# ---------------------------------------------------------------------- what could mislead


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


def test_distributional_learning_says_nothing_that_needs_the_spread() -> None:
    """Ranks of the means are no ranks of utilities that vary."""
    data, _ = simulate(CLASSES, SHARES, 20, 4)
    baseline = DistributionalBTL("linear").fit(data, progress_bar=False)
    posterior = baseline.predict(data)
    for method in (posterior.rank_prob, posterior.differences):
        with pytest.raises(ValueError, match="item_table"):
            method(data.items[:3])


@pytest.mark.parametrize("utility", ["linear", "mlp"])
def test_a_distributional_model_is_saved_and_loaded(utility: str, tmp_path: Path) -> None:
    data, _ = simulate(CLASSES, SHARES, 30, 4)
    baseline = DistributionalBTL(utility, hidden_dim=8).fit(data, progress_bar=False)
    save(tmp_path / "model", baseline.model)
    model, guide = load(tmp_path / "model")
    assert guide is None
    expected = baseline.predict(data).log_score(data)
    assert torch.equal(Posterior(model, None, data).log_score(data), expected)


@pytest.mark.parametrize("iterations", [1, 4])
def test_em_takes_no_more_iterations_than_it_may(iterations: int) -> None:
    data, _ = simulate(CLASSES, SHARES, 40, 4)
    mixture = MixtureBTL(2, "mlp", 4, num_restarts=2, max_iterations=iterations, tolerance=1e-9)
    with pytest.warns(UserWarning, match=f"max_iterations={iterations}"):
        mixture.fit(data, progress_bar=False)
    assert mixture.history["iteration"].max() == iterations


@pytest.mark.parametrize(
    ("argument", "value"), [("num_classes", True), ("tolerance", "a"), ("max_iterations", 1.5)]
)
def test_a_mixture_names_the_option_that_is_wrong(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be"):
        MixtureBTL(**({"num_classes": 2} | {argument: value}))


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
