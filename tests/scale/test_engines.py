"""Ray and Spark find what one process finds. Both are started once for all tests."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from many_people import ASKED, shuffle, simulate

from fssa_bayes.scale import score_table
from fssa_bayes.scale.pieces import part_of

pytestmark = pytest.mark.slow
ORDER = [(name, "ascending") for name in ("user", "quantity", "rank", "item")]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """People whose rows lie far apart, and some who cannot be scored."""
    odd = pa.table(
        {
            "user": ["no item", None, "person 3x"],
            "left": ["oak", "ash", "ash"],
            "right": ["ash", "elm", None],
            "choice": pa.array([1, 0, 1]),
        }
    )
    return shuffle(pa.concat_tables([simulate(80), odd]))


@pytest.fixture(scope="module")
def source(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number in range(3):
        some = table.slice(150 * number, 150)
        pq.write_table(some, folder / f"{number}.parquet", row_group_size=40)
    return folder


@pytest.fixture(scope="session")
def ray() -> Iterator[object]:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    pytest.importorskip("ray.data", reason="needs the extra ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
        ray.shutdown()


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    sql = pytest.importorskip("pyspark.sql", reason="needs the extra spark")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of pandas 3, and of sockets at the end.
        builder = sql.SparkSession.builder.master("local[2]")
        for name in ("spark.ui.enabled", "spark.ui.showConsoleProgress"):
            builder = builder.config(name, "false")
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        yield session
        session.stop()


def ordered(scores: pa.Table) -> pa.Table:
    return scores.sort_by(ORDER).combine_chunks()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("actors", [1, 2])
def test_ray_finds_what_one_process_finds(
    ray: object, linear: Path, table: pa.Table, source: Path, actors: int
) -> None:
    from fssa_bayes.scale.on_ray import score_dataset

    dataset = ray.data.read_parquet(str(source))
    scores = score_dataset(dataset, linear, num_parts=3, actors=actors, **ASKED)
    found = pa.concat_tables(ray.get(scores.to_arrow_refs()))
    expected = score_table(linear, table, **ASKED)
    assert ordered(found.cast(expected.schema)).equals(ordered(expected))


@pytest.mark.filterwarnings("ignore")
def test_a_killed_actor_changes_nothing(
    ray: object,
    linear: Path,
    table: pa.Table,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is killed while parts are left, which another process scores."""
    from fssa_bayes.scale import on_ray

    parts = len(set(part_of(table["user"], 12)))

    class Slow(on_ray.Actor):
        """Leaves a file for each part, under the number of the process."""

        def __call__(self, table: pa.Table) -> pa.Table:
            time.sleep(0.3)
            scores = super().__call__(table)
            (tmp_path / f"{os.getpid()}-{scores['user'][0]}").touch()
            return scores

    monkeypatch.setattr(on_ray, "Actor", Slow)
    dataset = ray.data.read_parquet(str(source))
    scores = on_ray.score_dataset(dataset, linear, num_parts=12, **ASKED)
    batches = scores.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    found = [next(iterator := iter(batches))]
    before = find_actors()
    assert before
    for process in before:
        os.kill(process, signal.SIGKILL)
    done = list(tmp_path.iterdir())
    assert 0 < len(done) < parts
    found += list(iterator)
    by = {int(path.name.partition("-")[0]) for path in tmp_path.iterdir()}
    assert by > set(before)
    expected = score_table(linear, table, **ASKED)
    assert ordered(pa.concat_tables(found).cast(expected.schema)).equals(ordered(expected))


def find_actors() -> list[int]:
    """Lists the processes of Ray's actors that descend from this process."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            title = (folder / "cmdline").read_bytes()
        except OSError:  # The process has ended.
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        if title.startswith(b"ray::MapWorker"):
            actors.append(int(folder.name))

    def is_own(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_own(parents[process]))

    return [process for process in actors if is_own(process)]


@pytest.mark.filterwarnings("ignore")
def test_spark_finds_what_one_process_finds(
    spark: object, linear: Path, table: pa.Table, source: Path
) -> None:
    from fssa_bayes.scale.on_spark import score_frame

    frame = spark.read.parquet(str(source))
    scores = score_frame(frame, linear, num_partitions=3, **ASKED)
    expected = score_table(linear, table, **ASKED)
    found = scores.toArrow().cast(expected.schema)
    assert ordered(found).equals(ordered(expected))


@pytest.mark.filterwarnings("ignore")
def test_wrong_options_are_refused_before_any_work(
    spark: object, ray: object, linear: Path, source: Path
) -> None:
    from fssa_bayes.scale.on_ray import score_dataset
    from fssa_bayes.scale.on_spark import score_frame

    dataset = ray.data.read_parquet(str(source))
    with pytest.warns(UserWarning, match="must leave a processor"):
        score_dataset(dataset, linear, num_parts=2, actors=2, num_cpus=1, **ASKED)
    with pytest.raises(ValueError, match="pairs must name items"):
        score_frame(
            spark.read.parquet(str(source)), linear, num_partitions=2, pairs=[("oak", "ash")]
        )
    with pytest.raises(ValueError, match="one of utilities, pairs and best"):
        score_dataset(dataset, linear, num_parts=2)
