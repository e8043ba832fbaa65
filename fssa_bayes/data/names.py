"""Names of people, items and features in a message."""

from __future__ import annotations

import pandas as pd

__all__ = ["first_names"]


def first_names(names: pd.Index) -> str:
    """Lists at most five names for a message, and counts the others."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5].tolist()) + more
