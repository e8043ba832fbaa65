"""Checkpoints of training: interrupted runs end as uninterrupted ones, other runs are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_policy import (
    SAVING,
    ColourGuide,
    digest,
    history,
    make_arguments,
    make_base,
    make_contexts,
    make_policy,
    make_rows,
    make_tokenizer,
    make_trainer,
)
from transformers import TrainerCallback

from fssa_bayes.policy import (
    SteerableDPOTrainer,
    SteerablePolicy,
)

pytestmark = pytest.mark.filterwarnings(
    # peft asks for an attribute that transformers has renamed.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
WORKER = Path(__file__).parents[1] / "shared" / "tiny_policy.py"


class Break(TrainerCallback):
    """Stops a run as a lost connection would, in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **given) -> None:
        if state.global_step == self.step:
            raise ConnectionError("lost")


@pytest.mark.slow
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_broken_run_ends_as_one_without_a_break(
    tmp_path: Path, joint: bool, accumulate: int
) -> None:
    arguments = SAVING | {
        "gradient_accumulation_steps": accumulate,
        "per_device_train_batch_size": 8 // accumulate,
        "lr_scheduler_type": "cosine",
    }
    whole = make_trainer(tmp_path / "whole", joint=joint, arguments=arguments)
    whole.train()
    for step in (3, 7):  # In the first epoch, in the second.
        broken = make_trainer(
            tmp_path / "broken", joint=joint, arguments=arguments, callbacks=[Break(step)]
        )
        with pytest.raises(ConnectionError):
            broken.train(resume_from_checkpoint=step > 3)
        assert broken.last_checkpoint().name == f"checkpoint-{step - 1}"
    resumed = make_trainer(tmp_path / "broken", joint=joint, arguments=arguments)
    assert digest(resumed) != digest(whole)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed) == digest(whole)
    assert history(resumed) == history(whole)


def test_a_checkpoint_holds_the_policy_and_the_guide(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, joint=True, arguments=SAVING | {"save_total_limit": 2})
    trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-8", "checkpoint-9"]
    last = trainer.last_checkpoint()
    names = {path.name for path in last.iterdir()}
    assert {"policy", "guide.safetensors", "optimizer.pt", "trainer_state.json"} < names
    assert "training_args.bin" not in names
    for name in ("optimizer.pt", "scheduler.pt"):  # Nothing that could run code.
        torch.load(last / name, weights_only=True)
    loaded = SteerablePolicy.load(last / "policy", base_model=make_base())
    batch, z = trainer.train_dataset.batch([0, 9]), torch.randn(4, 2)
    expected = trainer.policy.sequence_log_prob(batch, z)
    assert torch.equal(loaded.sequence_log_prob(batch, z), expected)
    guide = last / "guide.safetensors"
    content = bytearray(guide.read_bytes())
    content[-1] ^= 1
    guide.write_bytes(content)
    again = make_trainer(tmp_path, joint=True, arguments=SAVING)
    with pytest.raises(ValueError, match="guide.safetensors' is damaged: its values"):
        again.train(resume_from_checkpoint=True)
    assert not torch.allclose(make_policy().sequence_log_prob(batch, z), expected, atol=0.1)


def test_unfinished_checkpoints_are_not_taken(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, arguments=SAVING)
    trainer.train()
    expected = digest(trainer)
    (tmp_path / "checkpoint-9" / "steerable_dpo.json").unlink()
    (tmp_path / "checkpoint-9" / "optimizer.pt").write_bytes(b"half")
    again = make_trainer(tmp_path, arguments=SAVING)
    assert again.last_checkpoint().name == "checkpoint-8"
    with pytest.raises(ValueError, match="must be a finished checkpoint .* got '.*checkpoint-9'"):
        again.train(resume_from_checkpoint=tmp_path / "checkpoint-9")
    weights = tmp_path / "checkpoint-6" / "policy" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    with pytest.raises(ValueError, match="policy.safetensors"):
        again.train(resume_from_checkpoint=tmp_path / "checkpoint-6")
    again.train(resume_from_checkpoint=True)
    assert digest(again) == expected
    assert again.last_checkpoint().name == "checkpoint-9"


