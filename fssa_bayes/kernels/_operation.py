"""A differentiable operation, eager and compiled, made of a backend's forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fssa_bayes.kernels import reference
from fssa_bayes.kernels.comparisons import Comparisons, is_batched

__all__ = [
    "Eager",
    "Operation",
    "differentiable_gradients",
    "fake_backward",
    "fake_forward",
    "pull_back",
    "save_inputs",
]

_INPUTS = (
    "Tensor? item, Tensor user, Tensor? weight, Tensor left, Tensor right, Tensor? choice, "
    "Tensor? mask, Tensor? bias, str form"
)


class Operation:
    """Makes an operation of a backend's forward and backward.

    Compiled programs call `torch.ops.fssa_bayes.<name>`, a custom operator whose backward is the
    custom operator `<name>_backward`. Eager programs call the same two functions through an
    autograd function, because a custom operator written in Python costs .2 ms a call, more than a
    small likelihood. The reference computes a gradient that is itself to be differentiated.

    Args:
        name: Name of the operator.
        forward: As :func:`fssa_bayes.kernels.chunked.forward`.
        backward: As :func:`fssa_bayes.kernels.chunked.backward`.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., tuple[Tensor, Tensor]],
        backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]],
    ) -> None:
        self.name, self.forward, self.backward = name, forward, backward
        forward_op = torch.library.custom_op(
            f"fssa_bayes::{name}",
            forward,
            mutates_args=(),
            schema=f"({_INPUTS}, bool save) -> (Tensor, Tensor)",
        )
        backward_op = torch.library.custom_op(
            f"fssa_bayes::{name}_backward",
            backward,
            mutates_args=(),
            schema=f"(Tensor grad, Tensor residual, {_INPUTS}, bool[] needs) "
            "-> (Tensor, Tensor, Tensor, Tensor)",
        )
        forward_op.register_fake(fake_forward)
        backward_op.register_fake(fake_backward)

        def pull(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
            return pull_back(ctx, grad, backward_op)

        forward_op.register_autograd(pull, setup_context=save_inputs)
        self.forward_op, self.backward_op = forward_op, backward_op

    def __call__(
        self,
        item: Tensor | None,
        user: Tensor,
        weight: Tensor | None,
        comparisons: Comparisons,
    ) -> Tensor:
        """Evaluates the operation for the inputs of a utility; see :mod:`fssa_bayes.kernels`."""
        variables = (item, user, weight, comparisons.bias)
        save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in variables)
        inputs = (item, user, weight, *comparisons[:-1], save)
        if torch.compiler.is_compiling():
            return self.forward_op(*inputs)[0]
        return Eager.apply(self, *inputs)[0]


class Eager(Function):
    """Runs a backend's functions without the custom operator around them."""

    @staticmethod
    def forward(operation: Operation, *inputs: Any) -> tuple[Tensor, Tensor]:
        return operation.forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.operation = inputs[0]
        ctx.mark_non_differentiable(output[1])
        save_inputs(ctx, inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        return None, *pull_back(ctx, grad, ctx.operation.backward, needs)


def save_inputs(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    """Keeps what :func:`pull_back` needs of an operation's inputs and of its two outputs."""
    *tensors, form, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.form = form
    ctx.save_for_backward(output[1], *tensors)


def pull_back(
    ctx: Any,
    grad: Tensor | None,
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]],
    needs: Sequence[bool] | None = None,
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of item, user, weight and bias, with None for all other inputs."""
    needs = ctx.needs_input_grad if needs is None else needs
    needs = [needs[0], needs[1], needs[2], needs[7]]
    if grad is None or not any(needs):
        return (None,) * 10
    residual, *inputs = ctx.saved_tensors
    if torch.is_grad_enabled() or is_batched(grad):
        grads = differentiable_gradients(grad, inputs, ctx.form, needs)
    else:
        grads = backward(grad, residual, *inputs, ctx.form, needs)
    item, user, weight, bias = (g if need else None for g, need in zip(grads, needs, strict=True))
    return item, user, weight, None, None, None, None, bias, None, None


def differentiable_gradients(
    grad: Tensor, inputs: list[Tensor | None], form: str, needs: list[bool]
) -> list[Tensor | None]:
    """Computes gradients by the reference, of which PyTorch knows every derivative."""
    item, user, weight, *rest = inputs
    bias = rest[-1]
    with torch.enable_grad():
        result = reference.run(item, user, weight, Comparisons(*rest, form))
    variables = (item, user, weight, bias)
    wanted = [tensor for tensor, need in zip(variables, needs, strict=True) if need]
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=torch.is_grad_enabled()))
    return [next(found) if need else None for need in needs]


def fake_forward(
    item: Tensor | None,
    user: Tensor,
    weight: Tensor | None,
    left: Tensor,
    right: Tensor,
    choice: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    form: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Allocates the results of a forward, with which compilers trace programs."""
    draws, (users, comparisons) = user.shape[0], left.shape
    if form == "sum":
        result = user.new_empty(draws, users)
    else:
        result = user.new_empty(users, comparisons, draws).permute(2, 0, 1)
    saves = save and weight is not None and form != "margin"
    return result, user.new_empty((users, comparisons, draws) if saves else 0)


def fake_backward(
    grad: Tensor,
    residual: Tensor,
    item: Tensor | None,
    user: Tensor,
    weight: Tensor | None,
    left: Tensor,
    right: Tensor,
    choice: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    form: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocates the results of a backward, with which compilers trace programs."""
    item_grad, user_grad, weight_grad = (
        user.new_empty(0 if tensor is None or not need else tensor.shape)
        for tensor, need in zip((item, user, weight), needs[:3], strict=True)
    )
    return item_grad, user_grad, weight_grad, user.new_empty(())
