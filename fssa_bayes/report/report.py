"""A report: a page, its text and its tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fssa_bayes._files import write_file
from fssa_bayes.report import plain
from fssa_bayes.report.page import Section, render
from fssa_bayes.report.verdicts import Check
from fssa_bayes.report.words import explain_terms

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """Holds what was found, and the page that shows it.

    Attributes:
        title: The title of the page.
        sections: The parts of the page after the opening.
        summary: The opening: the answer in plain words; errors come first.
        footer: Sizes, seeds and times.
        checks: The checks of a model, in order; empty where nothing was checked.
    """

    title: str
    sections: Sequence[Section]
    summary: Sequence[str]
    footer: str
    checks: Sequence[Check] = ()

    @property
    def table(self) -> pd.DataFrame:
        """One row a check."""
        names = ["check", "value", "threshold", "verdict", "what to do", "sees a wrong model"]
        rows = []
        for c in self.checks:
            sees = "yes" if c.sees_wrong_model else "no"
            rows.append((c.name, c.value, c.threshold, c.verdict, c.advice, sees))
        return pd.DataFrame(rows, columns=names)

    @property
    def passed(self) -> bool:
        """Whether a check passed, and none failed or stopped with an error.

        Checks that were skipped, and notes, count neither way.
        """
        verdicts = {check.verdict for check in self.checks}
        return "pass" in verdicts and verdicts.isdisjoint({"fail", "error"})

    @property
    def parts(self) -> list[Section]:
        """The parts of the page in order, each with what its new terms mean."""
        return explain_terms([self.opening, *self.sections])

    @property
    def opening(self) -> Section:
        """The first part of the page: the answer, and the table of the checks if there are any."""
        return Section("", self.summary, self.table if self.checks else None, cards=True)

    def to_html(self) -> str:
        """Returns the page: one file with its figures, without network."""
        return render(self.title, self.parts, self.footer)

    def to_markdown(self) -> str:
        """Returns the page as Markdown, which names the files of its pictures."""
        title, footer = map(plain.escape_markdown, (self.title, self.footer))
        parts = [plain.to_markdown(section) for section in self.parts]
        return "\n\n".join([f"# {title}", *parts, footer]) + "\n"

    def write(self, out: str | os.PathLike) -> Path:
        """Writes the report into a folder, each file whole or not at all.

        The files are `report.html`, `summary.md`, the whole tables and the pictures that have names
        of their own, and `checks.csv` where there are checks. Tables are as of
        :func:`fssa_bayes.report.to_csv`: a name that a spreadsheet would calculate with has an
        apostrophe in front.

        Args:
            out: The folder, which is made if it is not there.

        Returns:
            The path of the page.

        Raises:
            OSError: If a file cannot be written.
        """
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        if self.checks:
            write_file(out / "checks.csv", plain.to_csv(self.table, index=False).encode())
        sections = list(self.sections)
        for section in sections:
            sections += section.parts
            for name, table in section.files.items():
                write_file(out / name, plain.to_csv(table).encode())
            for figure in section.figures:
                if figure.name is not None:
                    write_file(out / figure.name, figure.png)
        write_file(out / "summary.md", self.to_markdown().encode())
        page = out / "report.html"
        write_file(page, self.to_html().encode())
        return page
