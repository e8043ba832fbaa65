"""Networks on items and on sets of comparisons."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions.transforms import Permute
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fssa_bayes.kernels.comparisons import is_batched, is_transformed
from fssa_bayes.kernels.sums import steady_sum

__all__ = [
    "MLP",
    "PRECISIONS",
    "DeepSet",
    "GatedHypernet",
    "ItemLinear",
    "Linear",
    "Perceptron",
    "PoolSets",
    "ProductTF32",
    "Tower",
    "allow_tf32",
    "flip_between",
    "linear_layer",
    "parameters_of",
    "perceptron",
    "product",
    "row_product",
    "shed_denormals",
    "steady_softplus",
    "tower",
]

_LANES = 64  # Numbers in the vectors of a processor, or a multiple of it.
_LEAST_COLUMNS = 16

PRECISIONS = ("highest", "tf32", "bf16")
"""Precisions of a matrix product in float32."""


def product(x: Tensor, weight: Tensor, precision: str = "highest") -> Tensor:
    """Computes x Wᵀ for x (*, D) and a weight (H, D), and its gradient, in one of the precisions.

    `"tf32"` differs from `"highest"` on a CUDA device alone, and every precision concerns float32
    alone. The global setting of PyTorch does not change.
    """
    if precision == "highest" or x.dtype != torch.float32:
        return F.linear(x, weight)
    if precision == "bf16":
        return F.linear(x.bfloat16(), weight.bfloat16()).float()
    return ProductTF32.apply(x, weight) if x.is_cuda else F.linear(x, weight)


class ProductTF32(Function):
    """Computes a product in TF32, and its gradient too, which runs after the caller returned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        with allow_tf32():
            return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        with allow_tf32():
            of_x = grad @ weight if ctx.needs_input_grad[0] else None
            of_weight = None
            if ctx.needs_input_grad[1]:
                of_weight = grad.flatten(0, -2).T @ x.flatten(0, -2)
        return of_x, of_weight


@contextlib.contextmanager
def allow_tf32() -> Iterator[None]:
    """Allows TF32 within the context.

    From PyTorch 2.9 on, reading the older of the two flags may raise an error.
    """
    setting = torch.backends.cuda.matmul
    name, value = ("fp32_precision", "tf32")
    if not hasattr(setting, name):
        name, value = ("allow_tf32", True)
    before = getattr(setting, name)
    setattr(setting, name, value)
    try:
        yield
    finally:
        setattr(setting, name, before)


class Linear(nn.Linear):
    """A linear layer whose product may be computed in lower precision.

    Attributes:
        precision: One of :data:`PRECISIONS`.
    """

    precision = "highest"

    def forward(self, x: Tensor) -> Tensor:
        """Returns x Wᵀ + b with shape (*, H)."""
        if self.precision == "highest":
            return row_product(x, self.weight, self.bias)
        return product(x, self.weight, self.precision) + self.bias


class ItemLinear(Linear):
    """Maps items to features, linearly: `x` with features (M, D), or positions int64 (M,).

    Positions stand for indicator features; the product with an indicator is a look-up, so no
    M x M table is ever built.
    """

    def forward(self, items: Tensor) -> Tensor:
        """Returns a tensor with shape (M, H)."""
        if items.dtype == torch.int64:
            return F.embedding(items, self.weight.T) + self.bias
        return super().forward(items)


class MLP(nn.Sequential):
    """A multilayer perceptron with ReLU between layers of the given widths."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for index, (width_in, width_out) in enumerate(pairwise(widths)):
            layers += [nn.ReLU(inplace=True)] if index else []
            layers.append(linear_layer(width_in, width_out))
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs (*, H) of inputs (*, D)."""
        return perceptron(x, *parameters_of(list(self)[::2]))


class Tower(nn.Sequential):
    """A multilayer perceptron whose first layer takes item features or item positions."""

    def forward(self, items: Tensor) -> Tensor:
        """Returns factors (M, F) of items (M, D) or (M,)."""
        first, relu, rest = self
        if items.dtype == torch.int64:
            return rest(relu(first(items)))
        return perceptron(items, *parameters_of([first, *list(rest)[::2]]))


def parameters_of(layers: Sequence[Linear]) -> tuple[list[Tensor], str]:
    """Lists weights and biases of linear layers, with their precision."""
    return [t for layer in layers for t in (layer.weight, layer.bias)], layers[0].precision


def perceptron(
    x: Tensor,
    parameters: Sequence[Tensor],
    precision: str = "highest",
    added: Tensor | None = None,
) -> Tensor:
    """Evaluates linear layers with ReLU between them.

    Args:
        x: Inputs with shape (*, D).
        parameters: Weight (H, D) and bias (H,) of each layer in turn.
        precision: Precision of the products, one of :data:`PRECISIONS`.
        added: What is added to the first layer's result, of a shape that broadcasts to (*, H); None
            for nothing.

    Returns:
        Results of the last layer, with shape (*, H).
    """
    # Other kinds of derivatives, and rounded products, take every operation by itself.
    if precision != "highest" or is_transformed(x, added, *parameters):
        return evaluate_layers(x, added, parameters, precision)[-1]
    return Perceptron.apply(x, added, *parameters)


