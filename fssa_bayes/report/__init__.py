"""Everything in one page: what is found in a file of comparisons, and all checks of a model."""

from fssa_bayes.report.alternatives import has_own_items, name_kind
from fssa_bayes.report.analysis import Analysis, analyse, hear_warnings, rank
from fssa_bayes.report.findings import describe_data
from fssa_bayes.report.page import Figure, Section
from fssa_bayes.report.plain import to_csv, to_markdown, to_text
from fssa_bayes.report.report import Report
from fssa_bayes.report.run import diagnose
from fssa_bayes.report.tastes import check_price
from fssa_bayes.report.verdicts import VERDICTS, Check

__all__ = [
    "VERDICTS",
    "Analysis",
    "Check",
    "Figure",
    "Report",
    "Section",
    "analyse",
    "check_price",
    "describe_data",
    "diagnose",
    "has_own_items",
    "hear_warnings",
    "name_kind",
    "rank",
    "to_csv",
    "to_markdown",
    "to_text",
]
