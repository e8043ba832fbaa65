"""`steer train`: what it writes, goes on after an interruption, and what it refuses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from tiny_bundle import FAST, choice, records, write_files

from fssa_bayes.policy import SteerableDPOTrainer

pytest.importorskip("peft", reason="the extra policy is not installed")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("steer"))


def arguments(files: Path, out: Path, data: Path | None = None) -> list[object]:
    where = ["--model", files / "base", "--encoder", files / "encoder", "--out", out]
    return ["steer", "train", "--data", data or files / "prefs.jsonl", *where, *FAST]


@pytest.mark.slow
def test_an_interrupted_run_goes_on(files: Path, command, tmp_path: Path, monkeypatch) -> None:
    from fssa_bayes.steering import Bundle

    whole = command(*arguments(files, tmp_path / "whole"))
    assert whole.code == 0, whole.err
    assert "PreferenceRows(64 rows, 8 people, 8 prompts)" in whole.out
    assert "rewards/accuracies" in whole.out
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]

    step = SteerableDPOTrainer.training_step
    count = 0

    def stop(*given: object, **options: object) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 10:
            raise KeyboardInterrupt
        return step(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SteerableDPOTrainer, "training_step", stop)
        assert command(*arguments(files, tmp_path / "parts")).code
    assert not (tmp_path / "parts").exists()
    count = -1000
    with monkeypatch.context() as patch:
        patch.setattr(SteerableDPOTrainer, "training_step", stop)
        ended = command(*arguments(files, tmp_path / "parts"))
    assert ended.code == 0, ended.err
    assert -1000 < count < -1000 + 25 - 5  # The first steps were not done again.
    digests = {Bundle.load(tmp_path / name).digest() for name in ("whole", "parts")}
    assert len(digests) == 1


@pytest.mark.parametrize(("people", "expected"), [(9, None), (10, "auto")])
def test_few_people_are_all_fitted_and_nothing_half_done_is_left(
    files: Path, command, tmp_path: Path, monkeypatch, people: int, expected: str | None
) -> None:
    asked = []

    def stop(*given: object, validation: str | None, **options: object) -> None:
        asked.append(validation)
        raise ValueError("stopped")

    monkeypatch.setattr("fssa_bayes.steering.train.fit", stop)
    data = tmp_path / "few.jsonl"
    data.write_text("\n".join(map(json.dumps, records(people))))
    run = arguments(files, tmp_path / "out", data)
    where = run.index("--reward-steps")
    del run[where : where + 2]
    with warnings.catch_warnings():
        warnings.filterwarnings("always", ".* people are fewer than")
        ended = command(*run)
    assert (ended.code, asked) == (2, [expected])
    told = "warning: 9 people are fewer than 10: none are held out to end the fit of the preference"
    assert sum(line.startswith(told) for line in ended.err.split("\n")) == (expected is None)
    assert "UserWarning" not in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["few.jsonl"]


def test_what_is_wrong_with_the_files_is_told(files: Path, command, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"

    def attempt(rows: list[dict], *more: object) -> str:
        data.write_text("\n".join(map(json.dumps, rows)))
        ended = command(*arguments(files, tmp_path / "out", data), *more)
        assert ended.code == 2
        assert not (tmp_path / "out").exists()
        return ended.err

    assert "every row must have 'user'" in attempt([choice("now", "red")])
    mixed = choice("now", "red") | {"user": 1, "prompt": "now"}
    assert "leave the prompt out where the responses begin with it" in attempt([mixed])
    assert "loss_type must name some of" in attempt(records(), "--loss", "dpo")
    assert "test_size must lie in [0, 1), got 1.0" in attempt(records(), "--test-size", "1")
    assert "must divide batch_size=8, got 3" in attempt(records(), "--accumulate", "3")
    options = ("--model-option", "nonsense=3", "--model-option", "revision=main")
    message = "must be those of from_pretrained, got ['nonsense', 'revision']"
    assert message in attempt(records(), *options)
    nowhere = ("--model", tmp_path / "nowhere" / "at all")
    assert "nowhere" in attempt(records(), *nowhere)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    ended = command(*arguments(files, tmp_path / "out"))
    assert "hold a bundle alone, got" in ended.err
