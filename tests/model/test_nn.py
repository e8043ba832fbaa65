from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from pyro.distributions import transforms as T
from torch import Tensor, nn

from fssa_bayes.model.nn import (
    MLP,
    DeepSet,
    GatedHypernet,
    ItemLinear,
    Linear,
    PoolSets,
    ProductTF32,
    flip_between,
    perceptron,
    product,
    shed_denormals,
    tower,
)

HIDDEN = 8
SIZES = [3, 0, 5]


def ragged(sizes: list[int]) -> Tensor:
    return torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]


def summarise(
    encoder: nn.Module, sets: list[Tensor], weights: list[Tensor] | None = None
) -> Tensor:
    """Calls an encoder on sets of elements (n, H), with weights (n,)."""
    weights = [torch.ones(len(elements)) for elements in sets] if weights is None else weights
    mask = ragged([len(elements) for elements in sets])
    weight = torch.ones(mask.shape)
    weight[mask] = torch.cat(weights)
    count = torch.stack([w.sum() for w in weights])
    return encoder(torch.cat(sets), weight, mask, count)


def random_sets(sizes: list[int] = SIZES) -> list[Tensor]:
    return [torch.randn(size, HIDDEN) for size in sizes]


@pytest.mark.parametrize("layer", [ItemLinear(6, 4), tower(6, 5, 4)], ids=["linear", "tower"])
def test_position_is_its_indicator(layer: nn.Module) -> None:
    positions = torch.tensor([3, 0, 3, 5])
    gradients = []
    for items in (positions, F.one_hot(positions, 6).float()):
        layer.zero_grad()
        layer(items).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters()])
    indicators = F.one_hot(positions, 6).float()
    torch.testing.assert_close(layer(positions), layer(indicators), atol=1e-6, rtol=0)
    torch.testing.assert_close(*gradients)


def test_mlp_has_relu_between_its_layers_only() -> None:
    mlp, x = MLP(3, 4, 2), torch.randn(5, 3)
    first, second = (layer for layer in mlp if isinstance(layer, nn.Linear))
    hidden = (x @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(mlp(x), hidden @ second.weight.T + second.bias)


def test_mlp_without_inputs_is_a_constant() -> None:
    mlp = MLP(0, 4, 2)
    expected = mlp[2](mlp[0].bias.clamp(min=0))
    torch.testing.assert_close(mlp(torch.zeros(3, 0)), expected.expand(3, 2))
    assert mlp[0].weight.shape == (4, 0)


@pytest.mark.parametrize("added", [None, (4, 1, 20), (4, 5, 20)], ids=["none", "shared", "each"])
@pytest.mark.parametrize("widths", [(3, 20), (3, 20, 2), (1, 20, 18, 2)])
def test_gradients_of_a_perceptron_are_those_of_its_operations(
    widths: tuple[int, ...], added: tuple[int, ...] | None
) -> None:
    x = torch.randn(4, 5, widths[0], dtype=torch.float64, requires_grad=True)
    more = None if added is None else torch.randn(added, dtype=torch.float64, requires_grad=True)
    parameters = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for width_in, width_out in pairwise(widths)
        for shape in ((width_out, width_in), (width_out,))
    ]
    inputs = [x, *parameters, *([] if more is None else [more])]
    weight = torch.randn(4, 5, widths[-1], dtype=torch.float64)

    def naive() -> Tensor:
        result, layers = x, list(zip(parameters[::2], parameters[1::2], strict=True))
        for index, (matrix, bias) in enumerate(layers):
            result = (result if index == 0 else result.clamp(min=0)) @ matrix.T + bias
            result = result + more if index == 0 and more is not None else result
        return result

    results = [naive(), perceptron(x, parameters, added=more)]
    torch.testing.assert_close(*results)
    expected, found = (torch.autograd.grad((r * weight).sum(), inputs) for r in results)
    torch.testing.assert_close(found, expected)
    twice = []
    for result in (naive(), perceptron(x, parameters, added=more)):  # Gradients of gradients.
        first = torch.autograd.grad((result * weight).sum(), inputs[:-1], create_graph=True)
        twice.append(torch.autograd.grad(sum(g.square().sum() for g in first), parameters[0]))
    torch.testing.assert_close(*twice)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_perceptrons_can_be_mapped_and_differentiated_forward() -> None:
    mlp, x = MLP(3, 20, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(mlp, x[0])
    torch.testing.assert_close(torch.func.jacfwd(mlp)(x[0]), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(mlp))(x)[0], expected)
    point = x[0].clone().requires_grad_()
    many = torch.autograd.grad(mlp(point), point, torch.eye(2).double(), is_grads_batched=True)
    torch.testing.assert_close(*many, expected)


