"""Numbers of dimensions, chosen by some people and reported on others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_people import SHORT_FIT, linear, people

from fssa_bayes import HeterogeneousBTL, Preferences, fit
from fssa_bayes.comparison import choose_latent_dim, leave_users_out, score_users
from fssa_bayes.comparison.choice import choose_size
from fssa_bayes.comparison.people import fit_fresh


class Coin:
    """Predicts nothing of anybody."""

    def fit(self, data: Preferences, *, seed: int, progress_bar: bool) -> None:
        """Learns nothing."""

    def log_evidence(self, data: Preferences) -> torch.Tensor:
        return torch.from_numpy(data.counts * np.log(0.5))


def test_dimensions_are_chosen_by_some_and_reported_on_others() -> None:
    data = people(200, 8, 0, spread=1.5)
    options = {"num_samples": 200, "fit_options": SHORT_FIT}
    choice = choose_latent_dim(data, (0, 1), build=linear, num_folds=2, report_size=0.3, **options)
    assert choice.latent_dim == 1
    choosing, reporting = data.split_users(0.3, seed=0)
    assert not set(choosing.user_names) & set(reporting.user_names)
    assert len(reporting) == choice.num_reported == 60
    assert len(choosing) == choice.num_choosing == 140
    # Nobody else takes part in choosing, or in the fit whose score is reported.
    for latent_dim in (0, 1):
        left_out = leave_users_out(lambda size=latent_dim: linear(size), choosing, 2, **options)
        assert choice.choosing.loc[latent_dim, "elpd"] == left_out.total
        fitted = fit_fresh(lambda size=latent_dim: linear(size), choosing, 0, SHORT_FIT)
        score = score_users(*fitted, reporting, 200)
        assert choice.reported.loc[latent_dim, "elpd"] == score.total
    assert set(choice.choosing.index) == set(choice.reported.index) == {0, 1}
    assert "1 latent dimensions: the fewest within one standard error" in str(choice)


def test_fewer_than_two_numbers_of_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="latent_dims must be at least 2 numbers"):
        choose_latent_dim(people(20, 8, 0, spread=1.5), (1, 1))
    with pytest.raises(ValueError, match="report_size must lie in"):
        choose_latent_dim(people(20, 8, 0, spread=1.5), report_size=1.0)


def test_by_default_one_split_chooses_for_models_of_the_data() -> None:
    """Each number is fitted once, to three quarters of the people, and the others score it."""
    rng = np.random.default_rng(0)
    left = rng.integers(4, size=480)
    right = (left + rng.integers(1, 4, size=480)) % 4
    data = Preferences(left, right, rng.integers(2, size=480), np.arange(0, 481, 6), num_items=4)
    choice = choose_latent_dim(data, (0, 1), num_samples=100, fit_options=SHORT_FIT | {"steps": 5})
    training, unseen = data.split_users(0.25, seed=0)
    model = HeterogeneousBTL.for_data(training, 0, utility="linear")
    fit(model, None, training, validation=None, progress_bar=False)
    assert choice.choosing.loc[0, "elpd"] == pytest.approx(score_users(model, None, unseen).total)
    assert (choice.num_choosing, choice.num_reported, choice.reported) == (80, 0, None)
    assert "Judged" not in str(choice)


def test_the_smallest_size_within_one_standard_error_is_chosen() -> None:
    """Sizes 2 and 3 are the same model, and 2 is the smaller."""
    data = people(60, 8, 0, spread=0.0)
    size, table = choose_size(
        lambda size: (Coin(), linear(0), linear(0))[size - 1], data, (1, 2, 3), 2
    )
    assert size == 2
    assert table.loc[2, "elpd"] == table.loc[3, "elpd"]
    assert table.loc[1, "elpd_diff"] > table.loc[1, "dse"]
