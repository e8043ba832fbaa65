"""Preference rows: formats, prompts, splits, and the choices that they hold."""

from __future__ import annotations

import json

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
    "1 with an empty response": {"chosen": "  "},
    "1 without a response": {"rejected": None},
    "1 whose responses are the same": {"chosen": " red"},
    "1 without a prompt": {"prompt": None},
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_rows_are_left_out_and_counted(reason: str) -> None:
    records = [dict(record) for record in RECORDS]
    records[1] |= BAD[reason]
    with pytest.warns(UserWarning, match=f"^1 of 4 rows left out: {reason}$"):
        rows = PreferenceRows.from_records(records)
    assert rows.record.tolist() == [0, 2, 3]
    assert rows.chosen == [RECORDS[row]["chosen"] for row in (0, 2, 3)]
    assert rows.users.tolist() == ["ann", "ann", "ann"]
    assert sum(rows.dropped.values()) == 1
    assert rows.subset([1, 2]).record.tolist() == [2, 3]
    with pytest.raises(ValueError, match=f"choices between two answers, got 1: {reason}"):
        PreferenceRows.from_records([records[1]])


WRONG = {
    "all strings or all conversations, got str and list at row 1: leave the prompt out": {
        "chosen": [assistant("a")], "rejected": [assistant("b")],
    },
    "users must have no missing values, got one at row 1": {"user": None},
    "tools must be JSON where they are text, at row 1": {"tools": "{"},
    "tools must be a list of schemas, got dict at row 1": {"tools": {"name": "a"}},
    "chat_template_kwargs must be a mapping, got list": {"chat_template_kwargs": ["a"]},
    "must be text, got a part of type 'image' at row 1": {
        "prompt": [{"role": "user", "content": [{"type": "image"}]}],
        "chosen": [assistant("a")], "rejected": [assistant("b")],
    },
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_formats_are_refused(message: str) -> None:
    records = [dict(record) for record in RECORDS]
    records[1] |= WRONG[message]
    with pytest.raises(ValueError, match=message):
        PreferenceRows.from_records(records)


def test_a_prompt_within_strings_is_found_as_trl_finds_it() -> None:
    records = [
        {"chosen": "Q: why? A: so it is", "rejected": "Q: why? A: no", "user": 1},
        {"chosen": "one two", "rejected": "one three", "user": 1},
        {"chosen": "one", "rejected": "one two", "user": 1},
    ]
    rows = PreferenceRows.from_records(records)
    assert rows.prompts == ["Q: why? A:", "one t", "on"]
    assert rows.chosen == [" so it is", "wo", "e"]
    assert rows.rejected == [" no", "hree", "e two"]


def test_conversations_are_cut_after_the_prompt_that_they_repeat() -> None:
    ask, good, bad = user("say"), assistant("a"), assistant("b")
    with pytest.warns(UserWarning, match="1 of 2 rows have responses that repeat their prompt"):
        rows = PreferenceRows([[ask], [ask]], [[ask, good], [good]], [[bad], [bad]], [1, 1])
    assert rows.chosen == [[good], [good]]
    with pytest.warns(UserWarning, match="1 whose responses begin with another role"):
        PreferenceRows([[ask], [ask]], [[user("other"), good], [good]], [[bad], [bad]], [1, 1])


def test_strings_are_cut_after_their_prompt_where_all_repeat_it() -> None:
    with pytest.warns(UserWarning, match="2 of 2 rows .* which was cut off"):
        rows = PreferenceRows(["a b", "c"], ["a b x", "c d"], ["a b y", "c e"], [1, 1])
    assert (rows.chosen, rows.rejected) == ([" x", " d"], [" y", " e"])
    with pytest.warns(UserWarning, match="1 of 2 rows have a response that repeats its prompt"):
        rows = PreferenceRows(["a b", "c"], ["a b x", "d"], ["a b y", "e"], [1, 1])
    assert rows.chosen == ["a b x", "d"]


def test_what_messages_hold_beside_their_text_is_kept() -> None:
    call = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    caller = {"role": "assistant", "content": None, "tool_calls": call, "name": None}
    tools = [{"type": "function", "function": {"name": "add", "parameters": None}}]
    record = {
        "prompt": [user("sum") | {"name": "ann"}],
        "chosen": [caller],
        "rejected": [assistant("no")],
        "user": 1,
        "tools": tools,
        "chat_template_kwargs": {"thinking": False},
    }
    rows = PreferenceRows.from_records([record, record | {"tools": json.dumps(tools)}])
    assert rows.prompts[0] == [{"role": "user", "content": "sum", "name": "ann"}]
    assert rows.chosen[0] == [{"role": "assistant", "content": "", "tool_calls": call}]
    assert rows.tools[0] == [{"type": "function", "function": {"name": "add"}}]
    assert rows.tools[1] == tools
    assert rows.subset([1]).chat_template_kwargs == [{"thinking": False}]
    assert rows.item_texts()[0] == f"user: sum\nassistant: {json.dumps(call)}"


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
    rows = PreferenceRows.from_records(
        [{"chosen": both, "rejected": [*both, user("b")], "user": 1}]
    )
    assert rows.chosen == [[assistant("a")]]


HALF = "a\ud800"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("prompt", {"prompt": [user(HALF)]}),
        ("chosen", {"chosen": [assistant("a") | {"name": HALF}]}),
        ("rejected", {"prompt": "a", "chosen": "b", "rejected": HALF}),
        ("tools", {"tools": json.dumps([{"name": HALF}])}),
        ("chat_template_kwargs", {"chat_template_kwargs": {HALF: 1}}),
        ("users", {"user": HALF}),
    ],
)
def test_half_a_pair_of_surrogates_is_refused(name: str, part: dict) -> None:
    good = {"prompt": [user("say")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    rows = [good | {"user": "😀"}, good | {"user": "ann"} | part]
    message = rf"{name} must be text that UTF-8 can hold, got '\\ud800' at row 1"
    with pytest.raises(ValueError, match=message):
        PreferenceRows.from_records(rows)


def test_people_without_a_name_are_refused() -> None:
    assert len(PreferenceRows.from_records([RECORDS[0] | {"user": 0}])) == 1
    with pytest.raises(ValueError, match="users must be named, got '' at row 1"):
        PreferenceRows.from_records([RECORDS[0], RECORDS[0] | {"user": ""}])


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