@pytest.mark.parametrize("masked", [True, False])
def test_gradients_of_pooling_are_finite_differences(masked: bool) -> None:
    elements = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    mask = ragged([3, 0, 5]) if masked else None
    weight = torch.rand(3, 5, dtype=torch.float64)
    count = (weight if mask is None else weight * mask).sum(-1)
    if masked:
        weight = weight * mask  # Weights of padding are 0 or of no effect in the mean.
    assert torch.autograd.gradcheck(lambda e: PoolSets.apply(e, weight, mask, count), elements)


def test_equal_elements_share_the_gradient_of_the_maximum() -> None:
    elements = torch.tensor([[[1.0], [1.0], [0.0]]], requires_grad=True)
    pooled = PoolSets.apply(elements, torch.ones(1, 3), None, torch.tensor([3.0]))
    pooled[0, 1].backward()
    assert elements.grad.flatten().tolist() == [0.5, 0.5, 0.0]


def test_order_of_a_set_does_not_matter() -> None:
    encoder, sets = DeepSet(HIDDEN), random_sets()
    shuffled = [elements[torch.randperm(len(elements))] for elements in sets]
    result = summarise(encoder, shuffled)
    torch.testing.assert_close(result, summarise(encoder, sets), atol=1e-6, rtol=0)


def test_sets_do_not_see_each_other() -> None:
    encoder, sets = DeepSet(HIDDEN), random_sets()
    together = summarise(encoder, sets)
    alone = torch.cat([summarise(encoder, [elements]) for elements in sets])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)


def test_two_halves_make_a_whole() -> None:
    encoder, sets = DeepSet(HIDDEN), random_sets([3, 1])
    halves = [elements.repeat(2, 1) for elements in sets]
    weights = [torch.full((len(elements),), 0.5) for elements in halves]
    result = summarise(encoder, halves, weights)
    torch.testing.assert_close(result, summarise(encoder, sets), atol=1e-6, rtol=0)


def test_deep_set_sees_mean_maximum_and_size() -> None:
    encoder, (elements,) = DeepSet(HIDDEN), random_sets([5])
    embedded = encoder.element(elements)
    pooled = torch.cat(
        [
            sum(embedded) / 5,
            torch.stack([column.max() for column in embedded.T]),
            torch.tensor([6.0]).log(),
            torch.tensor([5 / 6]),
        ]
    )
    result = summarise(encoder, [elements])[0]
    torch.testing.assert_close(result, encoder.summary(pooled), atol=1e-6, rtol=0)


def test_gate_scales_shift_and_log_scale() -> None:
    net = GatedHypernet(1, 2, 3, HIDDEN)
    nn.init.normal_(net.output.weight)
    nn.init.normal_(net.output.bias)
    passive, summary = torch.randn(5, 4, 1), torch.randn(4, 3)
    gate = torch.tensor([0.0, 0.25, 0.5, 1.0]).unsqueeze(-1)
    inputs = torch.cat([passive, summary.expand(5, 4, 3)], -1)
    first = torch.cat([net.passive.weight, net.context.weight], -1)
    hidden = F.linear(inputs, first, net.passive.bias + net.context.bias).clamp(min=0)
    expected = (gate * net.output(hidden)).chunk(2, -1)
    result = net(passive, (net.context(summary), gate))
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)
    assert not any(part[:, 0].any() for part in result)


def test_couplings_start_as_the_identity() -> None:
    net = GatedHypernet(1, 2, 3, HIDDEN)
    shift, log_scale = net(torch.randn(4, 1), (net.context(torch.randn(4, 3)), torch.ones(4, 1)))
    assert not shift.any()
    assert not log_scale.any()


