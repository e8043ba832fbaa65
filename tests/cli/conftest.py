"""Files of comparisons, and the command run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes.cli import main


class Ended(NamedTuple):
    """Holds how a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Returns a function that runs the command in this process."""

    def run(*arguments: object) -> Ended:
        threads = torch.get_num_threads()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        torch.set_num_threads(threads)
        return Ended(ended.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Votes of 40 people of two opposite tastes, with awkward names, ties and missing cells."""
    folder = tmp_path_factory.mktemp("votes")
    rng = np.random.default_rng(0)
    names = np.array(["007", "12", 'a "quoted" one', "one, with a comma", "ü | ß", "$x^2$"])
    left = rng.integers(6, size=600)
    right = (left + rng.integers(1, 6, size=600)) % 6
    taste = np.where(np.arange(600) // 15 % 2, 1.5, -1.5)
    wins = rng.random(600) < 1 / (1 + np.exp(-taste * (left - right)))
    verdict = np.where(rng.random(600) < 0.1, "equal", np.where(wins, "a1", "a2"))
    table = pd.DataFrame(
        {"rater no.": np.arange(600) // 15, "A": names[left], "B": names[right], "verdict": verdict}
    )
    table.loc[[3, 50], "A"] = None
    table.loc[[4], "verdict"] = None
    table.to_csv(folder / "votes.csv", index=False)
    features = pd.DataFrame({"item": names, "place": np.arange(6.0), "same": 1.0})
    features.to_csv(folder / "features.csv", index=False)
    # The two tastes are those of odd and even people, which a covariate tells.
    raters = pd.DataFrame({"rater no.": np.arange(40), "odd": np.arange(40) % 2})
    raters.to_csv(folder / "raters.csv", index=False)
    return folder / "votes.csv"
