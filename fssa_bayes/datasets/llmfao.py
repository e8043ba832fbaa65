"""Votes on answers of language models: 124 people, 8,931 votes with ties, 59 models, 13 prompts.

The file has one row per vote, with columns `worker`, `left`, `right` (names of models) and `winner`
("left", "right" or "tie"); 39 % are ties. People voted 7 to 343 times.

References:
    Dmitry Ustalov, LLMFAO: Large language model feedback analysis and optimization,
    https://github.com/dustalov/llmfao, CC BY 4.0.
"""

from __future__ import annotations

import os
import warnings

from fssa_bayes.data import Preferences
from fssa_bayes.datasets import table

__all__ = ["FILE", "read"]

FILE = "llmfao.csv"
"""Name of the file as it is distributed."""


def read(path: str | os.PathLike[str], *, ties: str = "keep") -> Preferences:
    """Reads the votes, each language model an item with an indicator of its own.

    Args:
        path: The file.
        ties: `"keep"`, `"half"` or `"drop"`, as for :meth:`Preferences.from_dataframe`.

    Returns:
        The votes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no table of such votes.
    """
    with warnings.catch_warnings():
        # Models were shown to a person on several prompts; each vote counts.
        warnings.filterwarnings("ignore", message=".*repeat an earlier row")
        columns = {"user": "worker", "left": "left", "right": "right", "choice": "winner"}
        return table.read(path, ties=ties, **columns).data
