"""Adam on an objective: its learning rate, and losses that cannot be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from two_feature_people import fresh, simulate

from fssa_bayes import (
    ELBO,
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Sleep,
    fit,
)
from fssa_bayes.data import Batch
from fssa_bayes.inference.descent import check_bound, learning_rate_factor


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_non_finite_loss_names_step_and_people_and_keeps_the_parameters() -> None:
    data = simulate(people=5)
    model, guide = fresh(data, utility="linear")
    objective = ImportanceWeightedELBO()
    with torch.no_grad():
        model.utility.mean[0] = math.inf
    before = guide.potential[0].weight.clone()
    with pytest.raises(FloatingPointError, match=r"step 1 of ImportanceWeightedELBO.*users .*3"):
        fit(model, guide, data, objective=objective, progress_bar=False)
    assert torch.equal(before, guide.potential[0].weight)
    with pytest.raises(FloatingPointError, match="before step 1 of MaximumLikelihood"):
        fit(model, guide, data, progress_bar=False)


class Flattered(ELBO):
    """Adds nats to a bound, as a density of the guide that is too small does."""

    def loss(self, model: HeterogeneousBTL, guide: NeuralProcessGuide, batch: Batch) -> Tensor:
        return super().loss(model, guide, batch) - 1000.0


def test_probabilities_above_one_end_a_fit_before_the_step() -> None:
    data = simulate(people=5)
    model, guide = fresh(data, utility="linear")
    before = model.utility.mean.clone()
    with pytest.raises(FloatingPointError, match=r"loss of Flattered .* got -9\d\d.* at step 1:"):
        fit(model, guide, data, objective=Flattered(), progress_bar=False)
    assert torch.equal(before, model.utility.mean)


def test_a_bound_may_be_exceeded_by_chance_but_not_by_more() -> None:
    """Where choices are certain an estimate errs to both sides; 30 nats have odds of 1e-13."""
    check_bound(ELBO(), -0.29, 100, 7)
    with pytest.raises(FloatingPointError, match=r"ELBO .* got -0\.31 nats a person for 100 .* 7"):
        check_bound(ELBO(), -0.31, 100, 7)
    check_bound(Sleep(), -50.0, 100, 7)  # A density has no such bound.


@pytest.mark.parametrize("steps", [1, 40, 1000])
def test_learning_rate_rises_to_its_peak_and_decays(steps: int) -> None:
    factors = [learning_rate_factor(step, steps) for step in range(steps)]
    warm_up = max(1, steps // 20)
    assert factors[:warm_up] == pytest.approx([(step + 1) / warm_up for step in range(warm_up)])
    decay = factors[warm_up:]
    assert decay == sorted(decay, reverse=True)
    # The cosine is symmetric: as far below 1 at its start as above 0 at its end.
    length = steps - warm_up
    for step, factor in enumerate(decay[1:], 1):
        assert factor + learning_rate_factor(steps - step, steps) == pytest.approx(1), step
    assert all(factor < 2.5 / length**2 for factor in decay[-1:])
