"""Mixed logits of other packages: what they are given, and how their estimates are scored."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.special import logsumexp

from fssa_bayes import Preferences
from fssa_bayes.datasets import linear_factors

ROOT = Path(__file__).parents[2]

ITEMS = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0], [3.0, -1.0]])


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of problems; the benchmarks are not installed."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.simulated_likelihood.problems")


def three_choices() -> Preferences:
    """A chooses 0 from {0, 1, 2} and 3, the last, from {1, 2, 3}; B chooses 1 from {0, 1, 2}."""
    left, right = [0, 1, 1, 2, 0, 1], [2, 2, 3, 3, 2, 2]
    choice, ranking = [1.0, 0.5, 0.0, 0.0, 0.5, 1.0], [0, 0, 1, 1, 2, 2]
    return Preferences(left, right, choice, [0, 4, 6], items=ITEMS, ranking=ranking)


def test_sets_list_all_alternatives_and_the_chosen_one(problems: ModuleType) -> None:
    sets = problems.to_sets(three_choices())
    np.testing.assert_array_equal(sets.features, ITEMS[[[0, 1, 2], [1, 2, 3], [0, 1, 2]]])
    assert sets.chosen.tolist() == [0, 2, 1]
    assert sets.person.tolist() == [0, 0, 1]


def test_sets_of_several_sizes_are_refused(problems: ModuleType) -> None:
    data = Preferences([0, 0, 1], [1, 2, 2], [1, 1, 0.5], [0, 3], items=ITEMS, ranking=[0, 1, 1])
    with pytest.raises(ValueError, match=r"sets must be of one size, got \[2, 3\]"):
        problems.to_sets(data)


def test_estimates_of_people_who_are_alike_score_as_a_logit(problems: ModuleType) -> None:
    data, mean = three_choices(), np.array([0.7, -0.4])
    sets = problems.to_sets(data)
    utility = sets.features @ mean
    expected = utility[np.arange(3), sets.chosen] - logsumexp(utility, axis=1)
    value = problems.rescore(data, problems.Population(mean, np.zeros((2, 1)), 0.0), seed=1).value
    assert value == pytest.approx(expected.sum(), abs=0.02)


def test_simulated_problems_are_scored_best_at_their_truth(problems: ModuleType) -> None:
    problem = problems.PROBLEMS["1,000 x 20 x 10, rank 2"]
    data = problem.read(None, 0, True)
    mean, loading = problem.population
    truth = problems.rescore(data, problems.Population(mean, loading, 0.0), seed=1)
    for wrong in ((mean, 0.3 * loading), (0.5 * mean, loading)):
        other = problems.rescore(data, problems.Population(*wrong, 0.0), seed=1)
        assert truth.value > other.value + 5 * other.standard_error


@pytest.mark.slow
def test_xlogit_reaches_the_likelihood_of_its_own_estimates(problems: ModuleType) -> None:
    pytest.importorskip("xlogit", reason="it belongs to the extra bench")
    with_xlogit = importlib.import_module("benchmarks.simulated_likelihood.with_xlogit")
    population = linear_factors.Population(np.array([1.0, -0.5]), np.diag([0.8, 0.0]))
    data = linear_factors.simulate(300, 10, population, seed=3).data
    estimate = with_xlogit.fit_xlogit(
        problems.to_sets(data), np.array([True, False]), num_draws=500
    )
    assert estimate.loading[1, 1] == 0
    # Simulated and importance-sampled likelihood agree where draws are many for one dimension.
    assert problems.rescore(data, estimate, seed=2).value == pytest.approx(
        estimate.log_likelihood, abs=0.5
    )
