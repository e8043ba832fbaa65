"""Which of two arguments convinces more: 3,815 workers, 84,445 judgements, 1,052 arguments.

The file has one row per judgement, with columns `worker`, `arg1`, `arg2` (names of arguments) and
`label` ("a1", "a2" or "equal", 23 %). Arguments are compared within 32 topics, so that utilities of
different topics can be compared by their features alone: an embedding of each argument's text, in a
file of its own with arrays `arg` (names) and `embedding`. Half the workers gave six judgements at
most, one 4,218.

References:
    Habernal & Gurevych (2016), Which argument is more convincing? Analyzing and predicting
    convincingness of Web arguments using bidirectional LSTM, ACL, CC BY 4.0.
"""

from __future__ import annotations

import os
import warnings

from fssa_bayes.data import Preferences
from fssa_bayes.datasets import table

__all__ = ["EMBEDDINGS", "FILE", "read"]

FILE = "ukp_comparisons.csv.gz"
"""Name of the file of judgements."""

EMBEDDINGS = "ukp_argument_embeddings.npz"
"""Name of the file of embeddings."""


def read(
    path: str | os.PathLike[str],
    embeddings: str | os.PathLike[str] | None,
    *,
    ties: str = "keep",
) -> Preferences:
    """Reads the judgements, with the arguments' embeddings as features.

    Args:
        path: The file of judgements.
        embeddings: The file of embeddings; None gives every argument an indicator.
        ties: `"keep"`, `"half"` or `"drop"`, as for :meth:`Preferences.from_dataframe`.

    Returns:
        The judgements.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If one is no such table, or an argument has no embedding.
    """
    with warnings.catch_warnings():
        # Arguments are compared within topics, so that the graph is not connected.
        warnings.filterwarnings("ignore", message="the comparison graph has")
        return table.read(
            path,
            user="worker",
            left="arg1",
            right="arg2",
            choice="label",
            choice_labels={"a1": "left", "a2": "right", "equal": "tie"},
            items=embeddings,
            ties=ties,
        ).data