def evaluate_layers(
    x: Tensor, added: Tensor | None, parameters: Sequence[Tensor], precision: str = "highest"
) -> list[Tensor]:
    """Returns the results of all layers, with the arguments of :func:`perceptron`.

    ReLU has been applied to all but the last one.
    """
    results: list[Tensor] = []
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        x = results[-1].relu_() if results else x
        if precision == "highest":
            x = row_product(x, weight, bias)
        else:
            x = product(x, weight, precision) + bias
        if added is not None and not results:
            x = x.add_(added)
        results.append(x)
    return results


class Perceptron(Function):
    """Evaluates a network as one operation, and its gradient layer by layer.

    The networks of this package are small: what autograd does for a layer takes as long as its
    products. Here a network is one node of autograd's graph, and gradients are computed in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor | None, *parameters: Tensor) -> Tensor:
        *hidden, result = evaluate_layers(x, added, parameters)
        ctx.num_parameters = len(parameters)
        ctx.save_for_backward(x, added, *parameters, *hidden)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, added, *rest = ctx.saved_tensors
        parameters, hidden = rest[: ctx.num_parameters], rest[ctx.num_parameters :]
        if torch.is_grad_enabled() or is_batched(gradient):
            inputs = x, added, *parameters
            return _differentiable_gradients(gradient, inputs, ctx.needs_input_grad)
        inputs, of_parameters, of_added = [x, *hidden], [], None
        for layer, weight in reversed(list(enumerate(parameters[::2]))):
            count = math.prod(gradient.shape[:-1])
            rows = gradient.reshape(count, len(weight))
            rows_in = inputs[layer].reshape(count, weight.shape[1])
            of_parameters = [rows.T @ rows_in, rows.sum(0), *of_parameters]
            if layer == 0 and ctx.needs_input_grad[1]:
                of_added = gradient.sum_to_size(added.shape)
            if layer > 0 or ctx.needs_input_grad[0]:
                gradient = (rows @ weight).view(inputs[layer].shape)
            if layer > 0:
                torch.ops.aten.threshold_backward.grad_input(
                    gradient, inputs[layer], 0, grad_input=gradient
                )
        return gradient if ctx.needs_input_grad[0] else None, of_added, *of_parameters


def _differentiable_gradients(
    gradient: Tensor, inputs: tuple[Tensor | None, ...], needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Computes gradients of a perceptron that can themselves be differentiated."""
    x, added, *parameters = inputs
    with torch.enable_grad():
        result = evaluate_layers(x, added, parameters)[-1]
    wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]
    create = torch.is_grad_enabled()
    found = iter(torch.autograd.grad(result, wanted, gradient, create_graph=create))
    return tuple(next(found) if need else None for need in needs)


def row_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x Wᵀ + b so that a row of the result does not depend on the row's place.

    Products with few columns are computed in blocks of four rows and add up in an order that
    depends on the place in the block; so columns of zeros are added.
    """
    count = len(weight)
    if count >= _LEAST_COLUMNS:
        return F.linear(x, weight, bias)
    missing = _LEAST_COLUMNS - count
    bias = None if bias is None else F.pad(bias, (0, missing))
    return F.linear(x, F.pad(weight, (0, 0, 0, missing)), bias)[..., :count]


def steady_softplus(x: Tensor) -> Tensor:
    """Computes log(1 + eˣ) so that a result does not depend on its place.

    PyTorch computes what is left of the last vector of a tensor by another function.
    """
    padded = F.pad(x.flatten(), (0, -x.numel() % _LANES))
    return F.softplus(padded)[: x.numel()].view(x.shape)


def tower(num_features: int, *widths: int) -> Tower:
    """Builds an MLP whose first layer takes item features or item positions."""
    return Tower(ItemLinear(num_features, widths[0]), nn.ReLU(inplace=True), MLP(*widths))


def linear_layer(width_in: int, width_out: int) -> nn.Linear:
    """Builds a linear layer that may have no inputs, and is its bias then."""
    layer = Linear(max(width_in, 1), width_out)
    if width_in == 0:
        layer.weight = nn.Parameter(layer.weight[:, :0].detach())
    return layer


def shed_denormals(tensor: Tensor) -> Tensor:
    r"""Returns the tensor, with gradients below tiny/eps (1e-31 in float32) rounded to 0.

    The weights of draws fall off exponentially. Where choices are nearly certain, many gradients
    lie below the smallest normal number, and matrix products with them are several times slower:
    a quarter of the time of a training step.
    """
    if not (tensor.requires_grad and torch.is_grad_enabled()):
        return tensor
    limits = torch.finfo(tensor.dtype)
    alias = tensor.view_as(tensor)  # The caller's tensor keeps no hook.
    alias.register_hook(lambda gradient: F.hardshrink(gradient, limits.tiny / limits.eps))
    return alias


class DeepSet(nn.Module):
    """Pools a set by mean and maximum, so that its summary does not grow with its size.

    Args:
        hidden_dim: Width H of elements and of the summary.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.element = MLP(hidden_dim, hidden_dim, hidden_dim)
        self.summary = MLP(2 * hidden_dim + 2, hidden_dim, hidden_dim)

    def forward(self, elements: Tensor, weight: Tensor, mask: Tensor, count: Tensor) -> Tensor:
        """Summarises sets to shape (U, H).

        Args:
            elements: The elements of all sets, set by set, with shape (R, H).
            weight: The weights of the elements, padded, with shape (U, N).
            mask: True at the R places of the elements, set by set, with shape (U, N).
            count: Sum of the weights of each set, with shape (U,).

        Returns:
            One summary for each set, which does not depend on the other sets.
        """
        elements = self.element(elements)
        if len(elements) == mask.numel():
            padded, mask = elements.view(*mask.shape, elements.shape[-1]), None
        else:
            padded = elements.new_zeros((*mask.shape, elements.shape[-1]))
            padded = padded.index_put(mask.nonzero(as_tuple=True), elements)
        return self.summary(PoolSets.apply(padded, weight, mask, count))


