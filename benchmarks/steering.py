"""Which conditioning moves the text of a real language model, at what price in language?

Gates in the adapter, FiLM on the last third of the layers and on all of them, each with the
supervised term on the chosen answer at weights 0, 0.1 and 1, on the study of
`examples/steer_real_model.py`: SmolLM2-135M-Instruct, four types of people, two traits of the text.
Learning rates are chosen first, with and without the supervised term (weight 1), by people and
prompts of development and a seed of their own. Of the rates at which the base model's text costs
nobody more than `MOST_NATS`, the best has the largest difference between the ends of that trait
which differs less; where every rate costs more, the cheapest is taken. Medians and extremes are
over seeds.

Each run is kept in `--cache` and not repeated. It needs the packages that the example names.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from benchmarks.harness import Row, spread

EXAMPLES = Path(__file__).parents[1] / "examples"
CONDITIONINGS = {
    "gated": {"conditioning": "gated"},
    "FiLM, last third": {"conditioning": "film", "film_layers": "third"},
    "FiLM, all layers": {"conditioning": "film", "film_layers": "all"},
}
RATES = (2e-4, 5e-4, 1e-3)  # Of the adapter; FiLM itself learns at a tenth of it.
WEIGHTS = (0.0, 0.1, 1.0)
DEVELOPMENT_SEED = 100
MOST_NATS = 0.3
CONTEXT = 10
STEPS, PEOPLE, DEVELOPMENT_PEOPLE, PROMPTS = 48, 32, 16, 2
METRICS = {
    "steps": ("ends of steps differ by, rate", ""),
    "remark": ("ends of the remark differ by, rate", ""),
    "error": ("standard error of a difference", ""),
    "base_text": ("base model's text, more for the costliest person", "nats a token"),
    "own_text": ("generated text under the base model, beyond training's", "nats a token"),
    "kl": ("KL to the base model", "nats a token"),
    "accuracy": ("implicit accuracy", ""),
    "training": ("training", "CPU s"),
}


def run(args: argparse.Namespace) -> Iterator[Row]:
    example = _load_example()
    missing = [name for name in (*example.PACKAGES, "gguf") if not importlib.util.find_spec(name)]
    if missing:
        print(f"steering: skipped, it needs {', '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(example, args.cache or Path(folder), quick=args.quick)
        rates = {
            (name, weight): runs.best_rate(name, weight)
            for name in CONDITIONINGS
            for weight in (0.0, 1.0)
        }
        case = f"{runs.steps} steps, after {CONTEXT} choices"
        for name in CONDITIONINGS:
            for weight in WEIGHTS:
                rate = rates[name, float(weight > 0)]
                found = [runs.measure(name, weight, rate, seed) for seed in args.seeds]
                words = f"{name}; supervised {weight:g}; rate {rate:g}"
                for key, (metric, unit) in METRICS.items():
                    values = [figures[key] for figures in found]
                    yield spread("steering", case, words, metric, unit, values)


def _load_example() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("steer_real_model")
    finally:
        sys.path.remove(str(EXAMPLES))


class Runs:
    """Trains and measures policies; studies are prepared once a seed, results kept in a folder."""

    def __init__(self, example: ModuleType, folder: Path, *, quick: bool) -> None:
        self.example, self.folder, self.quick = example, folder, quick
        self.steps = 2 if quick else STEPS
        self.studies: dict[tuple[int, bool], object] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def best_rate(self, name: str, weight: float) -> float:
        found = {rate: self.measure(name, weight, rate, DEVELOPMENT_SEED) for rate in RATES}
        kept = [rate for rate in RATES if found[rate]["base_text"] <= MOST_NATS]
        if not kept:
            return min(RATES, key=lambda rate: found[rate]["base_text"])
        return max(kept, key=lambda rate: min(found[rate]["steps"], found[rate]["remark"]))

    def measure(self, name: str, weight: float, rate: float, seed: int) -> dict[str, float]:
        args = self.arguments(name, weight, rate, seed)
        words = (name, f"{weight:g}", f"{rate:g}", str(seed), str(args.steps), str(args.test_users))
        path = self.folder / ("_".join(words).replace(" ", "").replace(",", "_") + ".json")
        if path.exists():
            return json.loads(path.read_text())
        figures = self._measure(args)
        print(path.stem, {key: round(value, 3) for key, value in figures.items()}, flush=True)
        path.write_text(json.dumps(figures, indent=1))
        return figures

    def arguments(self, name: str, weight: float, rate: float, seed: int) -> argparse.Namespace:
        args = self.example.make_parser().parse_args([])
        develop = seed == DEVELOPMENT_SEED
        size = {"steps": self.steps, "test_users": DEVELOPMENT_PEOPLE if develop else PEOPLE}
        if self.quick:
            size |= {"users": 16, "test_users": 8, "reward_steps": 10, "choices": 12, "samples": 1}
        options = {
            "out": self.folder,  # What the language model writes is the same for every seed.
            "develop": develop,
            "seed": seed,
            "sft": weight,
            "learning_rate": rate,
            "prompts": PROMPTS,
            "contexts": [CONTEXT],
            "accuracy": not develop,
        }
        vars(args).update(size | options | CONDITIONINGS[name])
        return args

    def _measure(self, args: argparse.Namespace) -> dict[str, float]:
        example, key = self.example, (args.seed, args.develop)
        if key not in self.studies:
            self.studies[key] = example.prepare(args)
        study = self.studies[key]
        start = time.process_time()
        policy, probe = example.train_policy(study, args)
        seconds = time.process_time() - start
        report = example.evaluate(policy, study, args)
        language = probe.measure(policy)
        ends = example.between_ends(report.samples).set_index("trait")
        table = report.table[report.table["contexts"] == CONTEXT]
        value = table.set_index(["metric", "group"])["value"]
        trained = example.training_cost(policy, study.answers).set_index("group")["value"]
        own = value["nats under the reference"] - trained
        accuracy = value.get(("implicit accuracy", "all"), float("nan"))
        return {
            "steps": ends["difference"]["steps"],
            "remark": ends["difference"]["remark"],
            "error": ends["standard_error"].max(),
            "base_text": language["language/nats_max"] - language["language/reference_nats"],
            "own_text": own.max(),
            "kl": value["kl"].mean(),
            "accuracy": accuracy,
            "training": seconds,
        }
