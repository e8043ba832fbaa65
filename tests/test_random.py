"""Random streams of people, and seeded blocks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch

from fssa_bayes._random import Streams, keys_of, seeded


def test_equal_names_have_equal_keys_whatever_holds_them() -> None:
    keys = keys_of([1, 2, 2**60])
    for dtype in ("int64", "Int64", "uint64", "object"):
        assert (keys_of(pd.Index([1, 2, 2**60], dtype=dtype)) == keys).all()
    assert (keys_of(np.array([1.0, 2.0])) == keys[:2]).all()
    text = keys_of(["1", "2"])
    assert not set(text) & set(keys)
    assert (keys_of(pd.Index(["1", "2"], dtype="category")) == text).all()


def test_names_that_repeat_have_a_key_each_and_leave_others_alone() -> None:
    once, repeated = keys_of(["a", "b", "c"]), keys_of(["a", "b", "b", "c", "b"])
    assert len(set(repeated)) == 5
    assert (repeated[[0, 1, 3]] == once).all()


def test_seed_purpose_and_key_each_make_another_stream() -> None:
    like = torch.empty(0)
    first = Streams(0, "draws").normal([1, 2], 3, like=like)
    assert torch.equal(Streams(0, "draws").normal([2], 3, like=like)[0], first[1])
    others = [Streams(1, "draws"), Streams(0, "other"), Streams(0, "draws").part(0)]
    for streams in others:
        assert not (streams.normal([1, 2], 3, like=like) == first).any()
    assert not torch.equal(first[0], first[1])


def test_seeded_blocks_of_several_threads_do_not_mix() -> None:
    def draw(seed: int) -> torch.Tensor:
        with seeded(seed):
            return torch.cat([torch.randn(3) for _ in range(50)])

    before = torch.get_rng_state()
    expected = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as executor:
        results = list(executor.map(draw, range(8)))
    assert all(map(torch.equal, results, expected))
    assert torch.equal(torch.get_rng_state(), before)
