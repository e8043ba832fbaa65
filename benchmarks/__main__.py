"""Runs benchmarks by name, prints a table and writes JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.harness import environment
from benchmarks.markdown import make_page

PAGE = Path(__file__).parent / "README.md"
NAMES = (
    *("command", "data", "two_mode", "train_choice", "recovery", "parity", "mixed_logit"),
    *("inference", "npe", "proposals", "training", "scale", "at_scale", "processes", "large"),
    *("kernels", "kernels_cuda"),
    *("precision", "refinement", "calibration", "nuts", "population_uncertainty"),
    *("interval_coverage", "few_judges", "few_people", "few_shot", "personal_answers"),
    *("questions", "page"),
    *("policy", "steering", "experiments"),
)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.markdown:
        PAGE.write_text(make_page(), encoding="utf-8")
        return
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.names or NAMES:
        if name == "train_choice" and args.data is None:
            print("train_choice: skipped, it needs --data PATH")
            continue
        for row in importlib.import_module(f"benchmarks.{name}").run(args):
            print(row, flush=True)
            rows.append({key: _finite(value) for key, value in asdict(row).items()})
    if args.json is not None:
        document = {"environment": environment(args), "rows": rows}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


def _finite(value: object) -> object:
    """Replaces what JSON has no number for (an error that is not identified) by null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="networks this small need one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--data", type=Path, help="the train-choice csv file; parity reads others beside it"
    )
    parser.add_argument(
        "--crowds", type=Path, help="folder with the crowds' files: experiments, few_shot, large"
    )
    parser.add_argument("--earlier", type=Path, help="checkout of an earlier version: large")
    parser.add_argument(
        "--people",
        type=int,
        help="people of nuts (50), inference (200), at_scale (1,000,000), page (50)",
    )
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps the chains of NUTS, and runs of steering"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="write README.md from the files in results"
    )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument(
        "--figure",
        type=Path,
        help="where kernels, inference and few_shot plot; beside --json if not",
    )
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: choose from {', '.join(NAMES)}")
    return args


if __name__ == "__main__":
    main()
