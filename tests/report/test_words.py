"""Terms are explained where they are first used, in the words of the glossary."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from fssa_bayes.report import Figure, Report, Section
from fssa_bayes.report.words import TERMS, explain_terms, with_headings

GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"


def test_the_report_and_the_glossary_say_the_same() -> None:
    entries = re.findall(r"^([^\n:#]+)\n: (.*?)(?=\n\n|\Z)", GLOSSARY.read_text(), re.S | re.M)
    told = {term: " ".join(text.split()) for term, text in entries}
    for term, (_, why) in TERMS.items():
        assert told[term].startswith(why), term


@pytest.mark.parametrize(
    "section",
    [
        Section("Heavy tails", ["A k-hat above .7."]),
        Section("Heavy tails", warnings=["a k-hat above .7"]),
        Section("Heavy tails", table=pd.DataFrame({"share with k-hat above .7": [0.1]})),
        Section("Heavy tails", figures=[Figure(b"", "Every k-hat")]),
        Section("Heavy tails", parts=[Section("k-hat")]),
    ],
    ids=["text", "warning", "table", "caption", "part"],
)
def test_a_term_is_explained_once_where_it_is_first_used(section: Section) -> None:
    before, first, second = explain_terms([Section("Nothing"), section, section])
    assert not before.terms
    assert first.terms["k-hat"] == TERMS["k-hat"][1]
    assert not second.terms
    report = Report("t", [section, section], ["s"], "f")
    for page in (report.to_html(), report.to_markdown()):
        assert page.count("Estimated shape of the tail") == 1
        assert page.index("Estimated shape") > page.index("Heavy tails")


def test_names_in_tables_are_no_terms() -> None:
    (section,) = explain_terms([Section("People", table=pd.DataFrame({"item": ["k-hat"]}))])
    assert not section.terms


def test_headings_are_words_with_units() -> None:
    table = pd.DataFrame(columns=["user", "utility", "rank_lower", "fruit"])
    assert list(with_headings(table, rank_lower="best place").columns) == [
        *("person", "utility (nats)", "best place", "fruit")
    ]
