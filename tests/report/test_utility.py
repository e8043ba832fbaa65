"""The utility of an analysis: no network where people are few for one."""

from __future__ import annotations

import numpy as np
import pytest

from fssa_bayes import Preferences
from fssa_bayes.report.utility import PEOPLE_FOR_NETWORK, choose_utility


def read(people: int, *, featured: bool = True) -> Preferences:
    items = np.arange(6.0).reshape(3, 2) if featured else None
    side = np.arange(people) % 3
    return Preferences(
        side,
        (side + 1) % 3,
        side % 2,
        np.arange(people + 1),
        items=items,
        num_items=None if featured else 3,
    )


@pytest.mark.parametrize(
    ("people", "featured", "expected"),
    [
        (40, True, "linear"),
        (PEOPLE_FOR_NETWORK - 1, True, "linear"),
        (PEOPLE_FOR_NETWORK, True, "bilinear"),
        (10_000, True, "bilinear"),
        (10_000, False, "linear"),
    ],
)
def test_a_network_needs_people_and_features(people: int, featured: bool, expected: str) -> None:
    chosen = choose_utility(read(people, featured=featured))
    assert chosen.name == expected
    assert not chosen.warning
    assert bool(chosen.note) == (featured and expected == "linear")
    if chosen.note:
        assert f"{people} people of the fit are fewer than {PEOPLE_FOR_NETWORK:,}" in chosen.note
        assert "--utility bilinear" in chosen.note


@pytest.mark.parametrize("asked", ["bilinear", "mlp", "linear"])
def test_what_is_asked_for_is_fitted_and_a_network_of_few_is_warned_of(asked: str) -> None:
    few, many = (choose_utility(read(people), asked) for people in (40, PEOPLE_FOR_NETWORK))
    assert few.name == many.name == asked
    assert bool(few.warning) == (asked != "linear")
    assert few.note == many.note == many.warning == ""
