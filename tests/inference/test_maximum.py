"""Maximum likelihood of a homogeneous model."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, Preferences, fit
from fssa_bayes.baselines.base import log_prob_of_people
from fssa_bayes.inference import FitResult
from fssa_bayes.inference.maximum import pooled_batches
from fssa_bayes.inference.objectives import MaximumLikelihood


def test_separated_choices_are_named() -> None:
    data = Preferences([0, 0, 1], [1, 2, 2], [1, 1, 1], [0, 3], num_items=3)
    with pytest.warns(UserWarning, match="separated"):
        fit(HeterogeneousBTL(3, 0, utility="linear"), None, data, progress_bar=False)


def test_one_person_with_very_many_comparisons_does_not_pad_the_others() -> None:
    """20,000 x 20,000 padded margins would need 3 GB; the maximum is that of the pooled choices."""
    rng = np.random.default_rng(0)
    counts = np.append(np.ones(20_000, dtype=int), 20_000)
    choice = rng.random(40_000) < 0.7
    left = np.zeros(40_000, dtype=int)
    data = Preferences(left, left + 1, choice, np.append(0, np.cumsum(counts)), num_items=2)
    model = HeterogeneousBTL(2, 0, utility="linear")
    fit(model, None, data, progress_bar=False)
    margin = (model.utility.mean[0] - model.utility.mean[1]).item()
    assert margin == pytest.approx(np.log(choice.mean() / (1 - choice.mean())), abs=1e-5)


def repeated(number: int, with_sides: bool) -> Preferences:
    """Comparisons of five items, most of which repeat others, each person's in random order."""
    rng = np.random.default_rng(3)
    left = rng.integers(5, size=number)
    right = (left + rng.integers(1, 5, size=number)) % 5
    choice = rng.choice([0, 1, 0.5], size=number)
    side = rng.choice([-1, 0, 1], size=number) if with_sides else None
    offsets = np.arange(0, number + 1, 10)
    return Preferences(left, right, choice, offsets, num_items=5, side=side, ties="keep")


