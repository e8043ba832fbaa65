"""Gold standards say all that a posterior says, and how far they can be relied upon."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from exact_problems import five_people, make_model

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, exact


@pytest.fixture(scope="module")
def data() -> Preferences:
    return five_people()


def test_columns_of_the_diagnostics_are_attributes(data) -> None:
    posterior = exact.grid(make_model(1, "linear", "normal"), data)
    table = posterior.summary()
    names = ["comparisons", "converged", "log_evidence", "grid_error", "edge_mass"]
    assert table.columns.tolist() == names
    assert table.index.tolist() == data.user_names.tolist()
    for name in names:
        assert getattr(posterior, name).tolist() == table[name].tolist()
    assert posterior.converged.dtype == torch.bool
    with pytest.raises(AttributeError, match="'ExactPosterior' object by 'grid' has no 'r_hat'"):
        _ = posterior.r_hat
    for again in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        assert torch.equal(again.log_evidence, posterior.log_evidence)
    table["converged"] = False
    assert posterior.converged.all()


def test_a_posterior_of_grid_points_agrees_with_corrected_draws(data) -> None:
    """Corrected draws of an untrained guide say the same, within their Monte-Carlo error."""
    model = make_model(2, "linear", "normal")
    guide = NeuralProcessGuide(model)
    gold = Posterior.from_draws(model, data, exact.grid(model, data), guide)
    drawn = Posterior(model, guide, data, num_samples=8000)
    a, b = gold.choice_prob(data), drawn.choice_prob(data)
    for name in ("mean", "lower", "upper", "epistemic", "aleatoric"):
        torch.testing.assert_close(
            getattr(a, name), getattr(b, name), atol=0.04, rtol=0, equal_nan=True
        )
    torch.testing.assert_close(gold.rank_prob(), drawn.rank_prob(), atol=0.06, rtol=0)
    scores = gold.log_score(data), drawn.log_score(data)
    torch.testing.assert_close(*scores, atol=0.03, rtol=0, equal_nan=True)
    utilities = [p.utility().mean(0) for p in (gold, drawn)]
    torch.testing.assert_close(*utilities, atol=0.12, rtol=0)
    a, b = gold.differences()["scale"], drawn.differences()["scale"]
    np.testing.assert_allclose(a, b, rtol=0.1)
    assert torch.isnan(gold.pareto_k).all()


def test_draws_of_another_model_are_refused(make_data) -> None:
    data = make_data((3, 2))
    model, other = HeterogeneousBTL(3, 1, "linear"), HeterogeneousBTL(3, 1, "linear")
    with torch.no_grad():
        other.utility.loading.mul_(5)
    with pytest.raises(ValueError, match="of this model"):
        Posterior.from_draws(other, data, exact.grid(model, data))
