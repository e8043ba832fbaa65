"""The stages of a fit: what each changes, early stopping, a second fit."""

from __future__ import annotations

import pytest
import torch
from two_feature_people import fresh, simulate, with_features

from fssa_bayes import ELBO, HeterogeneousBTL, NeuralProcessGuide, Sleep, fit
from fssa_bayes.datasets import two_mode


def test_sleep_leaves_the_model_bitwise_as_it_was() -> None:
    data = two_mode.simulate(100, 8, seed=0).data
    torch.manual_seed(0)
    model = HeterogeneousBTL(1, 2, hidden_dim=16, prior="flow")
    guide = NeuralProcessGuide(model, hidden_dim=16)
    fit(model, guide, data, steps=3, validation=None, progress_bar=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    guide_before = guide.potential[0].weight.clone()
    fit(model, guide, data, objective=Sleep(steps=5), progress_bar=False, validation=None)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not torch.equal(guide_before, guide.potential[0].weight)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_validation_stops_early_and_refit_uses_everybody() -> None:
    data = two_mode.simulate(150, 8, seed=0).data
    model, guide = fresh(data, hidden_dim=16)
    result = fit(model, guide, data, steps=30, validation=0.2, progress_bar=False)
    stages = result.history.groupby("stage", sort=False)["step"].max()
    assert list(stages.index) == [
        "ImportanceWeightedELBO", "Sleep", "ImportanceWeightedELBO (refit)", "Sleep (refit)",
    ]  # fmt: skip
    scores = result.history.query("stage == 'ImportanceWeightedELBO'").dropna()
    best = scores.loc[scores["validation_log_score"].idxmax(), "step"]
    assert stages["ImportanceWeightedELBO (refit)"] == best
    assert set(result.held_out["posterior"]) == {"raw", "corrected"}
    assert (result.held_out["log_loss"] > 0).all()


@pytest.mark.parametrize(
    ("utility", "validation", "reason"),
    [
        ("linear", "auto", "nobody was held out: validation='auto' fits everybody where"),
        ("bilinear", None, "nobody was held out: validation=None fits everybody"),
        ("bilinear", "auto", ""),
        ("linear", 0.3, ""),
    ],
)
def test_a_fit_says_why_nobody_was_held_out(
    utility: str, validation: float | str | None, reason: str
) -> None:
    data = simulate(people=20)
    model, guide = fresh(data, utility=utility, hidden_dim=8)
    options = {"objective": ELBO(steps=2), "refit": False, "progress_bar": False}
    result = fit(model, guide, data, validation=validation, **options)
    assert (result.held_out is None) == bool(reason)
    assert result.held_out_note.startswith(reason)
    assert bool(result.held_out_note) == bool(reason)
    assert f"held_out_note={result.held_out_note!r}" in repr(result)


def test_a_fit_continues_from_the_parameters_and_standardises_once() -> None:
    data = simulate(people=20)
    model, guide = fresh(data, utility="linear")
    fit(model, guide, data, steps=2, progress_bar=False)
    scale = model.feature_scale.clone()
    torch.testing.assert_close(scale, data.items.std(0, unbiased=False))
    other = with_features(data, 9 * data.items, ["size", "price"])
    fit(model, guide, other, steps=2, progress_bar=False)
    assert torch.equal(model.feature_scale, scale)
