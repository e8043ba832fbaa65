"""Tables of a million rows and more: reading, summary, homogeneous fits, batches.

Each version and size is measured in a process of its own, after a warm-up on small tables; CPU
seconds stand beside wall-clock seconds, as other programs may run. `--earlier DIR` measures an
earlier version too, whose checkout is in DIR, in turn with this one. `--crowds DIR` adds the
homogeneous fit of the crowd's judgements of language models.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.harness import Row, spread
from benchmarks.memory import in_fresh_process

# No import of fssa_bayes here: a process measures the version that it is told.

ITEMS, PER_PERSON = 500, 100
REPEATS = 3
CASES = {
    # Names in objects, as read_csv of pandas 2 makes them; in categories; as text of Arrow.
    "read, objects": ("read", "object"),
    "read, categories": ("read", "category"),
    "read, Arrow": ("read", "string[pyarrow]"),
    "read, numbers": ("read", "int64"),
    "summary": ("summary", "int64"),
    "homogeneous fit": ("fit", "int64"),
    "split contexts": ("split", "int64"),
    "batch(64)": ("batch", "int64"),
    "resample 64 people": ("resample", "int64"),
}
LARGEST = ("read, objects", "read, numbers", "summary", "batch(64)", "resample 64 people")
Seconds = tuple[float, float]


def run(args: argparse.Namespace) -> Iterator[Row]:
    sizes = (1_000, 10_000) if args.quick else (1_000_000, 10_000_000)
    versions = {"this version": None}
    if args.earlier is not None:
        versions["earlier version"] = str(args.earlier.resolve())
    for size in sizes:
        cases = CASES if size == sizes[0] else {name: CASES[name] for name in LARGEST}
        repeats = REPEATS if size == sizes[0] and not args.quick else 1
        arguments = (size, cases, args.crowds if size == sizes[0] else None, args.seeds[0])
        seconds: dict[str, list[dict[str, Seconds]]] = {name: [] for name in versions}
        for _ in range(repeats):
            for name, folder in versions.items():
                found = in_fresh_process(_measure, args.threads, folder, *arguments)
                seconds[name].append(found)
        for case in seconds["this version"][0]:
            yield from _compare(case, {name: [v[case] for v in s] for name, s in seconds.items()})


def _compare(case: str, seconds: dict[str, list[Seconds]]) -> Iterator[Row]:
    """Lists the figures of a case, those of an earlier version with their ratio to these."""
    for place, metric in enumerate(("wall-clock time", "CPU time")):
        mine = np.median([value[place] for value in seconds["this version"]])
        for name, values in seconds.items():
            column = [value[place] for value in values]
            compared = ("this version", np.median(column) / mine) if name != "this version" else ()
            yield spread("large", case, name, metric, "s", column, *compared)


def _measure(
    folder: str | None,
    size: int,
    cases: dict[str, tuple[str, str]],
    crowds: Path | None,
    seed: int,
) -> dict[str, Seconds]:
    """Returns wall-clock and CPU seconds of each case, with the version in a folder."""
    if folder is not None:
        sys.path.insert(0, folder)
    warnings.simplefilter("ignore")
    found = {}
    for case, (task, kind) in cases.items():
        for rows in (1_000, size):  # First calls import and allocate.
            found[f"{case}, {size:,}"] = _time(*_prepare(task, kind, rows, seed))
    if crowds is not None:
        found["homogeneous fit, llmfao"] = _time(_fit(_read_crowd(crowds)), 7)
    return found


def _prepare(task: str, kind: str, size: int, seed: int) -> tuple[Callable[[], object], int]:
    """Returns what is measured, and how often it is done."""
    from fssa_bayes import Preferences

    table = _simulate(kind, size, seed)
    columns = {"user": "who", "left": "one", "right": "other", "choice": "won"}

    def read() -> Preferences:
        return Preferences.from_dataframe(table, **columns)

    if task == "read":
        return read, 1
    data, rng = read(), np.random.default_rng(seed)
    counts = rng.integers(1, 40, size=64)
    tasks = {
        "summary": (data.summary, 1),
        "fit": (_fit(data), 1),
        "split": (lambda: data.split_context(5, seed=seed), 1),
        "batch": (lambda: data.batch(rng.integers(len(data), size=64)), 21),
        "resample": (lambda: data.resample_pairs(counts, rng), 21),
    }
    function, number = tasks[task]
    if task in ("batch", "resample"):
        function()  # Keys of people are made once.
    return function, number


def _simulate(kind: str, size: int, seed: int) -> pd.DataFrame:
    """Draws comparisons in random order, with names of a kind."""
    rng = np.random.default_rng(seed)
    people = max(size // PER_PERSON, 1)
    left = rng.integers(ITEMS, size=size)
    right = (left + rng.integers(1, ITEMS, size=size)) % ITEMS
    won = rng.random(size) < 1 / (1 + np.exp(2 * (left - right) / ITEMS))
    columns = {"who": rng.integers(people, size=size), "one": left, "other": right}
    if kind != "int64":
        for name, count in (("who", people), ("one", ITEMS), ("other", ITEMS)):
            names = np.array([f"{name[0]} {number}" for number in range(count)], dtype=object)
            names = names if name == "who" else np.char.add("item ", np.arange(ITEMS).astype(str))
            taken = pd.Series(names.astype(object)[columns[name]], dtype=object)
            columns[name] = taken if kind == "object" else taken.astype(kind)
    return pd.DataFrame(columns | {"won": won.astype(np.int64)})


def _read_crowd(folder: Path) -> object:
    from fssa_bayes.datasets import llmfao

    data = llmfao.read(folder / llmfao.FILE)
    return data.with_choices(data.choice, ties="half")


def _fit(data: object) -> Callable[[], object]:
    from fssa_bayes import HeterogeneousBTL, fit

    def fitted() -> object:
        model = HeterogeneousBTL(data.num_features, 0, "linear")
        return fit(model, None, data, progress_bar=False)

    return fitted


def _time(function: Callable[[], object], number: int) -> Seconds:
    """Returns the medians of wall-clock and CPU seconds of some calls."""
    seconds = []
    for _ in range(number):
        start, used = time.perf_counter(), time.process_time()
        function()
        seconds.append((time.perf_counter() - start, time.process_time() - used))
    wall, cpu = np.median(seconds, axis=0)
    return float(wall), float(cpu)
