"""The order of rows in training: every row once an epoch, batches by length."""

from __future__ import annotations

import numpy as np
import pytest

from fssa_bayes.policy.epochs import EpochSampler


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
def test_an_epoch_meets_every_row_once(strategy: str) -> None:
    lengths = np.random.default_rng(0).integers(5, 50, size=1003)
    step = [0]
    sampler = EpochSampler(lengths, 10, strategy, 0, lambda: step[0])
    epochs = []
    for epoch in range(3):
        step[0] = 100 * epoch
        order = np.array(list(sampler))
        assert len(order) == len(sampler) == 1000
        assert len(np.unique(order)) == 1000
        step[0] = 100 * epoch + 42  # The same epoch, half-way.
        assert list(sampler) == order.tolist()
        within = np.diff(lengths[order].reshape(-1, 10))
        assert strategy == "sequential" or (within <= 0).all()
        epochs.append(order)
    spread = np.ptp(lengths[epochs[0]].reshape(-1, 10), axis=1).mean()
    assert (spread < 3) == (strategy == "group_by_length")
    batches = [{frozenset(batch) for batch in order.reshape(-1, 10).tolist()} for order in epochs]
    assert (batches[0] == batches[1]) == (strategy != "random")
    same = np.array_equal(epochs[0], epochs[1])
    assert same == (strategy == "sequential")