class PoolSets(Function):
    """Pools padded elements (U, N, H) to mean, maximum, log(1 + n), n / (n + 1): (U, 2 H + 2).

    The mask is None where there is no padding. The sum of a mean is taken in an order that padding
    does not change, which autograd would follow step by step; its gradient does not need it.
    """

    @staticmethod
    def forward(
        ctx: Any, elements: Tensor, weight: Tensor, mask: Tensor | None, count: Tensor
    ) -> Tensor:
        count = count.unsqueeze(-1).to(elements.dtype)
        hidden = None if mask is None else ~mask.unsqueeze(-1)
        share = weight / count.clamp(min=1)
        mean = steady_sum(elements * weight.unsqueeze(-1), -2) / count.clamp(min=1)
        if elements.shape[-2]:
            shown = elements if hidden is None else elements.masked_fill(hidden, -torch.inf)
            maximum = shown.amax(-2).masked_fill(count == 0, 0.0)
        else:
            maximum = torch.zeros_like(mean)
        ctx.save_for_backward(elements, maximum, share, hidden)
        return torch.cat([mean, maximum, count.log1p(), count / (count + 1)], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        elements, maximum, share, hidden = ctx.saved_tensors
        of_mean, of_maximum, _ = gradient.split([*[maximum.shape[-1]] * 2, 2], -1)
        largest = elements == maximum.unsqueeze(-2)
        if hidden is not None:
            largest = largest.masked_fill_(hidden, False)
        largest = largest.to(elements.dtype)
        # Elements that share the maximum share its gradient.
        of_maximum = of_maximum / largest.sum(-2).clamp_(min=1)
        found = share.unsqueeze(-1) * of_mean.unsqueeze(-2)
        found.addcmul_(largest, of_maximum.unsqueeze(-2))
        return found if hidden is None else found.masked_fill_(hidden, 0.0), None, None, None


class GatedHypernet(nn.Module):
    """Gives shift, log-scale and more of a coupling layer, all 0 where the gate is 0.

    The hidden layer is additive in the passive half of z and in the context, so that the
    context's part is computed once for all draws.

    Args:
        split_dim: Width of the passive half of z.
        transformed_dim: Width of the half that is transformed.
        context_dim: Width of the context.
        hidden_dim: Width of the hidden layer.
        num_outputs: Number of parameters of each transformed dimension.
    """

    def __init__(
        self,
        split_dim: int,
        transformed_dim: int,
        context_dim: int,
        hidden_dim: int,
        num_outputs: int = 2,
    ) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.split_dim = split_dim
        self.passive = linear_layer(split_dim, hidden_dim)
        self.context = nn.Linear(context_dim, hidden_dim)
        self.output = Linear(hidden_dim, num_outputs * transformed_dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, passive: Tensor, context: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Returns parameters (*, U, transformed_dim).

        Args:
            passive: The passive half of z, with shape (*, U, split_dim).
            context: The layer `context` of the context, (U, H), and the gate, (U, 1).
        """
        of_context, gate = context
        layers = parameters_of([self.passive, self.output])
        return (gate * perceptron(passive, *layers, of_context)).chunk(self.num_outputs, -1)


def flip_between(couplings: Sequence, width: int, device: torch.device) -> list:
    """Puts a reversal of z's order after each coupling, so that each half is transformed in turn.

    An even number of couplings leaves the order as it was.
    """
    flip = torch.arange(width - 1, -1, -1, device=device)
    return [transform for coupling in couplings for transform in (coupling, Permute(flip))]
