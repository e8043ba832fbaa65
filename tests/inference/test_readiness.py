"""What fit() refuses before any work, and what it warns of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from two_feature_people import fresh, simulate

from fssa_bayes import ELBO, HeterogeneousBTL, NeuralProcessGuide, Preferences, fit


def test_bad_input_is_refused_before_work() -> None:
    data = simulate(people=12)
    model, guide = fresh(data, utility="linear")
    before = model.utility.loading.clone()
    other_guide = NeuralProcessGuide(HeterogeneousBTL(2, 2))
    homogeneous = HeterogeneousBTL(2, 0)
    wide = HeterogeneousBTL(3, 2)
    nobody = Preferences([0], [1], [1], [0, 1, 1], items=np.eye(2), user_names=["ann", "bob"])
    ties = Preferences([0], [1], [0.5], [0, 1], items=np.eye(2), ties="keep")
    two = fresh(data)
    for call, error, match in [
        (lambda: fit(HeterogeneousBTL(2, 2), None, data), ValueError, "guide must be given"),
        (lambda: fit(model, other_guide, data), ValueError, "guide of this model"),
        (lambda: fit(homogeneous, guide, data), ValueError, "guide must be"),
        (lambda: fit(wide, NeuralProcessGuide(wide), data), ValueError, "num_features=3.* got 2"),
        (lambda: fit(model, guide, nobody), ValueError, "none for user 'bob'"),
        (lambda: fit(model, guide, ties), ValueError, "keeps ties"),
        (lambda: fit(model, guide, data.subset([0])), ValueError, "at least 2 people"),
        (lambda: fit(model, guide, data, validation=1.5), ValueError, "validation .* got 1.5"),
        (lambda: fit(*two, data.subset(range(5))), ValueError, "at least 10 people, got 5"),
        (lambda: fit(model, guide, data, steps=0), ValueError, "steps .* got 0"),
        (lambda: fit(model, guide, data, objective="elbo"), TypeError, "objective must be"),
        (lambda: fit(homogeneous, None, data, objective=ELBO()), ValueError, "latent_dim=0"),
        (lambda: fit(model, guide, data, learning_rate=0), ValueError, "learning_rate .* got 0"),
        (
            lambda: fit(model, guide, data, population_learning_rate=0),
            ValueError,
            "population_learning_rate .* got 0",
        ),
        (lambda: fit(model, guide, data, learning_rate=np.nan), ValueError, "got nan"),
        (lambda: fit(model, guide, "data"), TypeError, "data must be Preferences, got str"),
    ]:
        with pytest.raises(error, match=match):
            call()
    assert torch.equal(before, model.utility.loading)
    with pytest.raises(ValueError, match="utility='linear'"):
        fit(*two, data, steps=1, validation=None, progress_bar=False).population()


def test_unused_covariates_are_named() -> None:
    data = simulate(people=3)
    data.covariates = torch.ones(3, 1)
    model, guide = fresh(data, utility="linear")
    with pytest.warns(UserWarning, match="does not use the covariates"):
        fit(model, guide, data, steps=1, progress_bar=False)
