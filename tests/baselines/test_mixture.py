"""Mixtures: recovery by EM, finite differences, Bayes' rule, the number of classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from class_people import CLASSES, OF_TINY_DATA, SHARES, people, simulate
from scipy import special

from fssa_bayes import Preferences
from fssa_bayes.baselines import (
    HomogeneousBTL,
    MixtureBTL,
    choose_num_classes,
)


@pytest.fixture(scope="module")
def mixture(two_classes: tuple[Preferences, np.ndarray]) -> MixtureBTL:
    return MixtureBTL(2, num_restarts=3).fit(two_classes[0], seed=1, progress_bar=False)


def test_em_recovers_classes_and_shares(
    mixture: MixtureBTL, two_classes: tuple[Preferences, np.ndarray]
) -> None:
    data, member = two_classes
    table = mixture.coefficients()
    truth = np.concatenate([[*CLASSES[c], SHARES[c]] for c in (0, 1)])
    for form in ("se_hessian", "se_outer_product", "se_sandwich"):
        assert (np.abs(table["estimate"] - truth) < 3 * table[form]).all()
    assert table.index.get_level_values("term").tolist() == [0, 1, "share"] * 2
    posterior = mixture.class_posterior(data)
    np.testing.assert_allclose(posterior.sum(axis=1), 1, rtol=1e-9)
    assert (posterior[2].to_numpy() > 0.5).astype(int)[member == 1].mean() > 0.85
    # Class probabilities are calibrated: their mean is the share.
    np.testing.assert_allclose(posterior.mean(), mixture.weights, atol=1e-3)


@pytest.mark.slow
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
    joint = mixture.weights.numpy() * special.expit([table[1, 0], table[2, 0]])
    np.testing.assert_allclose(posterior[0], joint / joint.sum(), rtol=1e-5)
    target = Preferences([1, 1], [0, 0], [0, 1], [0, 1, 2], items=items)
    prob = mixture.predict(data).choice_prob(target)
    chances = special.expit([-table[1, 0], -table[2, 0]])
    np.testing.assert_allclose(prob.mean[:, 0], posterior @ chances, rtol=1e-5)
    np.testing.assert_allclose(prob.lower[:, 0], chances.min(), rtol=1e-5)


@pytest.mark.parametrize("options", [{"ties": "davidson"}, {"position_bias": True}])
def test_a_mixture_with_other_answers(options: dict) -> None:
    """One class: the likelihood and the errors of the homogeneous model with such answers."""
    data = people(half_wins=True)
    data = data.with_choices(data.choice, ties="keep" if "ties" in options else "half")
    one = MixtureBTL(1, **options).fit(data, progress_bar=False)
    single = HomogeneousBTL(**options).fit(data, progress_bar=False)
    shown, expected = one.coefficients().loc[1].drop("share"), single.coefficients()
    sandwich = "se_sandwich"  # Of a mixture of few people by another correction.
    np.testing.assert_allclose(shown[sandwich], expected[sandwich], rtol=0.02)
    np.testing.assert_allclose(shown.drop(columns=sandwich), expected.drop(columns=sandwich), 1e-3)
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


@pytest.mark.slow
def test_the_number_of_classes_is_found(two_classes: tuple[Preferences, np.ndarray]) -> None:
    data = two_classes[0].subset(range(240))

    def build(number: int) -> MixtureBTL:
        return MixtureBTL(number, num_restarts=2, max_iterations=40)

    chosen, table = choose_num_classes(build, data, (1, 2, 3), num_folds=3)
    assert chosen == 2
    assert table.loc[1, "elpd_diff"] > 5 * table.loc[1, "dse"]
