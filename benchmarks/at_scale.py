"""A million people scored from Parquet by one and by two workers, and ten million fitted from disk.

Scoring: comparisons of people are generated to Parquet files in random order, ten of each person
among 20 items, and scored by `score_parquet` with a mixed logit of two dimensions, 250 draws, the
three best items and one pair a person. Memory is the sum of the proportional memory of all
processes, looked at twice a second. Efficiency is the time of one worker by twice the time of two.

Fitting: comparisons are written to one Parquet file, opened by `Preferences.from_parquet`, drawn as
batches, and fitted for 200 steps of 1,024 people. Memory is the peak so far of a process of its
own, with the pages of mapped files that it has touched.

`--people` is the number of people that are scored, and a tenth of those that are fitted. Files
go to the folder of temporary files, or that of the environment variable BENCHMARK_FOLDER.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.harness import Row, spread
from benchmarks.memory import in_fresh_process, peak_gigabytes
from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    MaximumLikelihood,
    NeuralProcessGuide,
    Preferences,
    fit,
    save,
)
from fssa_bayes.scale import score_parquet

COMPARISONS, ITEMS, LATENT, FILES = 10, 20, 2, 8
STEPS, BATCH_SIZE = 200, 1024
CHUNK = 100_000  # People that are generated at once.


def run(args: argparse.Namespace) -> Iterator[Row]:
    people = args.people or (300 if args.quick else 1_000_000)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as folder:
        yield from _score(Path(folder), people, args.seeds[0])
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as folder:
        steps = 3 if args.quick else STEPS
        figures = in_fresh_process(_fit, args.threads, folder, 10 * people, args.seeds[0], steps)
    for metric, unit, value in figures:
        yield spread("at_scale", f"{10 * people:,} people", "fit from disk", metric, unit, [value])


def _score(folder: Path, people: int, seed: int) -> Iterator[Row]:
    case = f"{people:,} people"

    def row(implementation: str, metric: str, unit: str, value: float, *ratio: object) -> Row:
        return spread("at_scale", case, implementation, metric, unit, [value], *ratio)

    start = time.perf_counter()
    (folder / "source").mkdir()
    for number in range(FILES):
        table = simulate(people, seed, part=number, parts=FILES)
        pq.write_table(table, folder / "source" / f"{number}.parquet")
    size = sum(path.stat().st_size for path in (folder / "source").iterdir()) / 2**30
    yield row("Parquet", "generate and write", "s", time.perf_counter() - start)
    yield row("Parquet", "size of the source", "GB", size)
    in_fresh_process(_save_model, 1, folder / "model", seed)
    seconds, digests = {}, {}
    for workers in (1, 2):
        name = f"{workers} worker{'s' * (workers > 1)}"
        # Of their own processes, so that no job finds the other one's workers ready.
        figures, digests[workers] = in_fresh_process(_run_job, 1, folder, workers, people, seed)
        for metric, unit, value in figures:
            ratio: tuple = ()
            if metric.startswith("in all, wall"):
                seconds[workers] = value
                ratio = ("1 worker", seconds[1] / value) if workers == 2 else ()
            yield row(name, metric, unit, value, *ratio)
    assert digests[1] == digests[2], "parts must be equal to the last byte"
    yield row("2 workers", "efficiency", "of 1", seconds[1] / (2 * seconds[2]))


def _run_job(
    folder: Path, workers: int, people: int, seed: int
) -> tuple[list[tuple[str, str, float]], list[str]]:
    """Returns figures of a job, and the digests of its parts."""
    out, times = folder / f"out-{workers}", {}
    clock, before = time.perf_counter(), _cpu_seconds()

    def tell(text: str) -> None:
        times[text.split(":")[0]] = time.perf_counter()

    with Memory() as memory:
        job = score_parquet(
            folder / "model", folder / "source", out, workers=workers, tell=tell, best=3,
            pairs=[(0, 1)], num_samples=250, seed=seed,
        )  # fmt: skip
        end, used = time.perf_counter(), _cpu_seconds() - before
    assert (job.num_people, job.num_failed) == (people, 0)
    parts = sorted(out.glob("part*"))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in parts]
    written = sum(path.stat().st_size for path in parts) / 2**30
    shutil.rmtree(out)
    figures = [
        ("deal people to parts, wall-clock", "s", times["deal"] - clock),
        ("in all, wall-clock", "s", end - clock),
        ("in all, CPU", "s", used),
        ("people a CPU second", "1/s", people / used),
        ("memory of all processes", "GB peak", memory.peak),
        ("size of the scores", "GB", written),
        ("parts", "", float(job.num_parts)),
    ]
    return figures, digests


def simulate(people: int, seed: int, *, part: int = 0, parts: int = 1) -> pa.Table:
    """Draws every `parts`-th comparison of people with tastes of their own, in random order."""
    rng = np.random.default_rng([seed, 1])
    beta = rng.normal(size=(people, LATENT)).astype(np.float32)
    x = np.random.default_rng([seed, 2]).normal(size=(ITEMS, LATENT)).astype(np.float32)
    rng = np.random.default_rng([seed, 3, part])
    number = rng.permutation(np.arange(part, people * COMPARISONS, parts))
    person, which = np.divmod(number, COMPARISONS)
    left = np.random.default_rng([seed, 4]).integers(ITEMS, size=people)[person]
    left = (left + which) % ITEMS
    right = (left + 1 + which) % ITEMS
    margin = ((x[left] - x[right]) * beta[person]).sum(1)
    choice = rng.random(len(number)) < 1 / (1 + np.exp(-margin))
    columns = {"user": person, "left": left, "right": right, "choice": choice}
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _save_model(path: Path, seed: int) -> None:
    data = Preferences.from_dataframe(
        simulate(300, seed).to_pandas(), user="user", left="left", right="right", choice="choice"
    ).select_items(range(ITEMS))
    model = HeterogeneousBTL.for_data(data, latent_dim=LATENT, utility="linear", seed=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*people are few for the")
        fit(model, None, data, objective=MaximumLikelihood(64), progress_bar=False)
    save(path, model)


class Memory:
    """Looks at the proportional memory of this process and its descendants twice a second.

    Attributes:
        peak: The largest sum seen, in GB of 2**30 bytes.
    """

    def __enter__(self) -> Memory:
        self.peak = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(0.5):
            self.peak = max(self.peak, _proportional_gigabytes())


def _own_processes() -> dict[int, float]:
    """Returns the CPU seconds, with those of ended children, of this process and its descendants.

    Ended children of children count to their parents, which :func:`os.times` does not see.
    """
    parents, seconds = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            values = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # The process has ended.
            continue
        number = int(folder.name)
        parents[number] = int(values[1])
        seconds[number] = sum(map(int, values[11:15])) / os.sysconf("SC_CLK_TCK")

    def is_own(number: int) -> bool:
        return number == os.getpid() or (number in parents and is_own(parents[number]))

    return {number: value for number, value in seconds.items() if is_own(number)}


def _cpu_seconds() -> float:
    return sum(_own_processes().values())


def _proportional_gigabytes() -> float:
    total = 0
    for number in _own_processes():
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:  # The process has ended.
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**20


def _fit(folder: str, people: int, seed: int, steps: int = STEPS) -> list[tuple[str, str, float]]:
    figures: list[tuple[str, str, float]] = []
    path = Path(folder) / "people.parquet"

    def record(what: str, function: Callable) -> object:
        start = time.perf_counter()
        result = function()
        figures.append((what, "s", time.perf_counter() - start))
        figures.append((f"{what}, memory", "GB peak", peak_gigabytes()))
        return result

    def write() -> None:
        rng, writer = np.random.default_rng([seed, 5]), None
        x = rng.normal(size=(ITEMS, LATENT)).astype(np.float32)
        for start in range(0, people, CHUNK):
            number = min(CHUNK, people - start)
            beta = rng.normal(size=(number, 1, LATENT)).astype(np.float32)
            left = rng.integers(ITEMS, size=(number, 1)) + np.arange(COMPARISONS)
            left, right = left % ITEMS, (left + 1 + np.arange(COMPARISONS)) % ITEMS
            margin = ((x[left] - x[right]) * beta).sum(-1)
            choice = rng.random(margin.shape) < 1 / (1 + np.exp(-margin))
            user = np.repeat(np.arange(start, start + number), COMPARISONS)
            columns = {"user": user, "left": left, "right": right, "choice": choice}
            table = pa.table({name: pa.array(v.ravel()) for name, v in columns.items()})
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        writer.close()

    record("generate and write", write)
    store = Path(folder) / "columns"
    columns = {name: name for name in ("user", "left", "right", "choice")}
    record("convert", lambda: Preferences.from_parquet(path, **columns, store=store))
    data = record("open again", lambda: Preferences.from_parquet(path, **columns, store=store))
    size = sum(file.stat().st_size for file in store.rglob("*")) / 2**30
    figures.append(("size of the columns", "GB", size))
    rng = np.random.default_rng(seed)

    def draw() -> None:
        for _ in range(steps):
            data.batch(rng.choice(len(data), min(BATCH_SIZE, len(data)), replace=False))

    record(f"draw {steps} batches", draw)
    torch.manual_seed(seed)
    for utility in ("bilinear", "linear"):
        model = HeterogeneousBTL.for_data(data, latent_dim=LATENT, utility=utility)
        guide = NeuralProcessGuide(model)
        objective = ImportanceWeightedELBO(steps=steps, batch_size=BATCH_SIZE)
        options = {"objective": objective, "validation": None, "progress_bar": False}
        record(
            f"fit {utility}, {steps} steps",
            lambda m=model, g=guide, o=options: fit(m, g, data, seed=seed, **o),
        )
    return figures
