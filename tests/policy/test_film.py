"""Modulation of decoder layers, beside a plain loop and beside the model without it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from fssa_bayes.policy.conditioning import interpolate, recompute_as_now, steered
from fssa_bayes.policy.film import FiLM, decoder_layers, modulate

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gpt2", "gemma", "gemma2", "phi"]


def tokens(rows: int = 4, length: int = 7) -> Tensor:
    return torch.randint(3, 40, (rows, length), generator=torch.Generator().manual_seed(1))


def factors(rows: int = 4) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def modulated(tiny_model: Callable, randomise: Callable) -> Callable[..., tuple[nn.Module, FiLM]]:
    """Returns a factory of models with modulation on all layers, new or moved from its start."""

    def build(name: str = "llama", *, new: bool = False, **options) -> tuple[nn.Module, FiLM]:
        model = tiny_model(name, **options)
        torch.manual_seed(3)
        film = FiLM(2, 32, 3, hidden_dim=8)
        if not new:
            randomise(film)
        film.attach(decoder_layers(model))
        return model, film

    return build


def run(model: nn.Module, z: Tensor | None, **options) -> Tensor:
    with steered(z):
        return model(tokens(), **options).logits


# Identity.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_new_or_off_modulation_changes_no_bit(
    name: str, dtype: torch.dtype, tiny_model: Callable, modulated: Callable
) -> None:
    expected = tiny_model(name, dtype=dtype)(tokens()).logits
    new, _ = modulated(name, new=True, dtype=dtype)
    assert torch.equal(run(new, 100 * factors()), expected)
    moved, film = modulated(name, dtype=dtype)
    assert torch.equal(moved(tokens()).logits, expected)
    assert torch.equal(run(moved, None), expected)
    with film.switched_off():
        assert torch.equal(run(moved, factors()), expected)
    assert not torch.allclose(run(moved, factors()).float(), expected.float(), atol=0.1)


def test_new_modulation_keeps_the_sign_of_zero() -> None:
    hidden = torch.tensor([-0.0, 0.0, -1e-45, torch.inf]).reshape(1, 1, 4)
    film = FiLM(2, 4, 1)
    result = modulate(hidden, *film.modulation(factors(1), 0))
    assert torch.equal(result.view(torch.int32), hidden.view(torch.int32))


# Values.


def test_modulation_is_scale_and_shift(randomise: Callable) -> None:
    film = randomise(FiLM(2, 5, 3, hidden_dim=8))
    layers = [nn.Identity() for _ in range(3)]
    film.attach(layers)
    hidden, z = torch.randn(4, 6, 5), factors()
    scale, shift = film(z)
    assert scale.shape == shift.shape == (3, 4, 5)
    with steered(z):
        for index, layer in enumerate(layers):
            expected = hidden * (1 + scale[index, :, None]) + shift[index, :, None]
            torch.testing.assert_close(layer(hidden), expected)
            output = layer((hidden, "cache"))
            assert isinstance(output, tuple)
            assert output[1] == "cache"
            torch.testing.assert_close(output[0], expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_is_modulated_as_by_a_plain_loop(
    name: str, tiny_model: Callable, modulated: Callable
) -> None:
    model, film = modulated(name)
    plain, z = tiny_model(name), factors()
    with torch.no_grad():
        scale, shift = film(z)
        rows = []
        for row in range(4):
            bent = copy.deepcopy(plain)
            for index, layer in enumerate(decoder_layers(bent)):
                wrap(layer, 1 + scale[index, row], shift[index, row])
            rows.append(bent(tokens()[row : row + 1]).logits)
        torch.testing.assert_close(run(model, z), torch.cat(rows), rtol=1e-4, atol=1e-4)


def wrap(layer: nn.Module, factor: Tensor, shift: Tensor) -> None:
    forward = layer.forward

    def bent(*args, **kwargs):
        output = forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (output[0] * factor + shift, *output[1:])
        return output * factor + shift

    layer.forward = bent


def test_gradients_against_finite_differences() -> None:
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in ((3, 4, 5), (3, 5), (3, 5))]
    for needed in ((True, True, True), (False, True, True), (True, False, False)):
        for tensor, need in zip(inputs, needed, strict=True):
            tensor.requires_grad_(need)
        assert torch.autograd.gradcheck(modulate, inputs)


def test_gradients_reach_z_and_parameters(modulated: Callable) -> None:
    model, film = modulated("gpt2")  # Others compute their norms in float32.
    model, film, z = model.double(), film.double(), factors().double().requires_grad_()
    target = torch.randn(4, 7, 40, dtype=torch.float64)
    (run(model, z) * target).sum().backward()
    step = 1e-6
    for tensor, place in ((z, (1, 0)), (film.heads[1].weight, (3, 2)), (film.trunk[0].bias, (1,))):
        with torch.no_grad():
            sums = []
            for sign in (1, -1):
                tensor[place] += sign * step
                sums.append((run(model, z) * target).sum())
                tensor[place] -= sign * step
        slope = (sums[0] - sums[1]) / (2 * step)
        torch.testing.assert_close(tensor.grad[place], slope, rtol=1e-5, atol=1e-6)


def test_several_draws_a_sequence(modulated: Callable) -> None:
    model, _ = modulated()
    z = factors(4)
    with torch.no_grad():
        expected = run(model, z)
        pairs = tokens().repeat_interleave(2, 0)
        with steered(z):
            repeated = model(pairs).logits
        torch.testing.assert_close(repeated, expected.repeat_interleave(2, 0))
        with steered(z[:1]):
            torch.testing.assert_close(model(tokens()).logits[:1], expected[:1])


# Precision.


def test_small_modulation_survives_bf16() -> None:
    hidden = torch.randn(3, 50, 64).bfloat16()
    scale, shift = 1e-3 * torch.randn(3, 64), 1e-3 * torch.randn(3, 64)
    result = modulate(hidden, scale, shift)
    exact = hidden.double() * (1 + scale.double()[:, None]) + shift.double()[:, None]
    assert torch.equal(result, exact.float().bfloat16())
    assert (result != hidden).float().mean() > 0.05


def test_bf16_model_trains_modulation_in_float32(modulated: Callable) -> None:
    model, film = modulated(dtype=torch.bfloat16)
    run(model, factors()).float().square().sum().backward()
    for parameter in film.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_autocast(name: str, tiny_model: Callable, modulated: Callable) -> None:
    new, _ = modulated(name, new=True)
    moved, film = modulated(name)
    with torch.autocast("cpu", torch.bfloat16):
        expected = tiny_model(name)(tokens()).logits
        assert torch.equal(run(new, factors()), expected)
        scale, shift = film(factors())
        logits = run(moved, factors())
    assert scale.dtype == shift.dtype == torch.float32
    assert torch.equal(scale, film(factors())[0])
    error = (logits.float() - run(moved, factors())).norm() / logits.float().norm()
    assert error < 0.05
    logits.float().sum().backward()
    assert film.trunk[0].weight.grad.abs().max() > 0


# Checkpointing.


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma2", "phi"])
def test_checkpointing_gives_the_same_gradients(
    name: str, use_reentrant: bool, modulated: Callable
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, film = modulated(name)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        z = factors().requires_grad_()
        with steered(z):
            loss = (model(tokens(), use_cache=False).logits * torch.linspace(-1, 1, 40)).sum()
        with steered(-3 * factors()):  # By then another z rules.
            loss.backward()
        gradients.append([z.grad, *(p.grad for p in (*film.parameters(), *model.parameters()))])
    assert sum(grad is not None and bool(grad.abs().max() > 0) for grad in gradients[0]) > 20
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-5)


def test_layers_are_recomputed_under_the_switch_of_their_forward() -> None:
    film = FiLM(2, 5, 1)
    with film.switched_off():
        _, as_then = recompute_as_now()
    _, as_outside = recompute_as_now()
    with as_then:
        assert film.is_switched_off
    assert not film.is_switched_off
    with film.switched_off(), as_outside:
        assert not film.is_switched_off


# Generation.


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generation_with_cache_and_without(name: str, modulated: Callable) -> None:
    model, _ = modulated(name)
    inputs = tokens()
    inputs[1, :3], mask = 0, torch.ones_like(inputs)
    mask[1, :3] = 0
    texts = []
    for z in (factors(), -factors()):
        with steered(z), torch.no_grad():
            cached, plain = (
                model.generate(
                    inputs,
                    attention_mask=mask,
                    do_sample=False,
                    use_cache=use_cache,
                    max_new_tokens=8,
                    eos_token_id=None,
                    pad_token_id=0,
                )
                for use_cache in (True, False)
            )
        assert torch.equal(cached, plain)
        texts.append(cached)
    assert not torch.equal(*texts)


def test_generation_of_several_samples(modulated: Callable) -> None:
    model, _ = modulated()
    options = {"do_sample": False, "max_new_tokens": 5, "num_beams": 2, "eos_token_id": None}
    with steered(factors()), torch.no_grad():
        together = model.generate(tokens(), pad_token_id=0, **options)
    for row in range(4):
        with steered(factors()[row : row + 1]), torch.no_grad():
            alone = model.generate(tokens()[row : row + 1], pad_token_id=0, **options)
        assert torch.equal(together[row : row + 1], alone)


def test_changes_inside_a_block_are_seen_without_gradients(modulated: Callable) -> None:
    model, film = modulated()
    z = factors()
    with steered(z), torch.no_grad():
        first = model(tokens()).logits
        assert torch.equal(model(tokens()).logits, first)
        film.heads[0].bias.add_(1.0)
        second = model(tokens()).logits
        z.mul_(-1)
        third = model(tokens()).logits
    assert torch.equal(second, run(model, factors()))
    assert torch.equal(third, run(model, -factors()))
    assert not torch.allclose(first, second)


def test_inference_mode(modulated: Callable) -> None:
    model, _ = modulated()
    expected, z = run(model, factors()), factors()
    with steered(z):
        with torch.inference_mode():
            assert torch.equal(model(tokens()).logits, expected)
            made = factors()
        with torch.no_grad():
            assert torch.equal(model(tokens()).logits, expected)
        assert model(tokens()).logits.requires_grad
    with steered(made), torch.no_grad():
        assert torch.equal(model(tokens()).logits, expected)
        with torch.inference_mode():
            made.neg_()
        assert torch.equal(model(tokens()).logits, run(model, -factors()))


# Contexts.


def test_blocks_nest_and_end_in_any_order(modulated: Callable) -> None:
    model, _ = modulated()
    one, two, off = (run(model, z) for z in (factors(), -factors(), None))

    def now() -> Tensor:
        return model(tokens()).logits

    with steered(factors()):
        with steered(-factors()):
            assert torch.equal(now(), two)
            with steered(None):
                assert torch.equal(now(), off)
        assert torch.equal(now(), one)
    first, second = steered(factors()), steered(-factors())
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(now(), two)
    second.__exit__(None, None, None)
    assert torch.equal(now(), off)


def test_an_exception_ends_a_block(modulated: Callable) -> None:
    model, film = modulated()
    off = model(tokens()).logits
    with pytest.raises(KeyError), steered(factors()), film.switched_off():
        raise KeyError
    assert not film.is_switched_off
    assert torch.equal(model(tokens()).logits, off)
    with pytest.raises(ValueError, match="z must have a row"), steered(factors(3)):
        model(tokens())
    assert torch.equal(model(tokens()).logits, off)


def test_threads_keep_their_own_z(modulated: Callable) -> None:
    model, film = modulated()
    everyone = [factors(), -factors(), None, 2 * factors()]
    expected = [run(model, z) for z in everyone]
    meet = threading.Barrier(len(everyone) + 1, timeout=20)

    def wait(*_: object) -> None:
        meet.wait()

    for layer in decoder_layers(model):
        layer.register_forward_pre_hook(wait)
    found: list[Tensor | None] = [None] * (len(everyone) + 1)

    def work(index: int) -> None:
        with ExitStack() as stack:
            if index == len(everyone):
                stack.enter_context(film.switched_off())
                found[index] = run(model, factors())
            else:
                found[index] = run(model, everyone[index])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, truth in zip(found, [*expected, expected[2]], strict=True):
        assert torch.equal(result, truth)


def test_a_copy_is_bent_by_its_own_modulation(modulated: Callable) -> None:
    model, film = modulated()
    before = run(model, factors())
    pair = nn.ModuleList([model, film])
    copied_model, copied_film = copy.deepcopy(pair)
    with torch.no_grad():
        copied_film.heads[0].bias.add_(1.0)
    assert torch.equal(run(model, factors()), before)
    assert not torch.allclose(run(copied_model, factors()), before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Of PyTorch's tracer, which would stop it.
def test_compiled_models_follow_z(modulated: Callable) -> None:
    model, _ = modulated()
    compiled = torch.compile(model, backend="aot_eager")
    for z in (factors(), -factors(), None):
        with steered(z):
            torch.testing.assert_close(compiled(tokens()).logits, model(tokens()).logits)


# Bad input.


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (torch.zeros(4), ValueError, r"shape \(R, K\).*\(4,\)"),
        (torch.zeros(0, 2), ValueError, r"R >= 1"),
        (torch.zeros(4, 2, dtype=torch.int64), TypeError, "floating-point.*int64"),
        ([[0.0, 0.0]], TypeError, "floating-point.*list"),
    ],
)
def test_what_is_no_z_is_refused(z: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), steered(z):
        pytest.fail("the block was entered")


def test_misfits_are_refused(modulated: Callable, tiny_model: Callable) -> None:
    model, film = modulated()
    with pytest.raises(ValueError, match=r"z must have width 2, got \(4, 3\)"):
        run(model, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="3 layers, got 2|layers must be 3, got 2"):
        film.attach(decoder_layers(model)[:2])
    with pytest.raises(ValueError, match="hidden_dim must be at least 1, got 0"):
        FiLM(2, 32, 3, hidden_dim=0)
    narrow = FiLM(2, 16, 3)
    other = tiny_model()
    narrow.attach(decoder_layers(other))
    with pytest.raises(ValueError, match=r"hidden states \(R, T, 16\), got \(4, 7, 32\)"):
        run(other, factors())


def test_models_without_recognisable_layers_are_refused(tiny_model: Callable) -> None:
    config = T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=20)
    with pytest.raises(ValueError, match="decoder-only.*T5"):
        decoder_layers(T5ForConditionalGeneration(config))
    model = tiny_model()
    model.model.layers = model.model.layers[:2]
    with pytest.raises(ValueError, match="list of 3 decoder layers, got LlamaForCausalLM with 0"):
        decoder_layers(model)
    with pytest.raises(TypeError, match="transformers model, got Linear"):
        decoder_layers(nn.Linear(2, 2))


def test_interpolation() -> None:
    path = interpolate(torch.tensor([0.0, 1.0]), torch.tensor([2.0, -1.0]), 5)
    expected = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [1.5, -0.5], [2.0, -1.0]])
    torch.testing.assert_close(path, expected)
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        interpolate(torch.zeros(2), torch.ones(2), 1)
    with pytest.raises(ValueError, match=r"one shape \(K,\), got \(2,\) and \(3,\)"):
        interpolate(torch.zeros(2), torch.ones(3), 4)
