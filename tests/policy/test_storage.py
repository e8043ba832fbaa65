"""Policies on disk: the same after a reload, whole or not at all, damage and other base models."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from steered_policies import PROMPTS, factors, move, responses

from fssa_bayes.policy import FiLM, SteerablePolicy


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])  # The latter two tie embeddings.
@pytest.mark.parametrize("options", [{}, {"conditioning": "film", "film_layers": [0, 2]}])
def test_a_saved_policy_is_the_same(
    name: str, options: dict, policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    moved = policy(name, **options)
    moved.save_pretrained(tmp_path / "policy")
    state = torch.get_rng_state()
    loaded = SteerablePolicy.load(tmp_path / "policy", base_model=tiny_model(name))
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.config == moved.config
    batch, z = responses(), factors()
    assert torch.equal(loaded(batch.input_ids, z=z), moved(batch.input_ids, z=z))
    assert torch.equal(loaded.sequence_log_prob(batch, z), moved.sequence_log_prob(batch, z))
    options = {"max_new_tokens": 5}
    assert loaded.generate(PROMPTS, z[:3], **options) == moved.generate(PROMPTS, z[:3], **options)
    names = [p.requires_grad for p in loaded.parameters()]
    assert names == [p.requires_grad for p in moved.parameters()]
    files = {path.name for path in (tmp_path / "policy").iterdir()}
    assert {"policy.json", "policy.safetensors"} <= files
    assert {path.suffix for path in (tmp_path / "policy").iterdir()} <= {
        ".json",
        ".safetensors",
        ".md",
        ".jinja",
    }


def test_peft_does_not_take_a_policy_for_an_adapter(
    policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    policy().save_pretrained(tmp_path / "policy")
    with pytest.raises(ValueError, match="adapter_config.json"):
        PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "policy", local_files_only=True)


def test_a_folder_of_version_1_is_read(
    policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    """Folders of version 1 held peft's files and film.safetensors, and named no conditioning."""
    moved, folder = policy(conditioning="film", film_layers=[0, 2]), tmp_path / "policy"
    moved.save_pretrained(folder)
    (folder / "policy.safetensors").unlink()
    moved.model.save_pretrained(folder, save_embedding_layers=False)
    safetensors.torch.save_file(moved.conditioning.state_dict(), folder / "film.safetensors")
    document = json.loads((folder / "policy.json").read_text())
    del document["policy"]["conditioning"]
    names = ("adapter_model.safetensors", "film.safetensors")
    sums = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
    document |= {"format_version": 1, "sha256": sums}
    (folder / "policy.json").write_text(json.dumps(document))
    loaded = SteerablePolicy.load(folder, base_model=tiny_model())
    assert isinstance(loaded.conditioning, FiLM)
    tokens, z = responses().input_ids, factors()
    assert torch.equal(loaded(tokens, z=z), moved(tokens, z=z))


