"""Simulation-based calibration sees posteriors that are wrong, and only those."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, exact
from fssa_bayes.checks import SimulatedPeople, calibrate, draw_model, simulate_people
from fssa_bayes.checks.simulation import NUM_FIXED

USERS = 600


@pytest.fixture(scope="module")
def pairs(make_data) -> Preferences:
    return make_data([10] * 40, num_items=30)


@pytest.fixture(scope="module")
def model(pairs: Preferences) -> HeterogeneousBTL:
    return draw_model(pairs.items, 1, "linear", spread=1.5, seed=1)


def exactly(model: HeterogeneousBTL, people: SimulatedPeople) -> tuple[torch.Tensor, torch.Tensor]:
    gold = exact.grid(model, people.context, num=301)
    return gold.z, gold.log_weights


def study(model: HeterogeneousBTL, pairs: Preferences, change, sizes=(0, 4), **options):
    """Studies a posterior that is `change(z, log_weights, people)` of the exact one."""

    def draw(people: SimulatedPeople, seed: int):
        return {"posterior": change(*exactly(model, people), people)}

    return calibrate(model, None, pairs, sizes=sizes, num_users=USERS, draw=draw, **options)


def rescaled(factor: float):
    def change(z, log_weights, people):
        mean = (log_weights.exp().unsqueeze(-1) * z).sum(0)
        return mean + factor * (z - mean), log_weights

    return change


def test_the_exact_posterior_passes(model, pairs) -> None:
    calibration = study(model, pairs, lambda z, w, people: (z, w), sizes=(0, 1, 4, 12))
    result = calibration.test("posterior")
    assert not result.rejected
    assert (calibration.coverage("posterior")["z"].abs() < 4).all()


@pytest.mark.parametrize(
    ("factor", "direction"), [(0.7, "over-confident"), (1.4, "under-confident")]
)
def test_wrong_widths_are_rejected(model, pairs, factor: float, direction: str) -> None:
    table = study(model, pairs, rescaled(factor)).test("posterior").table
    margins = table[table["quantity"].str.startswith("difference")]
    assert margins["rejected"].all()
    assert (margins["direction"] == direction).all()
    # Truths beyond the last draw are not told apart, so the width is a little less wrong than that.
    np.testing.assert_allclose(margins["scale"][margins["group"] == 0], factor, rtol=0.2)


def test_a_shift_is_rejected_as_bias(model, pairs) -> None:
    def change(z, log_weights, people):
        weights = log_weights.exp().unsqueeze(-1)
        mean = (weights * z).sum(0)
        sd = (weights * (z - mean).square()).sum(0).sqrt()
        return z + 0.3 * sd, log_weights

    table = study(model, pairs, change).test("posterior").table
    margins = table[table["quantity"].str.startswith("difference")]
    assert set(margins["direction"]) == {"biased"}


def test_the_prior_is_seen_by_the_log_likelihood_alone(model, pairs) -> None:
    def prior(z, log_weights, people):
        drawn = torch.randn(1000, USERS, 1)
        return drawn, torch.full((1000, USERS), -np.log(1000.0))

    table = study(model, pairs, prior, sizes=(4,)).test("posterior").table.set_index("quantity")
    rejected = table["rejected"]
    assert rejected["log-likelihood of context"]
    assert not rejected[rejected.index.str.startswith(("difference", "probability"))].any()


def test_half_the_context_is_seen_by_the_log_likelihood(model, pairs) -> None:
    def half(z, log_weights, people):
        known, _ = people.context.split_context(4)
        gold = exact.grid(model, known, num=301)
        return gold.z, gold.log_weights

    table = study(model, pairs, half, sizes=(8,)).test("posterior").table.set_index("quantity")
    assert table["rejected"]["log-likelihood of context"]


def test_people_from_another_model_are_not_covered(model, pairs) -> None:
    wider = draw_model(pairs.items, 1, "linear", spread=3.0, seed=1)
    table = study(model, pairs, lambda z, w, people: (z, w), sizes=(0,), source=wider)
    table = table.test("posterior").table
    assert set(table["direction"][:NUM_FIXED]) == {"over-confident"}


def test_contraction_is_that_of_the_exact_posterior(model, pairs) -> None:
    none, some = study(model, pairs, lambda z, w, people: (z, w), sizes=(0, 12)).contraction
    assert abs(none.mean()) < 0.1
    people = simulate_people(model, pairs, 12, USERS)
    z, log_weights = exactly(model, people)
    weights = log_weights.exp().unsqueeze(-1)
    variance = (weights * z.square()).sum(0) - (weights * z).sum(0).square()
    # One latent dimension and a linear utility: a margin contracts as z does.
    torch.testing.assert_close(some, 1 - variance.squeeze(-1) / people.z.var(), atol=2e-2, rtol=0)


def test_guide_and_correction_are_studied_on_the_same_people(model, pairs) -> None:
    guide = NeuralProcessGuide(model, posterior="normal")
    options = {"sizes": (0, 3), "num_users": 100, "num_samples": 100, "seed": 3}
    one, two = (calibrate(model, guide, pairs, **options) for _ in range(2))
    assert set(one.pit) == {"corrected", "guide"}
    for name, pit in one.pit.items():
        assert pit.shape == (2, 100, len(one.quantities))
        assert torch.equal(pit, two.pit[name])
    assert torch.equal(one.guide_relative_ess[0], torch.ones(100))
    assert (one.guide_pareto_k[0] == 0).all()
    assert (one.pareto_k[0] == 0).all()
    assert one.reliable.all()


@pytest.mark.parametrize("utility", ["linear", "bilinear", "mlp"])
def test_drawn_models_spread_people_as_stated(pairs, utility: str) -> None:
    model = draw_model(pairs.items, 2, utility, spread=2.0, seed=5)
    with torch.no_grad():
        values = model.item_utility(pairs.items, torch.randn(20_000, 2))
    centred = values - values.mean(-1, keepdim=True)
    assert centred.var(0).mean().sqrt().item() == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, "sizes must be different numbers"),
        ({"sizes": (0, 0)}, "sizes must be different numbers"),
        ({"sizes": (-1,)}, "sizes must be different numbers"),
        ({"num_users": 50}, "num_users must be at least 100"),
        ({"num_samples": 50}, "num_samples must be at least 100"),
    ],
)
def test_impossible_studies_are_named(model, pairs, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(model, NeuralProcessGuide(model), pairs, **options)


def test_a_homogeneous_model_has_nothing_to_study(pairs) -> None:
    with pytest.raises(ValueError, match="latent_dim of at least 1"):
        calibrate(HeterogeneousBTL(3, 0, "linear"), None, pairs)


def test_a_spread_must_be_positive(pairs) -> None:
    with pytest.raises(ValueError, match="spread must be positive"):
        draw_model(pairs.items, 2, spread=0.0)


def sets_of_two_to_ten(users: int = 60) -> Preferences:
    """Situations whose alternatives have features of their own; the choices are not looked at."""
    rng = np.random.default_rng(0)
    sizes = np.tile(np.arange(2, 11), users)
    df = pd.DataFrame(
        {
            "user": np.repeat(np.arange(users), 9).repeat(sizes),
            "situation": np.arange(len(sizes)).repeat(sizes),
            "item": np.concatenate([np.arange(size) for size in sizes]),
            "chosen": np.concatenate([np.arange(size) == 0 for size in sizes]),
        }
    )
    df[["x", "y"]] = rng.normal(size=(len(df), 2))
    columns = {name: name for name in ("user", "situation", "item", "chosen")}
    return Preferences.from_choices(df, **columns, features=["x", "y"])


def model_of_sets(coefficients: dict | None, scale: float = 1.0) -> HeterogeneousBTL:
    model = HeterogeneousBTL(2, 2, "linear", coefficients=coefficients).eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([-0.2, 0.3]))
        model.utility.loading.copy_(scale * torch.tensor([[0.7, 0.0], [0.4, 0.6]]))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("coefficients", [None, {0: "-lognormal"}], ids=["normal", "lognormal"])
def test_posteriors_given_choice_sets_are_calibrated(coefficients: dict | None) -> None:
    data, model = sets_of_two_to_ten(), model_of_sets(coefficients)

    def draw(people: SimulatedPeople, seed: int) -> dict[str, tuple]:
        gold = exact.grid(model, people.context)
        guide = NeuralProcessGuide(model, hidden_dim=8).eval()
        corrected = Posterior(model, guide, people.context, 2000, seed=seed)
        return {
            "exact": (gold.z, gold.log_weights),
            "corrected": corrected.proposals,
        }

    options = {"sizes": (0, 2, 8), "num_users": 200, "draw": draw}
    study = calibrate(model, None, data, **options)
    for name in ("exact", "corrected"):
        assert not study.test(name, prob=0.99).rejected
    # People whose tastes differ half as much again are told from those of the model.
    other = calibrate(model, None, data, source=model_of_sets(coefficients, 1.6), **options)
    assert other.test("exact", prob=0.99).rejected


def log_normal(kinds: list[str], correlation: str, shift: float = 0.0) -> HeterogeneousBTL:
    """A population of log-normal tastes, the first one's logarithm shifted."""
    model = HeterogeneousBTL(3, None, "linear", coefficients=kinds, correlation=correlation)
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([shift - 0.2, -0.4, 0.5]))
        if correlation == "full":
            loading = torch.tensor([[0.8, 0.0, 0.0], [0.3, 0.6, 0.0], [-0.2, 0.3, 0.7]])
            model.utility.loading.copy_(loading)
    return model


@pytest.mark.parametrize(
    ("kinds", "correlation"),
    [
        (["-lognormal", "-lognormal", "normal"], "full"),
        (["-lognormal", "-lognormal", "-lognormal"], "full"),
        (["-lognormal", "lognormal", "fixed"], "none"),
    ],
)
def test_posteriors_of_log_normal_tastes_are_calibrated_without_a_guide(
    kinds: list[str], correlation: str
) -> None:
    rng = np.random.default_rng(0)
    left = rng.integers(200, size=2000)
    right = (left + rng.integers(1, 200, size=2000)) % 200
    choice, offsets = rng.integers(2, size=2000), np.arange(0, 2001, 20)
    data = Preferences(left, right, choice, offsets, items=rng.normal(size=(200, 3)))
    model, stronger = (log_normal(kinds, correlation, shift) for shift in (0.0, 0.5))
    options = {"sizes": (1, 3, 8, 16), "num_users": 400, "num_samples": 500}
    study = calibrate(model, None, data, **options)
    assert list(study.pit) == ["corrected"]
    assert study.reliable.mean() > 0.99
    assert not study.test(prob=0.99).rejected
    assert calibrate(model, None, data, source=stronger, **options).test(prob=0.99).rejected
