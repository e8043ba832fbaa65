"""Maximum likelihood of a homogeneous model."""

from __future__ import annotations

import numpy as np
import pytest

from fssa_bayes import HeterogeneousBTL, Preferences, fit


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