def test_checkpoints_of_another_run_are_refused_and_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a finished checkpoint .* got None"):
        make_trainer(tmp_path, arguments=SAVING).train(resume_from_checkpoint=True)
    make_trainer(tmp_path, arguments=SAVING).train()
    with pytest.raises(ValueError, match="must hold no checkpoints of another run"):
        make_trainer(tmp_path, arguments=SAVING).train()
    changes = {
        "beta: 0.5 then, 1.0 now": {"beta": 1.0},
        "num_draws: 2 then, 3 now": {"num_draws": 3},
        "joint: False then, True now": {"joint": True},
        "seed: 5 then, 6 now": {"arguments": SAVING | {"seed": 6}},
        "global_batch_size: 8 then, 4 now": {
            "arguments": SAVING | {"per_device_train_batch_size": 4}
        },
    }
    for message, change in changes.items():
        other = make_trainer(tmp_path, **{"arguments": SAVING, **change})
        with pytest.raises(ValueError, match=message):
            other.train(resume_from_checkpoint=True)
    document = json.loads((tmp_path / "checkpoint-9" / "steerable_dpo.json").read_text())
    assert document["data"] == make_trainer(tmp_path).settings()["data"]
    (tmp_path / "checkpoint-9" / "steerable_dpo.json").write_text("{")
    with pytest.raises(ValueError, match=r"steerable_dpo.json in '.*checkpoint-9' is damaged"):
        make_trainer(tmp_path, arguments=SAVING).train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_processes_that_are_several_or_killed_end_as_one_that_is_neither(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "whole", joint=True, arguments={"max_steps": 9})
    trainer.train()
    command = [sys.executable, str(WORKER), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert results["killed"] == {"ends": [-9], "left": ["checkpoint-6"]}
    assert results["two_killed"] == {"ends": [-9, -9], "left": ["checkpoint-6"]}
    for name in ("resumed", "two", "two_resumed"):
        found = results[name]
        assert set(found["ends"]) == {0}, run.stderr
        assert found["left"] == ["checkpoint-9"]
        for entry in ("loss", "rewards/margins"):
            values = [line[entry] for line in found["entries"]]
            assert values == pytest.approx(history(trainer, entry), rel=1e-5, abs=1e-5), name
    assert results["resumed"]["digest"] == digest(trainer)
    assert results["two_resumed"]["digest"] == results["two"]["digest"]


def test_a_run_goes_on_with_the_same_policy_and_guide_alone(tmp_path: Path) -> None:
    make_trainer(tmp_path, arguments=SAVING).train()
    rows = make_rows()

    def build(policy: SteerablePolicy, guide: ColourGuide) -> SteerableDPOTrainer:
        return SteerableDPOTrainer(
            policy,
            make_arguments(tmp_path, **SAVING),
            rows.tokenise(make_tokenizer()),
            make_contexts(rows, max_context=4, seed=1),
            guide.posterior,
            loss_type="sigmoid",
            num_draws=2,
            beta=0.5,
        )

    def policy(base: torch.nn.Module, **options) -> SteerablePolicy:
        options = {"latent_dim": 2, "lora_rank": 2} | options
        return SteerablePolicy.from_model(base, make_tokenizer(), **options)

    base, guide = make_base(), ColourGuide()
    with torch.no_grad():
        base.lm_head.weight[0, 0] += 1
        guide.weight[0, 0] += 1
    for name, other in {
        "base": build(policy(base), ColourGuide()),
        "conditioning": build(policy(make_base(), conditioning="film"), ColourGuide()),
        "q_proj": build(policy(make_base(), target_modules=["q_proj"]), ColourGuide()),
        "guide": build(make_policy(), guide),
    }.items():
        with pytest.raises(ValueError, match=f"same settings and data, got .*{name}"):
            other.train(resume_from_checkpoint=True)
    same = build(policy(make_base()), ColourGuide())
    same.train(resume_from_checkpoint=True)
