"""People's coefficients: their posterior on a grid, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences


@pytest.fixture
def choices() -> Preferences:
    """Two people among three alternatives with two features; the second chose once."""
    rng = np.random.default_rng(0)
    sets = [3, 3, 3, 3, 3]
    left = [item for start in range(0, 15, 3) for item in (start, start + 1)]
    right = [start + 2 for start in range(0, 15, 3) for _ in range(2)]
    ranking = np.repeat(np.arange(len(sets)), 2)
    choice = [1.0, 0.5] * 5  # The first of each three is chosen.
    return Preferences(
        left,
        right,
        choice,
        [0, 8, 10],
        items=rng.normal(size=(15, 2)) * [1, 10],
        ranking=ranking,
        user_names=["ann", "bob"],
        feature_names=["near", "price"],
    )


def test_coefficients_are_those_of_a_grid(choices: Preferences) -> None:
    model = HeterogeneousBTL.for_data(choices, 2, utility="linear")
    model.take_units(choices)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.5, -1.0]))
    z = np.linspace(-6, 6, 121)
    z = np.stack(np.meshgrid(z, z), -1).reshape(-1, 2)
    with torch.no_grad():
        beta = model.coefficients(torch.tensor(z, dtype=torch.float32).unsqueeze(1))[:, 0].double()
    beta, items = beta.numpy(), choices.items.double().numpy()
    table = Posterior(model, None, choices, 20_000).coefficients(level=0.8)
    assert list(table.columns) == ["mean", "sd", "lower", "upper"]
    for name, sets in (("ann", range(4)), ("bob", [4])):
        log_p = -(z**2).sum(-1) / 2
        for number in sets:
            value = beta @ items[3 * number : 3 * number + 3].T
            log_p = log_p + value[:, 0] - np.logaddexp.reduce(value, axis=-1)
        weight = np.exp(log_p - log_p.max())
        weight /= weight.sum()
        mean = weight @ beta
        sd = np.sqrt(weight @ (beta - mean) ** 2)
        own = table.loc[name]
        np.testing.assert_allclose(own["mean"], mean, atol=0.03 * sd.max())
        np.testing.assert_allclose(own["sd"], sd, rtol=0.03)
        for column, level in (("lower", 0.1), ("upper", 0.9)):
            for place, feature in enumerate(choices.feature_names):
                below = weight @ (beta[:, place] <= own.loc[feature, column])
                assert below == pytest.approx(level, abs=0.02)


def test_what_has_no_coefficients_is_refused(choices: Preferences) -> None:
    model = HeterogeneousBTL.for_data(choices, 1)
    posterior = Posterior(model, NeuralProcessGuide(model, hidden_dim=8), choices, 50)
    with pytest.raises(ValueError, match=r"coefficients\(\) needs utility='linear'"):
        posterior.coefficients()
    linear = Posterior(HeterogeneousBTL.for_data(choices, 1, utility="linear"), None, choices, 50)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 1"):
        linear.coefficients(level=1)
    pairs = Preferences([0, 1], [1, 0], [1, 1], [0, 1, 2], num_items=2)
    plain = Posterior(HeterogeneousBTL.for_data(pairs, 1, utility="linear"), None, pairs, 50)
    with pytest.raises(ValueError, match="needs items with features"):
        plain.coefficients()
