"""What the study of few answers computes of repeated questions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.few_shot import agreement, check, frequencies
from fssa_bayes import HeterogeneousBTL, Posterior, Preferences


def test_answers_to_one_question_agree_whichever_side_it_is_asked_from() -> None:
    """A tie twice and the same choice twice agree, two choices that differ do not."""
    answers = ["ab", (0.5, 0.5), "ba", (0.5, 0.5), "cd", (1, 0), "dc", (0, 1), "ef", (1, 0)]
    answers += ["ef", (0, 1), "gh", (1, 0)]
    rows = [
        {"user": "u", "situation": number, "item": item, "chosen": chosen}
        for number, (items, values) in enumerate(zip(answers[::2], answers[1::2], strict=True))
        for item, chosen in zip(items, values, strict=True)
    ]
    table = pd.DataFrame(rows).set_index(["user", "situation", "item"])
    assert agreement(table).to_dict() == {"u": pytest.approx(2 / 3)}


@pytest.mark.slow
def test_frequencies_of_the_true_model_are_uniform_and_of_a_narrow_one_are_not() -> None:
    """People of one taste, who answer ten questions four times each."""
    rng = np.random.default_rng(0)
    number = 60
    pairs = np.array([(2 * k, 2 * k + 1) for k in range(10)])
    left, right = np.tile(pairs.repeat(4, 0), (number, 1)).T
    offsets = np.arange(number + 1) * 40
    items = np.stack([rng.normal(size=20)], -1)
    data = Preferences(left, right, np.zeros(len(left)), offsets, items=items)
    truth = HeterogeneousBTL(1, 1, utility="linear")
    with torch.no_grad():
        truth.utility.mean.fill_(0.5)
        truth.utility.loading.fill_(1.0)
    own = [truth.simulate(data, seed=seed)[0] for seed in range(12)]

    def inside(shift: float) -> float:
        model = HeterogeneousBTL(1, 1, utility="linear")
        model.load_state_dict(truth.state_dict())
        with torch.no_grad():
            model.utility.mean.add_(shift)
        found = []
        for answers in own:
            empty = answers.split_context(0, seed=0)[0]
            found.append(frequencies(Posterior(model, None, empty, 100, seed=0), answers))
        pit = np.concatenate(found)
        assert len(pit) == 120
        return np.mean((pit > 0.05) & (pit < 0.95))

    assert inside(0.0) == pytest.approx(0.9, abs=0.09)
    assert inside(0.8) < 0.6


def test_the_verdict_names_what_is_below() -> None:
    index = pd.MultiIndex.from_tuples(
        [(10, "posterior"), (10, "mode")], names=["known", "predictor"]
    )
    gains = pd.DataFrame({"gain": [0.1, 0.3], "standard_error": [0.1, 0.1]}, index)
    over_mode = pd.DataFrame({"gain": [-0.2, 0.0], "standard_error": [0.05, 0.0]}, index)
    text = check("votes", gains, over_mode)
    assert "against the mode: BELOW (-0.2000 ± 0.0500)" in text
    assert "everybody alike: not told apart from (+0.1000 ± 0.1000), the mode above" in text
