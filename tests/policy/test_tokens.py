"""Tokens of prompts and responses: where each begins and ends, what is scored, what is dropped."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tiny_texts import (
    RECORDS,
    TEMPLATE,
    WORDS,
    as_conversations,
    assistant,
    make_tokenizer,
    user,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fssa_bayes.policy import PreferenceRows, ResponseBatch
from fssa_bayes.policy.generation import encode_prompts


def read(batch: ResponseBatch, row: int) -> tuple[list[str], list[str]]:
    """Returns the tokens of a sequence and those under the response mask."""
    tokenizer = make_tokenizer()
    tokens = batch.input_ids[row][batch.attention_mask[row].bool()]
    scored = batch.input_ids[row][batch.response_mask[row]]
    return (tokenizer.convert_ids_to_tokens(tokens), tokenizer.convert_ids_to_tokens(scored))


@pytest.mark.parametrize("ends", [False, True])
def test_strings_are_joined_between_the_marks(ends: bool) -> None:
    pairs = PreferenceRows.from_records(RECORDS).tokenise(make_tokenizer(ends=ends))
    batch = pairs.batch([0, 3])
    assert read(batch, 0) == (["<s>", "say", "a", "word", "red", "</s>"], ["red", "</s>"])
    assert read(batch, 1) == (["<s>", "now", "blue", "now", "</s>"], ["blue", "now", "</s>"])
    assert read(batch, 2)[1] == ["green", "blue", "</s>"]
    lengths = batch.attention_mask.sum(-1) - batch.response_mask.sum(-1)
    assert lengths.tolist() == [4, 2, 4, 2]
    assert batch.input_ids[~batch.attention_mask.bool()].eq(0).all()


def test_conversations_go_through_the_chat_template() -> None:
    rows = PreferenceRows.from_records(as_conversations(RECORDS))
    batch = rows.tokenise(make_tokenizer()).batch([0])
    tokens, scored = read(batch, 1)
    assert tokens == ["<user>", "say", "a", "word", "</s>", "<assistant>", "green", "blue", "</s>"]
    assert scored == ["green", "blue", "</s>"]


def line_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer of words and of line breaks."""
    marks = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"]
    vocabulary = {token: n for n, token in enumerate([*marks, *WORDS, "\n"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", chat_template=TEMPLATE,
    )  # fmt: skip


@pytest.mark.parametrize("after_end", [True, False])
def test_the_line_break_after_the_last_mark_is_part_of_the_response_or_not(after_end) -> None:
    tokenizer = line_tokenizer()
    rows = PreferenceRows.from_records(as_conversations(RECORDS))
    batch = rows.tokenise(tokenizer, after_end=after_end).batch([0])
    scored = tokenizer.convert_ids_to_tokens(batch.input_ids[1][batch.response_mask[1]])
    assert scored == ["green", "blue", "</s>", *(["\n"] if after_end else [])]
    alone = ResponseBatch.from_texts(
        tokenizer, rows.prompts[:1], rows.chosen[:1], after_end=after_end
    )
    assert alone.response_mask.sum() == 2 + after_end


def test_the_prompt_ends_where_the_template_answers_otherwise_than_it_asks() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<assistant> {%", "<assistant> now {%")
    rows = PreferenceRows.from_records(as_conversations(RECORDS))
    with pytest.warns(UserWarning, match="4 of 4 prompts are trained on without their end 'now'"):
        pairs = rows.tokenise(tokenizer)
    tokens, scored = read(pairs.batch([0]), 0)
    assert tokens == ["<user>", "say", "a", "word", "</s>", "<assistant>", "red", "</s>"]
    assert scored == ["red", "</s>"]


def test_batches_are_those_of_single_sequences_padded() -> None:
    tokenizer = make_tokenizer()
    rows = PreferenceRows.from_records(RECORDS)
    batch = rows.tokenise(tokenizer).batch([2, 0, 3])
    prompts = [rows.prompts[row] for row in (2, 0, 3)] * 2
    responses = [rows.chosen[row] for row in (2, 0, 3)] + [rows.rejected[row] for row in (2, 0, 3)]
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        single = ResponseBatch.from_texts(tokenizer, [prompt], [response])
        chosen = batch.select(torch.tensor([row]))
        for name in ("input_ids", "attention_mask", "response_mask"):
            assert torch.equal(getattr(single, name), getattr(chosen, name))


def test_rows_that_are_too_long_are_dropped_and_counted() -> None:
    rows = PreferenceRows.from_records(RECORDS)
    with pytest.warns(UserWarning, match="1 of 4 rows left out: 1 longer than max_length=6"):
        pairs = rows.tokenise(make_tokenizer(), max_length=6)
    assert pairs.row.tolist() == [1, 2, 3]
    assert (pairs.dropped.too_long, pairs.dropped.empty, pairs.dropped.identical) == (1, 0, 0)
    assert pairs.lengths.tolist() == [5, 5, 5]
    assert len(rows.tokenise(make_tokenizer(), max_length=7)) == 4
    with pytest.raises(ValueError, match="no row is left of 4: 4 longer.* the shortest has 5"):
        rows.tokenise(make_tokenizer(), max_length=4)


def test_responses_that_the_tokens_do_not_tell_are_dropped_and_counted() -> None:
    records = as_conversations(RECORDS)
    records[1]["chosen"], records[1]["rejected"] = [assistant("red ")], [assistant(" red")]
    tokenizer = make_tokenizer()
    with pytest.warns(UserWarning, match="1 whose responses are the same tokens"):
        pairs = PreferenceRows.from_records(records).tokenise(tokenizer)
    assert pairs.dropped.identical == 1
    # A template that leaves out what it does not know.
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }} {% endfor %}"
    )
    with pytest.raises(ValueError, match="no row is left of 4: .* 4 with an empty response"):
        PreferenceRows.from_records(as_conversations(RECORDS)).tokenise(tokenizer)


def test_tokenizers_that_lack_a_part_are_refused() -> None:
    strings = PreferenceRows.from_records(RECORDS)
    conversations = PreferenceRows.from_records(as_conversations(RECORDS))
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    strings.tokenise(tokenizer)
    with pytest.raises(ValueError, match="must have a chat template, since row 0"):
        conversations.tokenise(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="must have an end-of-sequence token"):
        strings.tokenise(tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="must have a padding token"):
        strings.tokenise(tokenizer)
    for most in (3, 0):
        with pytest.raises(
            ValueError, match=f"must fit into max_length={most}, got ' red' at row 0"
        ):
            ResponseBatch.from_texts(make_tokenizer(), ["say a"], [" red"], max_length=most)


def metaspace_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose words hold the space before them, or not, as SentencePiece's."""
    words = ["say", "red", "now", "no", "say:"]
    marks = ["<pad>", "</s>", "<unk>", "<user>", "<|think|>", "<|resp|>"]
    vocabulary = {
        token: n for n, token in enumerate([*marks, "▁", *words, *("▁" + w for w in words)])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        chat_template=template, additional_special_tokens=marks[3:],
    )  # fmt: skip


ASKING = {
    # The words of the template as a whole, not of the response by itself.
    "apart": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'] }}<|resp|>"
        "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}",
        ["<user>", "say", "<|resp|>"],
        ["red", "</s>"],
    ),
    # A token that holds the last space of the prompt is the response's.
    "astride": (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}: "
        "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}",
        ["▁say:"],
        ["▁red", "</s>"],
    ),
    # Marks that begin alike are other tokens.
    "other mark": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'] }}"
        "{% else %}<|resp|>{{ m['content'] }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|think|>{% endif %}",
        ["<user>", "say"],
        ["<|resp|>", "red", "</s>"],
    ),
}