def test_the_base_model_is_found_where_it_was(
    tiny_model: Callable, word_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")

    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    made = SteerablePolicy.from_pretrained(tmp_path / "base", latent_dim=2)
    move(made)
    made.save_pretrained(tmp_path / "policy")
    loaded = SteerablePolicy.load(tmp_path / "policy")
    options = {"max_new_tokens": 5}
    assert loaded.generate(PROMPTS, factors(3), **options) == made.generate(
        PROMPTS, factors(3), **options
    )
    assert made.base.dtype == loaded.base.dtype == torch.float32
    half = SteerablePolicy.from_pretrained(tmp_path / "base", latent_dim=2, dtype=torch.bfloat16)
    assert half.base.dtype == torch.bfloat16
    assert {p.dtype for p in half.trainable_parameters()} == {torch.float32}
    nowhere = SteerablePolicy.load(
        tmp_path / "policy", base_model=tiny_model("llama", dtype=torch.bfloat16)
    )
    assert nowhere.base.dtype == torch.bfloat16


def test_another_base_model_is_refused(
    policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    policy().save_pretrained(tmp_path / "policy")
    for base, message in (
        (tiny_model("llama", seed=1), "same shape but other weights"),
        (tiny_model("llama", seed=1, dtype=torch.bfloat16), "same shape but other weights"),
        (tiny_model("phi"), "model_type must be 'llama', got 'phi'"),
        (policy().base, "must have no adapters"),
        (None, "base_model must be given"),
    ):
        with pytest.raises(ValueError, match=message):
            SteerablePolicy.load(tmp_path / "policy", base_model=base)


def test_damage_is_recognised(policy: Callable, tiny_model: Callable, tmp_path: Path) -> None:
    def saved(name: str) -> Path:
        policy().save_pretrained(tmp_path / name)
        return tmp_path / name

    def load(folder: Path) -> None:
        SteerablePolicy.load(folder, base_model=tiny_model())

    folder = saved("version")
    document = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(document | {"format_version": 99}))
    with pytest.raises(ValueError, match="format_version must be 2 or less, got 99"):
        load(folder)
    folder = saved("weights")
    weights = safetensors.torch.load_file(folder / "policy.safetensors")
    weights["conditioning.bias"][0] += 1
    safetensors.torch.save_file(weights, folder / "policy.safetensors")
    with pytest.raises(ValueError, match=r"policy.safetensors.*damaged or was changed"):
        load(folder)
    folder = saved("missing")
    (folder / "policy.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="must hold policy.safetensors"):
        load(folder)
    folder = saved("json")
    (folder / "policy.json").write_text("{")
    with pytest.raises(ValueError, match="policy.json.*damaged"):
        load(folder)
    with pytest.raises(FileNotFoundError, match="must hold a saved policy"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("moment", ["tensors", "description", "rename"])
def test_an_interrupted_save_leaves_the_old_policy(
    moment: str,
    policy: Callable,
    tiny_model: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = policy()
    first.save_pretrained(tmp_path / "policy")
    second = policy(new=True)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        if moment == "tensors":
            patch.setattr(safetensors.torch, "save_file", fail)
        elif moment == "description":
            patch.setattr("fssa_bayes.policy.model.write_description", fail)
        else:
            rename = Path.rename
            patch.setattr(
                Path,
                "rename",
                lambda path, to: fail() if ".part" in path.name else rename(path, to),
            )
        with pytest.raises(OSError, match="no space left"):
            second.save_pretrained(tmp_path / "policy")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    loaded = SteerablePolicy.load(tmp_path / "policy", base_model=tiny_model())
    tokens, z = responses().input_ids, factors()
    assert torch.equal(loaded(tokens, z=z), first(tokens, z=z))
    second.save_pretrained(tmp_path / "policy")
    loaded = SteerablePolicy.load(tmp_path / "policy", base_model=tiny_model())
    assert torch.equal(loaded(tokens, z=z), second(tokens, z=z))
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_nothing_else_is_overwritten(policy: Callable, tmp_path: Path) -> None:
    made = policy()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        made.save_pretrained(tmp_path / "other")
    with pytest.raises(FileExistsError, match="must not be a file"):
        made.save_pretrained(tmp_path / "other" / "thesis.tex")
    made.save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "notes.txt").write_text("x")
    with pytest.raises(FileExistsError, match="notes.txt"):
        made.save_pretrained(tmp_path / "policy")
    assert (tmp_path / "policy" / "notes.txt").exists()


def test_a_save_that_is_broken_off_leaves_the_old_policy(
    policy: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, rename = policy(), Path.rename
    made.save_pretrained(tmp_path / "pol")
    before = (tmp_path / "pol" / "policy.json").read_bytes()

    def interrupt(path: Path, to: Path) -> Path:
        if path.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            made.save_pretrained(tmp_path / "pol")
    assert [path.name for path in tmp_path.iterdir()] == ["pol"]
    assert (tmp_path / "pol" / "policy.json").read_bytes() == before
    (tmp_path / "pol").rename(tmp_path / ".pol.previous")  # As a power cut would leave it.
    with pytest.raises(FileNotFoundError, match=r"is whole in '.*\.pol\.previous'"):
        SteerablePolicy.load(tmp_path / "pol", base_model=made.base)
    made.save_pretrained(tmp_path / "pol")
    assert [path.name for path in tmp_path.iterdir()] == ["pol"]


def test_descriptions_that_lack_a_part_are_damaged(
    policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    policy().save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "policy.json"
    document = json.loads(path.read_text())
    less = {name: value for name, value in document.items() if name != "base"}
    for change, message in (
        (less, "policy.json .* is damaged: it lacks base"),
        (document | {"policy": {"latent_dim": 2}}, "policy.json .* is damaged, or of another"),
        (document | {"policy": document["policy"] | {"lora_rank": 5}}, "do not fit policy.json"),
    ):
        path.write_text(json.dumps(change))
        with pytest.raises(ValueError, match=message):
            SteerablePolicy.load(tmp_path / "policy", base_model=tiny_model())
    path.write_text("{")
    with pytest.raises(FileExistsError, match="hold a saved policy alone"):
        policy().save_pretrained(tmp_path / "policy")


def test_one_other_weight_is_another_base_model(
    policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    policy().save_pretrained(tmp_path / "policy")
    other = tiny_model()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[5, 7] += 1e-3  # Not among those looked at.
    with pytest.raises(ValueError, match="other weights, by their SHA-256"):
        SteerablePolicy.load(tmp_path / "policy", base_model=other)
    path = tmp_path / "policy" / "policy.json"
    document = json.loads(path.read_text())
    del document["base"]["weights"]  # As older versions wrote it.
    path.write_text(json.dumps(document))
    SteerablePolicy.load(tmp_path / "policy", base_model=tiny_model())


def test_a_relative_base_model_is_found_from_elsewhere(
    tiny_model: Callable, word_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    made = SteerablePolicy.from_pretrained("base", latent_dim=2)
    made.save_pretrained("policy")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = SteerablePolicy.load("../policy")
    assert loaded.config.base_model == str(tmp_path / "base")
