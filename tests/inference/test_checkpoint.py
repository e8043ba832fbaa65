"""fit(checkpoint=): a fit that is interrupted ends as one that is not, bit for bit."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from fssa_bayes import (
    FitResult,
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.inference import Objective
from fssa_bayes.io import Checkpoints, flatten

STAGES = [ImportanceWeightedELBO(4, steps=30), Sleep(steps=20)]
CASES = {
    "two stages": ({"utility": "bilinear"}, {"objective": STAGES, "validation": None}),
    "held out and refit": ({"utility": "bilinear"}, {"objective": STAGES, "validation": 0.3}),
    "held out": ({"utility": "mlp"}, {"objective": STAGES, "validation": 0.3, "refit": False}),
    "flow prior": ({"prior": "flow"}, {"objective": STAGES, "validation": None}),
    "linear": ({"utility": "linear"}, {"steps": 30}),
}


class Interruption(BaseException):
    """Stands for anything that ends a fit early."""


@pytest.fixture
def data(make_data: Callable[..., Preferences]) -> Preferences:
    return make_data([3, 1, 5, 2] * 4)


def run(data: Preferences, case: str, **more: object) -> tuple[FitResult, dict[str, Tensor]]:
    model_options, options = CASES[case]
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 2, hidden_dim=8, **model_options)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    options = options | {"batch_size": 5, "checkpoint_interval": 4} | more
    result = fit(model, guide, data, progress_bar=False, **options)
    return result, flatten(model, guide)


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets an optimiser take so many steps in all, and no more."""
    step, left = torch.optim.Adam.step, [steps]

    def limited(self: torch.optim.Adam, *arguments: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise Interruption
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", limited)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Sleep raised:UserWarning")
def test_an_interrupted_fit_ends_as_one_that_is_not(
    case: str, data: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = run(data, case)
    interruptions = 0
    for steps in itertools.chain((0, 1, 7, 8, 3), itertools.repeat(5)):
        with monkeypatch.context() as patch:
            interrupt_after(steps, patch)
            try:
                result, parameters = run(data, case, checkpoint=tmp_path / "run")
                break
            except Interruption:
                interruptions += 1
    assert interruptions > 5
    torch.testing.assert_close(parameters, expected, rtol=0, atol=0)
    pd.testing.assert_frame_equal(result.history, whole.history, check_exact=True)
    assert (result.held_out is None) == (whole.held_out is None)
    if whole.held_out is not None:
        pd.testing.assert_frame_equal(result.held_out, whole.held_out, check_exact=True)


def test_a_finished_fit_returns_at_once(
    data: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = run(data, "two stages", checkpoint=tmp_path / "run")
    interrupt_after(0, monkeypatch)
    result, parameters = run(data, "two stages", checkpoint=tmp_path / "run")
    torch.testing.assert_close(parameters, expected, rtol=0, atol=0)
    pd.testing.assert_frame_equal(result.history, whole.history, check_exact=True)


@pytest.mark.slow
def test_initial_weights_come_from_the_checkpoint(
    data: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that starts again draws other initial weights, which must not matter."""
    _, expected = run(data, "held out and refit")
    with monkeypatch.context() as patch:
        interrupt_after(40, patch)
        with pytest.raises(Interruption):
            run(data, "held out and refit", checkpoint=tmp_path)
    manual_seed = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: manual_seed(seed + 1))
    model = HeterogeneousBTL(3, 2, hidden_dim=8)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    monkeypatch.undo()
    options = CASES["held out and refit"][1] | {"batch_size": 5, "checkpoint_interval": 4}
    fit(model, guide, data, progress_bar=False, checkpoint=tmp_path, **options)
    torch.testing.assert_close(flatten(model, guide), expected, rtol=0, atol=0)


def test_a_homogeneous_fit_begins_again(data: Preferences, tmp_path: Path) -> None:
    def homogeneous(checkpoint: Path | None) -> Tensor:
        model = HeterogeneousBTL(3, 0, utility="linear")
        fit(model, None, data, progress_bar=False, checkpoint=checkpoint)
        return model.utility.mean.detach()

    expected = homogeneous(None)
    for _ in range(2):
        assert torch.equal(homogeneous(tmp_path / "run"), expected)


def test_a_bounded_number_of_states_is_kept(data: Preferences, tmp_path: Path) -> None:
    run(data, "two stages", checkpoint=tmp_path / "run", checkpoint_interval=1)
    assert len(list((tmp_path / "run").glob("state-*"))) == 2


def test_a_damaged_state_is_passed_over(
    data: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = run(data, "two stages")
    with monkeypatch.context() as patch:
        interrupt_after(21, patch)
        with pytest.raises(Interruption):
            run(data, "two stages", checkpoint=tmp_path)
    last = max(tmp_path.glob("state-*")) / "model.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="a checkpoint is passed over: .*damaged or truncated"):
        _, parameters = run(data, "two stages", checkpoint=tmp_path)
    torch.testing.assert_close(parameters, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"learning_rate": 1e-3}, "learning_rate was 0.003, is 0.001"),
        ({"objective": [ImportanceWeightedELBO(5, steps=30), Sleep(steps=20)]}, "objective"),
        ({"validation": 0.4}, "validation was null, is 0.4"),
        ({"case": "flow prior"}, "model, parameters differ"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(
    change: dict, named: str, data: Preferences, tmp_path: Path
) -> None:
    run(data, "two stages", checkpoint=tmp_path, steps=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    options = {"case": "two stages", "steps": 2} | change
    with pytest.raises(ValueError, match=f"checkpoint must be empty or .*{named}"):
        run(data, checkpoint=tmp_path, **options)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*") if p.is_file()} == before


def test_a_checkpoint_of_other_data_is_refused(
    data: Preferences, make_data: Callable[..., Preferences], tmp_path: Path
) -> None:
    run(data, "two stages", checkpoint=tmp_path, steps=2)
    with pytest.raises(ValueError, match="whose data differ"):
        run(make_data([3, 1, 5, 2] * 4, seed=1), "two stages", checkpoint=tmp_path, steps=2)
    with pytest.raises(ValueError, match="whose data differ"):
        run(data.swap(), "two stages", checkpoint=tmp_path, steps=2)


def test_bad_folders_and_intervals_are_refused(data: Preferences, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        run(data, "two stages", checkpoint=tmp_path / "file")
    with pytest.raises(ValueError, match="checkpoint_interval must be an integer of at least 1"):
        run(data, "two stages", checkpoint=tmp_path / "run", checkpoint_interval=0)


def test_what_a_killed_process_left_is_tidied_up(tmp_path: Path) -> None:
    (tmp_path / ".state-00000001-abc.part").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with Checkpoints(tmp_path, {}):
        assert sorted(os.listdir(tmp_path)) == [".lock", "notes.txt"]


def test_one_fit_at_a_time_uses_a_folder(data: Preferences, tmp_path: Path) -> None:
    """Another fit is refused while one runs, and none is after it ended, well or not."""
    with Checkpoints(tmp_path, {}) as first:
        first.write({}, {})
        with pytest.raises(FileExistsError, match="checkpoint must belong to one fit at a time"):
            run(data, "two stages", checkpoint=tmp_path, steps=2)
        assert len(list(tmp_path.glob("state-*"))) == 1
    with pytest.raises(ValueError, match="holds? a state of this fit"):
        run(data, "two stages", checkpoint=tmp_path, steps=2)
    with Checkpoints(tmp_path, {}) as again:
        assert again.found == ({}, {})


LOCKED = """
import os, sys
from fssa_bayes.io import Checkpoints
checkpoints = Checkpoints(sys.argv[1], {})
checkpoints.write({}, {"step": 1})
os._exit(9)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", LOCKED, str(tmp_path)], check=False)
    assert process.returncode == 9
    with Checkpoints(tmp_path, {}) as checkpoints:
        assert checkpoints.found == ({}, {"step": 1})


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_fit(
    data: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up after the second state, and has room again for the last."""
    _, expected = run(data, "two stages")
    write, calls = Path.write_bytes, []

    def full(self: Path, content: bytes) -> int:
        calls.append(self.name)
        if self.name == "model.safetensors" and 2 < calls.count(self.name) < 14:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match="a checkpoint could not be written, and the fit goes on"):
        _, parameters = run(data, "two stages", checkpoint=tmp_path)
    torch.testing.assert_close(parameters, expected, rtol=0, atol=0)
    assert not list(tmp_path.glob(".*.part"))
    monkeypatch.undo()
    interrupt_after(0, monkeypatch)  # The last state is whole: the fit is finished.
    _, parameters = run(data, "two stages", checkpoint=tmp_path)
    torch.testing.assert_close(parameters, expected, rtol=0, atol=0)


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(
    data: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: FileLock) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/read/only")

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    with pytest.warns(UserWarning, match="cannot be locked against other fits: .*/read/only"):
        run(data, "two stages", checkpoint=tmp_path, steps=2)


def test_a_loss_that_is_not_finite_leaves_a_checkpoint_to_go_on_from(
    data: Preferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = run(data, "two stages")
    backward, calls = Objective.backward, iter(range(1000))

    def broken(self: Objective, *arguments: object) -> float:
        loss = backward(self, *arguments)
        return float("nan") if next(calls) == 10 else loss

    with monkeypatch.context() as patch:
        patch.setattr(Sleep, "backward", broken)
        with pytest.raises(FloatingPointError, match="step 11 of Sleep"):
            run(data, "two stages", checkpoint=tmp_path)
    _, parameters = run(data, "two stages", checkpoint=tmp_path)
    torch.testing.assert_close(parameters, expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_fits_killed_twenty_times_end_with_the_same_parameters(tmp_path: Path) -> None:
    process = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).parents[1] / "shared" / "killed_fits.py"),
            str(tmp_path),
            "20",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["killed"] >= 20
    assert set(report["ends"]) == {report["expected"]}
    assert "passed over" not in process.stderr
