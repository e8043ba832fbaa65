"""Saved models and comparisons of people, for the tests of scoring at scale."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from fssa_bayes import (
    HeterogeneousBTL,
    MaximumLikelihood,
    NeuralProcessGuide,
    Preferences,
    fit,
    save,
)

NAMES = ["ash", "beech", "cedar", "date", "elm", "fir"]
COLUMNS = {"user": "user", "left": "left", "right": "right", "choice": "choice"}
ASKED = {"best": 2, "pairs": [("ash", "fir")], "num_samples": 50}


def simulate(people: int, *, comparisons: int = 5, seed: int = 0) -> pa.Table:
    """Draws comparisons of people who differ in what they want, rows of a person together."""
    rng = np.random.default_rng(seed)
    shape = people, comparisons
    left = rng.integers(len(NAMES), size=shape)
    right = (left + 1 + np.arange(comparisons)) % len(NAMES)  # No pair twice.
    taste = rng.normal(size=(people, len(NAMES)))
    margin = np.take_along_axis(taste, left, 1) - np.take_along_axis(taste, right, 1)
    choice = rng.random(shape) < 1 / (1 + np.exp(-margin))
    names = np.array(NAMES)
    return pa.table(
        {
            "user": [f"person {number}" for number in np.repeat(np.arange(people), comparisons)],
            "left": names[left.ravel()].tolist(),
            "right": names[right.ravel()].tolist(),
            "choice": choice.ravel().astype(int),
        }
    )


def shuffle(table: pa.Table, seed: int = 1) -> pa.Table:
    """Puts the rows in a random order."""
    return table.take(pa.array(np.random.default_rng(seed).permutation(len(table))))


def save_model(path: Path, utility: str = "linear", *, seed: int = 0, **options: object) -> Path:
    """Fits a model for a moment and saves it, with a guide unless the utility is linear."""
    table = simulate(40, seed=seed)
    data = Preferences.from_dataframe(table.to_pandas(), **COLUMNS)
    data = data.select_items(NAMES)
    torch.manual_seed(seed)
    model = HeterogeneousBTL.for_data(data, utility=utility, **{"latent_dim": 2} | options)
    guide = None if utility == "linear" else NeuralProcessGuide(model, hidden_dim=8)
    objective = MaximumLikelihood(num_draws=32, steps=10) if guide is None else None
    steps = None if guide is None else 5
    fit(model, guide, data, objective=objective, steps=steps, validation=None, progress_bar=False)
    save(path, model, guide)
    return path


def digests(out: Path) -> dict[str, str]:
    """Returns the SHA-256 of every part that a job has written."""
    files = sorted(out.glob("part-*.parquet"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
