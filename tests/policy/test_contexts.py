"""Contexts: other choices of the same person on other prompts, by (seed, step, row)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_texts import (
    lookup,
    many_rows,
)

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, fit
from fssa_bayes.data import Preferences
from fssa_bayes.policy import Contexts


def test_contexts_are_other_rows_of_the_person_with_other_prompts() -> None:
    rows = many_rows()
    contexts = Contexts(rows, rows.to_preferences(lookup), max_context=8, seed=3)
    sizes = []
    for step in range(40):
        targets = np.random.default_rng(step).permutation(len(rows))[:9]
        batch = contexts.batch(targets, step)
        for line, target in enumerate(targets):
            drawn = contexts.draw(int(target), step)
            seen = batch.mask[line]
            left, right = (
                batch.items[getattr(batch, side)[line, seen]] for side in ("left", "right")
            )
            better = torch.where(batch.choice[line, seen, None] == 1, left, right)
            assert better[:, 0].tolist() == drawn.tolist()
            assert better[:, 1].eq(1).all()
            assert len(set(drawn)) == len(drawn)
            assert (rows.user[drawn] == rows.user[target]).all()
            assert (rows.prompt[drawn] != rows.prompt[target]).all()
            sizes.append(len(drawn))
    # 360 sizes, uniform on 0 … 8: each has expectation 40, standard deviation 6.
    assert (abs(np.bincount(sizes, minlength=9) - 40) < 24).all()
    assert len(np.bincount(sizes)) == 9


def test_contexts_of_a_least_size() -> None:
    rows = many_rows()
    preferences = rows.to_preferences(lookup)
    contexts = Contexts(rows, preferences, max_context=8, min_context=5, seed=3)
    sizes = [len(contexts.draw(row, step)) for row in range(len(rows)) for step in range(20)]
    assert set(sizes) == {5, 6, 7, 8}
    assert len(contexts.draw(0, num_context=2)) == 2
    with pytest.raises(ValueError, match="min_context must lie between 0 and max_context=3, got 4"):
        Contexts(rows, preferences, max_context=3, min_context=4)


def test_a_context_depends_on_seed_step_and_row_alone() -> None:
    rows = many_rows()
    data = rows.to_preferences(lookup)
    contexts = Contexts(rows, data, seed=3)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = contexts.draw(5, 2)
    contexts.batch([1, 5, 7], 2)
    assert np.array_equal(Contexts(rows, data, seed=3).draw(5, 2), first)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    others = [contexts.draw(5, step).tolist() for step in range(3, 9)]
    others += [Contexts(rows, data, seed=4).draw(5, 2).tolist()]
    assert len({tuple(other) for other in others} | {tuple(first)}) > 5
    # Nested: what is asked with more context contains what was asked with less.
    assert contexts.draw(5, 0, 7)[:3].tolist() == contexts.draw(5, 0, 3).tolist()
    assert contexts.batch([5, 6], num_context=0).mask.shape == (2, 0)
    with pytest.raises(ValueError, match="num_context=99 is more than the .* user 'u"):
        contexts.draw(5, 0, 99)
    with pytest.raises(ValueError, match="must be made by rows.to_preferences"):
        Contexts(rows.subset(range(7)), data)


def test_a_model_of_the_rows_gives_posteriors_of_contexts() -> None:
    rows = many_rows()
    data = rows.to_preferences(lookup)
    model = HeterogeneousBTL(2, 2, hidden_dim=8, num_factors=4)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    fit(model, guide, data, steps=2, validation=None, progress_bar=False)
    contexts = Contexts(rows, data)
    assert guide.posterior(contexts.batch([3, 4, 3], 1)).sample((6,)).shape == (6, 3, 2)
    # The context that holds a person's every comparison is the person's line of the data.
    everything = contexts.gather(
        [np.flatnonzero(rows.user == 1)], np.flatnonzero(rows.user == 1)[:1]
    )
    z = torch.randn(1, 2)
    both = [guide.posterior(batch).log_prob(z) for batch in (everything, data.batch([1]))]
    assert torch.allclose(*both, atol=1e-5)


def test_contexts_need_the_choices_of_the_rows_in_their_order() -> None:
    rows = many_rows()
    preferences = rows.to_preferences(lookup)
    Contexts(rows, preferences)
    order = np.arange(len(rows))
    order[[0, 1]] = order[[1, 0]]  # Of one person.
    shuffled = Preferences(
        preferences.left[order],
        preferences.right[order],
        preferences.choice[order],
        preferences.offsets,
        items=preferences.items,
        item_names=preferences.item_names,
        user_names=preferences.user_names,
    )
    with pytest.raises(ValueError, match="got choices in another order than the rows"):
        Contexts(rows, shuffled)
    renamed = Preferences(
        preferences.left, preferences.right, preferences.choice, preferences.offsets,
        items=preferences.items, user_names=preferences.user_names,
    )  # fmt: skip
    with pytest.raises(ValueError, match="got items other than the rows' texts"):
        Contexts(rows, renamed)
    with pytest.raises(ValueError, match="num_context must be at least 0, got -1"):
        Contexts(rows, preferences).draw(0, num_context=-1)