def test_flips_transform_both_halves_and_restore_the_order() -> None:
    """Each coupling adds 1 behind its first dimension: 0 1 1, then, seen from behind, 1 1 0."""

    def add_one(passive: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones(*passive.shape[:-1], 2), torch.zeros(*passive.shape[:-1], 2)

    couplings = [T.AffineCoupling(1, add_one) for _ in range(2)]
    flow = torch.distributions.ComposeTransform(flip_between(couplings, 3, torch.device("cpu")))
    z = torch.tensor([[10.0, 20.0, 30.0]])
    torch.testing.assert_close(flow(z), torch.tensor([[11.0, 22.0, 31.0]]))


# Precision.


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


def test_bf16_product_rounds_factors_and_result_alone() -> None:
    """Every factor has 8 binary digits, sums have 24: half a unit of the last digit is left."""
    x, weight = torch.randn(7, 3, 50), torch.randn(4, 50)
    exact = rounded(x) @ rounded(weight).T
    result = product(x, weight, "bf16")
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), exact, rtol=2**-8, atol=1e-5)
    assert not torch.allclose(result.double(), x.double() @ weight.double().T, rtol=1e-4)


@pytest.mark.parametrize("precision", ["highest", "tf32", "bf16"])
def test_double_precision_is_never_lowered(precision: str) -> None:
    layer, x = Linear(5, 4).double(), torch.randn(3, 5, dtype=torch.float64)
    expected = layer(x)
    layer.precision = precision
    torch.testing.assert_close(layer(x), expected, rtol=1e-14, atol=1e-14)


def test_gradients_in_bf16_are_close() -> None:
    x, weight = torch.randn(6, 20, requires_grad=True), torch.randn(4, 20, requires_grad=True)
    for exact, result in zip(
        torch.autograd.grad(product(x, weight).square().sum(), (x, weight)),
        torch.autograd.grad(product(x, weight, "bf16").square().sum(), (x, weight)),
        strict=True,
    ):
        assert (result - exact).norm() < 0.02 * exact.norm()
        assert not torch.equal(result, exact)


def test_tf32_is_highest_on_a_cpu() -> None:
    x, weight = torch.randn(6, 20), torch.randn(4, 20)
    assert torch.equal(product(x, weight, "tf32"), product(x, weight))


def test_tf32_product_has_its_gradients_and_leaves_the_setting_alone() -> None:
    """On a CPU the setting has no effect, so that everything is exact."""

    def settings() -> tuple:
        matmul = torch.backends.cuda.matmul
        new = getattr(matmul, "fp32_precision", None)
        return torch.get_float32_matmul_precision(), matmul.allow_tf32, new

    before = settings()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ProductTF32.apply, (x, weight))
    with pytest.raises(RuntimeError):
        ProductTF32.apply(x, weight[:, :3])
    result = ProductTF32.apply(x, weight).square().sum()
    (grad,) = torch.autograd.grad(result, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    assert settings() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_product_on_a_gpu_has_eleven_bits() -> None:
    x = torch.randn(64, 512, device="cuda", requires_grad=True)
    weight = torch.randn(256, 512, device="cuda", requires_grad=True)
    exact = x.double() @ weight.double().T
    errors = []
    for precision in ("highest", "tf32", "bf16"):
        result = product(x, weight, precision)
        grads = torch.autograd.grad(result.square().sum(), (x, weight))
        true = torch.autograd.grad(exact.square().sum(), (x, weight), retain_graph=True)
        pairs = [(result.double(), exact), *zip(grads, true, strict=True)]
        errors.append([((a - b).norm() / b.norm()).item() for a, b in pairs])
    for high, middle, low in zip(*errors, strict=True):
        assert high < 1e-5
        assert 1e-5 < middle < 2**-10
        assert 2**-11 < low < 2**-6


def test_shed_denormals_rounds_gradients_beyond_normal_numbers() -> None:
    """What a normal number times a rounding error can express stays as it is, NaN included."""
    gradient = torch.tensor([1.0, -1e-30, 1e-32, -1e-40, 0.0, torch.nan, torch.inf])
    leaf = torch.ones(7, requires_grad=True)
    for _ in range(2):  # The leaf itself keeps no hook.
        value = shed_denormals(leaf)
        (found,) = torch.autograd.grad(value, leaf, gradient)
        expected = gradient.masked_fill(gradient.abs() < 1e-31, 0.0)
        assert torch.equal(value, leaf)
        assert torch.equal(found.nan_to_num(-1.0), expected.nan_to_num(-1.0))
    (plain,) = torch.autograd.grad(1.0 * leaf, leaf, gradient)
    assert plain[3] != 0
    double = torch.ones(1, dtype=torch.float64, requires_grad=True)
    tiny = torch.full((1,), 1e-200, dtype=torch.float64)
    assert torch.autograd.grad(shed_denormals(double), double, tiny)[0] == 1e-200
