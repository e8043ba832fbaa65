"""All checks of a fitted model in a table and a page."""

from fssa_bayes.report.page import Figure, Section
from fssa_bayes.report.run import Report, diagnose
from fssa_bayes.report.verdicts import Check

__all__ = ["Check", "Figure", "Report", "Section", "diagnose"]
