"""Everything in one page: what is found in a file of comparisons, and all checks of a model."""

from fssa_bayes.report.analysis import Analysis, analyse, rank
from fssa_bayes.report.page import Figure, Section, render
from fssa_bayes.report.plain import to_markdown, to_text
from fssa_bayes.report.report import Report
from fssa_bayes.report.run import diagnose
from fssa_bayes.report.verdicts import Check

__all__ = [
    "Analysis",
    "Check",
    "Figure",
    "Report",
    "Section",
    "analyse",
    "diagnose",
    "rank",
    "render",
    "to_markdown",
    "to_text",
]
