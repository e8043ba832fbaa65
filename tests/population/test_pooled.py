"""The likelihood of homogeneous models on pooled answers, and Newton's method on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg, optimize

from fssa_bayes import HeterogeneousBTL, Preferences
from fssa_bayes.baselines.base import log_prob_of_people
from fssa_bayes.data.rankings import lay_out
from fssa_bayes.population import climb, list_answers, pooled_likelihood, solve_well_posed
from fssa_bayes.population.pooled import WinCounts

KINDS: dict[str, dict] = {
    "wins": {},
    "half wins": {},
    "a prior": {"penalty": 0.7},
    "ties": {"ties": "davidson"},
    "a bias": {"position_bias": True},
    "ties, a bias and a prior": {"ties": "davidson", "position_bias": True, "penalty": 0.3},
    "features": {},
    "features and a bias": {"position_bias": True},
    "rankings": {},
    "choice sets, best and worst, with features": {},
}


def draw(kind: str, num_items: int = 6, number: int = 400) -> Preferences:
    rng = np.random.default_rng(len(kind))
    if kind == "rankings":
        names = [[rng.permutation(num_items)[: rng.integers(2, 5)].tolist()] for _ in range(60)]
        return Preferences.from_rankings(dict(enumerate(names)))
    if "choice sets" in kind:
        return draw_choice_sets(num_items, rng)
    left = rng.integers(num_items, size=number)
    right = (left + rng.integers(1, num_items, size=number)) % num_items
    choice = rng.choice([0, 1] if kind in ("wins", "a bias") else [0, 1, 0.5], size=number)
    items = rng.normal(size=(num_items, 3)) if "features" in kind else None
    offsets = np.arange(0, number + 1, 10)
    ties = "keep" if "ties" in kind else "half"
    return Preferences(left, right, choice, offsets, items=items, num_items=num_items, ties=ties)


def draw_choice_sets(num_items: int, rng: np.random.Generator) -> Preferences:
    """Draws choices of the best and of the worst of four items with features."""
    item = np.concatenate([rng.permutation(num_items)[:4] for _ in range(60)])
    rank = np.where(np.arange(240) % 4 == np.repeat(rng.integers(4, size=60), 4), 1.0, np.inf)
    group = np.repeat(np.arange(60), 4)
    left, right, choice, number = lay_out(group, item, rank, group % 2 == 1)
    items = rng.normal(size=(num_items, 3))
    return Preferences(left, right, choice, [0, 90, 180], items=items, ranking=number)


def build(kind: str, data: Preferences) -> HeterogeneousBTL:
    model = HeterogeneousBTL(data.num_features, 0, "linear", **KINDS[kind]).double()
    model.take_units(data)
    with torch.no_grad():
        model.utility.mean.copy_(torch.linspace(-1, 1.5, data.num_features))
        for number, value in enumerate(model.answer_parameters().values()):
            value.fill_(0.3 - number)
    return model


def parameters_of(model: HeterogeneousBTL) -> np.ndarray:
    values = [model.utility.mean, *model.answer_parameters().values()]
    return torch.cat([value.detach().reshape(-1) for value in values]).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_is_the_log_likelihood_of_all_people_with_the_prior(kind: str) -> None:
    data = draw(kind)
    model = build(kind, data)
    value = pooled_likelihood(list_answers(model, data), model.penalty).log_prob(
        parameters_of(model)
    )
    with torch.no_grad():
        whole = (log_prob_of_people(model, data).sum() + model.log_prior()).item()
    assert value == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_finite_differences(kind: str) -> None:
    data = draw(kind)
    model = build(kind, data)
    likelihood = pooled_likelihood(list_answers(model, data), model.penalty)
    point = parameters_of(model)
    value, gradient, information = likelihood.differentiate(point)
    assert value == pytest.approx(likelihood.log_prob(point), rel=1e-12)
    step, size = 1e-5, len(point)
    moved = [(point + step * unit, point - step * unit) for unit in np.eye(size)]
    slopes = [likelihood.log_prob(up) - likelihood.log_prob(down) for up, down in moved]
    np.testing.assert_allclose(gradient, np.array(slopes) / (2 * step), atol=1e-5)
    ends = [[likelihood.differentiate(end)[1] for end in pair] for pair in moved]
    bends = [down - up for up, down in ends]
    # A constant added to all utilities has no effect; what curvature it is given is left out.
    constant = np.zeros((size, 1))
    if data.items is None and not model.penalty:
        constant[: data.num_items] = data.num_items**-0.5
    project = np.eye(size) - constant @ constant.T
    np.testing.assert_allclose(
        project @ information @ project, np.array(bends) / (2 * step), atol=1e-5
    )


def test_wins_are_counted_by_pair_whoever_stands_on_the_left() -> None:
    data = Preferences([0, 1, 0, 2, 1], [1, 0, 1, 1, 2], [1, 1, 0.5, 0, 0], [0, 2, 5], num_items=3)
    counts = WinCounts.of(list_answers(HeterogeneousBTL(3, 0, "linear"), data))
    assert (counts.first.tolist(), counts.second.tolist()) == ([0, 1], [1, 2])
    assert counts.wins.tolist() == [1.5, 1.0]
    assert counts.total.tolist() == [3.0, 2.0]


def test_information_on_wins_is_a_laplacian() -> None:
    counts = WinCounts(np.array([0]), np.array([1]), np.array([3.0]), np.array([4.0]), 3)
    value, gradient, information = counts.differentiate(np.array([np.log(3), 0.0, 7.0]))
    assert value == pytest.approx(3 * np.log(0.75) + np.log(0.25))
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    expected = 4 * 0.75 * 0.25 * np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(information, expected)


def test_components_keep_their_means() -> None:
    """Two pairs of items that nobody compared with one another, and one that nobody compared."""
    left, right, choice = [0, 0, 0, 2, 2, 2], [1, 1, 1, 3, 3, 3], [1, 1, 0, 0, 0, 1]
    data = Preferences(left, right, choice, [0, 6], num_items=5)
    likelihood = pooled_likelihood(list_answers(HeterogeneousBTL(5, 0, "linear"), data), 0.0)
    start = np.array([1.0, 1.0, -2.0, 0.0, 5.0])
    end = climb(likelihood, start, solve_well_posed)
    half = np.log(2) / 2
    assert end.is_maximum
    np.testing.assert_allclose(end.point, [1 + half, 1 - half, -1 - half, -1 + half, 5], atol=1e-12)


def test_parts_of_answers_have_whole_events(monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw("ties, a bias and a prior")
    model = build("ties, a bias and a prior", data)
    answers, point = list_answers(model, data), parameters_of(model)
    whole = pooled_likelihood(answers, 0.0)
    monkeypatch.setattr("fssa_bayes.population.pooled._CHUNK", 7)
    parts = pooled_likelihood(answers, 0.0)
    assert len(parts.likelihood.parts) > 10
    assert parts.log_prob(point) == pytest.approx(whole.log_prob(point), rel=1e-12)
    for one, other in zip(parts.differentiate(point), whole.differentiate(point), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


class Overshot:
    """log σ(x) + log σ(−x) − .1 x: whole Newton steps from a point far out go astray."""

    def log_prob(self, point: np.ndarray) -> float:
        return float((-np.logaddexp(0, point) - np.logaddexp(0, -point) - 0.1 * point)[0])

    def differentiate(self, point: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        prob = 1 / (1 + np.exp(-point))
        curvature = 2 * (prob * (1 - prob)).reshape(1, 1)
        return self.log_prob(point), 1 - 2 * prob - 0.1, curvature


def test_steps_are_halved_where_they_go_too_far() -> None:
    seen: list[float] = []
    end = climb(Overshot(), np.array([8.0]), solve_well_posed, after_step=seen.append)
    root = optimize.brentq(lambda x: -np.tanh(x / 2) - 0.1, -5, 5, xtol=1e-14)
    assert end.is_maximum
    assert end.point[0] == pytest.approx(root, abs=1e-9)
    assert seen == sorted(seen)
    assert len(seen) == end.num_steps


def test_what_has_no_information_is_refused() -> None:
    with pytest.raises(linalg.LinAlgError):
        solve_well_posed(np.ones(2), np.ones((2, 2)))
    with pytest.raises(linalg.LinAlgError, match="singular"):
        solve_well_posed(np.ones(2), np.array([[1.0, 1], [1, 1 + 1e-13]]))
