"""Choices of each person have the meaning that `Preferences.from_dataframe` gives them."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from fssa_bayes import Preferences
from fssa_bayes.scale.choices import read_choices

WORDS = {1.0: "Left", 0.0: " right", 0.5: "TIE"}


def draw_people(items: list, people: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draws one to three rows a person, in one coding or in several, some of them wrong."""
    rows = []
    for person in range(people):
        coding, kinds = rng.integers(5), ["number", "text", "word", "name"]
        for _ in range(rng.integers(1, 4)):
            left, right = (items[i] for i in rng.permutation(len(items))[:2])
            answer = float(rng.choice([0.0, 1.0, 0.5]))
            values = {
                "number": answer if answer == 0.5 else int(answer),  # One 0 for values and names.
                "text": f"{answer:g}",
                "word": WORDS[answer],
                "name": {1.0: left, 0.0: right, 0.5: "tie"}[answer],
            }
            kind = kinds[coding if coding < 4 else rng.integers(4)]
            value = "perhaps" if rng.random() < 0.03 else values[kind]
            rows.append((person, left, right, value))
    return pd.DataFrame(rows, columns=["user", "left", "right", "choice"])


@pytest.mark.parametrize("items", [["ash", "left", "tie", "0", "1"], [0, 1, 2, 3]], ids=str)
def test_choices_are_those_of_the_table_of_one_person(items: list) -> None:
    table = draw_people(items, 250, np.random.default_rng(0))
    code, values = pd.factorize(table["choice"])
    names = pd.Index(items)
    left, right = (names.get_indexer(table[side]) for side in ("left", "right"))
    person = table["user"].to_numpy()
    choice, reasons = read_choices(code, list(values), left, right, person, names)
    refused = set()
    for one, own in table.groupby("user"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Few rows.
            try:
                data = Preferences.from_dataframe(
                    own, user="user", left="left", right="right", choice="choice", ties="half"
                )
            except ValueError as error:
                refused.add((one, "ambiguous" in str(error)))
                continue
        np.testing.assert_array_equal(choice[person == one], data.choice)
    assert refused == {(one, "ambiguous" in reason) for one, reason in reasons.items()}
    assert np.isnan(choice[np.isin(person, list(reasons))]).all()
    assert {is_ambiguous for _, is_ambiguous in refused} == {False, True}
    assert len(refused) < 125


def test_reasons_depend_neither_on_order_nor_on_other_people() -> None:
    items = [0, 1, 2, 3]
    table = draw_people(items, 60, np.random.default_rng(1))
    names = pd.Index(items)

    def read(rows: pd.DataFrame) -> tuple[pd.Series, dict[int, str]]:
        code, values = pd.factorize(rows["choice"])
        sides = (names.get_indexer(rows[side]) for side in ("left", "right"))
        choice, reasons = read_choices(code, list(values), *sides, rows["user"].to_numpy(), names)
        return pd.Series(choice, rows.index), reasons

    choice, reasons = read(table)
    mixed, of_mixed = read(table.sample(frac=1, random_state=0))
    assert of_mixed == reasons
    pd.testing.assert_series_equal(mixed.sort_index(), choice)
    some = table[table["user"] % 7 == 3]
    alone, of_some = read(some)
    assert of_some == {one: reasons[one] for one in reasons if one % 7 == 3}
    pd.testing.assert_series_equal(alone, choice[some.index])


def test_booleans_are_no_names_and_reasons_name_the_choice() -> None:
    sides = np.array([0, 1]), np.array([1, 0])
    both, names = np.array([0, 0]), pd.Index([0, 1])
    choice, reasons = read_choices(np.array([0, 1]), [True, False], *sides, both, names)
    assert choice.tolist() == [1, 0]
    assert not reasons
    _, reasons = read_choices(both, [0], *sides, np.array([0, 1]), names)
    assert reasons == {
        0: "choice 0 is ambiguous: it can be read as numbers 1 / 0 / 0.5 or as name of the "
        "preferred item; Booleans have one meaning alone"
    }
    _, reasons = read_choices(np.array([0, 1]), ["left", "b"], *sides, both, pd.Index(["a", "b"]))
    assert reasons[0].startswith("choices are coded in several ways")
