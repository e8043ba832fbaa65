"""A section of a report as plain text and as Markdown, and its tables as CSV.

Names of people and items are data: whatever a name holds, a terminal, a reader of Markdown and a
spreadsheet show it and do not follow it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from numbers import Real

import pandas as pd

from fssa_bayes.report.page import Section, format_cell

__all__ = ["escape_markdown", "to_csv", "to_markdown", "to_text"]

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # All but the end of a line.
_LINE_END = re.compile(r"\s*[\n\v\f\r\x85\u2028\u2029]\s*")
# What Markdown reads as markup: anywhere, at the edge of a word, at the beginning of a line.
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|(?<!\S)#|^[-+=>]")
_LIST_NUMBER = re.compile(r"^(\d+)([.)])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_text(section: Section) -> str:
    """Writes a section as a terminal shows it; pictures and whole tables are left out.

    Control characters, which would steer the terminal, are written as escapes.
    """
    lines = [f"\n{section.heading}\n{'=' * len(section.heading)}"] if section.heading else []
    lines += [f"Warning: {text.rstrip('.')}." for text in section.warnings]
    lines += section.text
    if section.table is not None:
        cells = section.table.map(format_cell)
        lines.append(cells.to_string(index=False))
    lines += [to_text(part) for part in section.parts]
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], "\n\n".join(lines))


def to_markdown(section: Section, level: int = 2) -> str:
    """Writes a section as Markdown, its heading of that level; every text is escaped."""
    escape = escape_markdown
    lines = [f"{'#' * level} {escape(section.heading)}"] if section.heading else []
    lines += [f"> Warning: {escape(text.rstrip('.'))}." for text in section.warnings]
    lines += map(escape, section.text)
    if section.table is not None:
        lines.append("\n".join(_rows(section.table)))
    lines += [to_markdown(part, level + 1) for part in section.parts]
    for figure in section.figures:
        if figure.name is not None:  # The page alone shows the others.
            caption = escape(figure.caption)
            lines.append(f"![{caption}]({figure.name})\n\n*{caption}*")
    if section.files:
        lines.append("Whole tables: " + ", ".join(f"`{name}`" for name in section.files))
    if section.terms:
        lines.append(
            "\n".join(f"- *{escape(t)}*: {escape(why)}" for t, why in section.terms.items())
        )
    return "\n\n".join(lines)


def escape_markdown(text: str) -> str:
    """Writes a text so that Markdown shows it as it is, on one line."""
    text = _LINE_END.sub(" ", text.strip())
    text = _MARKUP.sub(r"\\\g<0>", text)
    text = _LIST_NUMBER.sub(r"\1\\\2", text)
    # Entities and not backslashes, which some readers of Markdown do not know here.
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")


def to_csv(table: pd.DataFrame, *, index: bool = True) -> str:
    """Writes a table as CSV that a spreadsheet does not calculate with.

    A cell that begins with =, +, -, @, a tab or a carriage return, and is no number, would be a
    formula: it gets an apostrophe in front, as a cell does that begins with apostrophes and one of
    these. To read names back take one apostrophe from cells that match `'+[=+@\\t\\r-]`. Numbers
    are as pandas writes them.

    Args:
        table: The table.
        index: Whether to write the index.
    """
    # Only what is in the line's end is quoted: a carriage return, too, must be.
    text = table.to_csv(index=index, lineterminator="\r\n")
    lines = []
    for row in csv.reader(io.StringIO(text, newline="")):
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator="\r\n").writerow(map(_guard, row))
        lines.append(out.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


def _guard(cell: str) -> str:
    """Puts an apostrophe before a cell that is a formula, or reads like a guarded one."""
    if not cell.lstrip("'").startswith(_FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _rows(table: pd.DataFrame) -> Iterator[str]:
    """Yields the rows of a Markdown table, its header first."""
    head = [escape_markdown(str(name)) for name in table.columns]
    cells = table.map(_markdown_cell).itertuples(index=False)
    for number, row in enumerate((head, *cells)):
        yield f"| {' | '.join(row)} |"
        if number == 0:
            yield f"| {' | '.join(['---'] * table.shape[1])} |"


def _markdown_cell(value: object) -> str:
    """Writes a cell; a number holds nothing that Markdown would follow."""
    text = format_cell(value)
    return text if isinstance(value, Real) else escape_markdown(text)
