"""Base models: nothing random in training, tokens within the embedding, how they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from steered_policies import factors, move, responses
from tiny_policy import make_contexts, make_rows
from tiny_texts import make_tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from fssa_bayes.policy import SteerableDPOTrainer, SteerablePolicy, fingerprint
from fssa_bayes.policy.base import check_steady, check_vocabulary
from fssa_bayes.policy.readiness import check_undivided

SIZE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2}
# Models with noise of their own, each rate far from 0.
NOISY = {
    "falcon": {
        "hidden_dropout": 0.4, "attention_dropout": 0.4, "alibi": False,
        "new_decoder_architecture": False, "parallel_attn": False,
    },
    "mixtral": EXPERTS | {"router_jitter_noise": 0.4, "attention_dropout": 0.3},
    "phimoe": EXPERTS
    | {"router_jitter_noise": 0.4, "input_jitter_noise": 0.4, "attention_dropout": 0.3},
    "gpt2": {"resid_pdrop": 0.4, "embd_pdrop": 0.4, "attn_pdrop": 0.4},
    "opt": {"dropout": 0.4, "layerdrop": 0.4, "ffn_dim": 24, "word_embed_proj_dim": 16},
}  # fmt: skip


def make_noisy(name: str) -> nn.Module:
    config = AutoConfig.for_model(name, **(SIZE | NOISY[name]), pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", NOISY)
def test_no_noise_of_a_model_moves_the_start(name: str) -> None:
    model = make_noisy(name)
    before = {k: v for k, v in model.config.to_dict().items() if "drop" in k or "jitter" in k}
    with pytest.raises(ValueError, match="the same function in training twice"):
        check_steady(model.train())
    attention = "all-linear" if name in ("falcon", "gpt2", "opt") else ["q_proj", "v_proj"]
    policy = SteerablePolicy.from_model(model, None, latent_dim=2, target_modules=attention)
    policy.train()
    batch = responses()
    with torch.no_grad():
        found = policy.sequence_log_prob(batch, factors())
        with policy.reference():
            assert torch.equal(policy.sequence_log_prob(batch), found)
        assert torch.equal(policy.sequence_log_prob(batch, factors()), found)
    after = policy.base.config.to_dict()
    assert {k: after[k] for k in before} == before  # The base model is known by it.
    assert any(part.training for part in policy.modules())


def test_noise_on_the_embeddings_is_refused_or_removed(tmp_path: Path, tiny_model) -> None:
    from transformers.integrations.neftune import activate_neftune

    model = tiny_model()

    class Accelerator:
        @staticmethod
        def unwrap_model(model: nn.Module) -> nn.Module:
            return model

    activate_neftune(model, 5.0, Accelerator)
    with pytest.raises(ValueError, match="the same function in training twice"):
        check_steady(model)
    policy = SteerablePolicy.from_model(model, None, latent_dim=2)
    check_steady(policy.base)
    args = TrainingArguments(str(tmp_path), neftune_noise_alpha=5.0, report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="must not ask for neftune_noise_alpha.* got 5.0"):
        SteerableDPOTrainer(policy, args, None, None, lambda batch: None)


@pytest.mark.parametrize("kind", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_weights_that_accelerate_divides_are_refused(kind: str) -> None:
    trainer = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=False)
    check_undivided(trainer)
    setattr(trainer, kind, True)
    with pytest.raises(ValueError, match="must not be configured for FSDP .* by torchrun"):
        check_undivided(trainer)


def test_tokens_outside_of_the_embedding_are_refused(
    tmp_path: Path, tiny_model: Callable, word_tokenizer
) -> None:
    model = tiny_model()
    size = model.get_input_embeddings().weight.shape[0]
    check_vocabulary(model, size - 1, "tokens")
    word_tokenizer.add_special_tokens({"pad_token": "<added>"})
    word_tokenizer.eos_token = None
    policy = SteerablePolicy.from_model(model, word_tokenizer, latent_dim=2)
    with pytest.raises(ValueError, match=f"embedding of {size} tokens, got token {size}"):
        policy.generate(["w3"])
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<{n}>" for n in range(size)]})
    tokenizer.add_special_tokens({"pad_token": "<last>"})
    rows = make_rows()
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="train_dataset must lie within the model's embedding"):
        SteerableDPOTrainer(
            policy, args, rows.tokenise(tokenizer), make_contexts(rows),
            lambda batch: torch.distributions.Normal(torch.zeros(len(batch.mask), 2), 1.0),
        )  # fmt: skip


def saved_base(folder: Path, *, width: int = 64) -> Path:
    """Saves a Llama and a tokenizer of the words of `tiny_texts`."""
    size = {"hidden_size": width, "head_dim": width // 2, "intermediate_size": 64}
    config = AutoConfig.for_model("llama", **(SIZE | size))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_options_reach_the_loaders_and_come_back(tmp_path: Path, monkeypatch) -> None:
    base = saved_base(tmp_path / "base")
    asked: dict[str, dict] = {}

    def spy(kind: type, name: str) -> None:
        load = kind.from_pretrained

        def load_and_note(*args: object, **options: object) -> object:
            asked[name] = options
            options.pop("gguf_file", None)  # There is no such file.
            return load(*args, **options)

        monkeypatch.setattr(kind, "from_pretrained", load_and_note)

    from transformers import AutoTokenizer

    spy(AutoModelForCausalLM, "model")
    spy(AutoTokenizer, "tokenizer")
    policy = SteerablePolicy.from_pretrained(
        base, latent_dim=2, lora_alpha=3.0, attn_implementation="eager", revision="main",
        local_files_only=True,
    )  # fmt: skip
    assert policy.base.config._attn_implementation == "eager"
    assert asked["tokenizer"] == {"revision": "main", "local_files_only": True}
    assert policy.model.peft_config["default"].lora_alpha == 3.0
    move(policy)
    policy.save_pretrained(tmp_path / "policy")
    loaded = SteerablePolicy.load(tmp_path / "policy")
    assert asked["model"]["revision"] == "main"
    assert loaded.base.config._attn_implementation == "eager"
    assert loaded.model.peft_config["default"].lora_alpha == 3.0
    batch, z = responses(), factors()
    expected = policy.sequence_log_prob(batch, z)
    assert torch.equal(loaded.sequence_log_prob(batch, z), expected)
    other = SteerablePolicy.load(tmp_path / "policy", attn_implementation="sdpa")
    assert other.base.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="lora_alpha must be positive"):
        SteerablePolicy.from_pretrained(base, latent_dim=2, lora_alpha=0.0)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="base_model must be given: .*base', where it was"):
        SteerablePolicy.load(tmp_path / "policy")
    SteerablePolicy.load(tmp_path / "policy", base_model=tmp_path / "elsewhere")


OVERRIDES = {
    "eps": {"rms_norm_eps": 0.5},
    "positions": {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}},
    "depth": {"num_hidden_layers": 1},
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_what_stands_in_place_of_the_configuration_comes_back(
    tmp_path: Path, tiny_model, name: str
) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    batch, z = responses(), factors()

    def build(**options: object) -> SteerablePolicy:
        policy = SteerablePolicy.from_pretrained(tmp_path / "base", latent_dim=2, **options)
        move(policy)
        return policy

    policy = build(**OVERRIDES[name])
    expected = policy.sequence_log_prob(batch, z)
    assert not torch.allclose(build().sequence_log_prob(batch, z), expected, atol=1e-4)
    policy.save_pretrained(tmp_path / "policy")
    loaded = SteerablePolicy.load(tmp_path / "policy")
    assert torch.equal(loaded.sequence_log_prob(batch, z), expected)
    asked = (["say a", "now"], z[:2])
    texts = policy.generate(*asked, max_new_tokens=6, temperature=0)
    assert loaded.generate(*asked, max_new_tokens=6, temperature=0) == texts
    loaded.save_pretrained(tmp_path / "again")  # What was said is kept.
    again = SteerablePolicy.load(tmp_path / "again")
    assert torch.equal(again.sequence_log_prob(batch, z), expected)
    with pytest.raises(ValueError, match="must be "):
        SteerablePolicy.load(tmp_path / "policy", base_model=model)


def test_a_base_that_is_configured_otherwise_is_refused(tmp_path: Path, tiny_model) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    policy = SteerablePolicy.from_model(tiny_model("llama"), None, latent_dim=2)
    policy.save_pretrained(tmp_path / "policy")
    base = str(tmp_path / "base")
    other = {"use_cache": False, "attn_implementation": "eager", "attention_dropout": 0.1}
    SteerablePolicy.load(tmp_path / "policy", base_model=base, **other)
    message = "configured as it was when the policy was trained: rms_norm_eps must be .*, got 0.5"
    with pytest.raises(ValueError, match=message):
        SteerablePolicy.load(tmp_path / "policy", base_model=base, rms_norm_eps=0.5)
    nested = {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}}
    with pytest.raises(ValueError, match=r"rope_parameters.rope_theta must be .*, got 3.0"):
        SteerablePolicy.load(tmp_path / "policy", base_model=base, **nested)
    with pytest.raises(ValueError, match="options must be what JSON can keep with the policy"):
        SteerablePolicy.from_pretrained(base, latent_dim=2, rms_norm_eps=torch.tensor(0.1))


@pytest.mark.filterwarnings("ignore")  # Of bitsandbytes and of what it uses of PyTorch.
def test_a_base_of_4_bits_saves_and_loads(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    base = saved_base(tmp_path / "base")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    policy = SteerablePolicy.from_pretrained(
        base, latent_dim=2, quantization_config=four_bits, device_map="cpu"
    )
    move(policy)
    known, batch, z = fingerprint(policy), responses(), factors()
    expected = policy.sequence_log_prob(batch, z)
    policy.train()  # bitsandbytes reorders weights and rounds their scales.
    policy.sequence_log_prob(batch, z).sum().backward()
    assert fingerprint(policy.eval()) == known
    policy.save_pretrained(tmp_path / "policy")
    loaded = SteerablePolicy.load(tmp_path / "policy")
    assert loaded.base.is_quantized
    assert fingerprint(loaded) == known
    torch.testing.assert_close(loaded.sequence_log_prob(batch, z), expected, rtol=1e-3, atol=1e-3)
    with policy.reference():
        assert not torch.allclose(policy.sequence_log_prob(batch), expected, atol=0.1)
    loaded.save_pretrained(tmp_path / "again")
    SteerablePolicy.load(tmp_path / "again", base_model=base)
    with pytest.raises(ValueError, match="must be quantised as it was .* got one that is not"):
        SteerablePolicy.load(tmp_path / "policy", quantization_config=None)
    other = saved_base(tmp_path / "other", width=128)
    with pytest.raises(ValueError, match="must be the one that the policy was trained on"):
        SteerablePolicy.load(tmp_path / "policy", base_model=other)


def test_a_policy_is_uploaded_when_that_is_asked_for(
    tmp_path: Path, monkeypatch, tiny_model
) -> None:
    calls: list[tuple] = []

    class Hub:
        def __init__(self, token: str | None) -> None:
            calls.append(("token", token))

        def create_repo(self, *args: object, **options: object) -> None:
            calls.append((*args, options))

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: object) -> str:
            names = sorted(path.name for path in folder_path.iterdir())
            calls.append((repo_id, names, options))
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    policy = SteerablePolicy.from_model(tiny_model(), None, latent_dim=2)
    policy.save_pretrained(tmp_path / "policy")
    assert calls == []
    assert policy.push_to_hub("me/mine", token="t") == "https://hub/commit"
    assert calls == [
        ("token", "t"),
        ("me/mine", {"private": True, "exist_ok": True}),
        (
            "me/mine",
            ["policy.json", "policy.safetensors"],
            {"commit_message": "Upload a steerable policy"},
        ),
    ]
