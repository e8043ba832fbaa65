"""A bundle that was trained once, and files of which another can be."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import FAST, write_files

from fssa_bayes.cli import main


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, an encoder, rows, and the bundle that the command trained."""
    folder = write_files(tmp_path_factory.mktemp("bundle"))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("steer", "train", "--data", str(folder / "prefs.jsonl")),
                *("--model", str(folder / "base"), "--encoder", str(folder / "encoder")),
                *("--out", str(folder / "bundle"), *FAST),
            ]
        )
    assert not ended.value.code
    return folder
