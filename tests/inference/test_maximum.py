"""Maximum likelihood of a homogeneous model."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, Preferences, fit
from fssa_bayes.baselines.base import log_prob_of_people
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