@pytest.mark.parametrize("name", ASKING)
def test_conversations_are_cut_between_the_tokens_of_the_whole(name: str) -> None:
    template, prompt, response = ASKING[name]
    tokenizer = metaspace_tokenizer(template)
    rows = PreferenceRows([[user("say")]], [[assistant("red")]], [[assistant("now")]], ["ann"])
    with contextlib.nullcontext() if name == "apart" else pytest.warns(UserWarning, match="end"):
        batch = rows.tokenise(tokenizer).batch([0])
    single = ResponseBatch.from_texts(tokenizer, rows.prompts, rows.chosen)
    tokens = batch.input_ids[0][batch.attention_mask[0].bool()]
    assert tokenizer.convert_ids_to_tokens(tokens) == prompt + response
    scored = batch.input_ids[0][batch.response_mask[0]]
    assert tokenizer.convert_ids_to_tokens(scored) == response
    assert torch.equal(single.input_ids[0], tokens)
    length = len(prompt)  # Both begin with the same tokens, which may be encoded once.
    assert torch.equal(batch.input_ids[0, :length], batch.input_ids[1, :length])
    lengths = batch.attention_mask.sum(-1) - batch.response_mask.sum(-1)
    assert lengths.tolist() == [length, length]


def test_an_accident_of_letters_is_no_part_of_the_prompt() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<assistant> {%", "<assistant> now {%")
    rows = PreferenceRows([[user("say")]], [[assistant("no red")]], [[assistant("no")]], ["ann"])
    with pytest.warns(UserWarning, match="without their end 'now'"):
        pairs = rows.tokenise(tokenizer)
    assert read(pairs.batch([0]), 0)[1] == ["<unk>", "red", "</s>"]


def test_the_last_message_stays_where_the_end_mark_parts_messages() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}"
        "{% if not loop.last %} </s> {% endif %}{% endfor %}"
        "{% if add_generation_prompt %} </s> <assistant> {% endif %}"
    )
    long = [assistant("red"), user("please"), assistant("blue")]
    rows = PreferenceRows([[user("say")]], [long], [[assistant("green")]], ["ann"])
    with pytest.warns(UserWarning, match="1 of 1 rows have a response without the end token"):
        pairs = rows.tokenise(tokenizer, after_end=False)
    _, scored = read(pairs.batch([0]), 0)
    assert scored == ["red", "</s>", "<user>", "please", "</s>", "<assistant>", "blue"]


