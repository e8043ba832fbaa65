"""People left out: the marginal likelihood on a grid, and fits to the other folds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_people import linear, people

from fssa_bayes import Preferences, fit
from fssa_bayes.comparison import leave_users_out, score_users


def test_people_are_scored_by_their_marginal_likelihood(pair, make_data, grid) -> None:
    model, guide = pair
    data = make_data((0, 2, 8))
    points, cell = grid(2, 7.0, 181)
    batch = data.batch()
    with torch.no_grad():
        log_prob = model.choice(batch, points.unsqueeze(1).expand(-1, 3, -1)).log_prob(batch.choice)
    prior = torch.distributions.Normal(0, 1).log_prob(points).sum(-1, keepdim=True)
    exact = (log_prob + prior).double().logsumexp(0) + np.log(cell)
    score = score_users(model, guide, data, 4000)
    assert score.values[0] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(score.values, exact, atol=4 * score.monte_carlo_error + 1e-3)


class Recorder:
    """A homogeneous model that lists the people of its fits and of its scores."""

    def __init__(self, fitted: list[set], scored: list[set]) -> None:
        self.fitted, self.scored, self.model = fitted, scored, linear(0)[0]

    def fit(self, data: Preferences, *, seed: int, progress_bar: bool) -> None:
        self.fitted.append(set(data.user_names))
        fit(self.model, None, data, seed=seed, progress_bar=progress_bar)

    def log_evidence(self, data: Preferences) -> torch.Tensor:
        self.scored.append(set(data.user_names))
        return torch.from_numpy(score_users(self.model, None, data).values)


def test_folds_are_fitted_to_the_others_and_scored_in_order() -> None:
    data = people(23, 6, 0, spread=0.0)
    fitted, scored = [], []
    recorded = leave_users_out(lambda: Recorder(fitted, scored), data, 4, seed=5)
    assert len(fitted) == 4
    left_out = [set(data.user_names) - names for names in fitted]
    assert scored == left_out
    assert sorted(name for names in left_out for name in names) == list(range(23))
    score = leave_users_out(lambda: linear(0), data, 4, seed=5)
    for names in left_out:
        model, _ = linear(0)
        fit(model, None, data.subset(sorted(set(range(23)) - names)), progress_bar=False)
        test = data.subset(sorted(names))
        expected = score_users(model, None, test).values
        np.testing.assert_allclose(score.values[sorted(names)], expected, rtol=1e-4)
        np.testing.assert_allclose(recorded.values[sorted(names)], expected, rtol=1e-4)
    again = leave_users_out(lambda: linear(0), data, 4, seed=5)
    assert np.array_equal(score.values, again.values)


@pytest.mark.parametrize("num_folds", [1, 24])
def test_a_number_of_folds_that_cannot_be_is_refused(num_folds: int) -> None:
    data = people(23, 6, 0, spread=0.0)
    with pytest.raises(ValueError, match="num_folds must be an integer between 2 and the 23"):
        leave_users_out(lambda: linear(0), data, num_folds)
