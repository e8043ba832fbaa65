"""Rows of text: formats, tokens and masks, splits, contexts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, fit
from fssa_bayes.data import Preferences
from fssa_bayes.policy import Contexts, Conversation, PreferenceRows, ResponseBatch
from fssa_bayes.policy.generation import encode_prompts

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} </s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
WORDS = ["red", "green", "blue", "say", "a", "word", "please", "now"]


def make_tokenizer(*, begins: bool = True, ends: bool = False) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of words, with the marks that tokenizers put around a text."""
    marks = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>", "<system>"]
    vocabulary = {token: number for number, token in enumerate(marks + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=("<s> " if begins else "") + "$A" + (" </s>" if ends else ""),
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", chat_template=TEMPLATE,
    )  # fmt: skip


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


RECORDS = [
    {"prompt": "say a word", "chosen": " red", "rejected": " green blue", "user": "ann"},
    {"prompt": "word please", "chosen": " blue", "rejected": " red", "user": "bob"},
    {"prompt": "word please", "chosen": " blue", "rejected": " green", "user": "ann"},
    {"prompt": "now", "chosen": " blue now", "rejected": " green", "user": "ann"},
]


def as_conversations(records: list[dict]) -> list[dict]:
    return [
        {
            "prompt": [user(record["prompt"])],
            "chosen": [assistant(record["chosen"].strip())],
            "rejected": [assistant(record["rejected"].strip())],
            "user": record["user"],
        }
        for record in records
    ]


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
    assert batch.prompt_lengths.tolist() == [4, 2, 4, 2]
    assert batch.input_ids[~batch.attention_mask.bool()].eq(0).all()


def test_conversations_go_through_the_chat_template() -> None:
    rows = PreferenceRows.from_records(as_conversations(RECORDS))
    batch = rows.tokenise(make_tokenizer()).batch([0])
    tokens, scored = read(batch, 1)
    assert tokens == ["<user>", "say", "a", "word", "</s>", "<assistant>", "green", "blue", "</s>"]
    assert scored == ["green", "blue", "</s>"]  # And not the line break after the last mark.


def test_the_prompt_ends_where_the_template_answers_otherwise_than_it_asks() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<assistant> {%", "<assistant> now {%")
    rows = PreferenceRows.from_records(as_conversations(RECORDS))
    tokens, scored = read(rows.tokenise(tokenizer).batch([0]), 0)
    assert tokens == ["<user>", "say", "a", "word", "</s>", "<assistant>", "red", "</s>"]
    assert scored == ["red", "</s>"]


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
    with pytest.raises(ValueError, match="must fit into max_length=3, got ' red' at row 0"):
        ResponseBatch.from_texts(make_tokenizer(), ["say a"], [" red"], max_length=3)


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
    batch = rows.tokenise(tokenizer).batch([0])
    single = ResponseBatch.from_texts(tokenizer, rows.prompts, rows.chosen)
    tokens = batch.input_ids[0][batch.attention_mask[0].bool()]
    assert tokenizer.convert_ids_to_tokens(tokens) == prompt + response
    scored = batch.input_ids[0][batch.response_mask[0]]
    assert tokenizer.convert_ids_to_tokens(scored) == response
    assert torch.equal(single.input_ids[0], tokens)
    length = len(prompt)  # Both begin with the same tokens, which may be encoded once.
    assert torch.equal(batch.input_ids[0, :length], batch.input_ids[1, :length])
    assert batch.prompt_lengths.tolist() == [length, length]


def test_an_accident_of_letters_is_no_part_of_the_prompt() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<assistant> {%", "<assistant> now {%")
    rows = PreferenceRows([[user("say")]], [[assistant("no red")]], [[assistant("no")]], ["ann"])
    _, scored = read(rows.tokenise(tokenizer).batch([0]), 0)
    assert scored == ["<unk>", "red", "</s>"]


def test_the_last_message_stays_where_the_end_mark_parts_messages() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}"
        "{% if not loop.last %} </s> {% endif %}{% endfor %}"
        "{% if add_generation_prompt %} </s> <assistant> {% endif %}"
    )
    long = [assistant("red"), user("please"), assistant("blue")]
    rows = PreferenceRows([[user("say")]], [long], [[assistant("green")]], ["ann"])
    _, scored = read(rows.tokenise(tokenizer).batch([0]), 0)
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


# ---------------------------------------------------------------------- splits and contexts


def many_rows(num_users: int = 5, num_prompts: int = 7, each: int = 12) -> PreferenceRows:
    """Draws rows in which people share prompts and meet a prompt more than once."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(num_users), each)
    order = rng.permutation(len(users))
    prompts = rng.integers(num_prompts, size=len(users))
    return PreferenceRows(
        [f"prompt {prompt}" for prompt in prompts],
        [f" good {number}" for number in range(len(users))],
        [f" bad {number}" for number in range(len(users))],
        [f"u{name}" for name in users[order]],
    )


def lookup(texts: list[str]) -> torch.Tensor:
    """Embeds a text by its number, and by whether it was the better one."""
    return torch.tensor([[float(text.split()[-1]), float("good" in text)] for text in texts])


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


def test_contexts_are_other_rows_of_the_person_with_other_prompts() -> None:
    rows = many_rows()
    contexts = Contexts(rows, rows.to_preferences(lookup), max_context=8, seed=3)
    sizes = []
    for step in range(40):
        targets = np.random.default_rng(step).permutation(len(rows))[:9]
        batch = contexts.batch(targets, step)
        for line, target in enumerate(targets):
            drawn = contexts.draw(int(target), step)
            seen = batch.mask[line]
            left, right = (
                batch.items[getattr(batch, side)[line, seen]] for side in ("left", "right")
            )
            better = torch.where(batch.choice[line, seen, None] == 1, left, right)
            assert better[:, 0].tolist() == drawn.tolist()
            assert better[:, 1].eq(1).all()
            assert len(set(drawn)) == len(drawn)
            assert (rows.user[drawn] == rows.user[target]).all()
            assert (rows.prompt[drawn] != rows.prompt[target]).all()
            sizes.append(len(drawn))
    # 360 sizes, uniform on 0 … 8: each has expectation 40, standard deviation 6.
    assert (abs(np.bincount(sizes, minlength=9) - 40) < 24).all()
    assert len(np.bincount(sizes)) == 9


def test_contexts_of_a_least_size() -> None:
    rows = many_rows()
    preferences = rows.to_preferences(lookup)
    contexts = Contexts(rows, preferences, max_context=8, min_context=5, seed=3)
    sizes = [len(contexts.draw(row, step)) for row in range(len(rows)) for step in range(20)]
    assert set(sizes) == {5, 6, 7, 8}
    assert len(contexts.draw(0, num_context=2)) == 2
    with pytest.raises(ValueError, match="min_context must lie between 0 and max_context=3, got 4"):
        Contexts(rows, preferences, max_context=3, min_context=4)


def test_a_context_depends_on_seed_step_and_row_alone() -> None:
    rows = many_rows()
    data = rows.to_preferences(lookup)
    contexts = Contexts(rows, data, seed=3)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = contexts.draw(5, 2)
    contexts.batch([1, 5, 7], 2)
    assert np.array_equal(Contexts(rows, data, seed=3).draw(5, 2), first)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    others = [contexts.draw(5, step).tolist() for step in range(3, 9)]
    others += [Contexts(rows, data, seed=4).draw(5, 2).tolist()]
    assert len({tuple(other) for other in others} | {tuple(first)}) > 5
    # Nested: what is asked with more context contains what was asked with less.
    assert contexts.draw(5, 0, 7)[:3].tolist() == contexts.draw(5, 0, 3).tolist()
    assert contexts.batch([5, 6], num_context=0).mask.shape == (2, 0)
    with pytest.raises(ValueError, match="num_context=99 is more than the .* user 'u"):
        contexts.draw(5, 0, 99)
    with pytest.raises(ValueError, match="must be made by rows.to_preferences"):
        Contexts(rows.subset(range(7)), data)


def test_a_model_of_the_rows_gives_posteriors_of_contexts() -> None:
    rows = many_rows()
    data = rows.to_preferences(lookup)
    model = HeterogeneousBTL(2, 2, hidden_dim=8, num_factors=4)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    fit(model, guide, data, steps=2, validation=None, progress_bar=False)
    contexts = Contexts(rows, data)
    assert guide.posterior(contexts.batch([3, 4, 3], 1)).sample((6,)).shape == (6, 3, 2)
    # The context that holds a person's every comparison is the person's line of the data.
    everything = contexts.gather(
        [np.flatnonzero(rows.user == 1)], np.flatnonzero(rows.user == 1)[:1]
    )
    z = torch.randn(1, 2)
    both = [guide.posterior(batch).log_prob(z) for batch in (everything, data.batch([1]))]
    assert torch.allclose(*both, atol=1e-5)


def test_conversations_and_strings_have_their_own_prompts() -> None:
    prompts: list[Conversation] = ["say", [user("say")], [{"role": "system", "content": "say"}]]
    chosen: list[Conversation] = [" a", [assistant("a")], [assistant("a")]]
    rejected: list[Conversation] = [" b", [assistant("b")], [assistant("b")]]
    rows = PreferenceRows(prompts, chosen, rejected, ["u", "u", "u"])
    assert rows.prompt.tolist() == [0, 1, 2]
    assert rows.item_texts()[2:4] == ["user: say\nassistant: a", "user: say\nassistant: b"]
    assert len(rows.tokenise(make_tokenizer())) == 3


def test_contexts_need_the_choices_of_the_rows_in_their_order() -> None:
    rows = many_rows()
    preferences = rows.to_preferences(lookup)
    Contexts(rows, preferences)
    order = np.arange(len(rows))
    order[[0, 1]] = order[[1, 0]]  # Of one person.
    shuffled = Preferences(
        preferences.left[order],
        preferences.right[order],
        preferences.choice[order],
        preferences.offsets,
        items=preferences.items,
        item_names=preferences.item_names,
        user_names=preferences.user_names,
    )
    with pytest.raises(ValueError, match="got choices in another order than the rows"):
        Contexts(rows, shuffled)
    renamed = Preferences(
        preferences.left, preferences.right, preferences.choice, preferences.offsets,
        items=preferences.items, user_names=preferences.user_names,
    )  # fmt: skip
    with pytest.raises(ValueError, match="got items other than the rows' texts"):
        Contexts(rows, renamed)
    with pytest.raises(ValueError, match="num_context must be at least 0, got -1"):
        Contexts(rows, preferences).draw(0, num_context=-1)


@pytest.mark.parametrize("asks", ["<assistant> {%", "<assistant> now {%"])
def test_tokenizers_that_do_not_tell_places_cut_by_letters(
    asks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<assistant> {%", asks)
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    rows = PreferenceRows.from_records(as_conversations(RECORDS))
    tokens, scored = read(rows.tokenise(tokenizer).batch([0]), 0)
    assert tokens == ["<user>", "say", "a", "word", "</s>", "<assistant>", "red", "</s>"]
    assert scored == ["red", "</s>"]