@pytest.mark.filterwarnings("ignore:maximum likelihood")
def test_a_homogeneous_model_takes_maximum_likelihood_by_name() -> None:
    data = repeated(200, with_sides=False).with_choices(np.tile([1, 0, 1, 1, 0], 40))
    ends = []
    for objective in (None, MaximumLikelihood(), MaximumLikelihood(steps=1)):
        model = HeterogeneousBTL(5, 0, utility="linear")
        fit(model, None, data, objective=objective, progress_bar=False)
        ends.append(model.utility.mean.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("with_sides", [False, True])
def test_equal_comparisons_are_counted_once(with_sides: bool) -> None:
    data = repeated(3000, with_sides)
    merged, count = data.merged()
    assert merged.num_comparisons == len(count) <= 20 * 3 * 3
    assert count.sum() == 3000
    parts = [merged.left, merged.right, merged.choice]
    whole = [data.left, data.right, data.choice]
    if with_sides:
        parts, whole = [*parts, merged.side], [*whole, data.side]
    found = dict(zip(zip(*(p.tolist() for p in parts), strict=True), count.tolist(), strict=True))
    assert found == Counter(zip(*(p.tolist() for p in whole), strict=True))


@pytest.mark.parametrize("with_sides", [False, True])
def test_the_likelihood_of_merged_comparisons_is_that_of_all(with_sides: bool) -> None:
    data = repeated(3000, with_sides)
    model = HeterogeneousBTL(
        5, 0, utility="linear", ties="davidson", position_bias=True, lapses=True
    ).double()
    with torch.no_grad():
        model.utility.mean.copy_(torch.linspace(-1, 1, 5))
        model.bias.fill_(0.4)
    (batch,) = pooled_batches(data, model)
    assert int(batch.mask.sum()) <= 180
    merged = MaximumLikelihood().loss(model, None, batch) * batch.num_users
    whole = -log_prob_of_people(model, data).sum()
    assert merged.item() == pytest.approx(whole.item(), rel=1e-12)


def test_people_and_the_order_of_their_answers_do_not_matter_to_the_bit() -> None:
    data = repeated(3000, True)
    means = []
    for people in (np.arange(300), np.random.default_rng(0).permutation(300)):
        model = HeterogeneousBTL(5, 0, utility="linear", ties="davidson", position_bias=True)
        fit(model, None, data.subset(people), progress_bar=False)
        means.append([*model.utility.mean.tolist(), model.bias.item(), model.log_tie.item()])
    assert means[0] == means[1]


def test_comparisons_that_differ_are_left_as_they_are() -> None:
    left = np.arange(0, 40, 2)
    data = Preferences(left, left + 1, left % 4 / 2, [0, 12, 20], num_items=40)
    merged, count = data.merged(8)
    assert count is None
    assert merged.digest() == data.pooled(8).digest()


@pytest.mark.parametrize(("number", "penalty"), [(2000, 0.0), (0, 1e9)])
def test_many_comparisons_or_a_heavy_prior_are_no_lack_of_convergence(
    number: int, penalty: float
) -> None:
    """A gradient of rounding grows with both; warnings are errors here."""
    rng = np.random.default_rng(0)
    left = rng.integers(5, size=200)
    right = (left + rng.integers(1, 5, size=200)) % 5
    choice = rng.random(200) < 1 / (1 + np.exp((left - right) / 2))
    rows = [np.repeat(column, max(number, 1)) for column in (left, right, choice)]
    offsets = np.array([0, len(rows[0])])
    data = Preferences(*rows, offsets, num_items=5)
    model = HeterogeneousBTL(5, 0, utility="linear", penalty=penalty)
    fit(model, None, data, progress_bar=False)
    gradient = MaximumLikelihood().loss(model.double(), None, *pooled_batches(data, model))
    if not penalty:
        gradient.backward()
        assert model.utility.mean.grad.abs().max() < 1e-6 * len(rows[0])


def test_a_fit_that_ends_early_is_said_of_many_comparisons_too() -> None:
    data = repeated(3000, with_sides=False)
    model = HeterogeneousBTL(5, 0, utility="linear", ties="davidson")
    with pytest.warns(UserWarning, match="did not converge in 1 iterations"):
        fit(model, None, data, steps=1, progress_bar=False)


# Newton's method and L-BFGS.


def compare(data: Preferences, **options: object) -> tuple[FitResult, FitResult]:
    """Fits by both methods, whatever the rule says."""
    results = []
    for most in (2000, 0):
        model = HeterogeneousBTL(data.num_features, 0, "linear", **options).double()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fssa_bayes.inference.maximum._MOST_ITEMS", most)
            patch.setattr("fssa_bayes.inference.maximum._MOST_FEATURES", most)
            results.append(fit(model, None, data, progress_bar=False))
    assert len(results[0].history) < len(results[1].history)
    return results[0], results[1]


def estimates(result: FitResult) -> np.ndarray:
    model = result.model
    values = [model.utility.mean, *model.answer_parameters().values()]
    return torch.cat([value.detach().reshape(-1) for value in values]).numpy()


def draw_graph(seed: int, num_items: int, number: int, **options: object) -> Preferences:
    """Draws comparisons of neighbours on a ring and of some distant items, with half wins."""
    rng = np.random.default_rng(seed)
    utility = rng.normal(size=num_items)
    left = rng.integers(num_items, size=number)
    right = (left + rng.choice([1, 2, num_items // 2], size=number)) % num_items
    choice = (rng.random(number) < 1 / (1 + np.exp(utility[right] - utility[left]))) * 1.0
    choice[rng.random(number) < 0.1] = 0.5
    cuts = np.sort(rng.choice(np.arange(1, number), 20, replace=False))
    offsets = np.concatenate([[0], cuts, [number]])
    return Preferences(left, right, choice, offsets, num_items=num_items, **options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("num_items", "number"), [(5, 300), (40, 3000), (90, 2500)])
def test_both_methods_have_the_same_estimates(seed: int, num_items: int, number: int) -> None:
    newton, lbfgs = compare(draw_graph(seed, num_items, number))
    np.testing.assert_allclose(estimates(newton), estimates(lbfgs), atol=1e-6)
    assert newton.history["loss"].iloc[-1] == pytest.approx(
        lbfgs.history["loss"].iloc[-1], abs=1e-9
    )
    assert abs(estimates(newton).sum()) < 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {"penalty": 0.5},
        {"ties": "davidson"},
        {"position_bias": True},
        {"ties": "davidson", "position_bias": True, "penalty": 2.0},
    ],
    ids=str,
)
def test_both_methods_agree_on_answers_and_priors(options: dict) -> None:
    data = draw_graph(7, 12, 2000, ties="keep" if "ties" in options else "half")
    newton, lbfgs = compare(data, **options)
    np.testing.assert_allclose(estimates(newton), estimates(lbfgs), atol=2e-6)


def test_both_methods_agree_on_features() -> None:
    data = draw_graph(3, 30, 2000)
    items = np.random.default_rng(0).normal(size=(30, 4)) * [1.0, 1e3, 1e-2, 1.0]
    columns = data.left, data.right, data.choice, data.offsets
    newton, lbfgs = compare(Preferences(*columns, items=items))
    np.testing.assert_allclose(estimates(newton), estimates(lbfgs), atol=1e-6)


def test_two_items_have_the_log_odds_of_the_wins() -> None:
    """Half wins count half: 6 + ½ against 2 + ½."""
    choice = [1] * 6 + [0] * 2 + [0.5]
    data = Preferences([0] * 9, [1] * 9, choice, [0, 4, 9], num_items=2)
    model = HeterogeneousBTL(2, 0, "linear").double()
    history = fit(model, None, data, progress_bar=False).history
    expected = np.log(6.5 / 2.5) / 2
    np.testing.assert_allclose(model.utility.mean.detach(), [expected, -expected], atol=1e-12)
    loss = -(6.5 * np.log(6.5 / 9) + 2.5 * np.log(2.5 / 9)) / 2
    assert history["loss"].iloc[-1] == pytest.approx(loss, abs=1e-12)
    assert history["step"].tolist() == list(range(1, len(history) + 1))
    again = fit(model, None, data, progress_bar=False)
    assert len(again.history) == 1
    np.testing.assert_allclose(model.utility.mean.detach(), [expected, -expected], atol=1e-12)


def test_repeated_rows_count_as_often_as_they_stand() -> None:
    data = draw_graph(1, 10, 400)
    rows = np.tile(np.arange(400), 3)
    thrice = Preferences(
        *(column[rows] for column in (data.left, data.right, data.choice)),
        np.array([0, 1200]),
        num_items=10,
    )
    one, three = compare(data)[0], compare(thrice)[0]
    np.testing.assert_allclose(estimates(one), estimates(three), atol=1e-9)
    assert three.history["loss"].iloc[-1] == pytest.approx(
        3 * len(data) * one.history["loss"].iloc[-1], rel=1e-12
    )


def test_graphs_in_parts_and_idle_items_are_fitted_part_by_part() -> None:
    one, other = draw_graph(0, 6, 200), draw_graph(1, 9, 300)
    columns = [np.append(one.left, other.left + 6), np.append(one.right, other.right + 6)]
    columns += [np.append(one.choice, other.choice), np.array([0, 500])]
    whole = compare(Preferences(*columns, num_items=16))
    for result in whole:
        np.testing.assert_allclose(estimates(result)[:6], estimates(compare(one)[0]), atol=1e-6)
        np.testing.assert_allclose(estimates(result)[6:15], estimates(compare(other)[0]), atol=1e-6)
        assert estimates(result)[15] == 0


def test_what_is_separated_ends_as_by_lbfgs() -> None:
    """The first of three items won all: the search goes on towards infinity, and says so."""
    left, right = [0, 0, 1, 2, 1], [1, 2, 2, 1, 2]
    data = Preferences(left, right, [1, 1, 1, 1, 1], [0, 5], num_items=3)
    results = []
    for most in (2000, 0):
        model = HeterogeneousBTL(3, 0, "linear").double()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fssa_bayes.inference.maximum._MOST_ITEMS", most)
            with pytest.warns(UserWarning, match="choices are separated"):
                results.append(fit(model, None, data, progress_bar=False))
    assert estimates(results[0]).tolist() == estimates(results[1]).tolist()
    assert estimates(results[0])[0] > 5


def test_a_search_that_newton_does_not_end_goes_to_lbfgs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step is too few here, and no limit that the caller set."""
    data = draw_graph(2, 20, 800)
    newton, lbfgs = compare(data)
    monkeypatch.setattr("fssa_bayes.inference.maximum._NEWTON_STEPS", 1)
    model = HeterogeneousBTL(20, 0, "linear").double()
    result = fit(model, None, data, progress_bar=False)
    assert estimates(result).tolist() == estimates(lbfgs).tolist()
    assert result.history["step"].tolist() == lbfgs.history["step"].tolist()
    assert len(newton.history) > 1


def test_collinear_features_are_left_to_lbfgs() -> None:
    data = draw_graph(3, 30, 2000)
    feature = np.random.default_rng(0).normal(size=30)
    columns = data.left, data.right, data.choice, data.offsets
    model = HeterogeneousBTL(2, 0, "linear").double()
    items = np.stack([feature, feature], 1)
    fit(model, None, Preferences(*columns, items=items), progress_bar=False)
    alone = HeterogeneousBTL(1, 0, "linear").double()
    fit(alone, None, Preferences(*columns, items=feature[:, None]), progress_bar=False)
    both = model.utility.mean.detach().numpy()
    np.testing.assert_allclose(both, alone.utility.mean.item() / 2, atol=1e-6)


def test_held_out_people_are_scored_step_by_step_by_lbfgs() -> None:
    data = draw_graph(2, 20, 800)
    model = HeterogeneousBTL(20, 0, "linear")
    history = fit(model, None, data, validation=0.3, progress_bar=False).history
    first = history[history["stage"] == "MaximumLikelihood"]
    assert first["validation_log_score"].notna().all()
