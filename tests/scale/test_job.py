"""Jobs on one machine: the same parts whatever the workers, the order and what was killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from many_people import ASKED, digests, shuffle, simulate
from running import run

from fssa_bayes import Preferences
from fssa_bayes.scale import score_parquet, score_table
from fssa_bayes.scale.people import ColumnNames
from fssa_bayes.scale.pieces import Piece, deal, find_source, list_pieces, part_of, read_part

HERE = Path(__file__).parents[1] / "shared"


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return simulate(300)


@pytest.fixture(scope="module")
def source(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file whose row groups divide people."""
    path = tmp_path_factory.mktemp("source") / "people.parquet"
    pq.write_table(table, path, row_group_size=97)
    return path


@pytest.fixture(scope="module")
def whole(linear: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    job = score_parquet(linear, source, out, workers=0, num_parts=4, **ASKED)
    assert (job.num_parts, job.written, job.num_people, job.num_failed) == (4, 4, 300, 0)
    return out


def keys_of(names: list) -> np.ndarray:
    """Returns the keys of the random streams of people."""
    people = np.arange(len(names) + 1)
    return Preferences(
        *(np.full(len(names), item) for item in (0, 1, 1)), people, num_items=2, user_names=names
    ).keys


def read(out: Path) -> pa.Table:
    return pa.dataset.dataset(out, format="parquet").to_table()


def test_a_job_finds_what_the_function_finds(linear: Path, table: pa.Table, whole: Path) -> None:
    scores = read(whole).sort_by([("user", "ascending")])
    assert scores.equals(score_table(linear, table, **ASKED))
    for part, path in enumerate(sorted(whole.glob("part-*.parquet"))):
        users = pq.read_table(path)["user"].unique().to_pylist()
        assert (keys_of(users) % 4 == part).all()
    assert not (whole / "_pieces").exists()


def test_parts_do_not_depend_on_files_and_order(
    linear: Path, table: pa.Table, whole: Path, tmp_path: Path
) -> None:
    """Every person is divided among files, and among row groups of a file."""
    mixed, folder = shuffle(table), tmp_path / "source"
    (folder / "more").mkdir(parents=True)
    pq.write_table(mixed.slice(0, 700), folder / "b.parquet", row_group_size=50)
    pq.write_table(mixed.slice(700), folder / "more" / "a.parquet")
    for name in ("_metadata.parquet", "_temporary/c.parquet", ".copies/d.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"of another program")
    score_parquet(linear, folder, tmp_path / "out", workers=0, num_parts=4, **ASKED)
    assert digests(tmp_path / "out") == digests(whole)


@pytest.mark.slow
def test_parts_do_not_depend_on_the_number_of_workers(
    linear: Path, source: Path, whole: Path, tmp_path: Path
) -> None:
    """Those of one worker, which is killed meanwhile, are in the test below."""
    told = []
    out = tmp_path / "out"
    score_parquet(linear, source, out, workers=3, num_parts=4, tell=told.append, **ASKED)
    assert digests(out) == digests(whole)
    assert told[-1] == "score: 4 of 4"


@pytest.mark.slow
def test_jobs_that_are_killed_end_with_the_same_parts(
    linear: Path, source: Path, tmp_path: Path
) -> None:
    script = str(HERE / "killed_jobs.py")
    found = json.loads(run(script, str(linear), str(source), str(tmp_path), "5", "2"))
    assert found["killed"] >= 5
    assert found["workers"] >= 2
    assert len(found["expected"]) == 12
    assert all(end == found["expected"] for end in found["ends"])


def test_a_finished_job_is_not_done_again(linear: Path, source: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("part-*.parquet")}
    job = score_parquet(linear, source, whole, workers=0, num_parts=4, **ASKED)
    assert job.written == 0
    assert job.reason is None
    assert job.num_people == 300
    assert before == {path: path.stat().st_mtime_ns for path in whole.glob("part-*.parquet")}


def test_damaged_and_missing_parts_are_written_again(
    linear: Path, source: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    content = bytearray((out / "part-000001.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "part-000001.parquet").write_bytes(content)
    (out / "part-000002.parquet").unlink()
    (out / "_digests" / "part-000003.json").write_text("{")
    (out / "_digests" / ".part-000000.json-abc.part").write_text("of a killed worker")
    with pytest.warns(UserWarning, match="part-00000[13].parquet' is damaged, and is written"):
        job = score_parquet(linear, source, out, workers=0, num_parts=4, **ASKED)
    assert job.written == 3
    assert digests(out) == digests(whole)
    assert not list(out.rglob("*.part"))


def test_parts_of_another_job_are_refused(
    linear: Path, bilinear: Path, table: pa.Table, source: Path, whole: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(table.slice(5), other)
    for model, path, options, what in (
        (bilinear, source, {}, "another model"),
        (linear, source, {"seed": 1}, "parts of other options"),
        (linear, source, {"num_parts": 5}, "another num_parts"),
        (linear, other, {}, "another source"),
    ):
        with pytest.raises(FileExistsError, match=what):
            score_parquet(model, path, whole, workers=0, **{"num_parts": 4} | ASKED | options)


def test_folders_of_others_are_left_alone(linear: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="with other files"):
        score_parquet(linear, source, tmp_path, workers=0, **ASKED)
    with pytest.raises(FileExistsError, match="got the file"):
        score_parquet(linear, source, tmp_path / "notes.txt", workers=0, **ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_results_do_not_lie_among_what_is_read(linear: Path, source: Path, tmp_path: Path) -> None:
    """A rerun would read the results of the first run, or the folder of a model be changed."""
    for path, out, name in (
        (source.parent, source.parent, "source"),
        (source.parent, source.parent / "more" / "out", "source"),
        (source, linear / "out", "model_dir"),
    ):
        with pytest.raises(ValueError, match=f"out must lie outside of {name}="):
            score_parquet(linear, path, out, workers=0, **ASKED)
    assert sorted(path.name for path in source.parent.iterdir()) == ["people.parquet"]


@pytest.mark.parametrize("options", [{"num_parts": True}, {"num_parts": 0}, {"workers": -1}])
def test_numbers_out_of_range_are_refused(
    linear: Path, source: Path, tmp_path: Path, options: dict
) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be an integer"):
        score_parquet(linear, source, tmp_path / "out", **{"workers": 0} | options | ASKED)


def test_two_jobs_do_not_write_to_one_folder(linear: Path, source: Path, whole: Path) -> None:
    with (
        FileLock(whole / ".lock"),
        pytest.raises(FileExistsError, match="another job writes to"),
    ):
        score_parquet(linear, source, whole, workers=0, num_parts=4, **ASKED)


def test_a_damaged_source_is_named(linear: Path, source: Path, tmp_path: Path) -> None:
    content = bytearray(source.read_bytes())
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(content[:-20])
    with pytest.raises(ValueError, match="cut.parquet' is no whole Parquet file"):
        score_parquet(linear, cut, tmp_path / "out", workers=0, **ASKED)
    changed = tmp_path / "changed.parquet"
    pq.write_table(pq.read_table(source), changed, write_page_checksum=True, compression="none")
    content = bytearray(changed.read_bytes())
    place = content.index(b"person 17")
    content[place : place + 9] = b"person 71"
    changed.write_bytes(content)
    with pytest.raises(ValueError, match="changed.parquet' is damaged"):
        score_parquet(linear, changed, tmp_path / "out", workers=0, **ASKED)


def test_wrong_sources_are_refused_before_any_work(
    linear: Path, table: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="source must be a Parquet file"):
        score_parquet(linear, tmp_path / "none", out, workers=0, **ASKED)
    pq.write_table(table.drop_columns("choice"), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="choice='choice' is not a column of .*a.parquet"):
        score_parquet(linear, tmp_path / "a.parquet", out, workers=0, **ASKED)
    folder = tmp_path / "two"
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet")
    numbers = pa.array(np.arange(len(table)))
    pq.write_table(table.set_column(0, "user", numbers), folder / "b.parquet")
    with pytest.raises(ValueError, match="same types of columns, got user: string.*user: int64"):
        score_parquet(linear, folder, out, workers=0, **ASKED)
    with pytest.raises(ValueError, match="workers must be an integer of at least 0, got -1"):
        score_parquet(linear, folder, out, workers=-1, **ASKED)
    with pytest.raises(ValueError, match="num_parts must be an integer of at least 1"):
        score_parquet(linear, folder, out, workers=0, num_parts=0, **ASKED)
    assert not out.exists()


def test_a_model_of_a_newer_format_is_refused(linear: Path, source: Path, tmp_path: Path) -> None:
    shutil.copytree(linear, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(ValueError, match="got 99.*a newer fssa_bayes"):
        score_parquet(tmp_path / "model", source, tmp_path / "out", workers=0, **ASKED)
    assert not (tmp_path / "out").exists()


def test_errors_of_workers_arrive_as_they_are(linear: Path, tmp_path: Path) -> None:
    """A worker that meets an error does not die, and the job ends with the error."""
    from fssa_bayes.scale.workers import Workers

    with Workers(1, Fails()) as workers, pytest.raises(ValueError, match="piece 3 of deal"):
        list(workers.run("deal", [3]))


class Fails:
    """Work that cannot be done."""

    def do(self, step: str, number: int) -> None:
        raise ValueError(f"piece {number} of {step}")


def test_people_who_cannot_be_scored_are_counted(linear: Path, tmp_path: Path) -> None:
    table = pa.table(
        {
            "user": ["a", "b", None, "c"],
            "left": ["ash", "oak", "ash", None],
            "right": ["elm", "elm", "elm", None],
            "choice": ["left", "right", "left", None],
        }
    )
    pq.write_table(table, tmp_path / "some.parquet")
    out = tmp_path / "out"
    job = score_parquet(linear, tmp_path / "some.parquet", out, workers=0, num_parts=3, **ASKED)
    assert (job.num_people, job.num_failed) == (4, 3)
    assert job.reason in read(out)["reason"].to_pylist()
    assert read(out)["reason"].null_count == 3


def test_files_without_rows_and_people_without_names(linear: Path, tmp_path: Path) -> None:
    """Names that are missing are one reason; files of no bytes are no Parquet files."""
    folder = tmp_path / "source"
    folder.mkdir()
    pq.write_table(simulate(2).slice(0, 0), folder / "a.parquet")
    nobody = simulate(2).set_column(0, "user", pa.nulls(10, pa.string()))
    pq.write_table(pa.concat_tables([simulate(1), nobody]), folder / "b.parquet")
    job = score_parquet(linear, folder, tmp_path / "out", workers=0, **ASKED)
    assert (job.num_people, job.num_failed) == (2, 1)
    assert "10 rows name no person" in read(tmp_path / "out")["reason"].to_pylist()
    (folder / "c.parquet").touch()
    with pytest.raises(ValueError, match="c.parquet' is no whole Parquet file"):
        score_parquet(linear, folder, tmp_path / "other", workers=0, **ASKED)


def test_a_source_without_rows_has_parts_without_rows(linear: Path, tmp_path: Path) -> None:
    pq.write_table(simulate(1).slice(0, 0), tmp_path / "none.parquet")
    job = score_parquet(linear, tmp_path / "none.parquet", tmp_path / "out", workers=0, **ASKED)
    assert (job.num_people, job.num_parts) == (0, 1)
    assert len(read(tmp_path / "out")) == 0


def test_dealt_parts_hold_every_row_once_and_people_whole(
    table: pa.Table, source: Path, tmp_path: Path
) -> None:
    columns = ColumnNames()
    pieces = list_pieces(find_source(source, columns), 300)
    assert [piece.row_groups for piece in pieces][:2] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    paths = [tmp_path / f"{number}.arrow" for number in range(len(pieces))]
    for piece, path in zip(pieces, paths, strict=True):
        deal(piece, path, columns, 7)
    parts = [read_part(paths, part, 7).to_pandas() for part in range(7)]
    users = [set(part["user"]) for part in parts]
    assert sum(map(len, users)) == len(set().union(*users)) == 300
    rows = pd.concat(parts).sort_values(columns.all).reset_index(drop=True)
    expected = table.to_pandas().sort_values(columns.all).reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected)


def test_long_stretches_are_dealt_a_few_rows_at_a_time(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fssa_bayes.scale.pieces as module

    columns, piece = ColumnNames(), Piece(source, tuple(range(16)))
    deal(piece, tmp_path / "one", columns, 5)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 64)
    deal(piece, tmp_path / "many", columns, 5)
    for part in range(5):
        one, many = (read_part([tmp_path / name], part, 5) for name in ("one", "many"))
        assert one.equals(many)


def test_the_part_of_a_person_follows_from_the_name() -> None:
    names = ["x", "y", None, "x", "z"]
    part = part_of(pa.array(names), 1000)
    assert part[0] == part[3] == keys_of(["x"])[0] % 1000
    assert part[2] == 0
    chunked = pa.chunked_array([["z", "y"], ["x", None]])
    np.testing.assert_array_equal(part_of(chunked, 1000), part[[4, 1, 0, 2]])
    assert (part_of(pa.array([3, 4]), 1000) == keys_of([3, 4]) % 1000).all()
