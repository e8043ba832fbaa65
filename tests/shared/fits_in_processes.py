"""Fits models of all kinds, in one process or in several, and says how the fits went.

    python tests/shared/fits_in_processes.py FOLDER

Run by inference/test_processes.py, which calls :func:`main` for one process. As a program it does
what `torchrun --nproc-per-node 2 --max-restarts 1` does, by torchrun's own function, but for one
thing: processes are forks, so that the library is imported once. Every process writes what it found
to `RANK-of-SIZE.json` in FOLDER. The last of several processes kills itself once within a fit with
a checkpoint; the others must end by themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fssa_bayes import (
    ELBO,
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    MaximumLikelihood,
    NeuralProcessELBO,
    NeuralProcessGuide,
    PredictiveLikelihood,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.inference import FitResult
from fssa_bayes.io import flatten

STAGES = {
    "importance weighted": [ImportanceWeightedELBO(8)],
    "subset": [ImportanceWeightedELBO(8, subset=True)],
    "elbo": [ELBO()],
    "neural process": [NeuralProcessELBO()],
    "predictive": [PredictiveLikelihood(8)],
    "deterministic": [PredictiveLikelihood(deterministic=True)],
    "sleep": [Sleep()],
    "sleep by particles": [Sleep(3)],
}


def rank_and_size() -> tuple[int, int]:
    """Returns the number of this process, and how many fit together."""
    return tuple(int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))


def simulate(*, weighted: bool = False) -> Preferences:
    rng = np.random.default_rng(0)
    counts = rng.integers(3, 9, size=60)
    total = int(counts.sum())
    left = rng.integers(10, size=total)
    right = (left + rng.integers(1, 10, size=total)) % 10
    x, taste = rng.normal(size=(10, 2)), rng.normal(size=(60, 2))
    margin = ((x[left] - x[right]) * np.repeat(taste, counts, 0)).sum(1)
    return Preferences(
        left,
        right,
        rng.random(total) < 1 / (1 + np.exp(-margin)),
        np.concatenate([[0], np.cumsum(counts)]),
        items=x,
        weights=rng.uniform(0.5, 2, size=60) if weighted else None,
    )


def run(stages: list, utility: str, **options: object) -> FitResult:
    """Fits from initial weights that differ between processes; those of the first one count."""
    weighted = options.pop("weighted", False)
    data = simulate(weighted=weighted)
    rank, _ = rank_and_size()
    torch.manual_seed(rank)
    latent_dim = options.pop("latent_dim", 2)
    model = HeterogeneousBTL.for_data(data, latent_dim=latent_dim, utility=utility, seed=rank)
    guide = NeuralProcessGuide(model, hidden_dim=8) if latent_dim else None
    if options.pop("double", False):
        model, guide = model.double(), guide.double()
    options = {"validation": None, "progress_bar": False} | options
    return fit(model, guide, data, objective=stages if latent_dim else None, **options)


def describe(result: FitResult) -> dict[str, object]:
    digest, sums = hashlib.sha256(), {}
    for name, value in flatten(result.model, result.guide).items():
        digest.update(value.numpy().tobytes())
        sums[name] = float(value.double().sum())
    history = result.history
    scores = [] if result.held_out is None else result.held_out["log_loss"].tolist()
    return {
        "losses": history["loss"].tolist(),
        "steps": history["step"].tolist(),
        "parameters": digest.hexdigest(),
        "sums": sums,
        "held_out": scores,
    }


def fit_all() -> dict[str, object]:
    """Fits models of all kinds."""
    found = {
        name: describe(run(stages, "bilinear", steps=6, batch_size=15, double=True))
        for name, stages in STAGES.items()
    }
    both = [ImportanceWeightedELBO(8), Sleep()]
    options = {"steps": 30, "batch_size": 16}
    found["held out"] = describe(run(both, "bilinear", validation=0.25, **options))
    maximum = [MaximumLikelihood(64)]
    found["weighted"] = describe(
        run([ImportanceWeightedELBO(8)], "linear", steps=6, batch_size=15, weighted=True)
    )
    found["maximum likelihood"] = describe(run(maximum, "linear"))
    found["weighted maximum likelihood"] = describe(run(maximum, "linear", weighted=True))
    found["homogeneous"] = describe(run([], "linear", latent_dim=0))
    found["homogeneous network"] = describe(run([], "mlp", latent_dim=0, steps=10))
    return found


def killed(folder: Path) -> dict[str, object]:
    """Fits with a checkpoint; the last of several processes kills itself when it first starts."""
    calls, (rank, size) = [], rank_and_size()
    is_new = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    if is_new:
        # The launcher ends the others as soon as it sees a process dead, maybe before they do.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    class Dies(ImportanceWeightedELBO):
        name = "ImportanceWeightedELBO"

        def backward(self, *arguments: object) -> float:
            calls.append(len(calls))
            if is_new and len(calls) == 7 and rank == size - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().backward(*arguments)

    options = {"steps": 12, "batch_size": 15, "double": True, "checkpoint_interval": 2}
    options["checkpoint"] = folder / f"checkpoint-{size}"
    try:
        result = describe(run([Dies(8)], "bilinear", **options))
    except ConnectionError as error:
        (folder / f"said-by-{rank}.txt").write_text(str(error))
        raise
    result["calls"] = len(calls)
    again = describe(run([Dies(8)], "bilinear", **options))
    return result | {"calls of another run": len(calls) - result["calls"], "again": again}


def disagree() -> str:
    """Returns what is said of processes that are about to make different fits."""
    try:
        run([ELBO()], "linear", steps=1, seed=rank_and_size()[0])
    except ValueError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    """Fits all, and writes what was found."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*people are few for the|.*did not converge")
        warnings.filterwarnings("ignore", ".*raised the held-out log-loss")
        path = folder / "{}-of-{}.json".format(*rank_and_size())
        if not path.exists():  # Else a process has died, and all have been started again.
            path.write_text(json.dumps(fit_all() | {"disagree": disagree()}))
        found = json.loads(path.read_text()) | {"killed": killed(folder)}
        path.write_text(json.dumps(found))


def main_in_two(folder: Path) -> None:
    """Does what `torchrun` does, with forks."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="fits",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=1,
        start_method="fork",
    )
    elastic_launch(config, main)(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main_in_two(Path(sys.argv[1]))
