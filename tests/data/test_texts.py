"""Texts as features: tiny models with random weights, against one text at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from tiny_models import make_model
from torch import Tensor

from fssa_bayes.data.texts import embed_texts, fingerprint, load_encoder, pool

transformers = pytest.importorskip("transformers")

TEXTS = [
    "a red wine",
    "an old , dry and rather heavy red wine from the south of the south",
    "red",
    "a red wine",
    "the old wine is dry",
    "from the old south a dry heavy red",
    "wine",
]
KINDS = ["bert", "llama", "gpt2"]


WORDS = sorted({word for text in TEXTS for word in text.split()})


def make_tokenizer(kind: str) -> transformers.PreTrainedTokenizerFast:
    return tiny_models.make_tokenizer(kind, WORDS)


def one_by_one(texts: list[str], kind: str, pooling: str) -> Tensor:
    """Embeds every text alone, without padding."""
    model, tokenizer = make_model(kind), make_tokenizer(kind)
    rows = []
    for text in texts:
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
        rows.append({"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling])
    return torch.stack(rows)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_give_what_single_texts_give(kind: str, pooling: str, side: str) -> None:
    tokenizer = make_tokenizer(kind)
    tokenizer.padding_side = side
    model = make_model(kind).train()
    found = embed_texts(TEXTS, model, tokenizer, pooling=pooling, batch_size=3, progress_bar=False)
    assert model.training
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, one_by_one(TEXTS, kind, pooling), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_pooling_finds_its_tokens_whichever_side_is_padded(side: str, dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 4, 5)
    sizes = (4, 2, 1)
    padded = torch.full((3, 4, 5), torch.nan)
    mask = torch.zeros(3, 4, dtype=dtype)
    for row, size in enumerate(sizes):
        part = slice(4 - size, 4) if side == "left" else slice(0, size)
        padded[row, part], mask[row, part] = hidden[row, :size], 1
    for row, size in enumerate(sizes):
        tokens = hidden[row, :size]
        assert pool(padded, mask, "last")[row].equal(tokens[-1])
        assert pool(padded, mask, "cls")[row].equal(tokens[0])
        torch.testing.assert_close(pool(padded, mask, "mean")[row], tokens.mean(0))


def count_calls(model: torch.nn.Module) -> list[tuple[int, int]]:
    """Returns a list to which every forward pass of the model adds its shape."""
    shapes = []
    model.register_forward_hook(lambda _, arguments, __: shapes.append(tuple(arguments[0].shape)))
    return shapes


def test_the_longest_come_first_and_duplicates_once() -> None:
    model = make_model("llama")
    shapes = count_calls(model)
    embed_texts(TEXTS, model, make_tokenizer("llama"), batch_size=2, progress_bar=False)
    # The first call asks for the width. Lengths without the duplicate: 15, 8, 5, 3, 1, 1.
    assert shapes == [(1, 1), (2, 15), (2, 5), (2, 1)]


def test_a_causal_model_with_a_head_gives_what_its_body_gives() -> None:
    model, tokenizer = make_model("llama", with_head=True), make_tokenizer("llama")
    options = {"pooling": "last", "progress_bar": False}
    found = embed_texts(TEXTS, model, tokenizer, **options)
    assert found.equal(embed_texts(TEXTS, model.model, tokenizer, **options))


def test_normalised_embeddings_have_length_one() -> None:
    options = {"model": make_model("bert"), "tokenizer": make_tokenizer("bert")}
    plain, unit = (
        embed_texts(TEXTS, **options, progress_bar=False, normalise=flag) for flag in (False, True)
    )
    torch.testing.assert_close(unit, plain / plain.norm(dim=1, keepdim=True))


def test_what_lies_beyond_the_largest_length_does_not_count() -> None:
    model, tokenizer = make_model("llama"), make_tokenizer("llama")
    options = {"model": model, "tokenizer": tokenizer, "progress_bar": False}
    with pytest.warns(UserWarning, match="2 texts reach max_length=6 tokens"):
        cut = embed_texts(TEXTS, **options, max_length=6)
    heads = [" ".join(text.split()[:6]) for text in TEXTS]
    torch.testing.assert_close(cut, embed_texts(heads, **options), atol=1e-5, rtol=1e-5)


def test_the_models_own_limit_holds_where_none_is_given() -> None:
    model, tokenizer = make_model("llama"), make_tokenizer("llama")
    model.config.max_position_embeddings = 7
    with pytest.warns(UserWarning, match="2 texts reach max_length=7 tokens"):
        embed_texts(TEXTS, model, tokenizer, progress_bar=False)


# The cache.


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def test_a_second_run_computes_only_what_is_new(tmp_path: Path) -> None:
    model, tokenizer = make_model("bert"), make_tokenizer("bert")
    options = {"progress_bar": False, "cache": tmp_path / "cache"}
    first = embed_texts(TEXTS[:5], model, tokenizer, **options)
    shapes = count_calls(model)
    assert embed_texts(TEXTS[:5], model, tokenizer, **options).equal(first)
    assert shapes == [(1, 1)]
    more = embed_texts(TEXTS, model, tokenizer, **options)
    assert shapes[2:] == [(2, 10)]  # "wine" and "from the old …", of 3 and 10 tokens
    assert more[:5].equal(first)
    torch.testing.assert_close(more, one_by_one(TEXTS, "bert", "mean"), atol=1e-5, rtol=1e-4)


def test_every_way_of_embedding_has_rows_of_its_own(tmp_path: Path) -> None:
    model, tokenizer = make_model("llama"), make_tokenizer("llama")
    options = {"progress_bar": False, "cache": tmp_path}
    embed_texts(TEXTS, model, tokenizer, **options)
    for pooling in ("mean", "last"):
        found = embed_texts(TEXTS, model, tokenizer, **options, pooling=pooling)
        expected = one_by_one(TEXTS, "llama", pooling)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        model.norm.weight[3] += 1.0
    moved = embed_texts(TEXTS, model, tokenizer, **options)
    assert not moved.allclose(one_by_one(TEXTS, "llama", "mean"), atol=1e-3)
    assert len(list(tmp_path.glob("*/"))) == 3


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, tokenizer = make_model("llama"), make_tokenizer("llama")
    options = {"progress_bar": False, "cache": tmp_path, "batch_size": 2, "batches_per_shard": 1}

    class KilledError(Exception):
        pass

    def kill(_: object, arguments: tuple[Tensor]) -> None:
        if arguments[0].shape[1] == 1 and len(arguments[0]) == 2:
            raise KilledError

    hook = model.register_forward_pre_hook(kill)
    with pytest.raises(KilledError):
        embed_texts(TEXTS, model, tokenizer, **options)
    hook.remove()
    assert len(shards(tmp_path)) == 2
    shapes = count_calls(model)
    found = embed_texts(TEXTS, model, tokenizer, **options)
    assert shapes == [(1, 1), (2, 1)]
    torch.testing.assert_close(found, one_by_one(TEXTS, "llama", "mean"), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("failing", [".safetensors", ".json"])
def test_a_shard_counts_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    replace = os.replace

    def fail(source: Path, goal: Path) -> None:
        if goal.suffix == failing and goal.name != "cache.json":
            raise OSError("no space left")
        replace(source, goal)

    model, tokenizer = make_model("llama"), make_tokenizer("llama")
    options = {"progress_bar": False, "cache": tmp_path}
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        embed_texts(TEXTS, model, tokenizer, **options)
    monkeypatch.undo()
    assert not list(tmp_path.glob("**/*.part"))
    shapes = count_calls(model)
    found = embed_texts(TEXTS, model, tokenizer, **options)
    assert len(shapes) == 2
    torch.testing.assert_close(found, one_by_one(TEXTS, "llama", "mean"), atol=1e-5, rtol=1e-4)


def damage_tensors(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[-3] ^= 64
    shard.write_bytes(content)


def damage_index(shard: Path) -> None:
    shard.with_suffix(".json").write_text("{")


def lose_tensors(shard: Path) -> None:
    shard.unlink()


@pytest.mark.parametrize("damage", [damage_tensors, damage_index, lose_tensors])
def test_a_damaged_shard_is_computed_again(tmp_path: Path, damage) -> None:
    model, tokenizer = make_model("llama"), make_tokenizer("llama")
    options = {"progress_bar": False, "cache": tmp_path}
    expected = embed_texts(TEXTS, model, tokenizer, **options)
    damage(shards(tmp_path)[0])
    with pytest.warns(UserWarning, match="is damaged and passed over"):
        found = embed_texts(TEXTS, model, tokenizer, **options)
    assert found.equal(expected)


def test_a_cache_holds_one_width(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bert")
    options = {"progress_bar": False, "cache": tmp_path}
    embed_texts(TEXTS, make_model("bert"), tokenizer, **options)
    with pytest.raises(ValueError, match=r"of width 16, but the hidden size of this model is 24"):
        embed_texts(TEXTS, make_model("bert", width=24), tokenizer, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is damaged: pass another folder"), ('{"format_version": 9, "width": 16}', "got 9")],
)
def test_a_cache_that_cannot_be_read_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "cache.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        embed_texts(TEXTS, make_model("bert"), make_tokenizer("bert"), cache=tmp_path)


def test_fingerprints_know_weights_configuration_and_tokeniser(tmp_path: Path) -> None:
    model, tokenizer = make_model("bert"), make_tokenizer("bert")
    first = fingerprint(model, tokenizer)
    tokenizer(TEXTS, truncation=True, max_length=3, padding=True)
    assert fingerprint(model, tokenizer) == first
    assert fingerprint(make_model("bert"), make_tokenizer("bert")) == first
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(*load_encoder(tmp_path, device="cpu")) == first
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7, 7] += 1e-6
    second = fingerprint(model, tokenizer)
    model.config.layer_norm_eps = 0.1
    third = fingerprint(model, tokenizer)
    tokenizer.add_tokens(["port"])
    assert len({first, second, third, fingerprint(model, tokenizer)}) == 4


# Loading.


@pytest.mark.parametrize("kind", KINDS)
def test_models_are_loaded_from_a_folder_without_a_head(tmp_path: Path, kind: str) -> None:
    model = make_model(kind, with_head=kind != "bert")
    model.save_pretrained(tmp_path)
    make_tokenizer(kind).save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    body, tokenizer = load_encoder(tmp_path, device="cpu")
    assert torch.random.get_rng_state().equal(before)
    assert not body.training
    found = embed_texts(TEXTS, body, tokenizer, pooling="last", progress_bar=False)
    assert found.equal(embed_texts(TEXTS, model, tokenizer, pooling="last", progress_bar=False))


def test_a_pooler_that_the_file_lacks_changes_no_fingerprint(tmp_path: Path) -> None:
    model = make_model("bert")
    model.save_pretrained(
        tmp_path,
        state_dict={k: v for k, v in model.state_dict().items() if not k.startswith("pooler.")},
    )
    make_tokenizer("bert").save_pretrained(tmp_path)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(fingerprint(*load_encoder(tmp_path, device="cpu")))
    assert found[0] == found[1]


def test_of_an_encoder_decoder_the_encoder_is_taken(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    make_tokenizer("bert").save_pretrained(tmp_path)
    body, tokenizer = load_encoder(tmp_path, device="cpu")
    found = embed_texts(["a red wine"], body, tokenizer, progress_bar=False)
    with torch.no_grad():
        tokens = torch.tensor([tokenizer("a red wine")["input_ids"]])
        expected = model.encoder(tokens).last_hidden_state.mean(1)
    torch.testing.assert_close(found, expected)


def test_weights_take_the_type_asked_for(tmp_path: Path) -> None:
    make_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    make_tokenizer("llama").save_pretrained(tmp_path)
    assert load_encoder(tmp_path, device="cpu")[0].dtype == torch.bfloat16
    body, tokenizer = load_encoder(tmp_path, device="cpu", dtype=torch.float32)
    assert body.dtype == torch.float32
    found = embed_texts(TEXTS, body.to(torch.bfloat16), tokenizer, progress_bar=False)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./folder", "~/folder", "a/b/c", Path("a/b"), "m/model.safetensors"]
)
def test_a_path_that_is_no_folder_is_refused(name: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match="name_or_path must be a folder"):
        load_encoder(name)


def test_a_folder_without_tokeniser_is_refused(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    with pytest.raises(OSError, match="and its tokeniser, got"):
        load_encoder(tmp_path)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_no_dead_end(tmp_path: Path) -> None:
    code = "from fssa_bayes.data.texts import load_encoder; load_encoder('someone/encoder')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert run.returncode == 1
    last = run.stderr.split("OSError: ")[-1]
    assert last.startswith("'someone/encoder' is no folder here (a path may begin with './'), and ")
    assert "could not be loaded from the Hugging Face hub." in last
    assert "hf download someone/encoder --local-dir FOLDER" in last
    assert "load_encoder('FOLDER')" in last


# Bad input.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"texts": "a red wine"}, TypeError, "sequence of strings, got one string"),
        ({"texts": ["wine", 3]}, TypeError, "got int at position 1"),
        ({"texts": []}, ValueError, "at least one text, got none"),
        ({"texts": ["wine", ""]}, ValueError, "at least one token each, '' has none"),
        ({"pooling": "max"}, ValueError, "pooling must be 'mean', 'last' or 'cls', got 'max'"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
        (
            {"max_length": 0},
            ValueError,
            "max_length must be an integer of at least 1 or None, got 0",
        ),
    ],
)
def test_bad_input_is_refused(options: dict, error: type[Exception], message: str) -> None:
    arguments = {"texts": TEXTS, "progress_bar": False} | options
    with pytest.raises(error, match=message):
        embed_texts(model=make_model("llama"), tokenizer=make_tokenizer("llama"), **arguments)


def test_embeddings_beyond_the_numbers_are_refused_and_not_kept(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.embed_tokens.weight[make_tokenizer("llama")("dry")["input_ids"][0]] = torch.inf
    with pytest.raises(ValueError, match=r"finite, got another for .* \(3 such texts\)"):
        embed_texts(TEXTS, model, make_tokenizer("llama"), cache=tmp_path, progress_bar=False)
    assert not shards(tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 1.5}, "batch_size must be an integer of at least 1, got 1.5"),
        ({"max_length": 2.0}, "max_length must be an integer of at least 1 or None, got 2.0"),
    ],
)
def test_options_are_checked_before_the_cache_is_made(
    tmp_path: Path, option: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        embed_texts(TEXTS, torch.nn.Linear(1, 1), None, cache=tmp_path / "cache", **option)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("x")
    with pytest.raises(ValueError, match="cache must be a folder, got the file"):
        embed_texts(TEXTS, torch.nn.Linear(1, 1), None, cache=tmp_path / "cache")


def test_a_name_that_is_neither_folder_nor_on_the_hub_says_both(monkeypatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> None:
        raise RuntimeError("no connection")

    # Without a connection nothing else is asked: the loaders would try for a minute.
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    with pytest.raises(OSError, match=r"'models/none' is no folder here .*'\./'.* no connection"):
        load_encoder("models/none")
