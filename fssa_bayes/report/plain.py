"""A section of a report as plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from fssa_bayes.report.page import Section, format_cell

__all__ = ["to_markdown", "to_text"]


def to_text(section: Section) -> str:
    """Writes a section as a terminal shows it; pictures and whole tables are left out."""
    lines = [f"\n{section.heading}\n{'=' * len(section.heading)}"] if section.heading else []
    lines += [f"Warning: {text.rstrip('.')}." for text in section.warnings]
    lines += section.text
    if section.table is not None:
        cells = section.table.map(format_cell)
        lines.append(cells.to_string(index=False))
    lines += [to_text(part) for part in section.parts]
    return "\n\n".join(lines)


def to_markdown(section: Section, level: int = 2) -> str:
    """Writes a section as Markdown, its heading of that level."""
    lines = [f"{'#' * level} {section.heading}"] if section.heading else []
    lines += [f"> Warning: {text.rstrip('.')}." for text in section.warnings]
    lines += section.text
    if section.table is not None:
        lines.append("\n".join(_rows(section.table)))
    lines += [to_markdown(part, level + 1) for part in section.parts]
    for figure in section.figures:
        if figure.name is not None:  # The page alone shows the others.
            lines.append(f"![{figure.caption}]({figure.name})\n\n*{figure.caption}*")
    if section.files:
        lines.append("Whole tables: " + ", ".join(f"`{name}`" for name in section.files))
    return "\n\n".join(lines)


def _rows(table: pd.DataFrame) -> Iterator[str]:
    """Yields the rows of a Markdown table, its header first."""
    for row in (table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)):
        cells = (format_cell(value).replace("|", r"\|") for value in row)
        yield f"| {' | '.join(cells)} |"
