"""The predictors of a few-shot study."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences
from fssa_bayes.baselines import few_shot_fitters, predict_at_modes
from fssa_bayes.checks import compare_by_context, score_folds


def people(number: int = 40, per_person: int = 15) -> Preferences:
    """Answers of people with one taste of standard deviation 2, some of which are ties."""
    rng = np.random.default_rng(0)
    left = rng.integers(20, size=number * per_person)
    right = (left + rng.integers(1, 20, size=len(left))) % 20
    offsets = np.arange(0, len(left) + 1, per_person)
    items = rng.normal(size=(20, 1))
    data = Preferences(left, right, np.zeros(len(left)), offsets, items=items)
    return truth().simulate(data, seed=0)[0]


def truth() -> HeterogeneousBTL:
    model = HeterogeneousBTL(1, 1, utility="linear", ties="davidson")
    with torch.no_grad():
        model.utility.mean.fill_(0.3)
        model.utility.loading.fill_(2.0)
    return model


def test_predictions_at_modes_are_those_of_the_penalised_maximum() -> None:
    """Of each person the maximum of log p(C|z) + log N(z), found by Brent's method."""
    model, data = truth(), people(8)
    context, target = data.split_context(6, seed=0)
    found = predict_at_modes(model, context)
    batch = context.batch()

    def loss(z: float, person: int) -> float:
        draw = torch.full((1, len(context), 1), z)
        log_prob = model.choice(batch, draw).log_prob(batch.choice)[0, person]
        return 0.5 * z * z - log_prob.item()

    modes = [
        optimize.minimize_scalar(loss, (-3.0, 0.0, 3.0), args=(u,)).x for u in range(len(context))
    ]
    np.testing.assert_allclose(found.z[0, :, 0], modes, atol=1e-2)
    at = torch.tensor(modes, dtype=torch.float32).reshape(1, -1, 1)
    unseen = target.batch()
    each = model.choice(unseen, at).log_prob(unseen.choice)[0] / unseen.num_comparisons
    np.testing.assert_allclose(found.log_score(target), each.detach(), atol=5e-3)


def test_alternatives_have_the_probabilities_that_choices_are_scored_by() -> None:
    """Those of a choice set sum to 1, and the log of the chosen one's is the score."""
    rng = np.random.default_rng(0)
    names = [f"item {number}" for number in range(6)]
    items = pd.DataFrame(rng.normal(size=(6, 2)), names, ["price", "size"])
    sets = [rng.permutation(6)[:3] for _ in range(40)]
    rows = {
        "user": np.repeat(np.arange(40) // 4, 3),
        "situation": np.repeat(np.arange(40), 3),
        "item": np.array(names)[np.concatenate(sets)],
        "chosen": np.tile([1, 0, 0], 40),
    }
    columns = {name: name for name in rows}
    data = Preferences.from_choices(pd.DataFrame(rows), **columns, items=items)
    predictions = predict_at_modes(HeterogeneousBTL(2, 1, utility="linear"), data)
    table = predictions.alternative_prob(data)
    situations = table["mean"].groupby(level=["user", "situation"])
    np.testing.assert_allclose(situations.sum(), 1, atol=1e-6)
    chosen = np.log(table["mean"][table["chosen"] == 1]).groupby(level="user").mean()
    np.testing.assert_allclose(predictions.log_score(data), chosen, atol=1e-6)
    assert (table["chosen"].groupby(level=["user", "situation"]).sum() == 1).all()


def test_a_model_without_modes_is_refused() -> None:
    model = HeterogeneousBTL(1, 1, utility="bilinear")
    with pytest.raises(ValueError, match="utility='linear'"):
        predict_at_modes(model, people(4))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Of few people.
def test_all_predictors_are_scored_and_the_posterior_gains() -> None:
    fitters = few_shot_fitters(
        num_classes=2, num_restarts=2, num_samples=100, num_populations=2, personal=("ties",)
    )
    names = ["homogeneous", "mixture", "posterior", "posterior, drawn", "mode", "personal answers"]
    assert list(fitters) == names
    scores = score_folds(fitters, people(48, 20), (0, 8), num_folds=2, folds=[0])
    gains = compare_by_context(scores, "homogeneous")
    assert set(gains.index.get_level_values("predictor")) == set(names)
    for name in ("posterior", "posterior, drawn", "personal answers"):
        row = gains.loc[(8, name)]
        assert row["gain"] > 2 * row["standard_error"] > 0
    assert gains.loc[(8, "posterior"), "gain"] > gains.loc[(0, "posterior"), "gain"]


def test_the_posterior_is_fitted_once_for_the_mode() -> None:
    data = people(30)
    fitters = few_shot_fitters(num_classes=0)
    posterior = fitters["posterior"](data)(data)
    assert isinstance(posterior, Posterior)
    assert fitters["mode"](data)(data).model is posterior.model
