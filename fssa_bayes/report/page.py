"""One self-contained page of HTML: text, tables and figures in a single file, without network."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template

import pandas as pd

__all__ = [
    "Figure",
    "Section",
    "format_cell",
    "render",
    "render_figure",
    "render_section",
    "render_table",
]

_STYLED = ("fail", "error")  # Verdicts with a style of their own.

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #111; --page: #fff; --quiet: #444; --line: #ccc;
        --warn: #fff6e5; --bad: #b00020; }
@media (prefers-color-scheme: dark) {
  :root { --text: #eee; --page: #161616; --quiet: #bbb; --line: #444; --warn: #3a2c10;
          --bad: #ff8a80; }
  td.error { color: #161616 !important; }
}
@media print { :root { --text: #000; --page: #fff; } .scroll { overflow-x: visible; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text);
       background: var(--page);
       max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
p, li, figcaption { max-width: 45rem; overflow-wrap: break-word; }
.lead { font-size: 1.1rem; }
.warning { border-left: .3rem solid #b36b00; padding: .2rem 0 .2rem .6rem;
           background: var(--warn); }
.files { font-size: .9rem; color: var(--quiet); }
.terms { max-width: 45rem; font-size: .85rem; color: var(--quiet); margin: 1rem 0; }
.terms dt { float: left; clear: left; margin-right: .4rem; font-style: italic; }
.terms dt::after { content: ":"; } .terms dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem .35rem 0; text-align: left;
         vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.verdict { white-space: nowrap; font-weight: bold; }
td.fail, td.error { border-left: .3rem solid var(--bad); padding-left: .5rem; color: var(--bad); }
td.error { background: var(--bad); color: #fff; padding-right: .5rem; }
td.error + td { padding-left: .6rem; }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; }
figure label { display: block; position: relative; overflow-x: auto; }
figure input { position: absolute; opacity: 0; }
figure input + img { cursor: zoom-in; }
figure input:focus-visible + img { outline: .2rem solid var(--quiet); outline-offset: -.2rem; }
figure input:checked + img { max-width: none; cursor: zoom-out; }
figcaption { font-size: .9rem; color: var(--quiet); }
footer { margin-top: 3rem; font-size: .85rem; color: var(--quiet);
         border-top: 1px solid var(--line); }
@media (max-width: 40rem) {
  figcaption::after { content: "Tap the figure for its full size."; display: block; }
  .cards thead { display: none; }
  .cards tr { display: block; border: 1px solid #999; border-radius: .3rem; margin: .8rem 0;
              padding: .3rem .6rem; }
  .cards td { display: block; border: 0; padding: .15rem 0; white-space: normal; }
  .cards td::before { content: attr(data-label) ": "; color: var(--quiet); font-weight: normal; }
  .cards td.error::before { color: inherit; }
  .cards td.error { padding-left: .3rem; } .cards td.error + td { padding-left: 0; }
}
</style>
</head>
<body>
<h1>$title</h1>
$body
<footer>$footer</footer>
</body>
</html>
""")


@dataclass(frozen=True)
class Figure:
    """Holds a picture.

    Attributes:
        png: The picture's file.
        caption: What it shows and what to see in it.
        name: Name of a file of its own, or None where the page alone shows it.
    """

    png: bytes
    caption: str
    name: str | None = None


@dataclass(frozen=True)
class Section:
    """Holds a part of the page: a heading, paragraphs, a table and figures.

    Attributes:
        heading: The heading; empty for the opening.
        text: Paragraphs.
        table: The table that is shown, or None.
        figures: Pictures.
        cards: Whether each row of the table becomes a card on a narrow screen; else it scrolls.
        warnings: What to keep in mind; shown before everything else of the section.
        parts: Sections within this one, shown between text and figures.
        files: Whole tables by the name of the CSV file that holds each.
        terms: Terms of the field, each with what it means; shown after everything else.
    """

    heading: str
    text: Sequence[str] = ()
    table: pd.DataFrame | None = None
    figures: Sequence[Figure] = ()
    cards: bool = False
    warnings: Sequence[str] = ()
    parts: Sequence[Section] = ()
    files: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    terms: Mapping[str, str] = field(default_factory=dict)


def render(title: str, sections: Sequence[Section], footer: str) -> str:
    """Writes the page; every text is escaped.

    Args:
        title: The title of the page.
        sections: The parts of the page, in order.
        footer: The last line.

    Returns:
        The page in HTML.
    """
    body = "\n".join(render_section(section) for section in sections)
    return _PAGE.substitute(title=html.escape(title), body=body, footer=html.escape(footer))


def render_section(section: Section, level: int = 2) -> str:
    """Writes a section, its heading of that level."""
    lead = "" if section.heading else ' class="lead"'
    lines = []
    if section.heading:
        lines.append(f"<h{level}>{html.escape(section.heading)}</h{level}>")
    for text in section.warnings:
        lines.append(f'<p class="warning">Warning: {html.escape(text.rstrip("."))}.</p>')
    lines += [f"<p{lead}>{html.escape(text)}</p>" for text in section.text]
    if section.table is not None:
        lines.append(render_table(section.table, cards=section.cards))
    lines += [render_section(part, level + 1) for part in section.parts]
    lines += [render_figure(figure) for figure in section.figures]
    if section.files:
        names = ", ".join(section.files)
        lines.append(f'<p class="files">Whole tables: {html.escape(names)}</p>')
    if section.terms:
        shown = (
            f"<dt>{html.escape(term)}</dt><dd>{html.escape(why)}</dd>"
            for term, why in section.terms.items()
        )
        lines.append(f'<dl class="terms">{"".join(shown)}</dl>')
    return "\n".join(lines)


def format_cell(value: object) -> str:
    """Writes a value of a table: floats with four digits, NaN as a dash."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def render_table(table: pd.DataFrame, *, cards: bool = False) -> str:
    """Writes a table; a cell of a column `verdict` has its verdict as a class of the style."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.columns)
    rows = []
    for row in table.itertuples(index=False):
        cells = []
        for name, value in zip(table.columns, row, strict=True):
            kind, text = "", format_cell(value)
            if isinstance(value, float):
                kind = "number"
            elif name == "verdict":
                kind = f"verdict {text}" if text in _STYLED else "verdict"
            attributes = f' class="{kind}"' if kind else ""
            label = html.escape(str(name))
            cells.append(f'<td{attributes} data-label="{label}">{html.escape(text)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    kind = ' class="cards"' if cards else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def render_figure(figure: Figure) -> str:
    """Writes a figure with its picture inside, which a click shows in full size and back."""
    caption = html.escape(figure.caption)
    data = base64.b64encode(figure.png).decode("ascii")
    return (
        '<figure><label><input type="checkbox" aria-label="full size">'
        f'<img alt="{caption}" src="data:image/png;base64,{data}"></label>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
