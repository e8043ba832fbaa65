"""People stand in one order in tables, files and pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fssa_bayes import plots
from fssa_bayes.report.people import (
    MAX_DRAWN,
    draw_people,
    name_people,
    order_people,
    say_who_is_consistent,
)


@pytest.fixture
def people() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"comparisons": 12}, index=pd.Index(range(60), name="user"))
    for name in ("direction", "scale"):
        ends = np.sort(rng.random((60, 3)), axis=1)
        table[[f"{name}_lower", name, f"{name}_upper"]] = ends
    return table


def test_a_picture_has_the_order_of_the_table(
    people: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], plots.forest

    def record(*columns: pd.Series, **options: object) -> object:
        drawn.append(list(columns[3]))
        return draw(*columns, **options)

    monkeypatch.setattr(plots, "forest", record)
    people = order_people(people)
    assert people["direction_upper"].is_monotonic_increasing
    figure = draw_people(people, drawn=True)
    left, right = drawn
    assert left == right == [name for name in people.index if name in left]
    assert len(left) == MAX_DRAWN
    assert figure.caption.startswith(f"{MAX_DRAWN} at random of the 60 people")
    assert "the population drawn" in figure.caption


def test_headings_of_people_have_units_and_the_consistent_are_named(people: pd.DataFrame) -> None:
    named = name_people(people.reset_index())
    assert list(named.columns[:4]) == [
        *("person", "comparisons", "direction, lower end (90\u00a0%)"),
        "direction (correlation), median",
    ]
    assert not [name for name in named.columns if "_" in name]
    most, least = people["scale_lower"].idxmax(), people["scale_upper"].idxmin()
    said = say_who_is_consistent(people)
    assert f"in nats: {most} ({people.loc[most, 'scale_lower']:.2f})" in said
    assert f"upper end: {least} ({people.loc[least, 'scale_upper']:.2f})" in said
