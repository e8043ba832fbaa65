"""All checks of a fitted model in a table and a page."""

from fssa_bayes.report.run import (
    Check,
    Report,
    diagnose,
)

__all__ = [
    "Check",
    "Report",
    "diagnose",
]
