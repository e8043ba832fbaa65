"""Preference rows: formats, prompts, splits, and the choices that they hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_texts import (
    RECORDS,
    as_conversations,
    assistant,
    lookup,
    make_tokenizer,
    many_rows,
    user,
)

from fssa_bayes.policy import Conversation, PreferenceRows


def test_a_prompt_within_the_conversations_is_found() -> None:
    explicit = as_conversations(RECORDS)
    implicit = [
        {
            "chosen": record["prompt"] + record["chosen"],
            "rejected": record["prompt"] + record["rejected"],
            "user": record["user"],
        }
        for record in explicit
    ]
    rows, expected = map(PreferenceRows.from_records, (implicit, explicit))
    assert (rows.prompts, rows.chosen, rows.rejected) == (
        expected.prompts, expected.chosen, expected.rejected,
    )  # fmt: skip


def test_tables_and_other_column_names() -> None:
    df = pd.DataFrame(RECORDS).rename(columns={"user": "worker", "chosen": "better"})
    rows = PreferenceRows.from_dataframe(df, user="worker", chosen="better")
    assert rows.users.tolist() == ["ann", "bob", "ann", "ann"]
    assert rows.prompt.tolist() == [0, 1, 1, 2]
    # parquet gives arrays of messages.
    conversations = as_conversations(RECORDS)
    for record in conversations:
        record["prompt"] = np.array(record["prompt"], dtype=object)
    assert PreferenceRows.from_dataframe(pd.DataFrame(conversations)).prompts[0] == [
        user("say a word")
    ]


BAD = {
    "chosen must not be empty, got '  ' at row 1": {"chosen": "  "},
    "rejected must not be empty, got '' at row 1": {"rejected": ""},
    "chosen and rejected must differ, got ' red' twice at row 1": {"chosen": " red"},
    "all strings or all conversations, got str and list at row 1": {"chosen": [assistant("a")]},
    "users must have no missing values, got one at row 1": {"user": None},
    "a row of strings must have a prompt, got none at row 1": {"prompt": None},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_rows_are_refused(message: str) -> None:
    records = [dict(record) for record in RECORDS]
    records[1] |= BAD[message]
    with pytest.raises(ValueError, match=message):
        PreferenceRows.from_records(records)


def test_rows_of_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="chosen must be a string or a list of messages, got int"):
        PreferenceRows.from_records([RECORDS[0] | {"chosen": 3}])
    with pytest.raises(TypeError, match="must have a 'role' and a 'content'"):
        PreferenceRows.from_records([RECORDS[0] | {"chosen": [{"role": "user"}]}])
    with pytest.raises(ValueError, match="every row must have 'rejected', got .* at row 0"):
        PreferenceRows.from_records([{"prompt": "a", "chosen": "b", "user": 1}])
    with pytest.raises(ValueError, match="of one length of at least 1, got 0, 0, 0 and 0"):
        PreferenceRows.from_records([])
    both = [user("say"), assistant("a")]
    with pytest.raises(ValueError, match="chosen must not be empty"):
        PreferenceRows.from_records([{"chosen": both, "rejected": [*both, user("b")], "user": 1}])
    with pytest.raises(ValueError, match="a prompt must end before the assistant's turn"):
        PreferenceRows([both], [[assistant("b")]], [[assistant("c")]], [1])


def test_splits_part_prompts_or_people() -> None:
    rows = many_rows()
    for split, units in ((rows.split_prompts, "prompts"), (rows.split_users, "users")):
        train, test = split(0.3, seed=1)
        assert not set(getattr(train, units)) & set(getattr(test, units))
        assert sorted(train.chosen + test.chosen) == sorted(rows.chosen)
        assert split(0.3, seed=1)[1].chosen == test.chosen
        assert split(0.3, seed=2)[1].chosen != test.chosen
    with pytest.raises(ValueError, match="test_size must lie between 0 and 1, got 1"):
        rows.split_users(1.0)


def test_preferences_hold_the_choices_of_the_rows() -> None:
    rows = many_rows()
    data = rows.to_preferences(lookup)
    assert data.user_names.equals(rows.user_names)
    assert 0 < data.choice.mean() < 1
    winner = np.where(data.choice == 1, data.left, data.right)
    loser = np.where(data.choice == 1, data.right, data.left)
    assert data.items[winner, 1].eq(1).all()
    assert data.items[loser, 1].eq(0).all()
    assert torch.equal(data.items[winner, 0], data.items[loser, 0])
    for person, name in enumerate(rows.user_names):
        own = data.items[winner[data.offsets[person] : data.offsets[person + 1]], 0]
        assert own.tolist() == np.flatnonzero(rows.users == name).tolist()
    with pytest.raises(ValueError, match="embed must give 120 rows of features, got 3"):
        rows.to_preferences(torch.zeros(3, 2))


def test_conversations_and_strings_have_their_own_prompts() -> None:
    prompts: list[Conversation] = ["say", [user("say")], [{"role": "system", "content": "say"}]]
    chosen: list[Conversation] = [" a", [assistant("a")], [assistant("a")]]
    rejected: list[Conversation] = [" b", [assistant("b")], [assistant("b")]]
    rows = PreferenceRows(prompts, chosen, rejected, ["u", "u", "u"])
    assert rows.prompt.tolist() == [0, 1, 2]
    assert rows.item_texts()[2:4] == ["user: say\nassistant: a", "user: say\nassistant: b"]
    assert len(rows.tokenise(make_tokenizer())) == 3
