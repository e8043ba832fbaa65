"""What a subcommand writes: a folder that appears whole, of one run alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fssa_bayes.cli.output import Writer
from fssa_bayes.report import Report


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_what_an_interrupted_run_left_is_not_in_a_new_one(
    tmp_path: Path, with_checkpoint: bool
) -> None:
    """Only the checkpoint is lent to the same command; the model and tables of a run are not."""
    left = tmp_path / ".results.rank.part"
    (left / "model").mkdir(parents=True)
    (left / "model" / "config.json").write_text("{}")
    (left / "ranking.csv").write_text("of another file")
    if with_checkpoint:
        (left / "checkpoint" / "state-00000001").mkdir(parents=True)
    with Writer(tmp_path / "results", "rank", overwrite=False, quiet=True) as writer:
        names = {path.name for path in writer.folder.iterdir()}
        assert names == {"lock"} | ({"checkpoint"} if with_checkpoint else set())
        report = Report("Ranks", (), (), "")
        report.write(writer.folder)
        writer.finish({}, report, write_json=False)
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {"report.html", "summary.md", "results.json"}
