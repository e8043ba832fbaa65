"""Gated adapters: a plain formula, exact start, gradients, and the adapter of one person."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from steered_policies import factors, responses
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from fssa_bayes.policy import Gates, SteerablePolicy, steered
from fssa_bayes.policy.adapter import adapters

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gpt2", "gemma", "gemma2", "phi"]

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def loaded(model: torch.nn.Module, folder: Path, **options) -> PeftModel:
    """Loads an adapter as anybody does who knows peft alone."""
    return PeftModel.from_pretrained(model, str(folder), **options).eval()


# Values.


def test_gates_are_affine_in_z_and_bounded() -> None:
    gates = Gates(2, 3, 4).double()
    z = factors(5).double()
    expected = torch.einsum("lrk,nk->lnr", gates.weight, z) + gates.bias[:, None]
    torch.testing.assert_close(gates(z), expected, rtol=1e-12, atol=1e-12)
    limit = 2**0.5 + 2
    far = torch.tensor([[30.0, 40.0], [3e8, 4e8]], dtype=torch.float64)
    edge = limit * torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(gates(far), gates(edge).expand(-1, 2, -1))
    assert torch.equal(gates(torch.zeros(1, 2).double())[:, 0], gates.bias)
    assert gates(torch.tensor([[torch.nan, 0.0]])).isnan().all()
    for other in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            Gates(*other)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_layer_computes_the_formula(name: str, policy: Callable) -> None:
    moved, z = policy(name), factors()
    layers = adapters(moved.model)
    seen: list[tuple[int, Tensor, Tensor]] = []
    for index, layer in enumerate(layers):
        layer.lora_A["default"].register_forward_pre_hook(
            lambda _, args, index=index: seen.append((index, args[0]))
        )
        layer.lora_B["default"].register_forward_hook(
            lambda _, __, output, index=index: seen.append((index, output))
        )
    moved(responses().input_ids, z=z)
    gates = moved.conditioning(z)
    assert len(seen) == 2 * len(layers)
    for (index, x), (same, found) in zip(seen[::2], seen[1::2], strict=True):
        assert index == same
        down, up = (getattr(layers[index], f"lora_{side}")["default"].weight for side in "AB")
        rows = [up @ torch.diag(gates[index, row]) @ down @ x[row].T for row in range(4)]
        torch.testing.assert_close(found, torch.stack(rows).mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_new_policy_is_the_model_whatever_z_is(
    name: str, dtype: torch.dtype, policy: Callable, tiny_model: Callable
) -> None:
    new, tokens = policy(name, new=True, dtype=dtype), responses().input_ids
    expected = tiny_model(name, dtype=dtype)(tokens).logits
    for z in (factors(), 100 * factors(), None):
        assert torch.equal(new(tokens, z=z), expected)
    options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    for use_cache in (True, False):
        with torch.no_grad(), steered(factors()):
            written = new.base.generate(tokens, use_cache=use_cache, **options)
        with torch.no_grad():
            plain = tiny_model(name, dtype=dtype).generate(tokens, use_cache=use_cache, **options)
        assert torch.equal(written, plain)


def test_nobody_is_z_of_0(policy: Callable) -> None:
    moved, tokens = policy(), responses().input_ids
    torch.testing.assert_close(moved(tokens), moved(tokens, z=torch.zeros(2)))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_people_of_one_batch_keep_their_own_z(name: str, policy: Callable) -> None:
    moved, z, batch = policy(name).double(), factors().double(), responses()
    together = moved(batch.input_ids, batch.attention_mask, z=z)
    for row in range(4):
        alone = moved(batch.input_ids[[row]], batch.attention_mask[[row]], z=z[row])
        torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)
    spread = together - moved(batch.input_ids, batch.attention_mask, z=z[0])
    assert spread[1:].abs().max() > 0.1


# Gradients.


@pytest.mark.parametrize("start", [True, False])
def test_gradients_against_finite_differences(start: bool, policy: Callable) -> None:
    moved = policy("gpt2", new=start).double()  # Others compute their norms in float32.
    z, tokens = factors().double().requires_grad_(), responses().input_ids
    weight = torch.randn(4, 9, 40, dtype=torch.float64)

    def total() -> Tensor:
        return (moved(tokens, z=z) * weight).sum()

    gates, layer = moved.conditioning, adapters(moved.model)[2]
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    leaves = {"z": z, "G": gates.weight, "b": gates.bias, "B": up, "A": down}
    places = {"z": (1, 0), "G": (2, 1, 0), "b": (2, 1), "B": (3, 1), "A": (1, 4)}
    gradients = torch.autograd.grad(total(), list(leaves.values()))
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        place, sums = places[name], []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                leaf[place] += step
                sums.append(total())
        with torch.no_grad():
            leaf[place] += 1e-5
        slope = (sums[0] - sums[1]) / 2e-5
        torch.testing.assert_close(gradient[place], slope, rtol=1e-5, atol=1e-6)
        assert (gradient.abs().max() > 1e-6) == (name == "B" or not start), name


# The adapter of one person.


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1e-10), (torch.float32, 2.5e-5)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_an_exported_adapter_is_the_policy(
    name: str, dtype: torch.dtype, size: float, policy: Callable, tiny_model: Callable, tmp_path
) -> None:
    moved = policy(name, dtype=dtype).to(dtype)
    tokens, people = responses().input_ids, factors().to(dtype)
    people[3] *= 10  # Is clipped.
    with torch.no_grad():
        expected = moved(tokens, z=people)
        assert expected.square().mean().sqrt() > 1
        for row, z in enumerate(people):
            moved.adapter_for(z, tmp_path / str(row))
            moved.adapter_for(z, tmp_path / str(row))  # Replaces the first.
            options = {"autocast_adapter_dtype": False}
            adapted = loaded(tiny_model(name, dtype=dtype), tmp_path / str(row), **options)
            plain = adapted(tokens[[row]]).logits[0]
            merged = adapted.merge_and_unload()(tokens[[row]]).logits[0]
            scale = size * expected[row].square().mean().sqrt()
            for found in (plain, merged):
                torch.testing.assert_close(found, expected[row], rtol=0, atol=scale.item())
        torch.testing.assert_close(moved(tokens, z=people), expected, rtol=0, atol=0)


def test_adapters_of_four_people_serve_one_batch(
    policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    moved, tokens, people = policy(), responses().input_ids, factors()
    for row, z in enumerate(people):
        moved.adapter_for(z, tmp_path / f"p{row}")
    adapted = loaded(tiny_model(), tmp_path / "p0", adapter_name="p0")
    for row in range(1, 4):
        adapted.load_adapter(str(tmp_path / f"p{row}"), f"p{row}")
    with torch.no_grad():
        found = adapted(input_ids=tokens, adapter_names=[f"p{row}" for row in range(4)]).logits
        expected = moved(tokens, z=people)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


def test_a_process_without_this_library_serves_an_adapter(
    policy: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    moved, tokens, z = policy(), responses().input_ids, factors(1)[0]
    tiny_model().save_pretrained(tmp_path / "base")
    moved.adapter_for(z, tmp_path / "adapter")
    program = (
        "import json, sys, torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        "folder, tokens = sys.argv[1], torch.tensor(json.loads(sys.argv[2]))\n"
        "base = AutoModelForCausalLM.from_pretrained(folder + '/base')\n"
        "model = PeftModel.from_pretrained(base, folder + '/adapter').eval()\n"
        "assert not any(name.startswith('fssa_bayes') for name in sys.modules)\n"
        "with torch.no_grad():\n"
        "    print(json.dumps(model(tokens).logits.double().tolist()))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), json.dumps(tokens.tolist())]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = torch.tensor(json.loads(run.stdout.splitlines()[-1]))
    torch.testing.assert_close(found, moved(tokens, z=z).detach(), rtol=2e-4, atol=2e-4)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["inference_mode"]) == ("LORA", 2, True)


def test_adapters_that_cannot_be_written_are_refused(policy: Callable, tmp_path: Path) -> None:
    moved, z = policy(), factors(1)[0]
    for wrong in (factors(), torch.zeros(3), torch.tensor([0.0, torch.nan])):
        with pytest.raises(ValueError, match=r"z must be finite with shape \(2,\), got"):
            moved.adapter_for(wrong, tmp_path / "adapter")
    with pytest.raises(TypeError, match="z must be a floating-point tensor"):
        moved.adapter_for([0.0, 1.0], tmp_path / "adapter")
    with pytest.raises(ValueError, match="conditioning must be 'gated' to write an adapter"):
        policy(conditioning="film").adapter_for(z, tmp_path / "adapter")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        moved.adapter_for(z, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_layers_that_see_no_rows_are_refused() -> None:
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    made = SteerablePolicy.from_model(model, None, latent_dim=2, target_modules=["q_proj"])
    assert made(responses().input_ids, z=factors()).shape == (4, 9, 40)
    model.experts = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    layer = get_peft_model(model.experts, LoraConfig(target_modules=["0"]))
    outer = torch.nn.ModuleDict({"experts": layer})
    with pytest.raises(ValueError, match="linear layers outside of experts"):
        Gates(2, 8, 1).attach(outer)


def test_a_model_is_unharmed_by_a_refusal(tiny_model: Callable) -> None:
    model = tiny_model()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match="linear layers outside of experts"):
        SteerablePolicy.from_model(model, None, latent_dim=2, target_modules=["embed_tokens"])
    assert list(model.state_dict()) == before
