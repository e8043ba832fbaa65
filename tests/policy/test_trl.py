"""The same rows, model and options in TRL's trainer and in this one: tokens, losses, rewards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from fssa_bayes.policy import Contexts, PreferenceRows, SteerableDPOTrainer, SteerablePolicy

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[trl]'")
datasets = pytest.importorskip("datasets")

STEPS = 20
# Blank lines and marks as ChatML and as Llama 3 have them; both know tools and calls of tools.
CHATML = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}"
    "{% if m['name'] %} {{ m['name'] }}{% endif %}\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}\n<call>{{ call | tojson }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "<|begin|>{% if tools %}<|head|>tools<|/head|>\n\n{{ tools | tojson }}<|im_end|>{% endif %}"
    "{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}"
    "{% for call in m['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n"
    "{% if enable_thinking is defined and not enable_thinking %}none\n{% endif %}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama": LLAMA}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def message(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


def words(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(["so", "it", "is.", "No!", "Why?", "add", "17"], rng.integers(1, 6)))


def make_records(kind: str) -> list[dict]:
    """Returns rows of one format, as TRL takes them."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(STEPS * 4):
        ask, good, bad = words(rng), f"yes {words(rng)} {number}", f"no {words(rng)}"
        talk = [message("user", ask)]
        pair = {"chosen": [message("assistant", good)], "rejected": [message("assistant", bad)]}
        if kind == "strings":
            row = {"prompt": f"Q: {ask}\nA:", "chosen": f" {good}", "rejected": f" {bad}"}
        elif kind == "joined strings":  # A token spans the end of the prompt in some rows.
            row = {"prompt": f"Q: {ask} ", "chosen": good, "rejected": bad}
        elif kind == "implicit strings":
            row = {"chosen": f"Q: {ask} A: {good}", "rejected": f"Q: {ask} A: {bad}"}
        elif kind == "implicit conversations":
            row = {name: talk + answer for name, answer in pair.items()}
        elif kind == "prefilled":
            row = {"prompt": [*talk, message("assistant", "well,")], **pair}
        elif kind == "tools":
            call = {"type": "function", "function": {"name": "add", "arguments": {"a": number}}}
            pair["chosen"] = [message("assistant", "", tool_calls=[call])]
            pair["rejected"] = [message("assistant", bad, tool_calls=[])]
            row = {"prompt": talk, **pair, "tools": json.dumps([TOOL])}
        elif kind == "options":
            row = {"prompt": [message("system", "be brief"), *talk], **pair}
            row["chat_template_kwargs"] = {"enable_thinking": False}
        else:
            row = {"prompt": talk, **pair}
        records.append(row)
    return records


def make_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Learns merges of bytes, which may join the end of a prompt with a response."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    marks = ["<pad>", "<|im_end|>", "<|im_start|>", "<|begin|>", "<|head|>", "<|/head|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = np.random.default_rng(1)
    made.train_from_iterator([f"Q: {words(rng)} A: {words(rng)}" for _ in range(200)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<|im_end|>", chat_template=template
    )


def make_model(size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def options(folder: Path) -> dict:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": STEPS,
        "learning_rate": 3e-3, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "train_sampling_strategy": "sequential", "use_cpu": True, "disable_tqdm": True,
        "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip


def gated_by_one(policy: SteerablePolicy) -> SteerablePolicy:
    """Makes a policy an ordinary adapter, which z does not change."""
    for parameter, value in zip(policy.conditioning.parameters(), (0.0, 1.0), strict=True):
        parameter.data.fill_(value)
        parameter.requires_grad_(False)
    return policy


SHORT = [
    *(("strings", "chatml"), ("implicit strings", "chatml"), ("prefilled", "llama")),
    *(("conversations", "chatml"), ("tools", "llama")),
]
LONG = [
    *(("joined strings", "chatml"), ("options", "llama"), ("prefilled", "chatml")),
    *(("conversations", "llama"), ("tools", "chatml")),
    *(("implicit conversations", name) for name in TEMPLATES),
]
CASES = [*SHORT, *(pytest.param(*case, marks=pytest.mark.slow) for case in LONG)]


@pytest.mark.filterwarnings("ignore")  # Of TRL and its packages; ours are tested elsewhere.
@pytest.mark.parametrize(("kind", "template"), CASES)
def test_tokens_losses_and_rewards_are_those_of_trl(kind, template, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(TEMPLATES[template])
    records = make_records(kind)
    policy = gated_by_one(
        SteerablePolicy.from_model(make_model(len(tokenizer)), tokenizer, latent_dim=2, lora_rank=2)
    )
    start = {name: value.clone() for name, value in policy.model.state_dict().items()}

    rows = PreferenceRows.from_records([record | {"user": 0} for record in records])
    pairs = rows.tokenise(tokenizer)
    features = rows.to_preferences(lambda texts: torch.zeros(len(texts), 1))
    normal = torch.distributions.Normal(torch.zeros(1, 2), 1.0)
    ours = SteerableDPOTrainer(
        policy,
        TrainingArguments(**options(tmp_path / "ours")),
        pairs,
        Contexts(rows, features, max_context=0),
        lambda batch: torch.distributions.Independent(
            normal.expand((len(batch.mask), 2)), 1
        ),
        loss_type="sigmoid",
    )  # fmt: skip
    ours.train()

    from peft import LoraConfig

    theirs = trl.DPOTrainer(
        make_model(len(tokenizer)),
        args=trl.DPOConfig(**options(tmp_path / "theirs"), max_length=None, loss_type=["sigmoid"]),
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    found = theirs.train_dataset
    for number in range(len(records)):
        batch = pairs.batch([number])
        row = found[number]
        for side, name in enumerate(("chosen", "rejected")):
            tokens = batch.input_ids[side][batch.attention_mask[side].bool()].tolist()
            assert tokens == row["prompt_ids"] + row[f"{name}_ids"]
            assert batch.response_mask[side].sum() == len(row[f"{name}_ids"])
    assert max(pairs.lengths) > 10
    theirs.model.load_state_dict(start)
    theirs.train()

    names = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen")
    for name in names:
        logged = [
            [entry[name] for entry in trainer.state.log_history if name in entry]
            for trainer in (ours, theirs)
        ]
        assert len(logged[0]) == STEPS
        scale = 1.0 if "logps" not in name else np.abs(logged[0]).max()
        np.testing.assert_allclose(*logged, rtol=0, atol=1e-5 * scale, err_msg=name)
    final = [entry["loss"] for entry in ours.state.log_history if "loss" in entry]
    assert final[-1] < 0.95 * final[0]
