"""Paired comparisons of many people: storage, tables, splits and batches."""

from fssa_bayes.data.preferences import (
    Batch,
    Preferences,
    Summary,
)

__all__ = [
    "Batch",
    "Preferences",
    "Summary",
]
