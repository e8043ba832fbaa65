"""Fits by several processes take the path of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from fits_in_processes import main
from running import ENVIRONMENT, ROOT

from fssa_bayes import HeterogeneousBTL, Preferences, fit
from fssa_bayes.inference.direct import draw_numbers
from fssa_bayes.inference.processes import Processes, find_processes

SCRIPT = "tests/shared/fits_in_processes.py"
IN_DOUBLE_PRECISION = (
    *("importance weighted", "subset", "elbo", "neural process", "predictive", "deterministic"),
    *("sleep", "sleep by particles", "killed"),
    *("maximum likelihood", "weighted maximum likelihood", "homogeneous", "homogeneous network"),
)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """How fits ended in one process and in two, of which one has died and was started again."""
    folder = tmp_path_factory.mktemp("fits")
    with torch.random.fork_rng(devices=[]):
        main(folder)
    ended = subprocess.run(
        [sys.executable, SCRIPT, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={name: value for name, value in ENVIRONMENT.items() if name != "WORLD_SIZE"},
    )
    assert ended.returncode == 0, ended.stderr
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return found | {"said": (folder / "said-by-0.txt").read_text()}


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_DOUBLE_PRECISION)
def test_two_processes_take_the_path_of_one(ends: dict, name: str) -> None:
    one, first, second = (ends[rank][name] for rank in ("0-of-1", "0-of-2", "1-of-2"))
    assert first["parameters"] == second["parameters"]
    assert first["losses"] == second["losses"]
    np.testing.assert_allclose(first["losses"], one["losses"], rtol=1e-8, atol=1e-10)
    for tensor, total in one["sums"].items():
        np.testing.assert_allclose(first["sums"][tensor], total, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["held out", "weighted"])
def test_in_single_precision_the_path_is_the_same_but_for_rounding(ends: dict, name: str) -> None:
    """Adam gives a parameter whose gradient is all rounding a step of full length."""
    one, first, second = (ends[rank][name] for rank in ("0-of-1", "0-of-2", "1-of-2"))
    assert first == second
    assert first["steps"] == one["steps"]
    np.testing.assert_allclose(first["losses"][:3], one["losses"][:3], atol=1e-5)
    np.testing.assert_allclose(first["losses"], one["losses"], atol=1e-2)
    np.testing.assert_allclose(first["held_out"], one["held_out"], atol=5e-4)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_all_go_on(ends: dict) -> None:
    assert ends["said"].startswith("another process of the fit has ended")
    for rank in ("0-of-2", "1-of-2"):
        found = ends[rank]["killed"]
        assert found["steps"] == list(range(1, 13))
        assert found["calls"] == 6  # Of 12 steps the last six, from the checkpoint of the sixth.
        assert found["calls of another run"] == 0
        assert found["again"]["parameters"] == found["parameters"]


@pytest.mark.slow
def test_processes_that_would_make_different_fits_are_refused(ends: dict) -> None:
    for rank in ("0-of-2", "1-of-2"):
        assert ends[rank]["disagree"].startswith("all processes of a fit must have the same data")
    assert "another seed in process 1 of 2" in ends["1-of-2"]["disagree"]
    assert ends["0-of-1"]["disagree"] == ""


def test_shares_are_all_of_it() -> None:
    for number in (0, 1, 2, 7, 64):
        shares = [Processes(rank, 3).share(number) for rank in range(3)]
        assert [index for part in shares for index in range(number)[part]] == list(range(number))
        assert max(part.stop - part.start for part in shares) <= number // 3 + 1


def test_a_process_alone_exchanges_nothing() -> None:
    alone, values = Processes(), torch.arange(3.0)
    assert alone.add_up(values) is values
    assert alone.least(2.5) == 2.5
    assert alone.agree_on(-0.1) == -0.1
    assert alone.agree_on_text("ü") == "ü"
    assert find_processes() == alone
    assert "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize("dim", [0, 1])
def test_numbers_of_parts_are_those_of_the_whole(dim: int) -> None:
    shape = [5, 5, 2]
    torch.manual_seed(3)
    whole = draw_numbers(torch.randn, shape, None, dim=dim)
    parts = []
    for start, stop in ((0, 2), (2, 5)):
        torch.manual_seed(3)
        shape[dim] = stop - start
        parts.append(draw_numbers(torch.randn, shape, (start, 5), dim=dim))
    assert torch.equal(torch.cat(parts, dim), whole)


@pytest.mark.parametrize("num_features", [None, 3])
def test_a_part_of_a_batch_has_its_people_and_items(make_data, num_features: int | None) -> None:
    data = make_data((3, 1, 5, 0, 2), num_features=num_features)
    weights = np.arange(1.0, 6.0)
    batch = data.with_weights(weights).batch()
    part = batch.take(slice(1, 4))
    assert part.part == (1, 5)
    assert part.num_users == 3
    assert part.mask.equal(batch.mask[1:4])
    assert part.choice.equal(batch.choice[1:4])
    assert part.weights.tolist() == [2, 3, 4]
    assert part.people.tolist() == [1, 2, 3]
    for side in ("left", "right"):
        shown, expected = (b.items[getattr(b, side)] for b in (part, batch))
        assert shown[part.mask].equal(expected[1:4][part.mask])
    assert len(part.items) <= len(batch.items)


def test_what_is_no_way_to_divide_is_refused(make_data) -> None:
    data: Preferences = make_data()
    with pytest.raises(ValueError, match="processes must be 'auto' or None, got 2"):
        fit(HeterogeneousBTL(3, 0, "linear"), None, data.subset(data.counts > 0), processes=2)