@pytest.mark.parametrize("ends", [False, True])
def test_a_prompt_keeps_an_end_mark_of_its_own(ends: bool) -> None:
    tokenizer = make_tokenizer(ends=ends)
    batch = ResponseBatch.from_texts(tokenizer, ["say </s>"], [" red"])
    assert read(batch, 0) == (["<s>", "say", "</s>", "red", "</s>"], ["red", "</s>"])
    assert encode_prompts(tokenizer, ["say </s>"]) == [[1, tokenizer.vocab["say"], 2]]


def test_prompts_without_a_token_are_refused() -> None:
    records = [RECORDS[0], RECORDS[1] | {"prompt": ""}]
    rows, tokenizer = PreferenceRows.from_records(records), make_tokenizer(begins=False)
    with pytest.raises(ValueError, match="prompts must have at least one token each.* at row 1"):
        rows.tokenise(tokenizer)
    with pytest.raises(ValueError, match="prompts must have at least one token each.* at row 1"):
        ResponseBatch.from_texts(tokenizer, rows.prompts, rows.chosen)
    assert read(rows.tokenise(make_tokenizer()).batch([1]), 0)[0] == ["<s>", "blue", "</s>"]


def test_a_prefilled_answer_is_another_turn_as_in_generation() -> None:
    tokenizer = make_tokenizer()
    rows = PreferenceRows(
        [[user("say"), assistant("a")]], [[assistant("red")]], [[assistant("blue")]], ["ann"]
    )
    with pytest.warns(UserWarning, match="1 of 1 prompts end with the assistant's turn"):
        tokens, scored = read(rows.tokenise(tokenizer).batch([0]), 0)
    assert tokens == ["<user>", "say", "</s>", "<assistant>", "a", "</s>", "<assistant>", *scored]
    assert encode_prompts(tokenizer, rows.prompts)[0] == tokenizer.convert_tokens_to_ids(tokens[:7])


def test_a_template_that_refuses_a_conversation_is_named() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    rows = PreferenceRows.from_records(as_conversations(RECORDS))
    with pytest.raises(ValueError, match="of roles .'user'., got: roles must alternate"):
        rows.tokenise(tokenizer)


def test_some_pairs_keep_their_rows_and_tokens() -> None:
    pairs = PreferenceRows.from_records(RECORDS).tokenise(make_tokenizer())
    some = pairs.select([3, 1])
    assert some.rows is pairs.rows
    assert some.row.tolist() == pairs.row[[3, 1]].tolist()
    assert len(some) == 2
    assert torch.equal(some.batch([0, 1]).input_ids, pairs.batch([3, 1]).input_ids)
    with pytest.raises(ValueError, match="pairs must lie in"):
        some.select([2])
