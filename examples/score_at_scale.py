"""What do very many people prefer, scored by one machine, by Ray or by Spark?

Fits a mixed logit to some people, saves it, writes the comparisons of others to Parquet files in
random order, and scores them: by processes of this machine, by Ray, or by Spark.

What to see: the scores have the same digest whatever the engine and the number of workers. A person
who compared an unknown item has a reason in place of scores. The figure shows which item is best to
how many people, and how sure that is of one pair.

    python examples/score_at_scale.py
    python examples/score_at_scale.py --engine ray --workers 1
    python examples/score_at_scale.py --engine ray --address auto --model /nfs/m --data /nfs/p
    python examples/score_at_scale.py --engine spark

Seconds on a laptop. `--engine ray` needs the extra `ray`, and `--engine spark` the extra `spark`
and Java 17; with `--address` they use a running cluster, whose nodes must see the files.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import torch
from arguments import Parser, run, whole

from fssa_bayes import HeterogeneousBTL, MaximumLikelihood, Preferences, fit, save
from fssa_bayes.scale import score_parquet

ITEMS = ["ash", "beech", "cedar", "date", "elm", "fir", "ginkgo", "hazel"]
PAIR = ("ash", "fir")
COLUMNS = {"user": "user", "left": "left", "right": "right", "choice": "choice"}
FILES, PARTS = 4, 4
ORDER = [(name, "ascending") for name in ("user", "quantity", "rank", "item")]


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    model, source = args.model or args.out / "model", args.data or args.out / "people"
    if args.model is None:
        fit_model(model, args)
    if args.data is None:
        write_people(source, args)
    asked = {"best": 3, "pairs": [PAIR], "num_samples": args.draws, "seed": args.seed}
    engine = {"local": by_processes, "ray": by_ray, "spark": by_spark}[args.engine]
    scores = engine(model, source, asked, args).sort_by(ORDER).combine_chunks()
    pq.write_table(scores, args.out / "scores.parquet")
    print(scores.slice(0, 8).to_pandas().to_string(index=False))
    reasons = scores.filter(pa.compute.is_valid(scores["reason"]))
    print(f"\n{len(scores['user'].unique()):,} people, {len(reasons)} of whom have no scores:")
    print(reasons.select(["user", "reason"]).to_pandas().to_string(index=False))
    content = scores.drop_columns("reason").to_pandas().to_csv(index=False).encode()
    digest = hashlib.sha256(content).hexdigest()[:16]
    print(f"\ndigest of all scores: {digest}")
    draw_figure(scores.to_pandas(), digest, args.out / "score_at_scale.png")


def by_processes(
    model: Path, source: Path, asked: dict[str, object], args: argparse.Namespace
) -> pa.Table:
    out = args.out / "scores"
    shutil.rmtree(out, ignore_errors=True)  # Or else a finished job is not done again.
    job = score_parquet(model, source, out, workers=args.workers, num_parts=PARTS, **asked)
    print(f"{job.num_parts} parts in {job.out}\n")
    return pyarrow.dataset.dataset(out, format="parquet").to_table()


def by_ray(
    model: Path, source: Path, asked: dict[str, object], args: argparse.Namespace
) -> pa.Table:
    import ray

    from fssa_bayes.scale.on_ray import score_dataset

    # Ray has no local mode any more: this starts a cluster of one machine.
    where = {"address": args.address} if args.address else {"num_cpus": 2}
    ray.init(**where, log_to_driver=False)
    people = ray.data.read_parquet(str(source.resolve()))
    scores = score_dataset(people, model.resolve(), num_parts=PARTS, actors=args.workers, **asked)
    table = pa.concat_tables(ray.get(scores.to_arrow_refs()))
    ray.shutdown()
    return table


def by_spark(
    model: Path, source: Path, asked: dict[str, object], args: argparse.Namespace
) -> pa.Table:
    from pyspark.sql import SparkSession

    from fssa_bayes.scale.on_spark import score_frame

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master(args.address or f"local[{args.workers}]")
    spark = builder.config("spark.ui.enabled", "false").getOrCreate()
    people = spark.read.parquet(str(source.resolve()))
    scores = score_frame(people, model.resolve(), num_partitions=PARTS, **asked)
    table = scores.toArrow()
    spark.stop()
    return table


def fit_model(path: Path, args: argparse.Namespace) -> None:
    """Fits a mixed logit to people of its own, and saves it."""
    table = simulate(400, np.random.default_rng(args.seed))
    data = Preferences.from_dataframe(table.to_pandas(), **COLUMNS).select_items(ITEMS)
    model = HeterogeneousBTL.for_data(data, latent_dim=2, utility="linear", seed=args.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*people are few for the")
        fit(model, None, data, objective=MaximumLikelihood(64), progress_bar=False)
    save(path, model, overwrite=True)


def write_people(folder: Path, args: argparse.Namespace) -> None:
    """Writes the comparisons of people in random order to several files."""
    rng = np.random.default_rng(args.seed + 1)
    unknown = {"user": ["someone else"], "left": ["ash"], "right": ["yew"], "choice": [1]}
    table = pa.concat_tables([simulate(args.people, rng), pa.table(unknown)])
    table = table.take(pa.array(rng.permutation(len(table))))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(table)), FILES)):
        pq.write_table(table.take(pa.array(rows)), folder / f"{number}.parquet")


def simulate(people: int, rng: np.random.Generator, comparisons: int = 6) -> pa.Table:
    taste = rng.normal(size=(people, len(ITEMS))) + np.linspace(-1, 1, len(ITEMS))
    left = rng.integers(len(ITEMS), size=(people, comparisons))
    right = (left + 1 + np.arange(comparisons)) % len(ITEMS)
    margin = np.take_along_axis(taste, left, 1) - np.take_along_axis(taste, right, 1)
    names = np.array(ITEMS)
    return pa.table(
        {
            "user": [f"person {number}" for number in np.repeat(np.arange(people), comparisons)],
            "left": names[left.ravel()].tolist(),
            "right": names[right.ravel()].tolist(),
            "choice": (rng.random(margin.shape) < 1 / (1 + np.exp(-margin))).ravel().astype(int),
        }
    )


def draw_figure(scores: pd.DataFrame, digest: str, path: Path) -> None:
    """Draws how many people have which best item, and the pair with its intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained")
    best = scores.loc[(scores["quantity"] == "best") & (scores["rank"] == 1), "item"]
    share = best.value_counts(normalize=True).reindex(ITEMS, fill_value=0.0)
    error = np.sqrt(share * (1 - share) / len(best))
    left.errorbar(ITEMS, 100 * share, 200 * error, fmt="o", color="black", capsize=3)
    left.set_ylim(bottom=0)
    left.tick_params("x", rotation=45)
    left.set_ylabel("people whose best item it is, %, ± 2 SE")
    pair = scores[scores["quantity"] == "probability"].sort_values("mean", ignore_index=True)
    shown = pair.iloc[np.unique(np.linspace(0, len(pair) - 1, 60).astype(int))]
    right.vlines(shown.index, shown["lower"], shown["upper"], color="0.6", label="90 % interval")
    right.plot(shown.index, shown["mean"], "o", color="black", markersize=3, label="a person")
    right.set_ylim(0, 1)
    right.set_xlabel(f"people in order, {len(shown):,} of {len(pair):,} shown")
    right.set_ylabel(f"probability of {' over '.join(PAIR)}")
    right.legend(loc="upper left", frameon=False)
    figure.suptitle(f"{len(best):,} people; digest of all scores {digest}", fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--engine", choices=("local", "ray", "spark"), default="local")
    parser.add_argument("--workers", type=whole(1), default=2, help="processes or actors")
    parser.add_argument("--address", help="a running cluster of Ray or Spark, such as auto")
    parser.add_argument("--people", type=whole(1), default=2_000, help="people that are scored")
    parser.add_argument("--draws", type=whole(25), default=250, help="draws a person")
    parser.add_argument("--model", type=Path, help="a saved model of the same items")
    parser.add_argument("--data", type=Path, help="a folder of Parquet files of the same columns")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
