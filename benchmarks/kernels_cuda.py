"""Pairwise log-likelihoods on a CUDA GPU: kernel time against the device's measured ceilings.

The ceilings are measured in the same run: bytes per second of a large copy, operations per second
of a large float32 matrix product. Bytes are what must be moved at least once: every input read,
every result and gradient written. Operations are those of the margins: one for each comparison
(`gather`), two for each factor (`bilinear`), four for each hidden unit (`mlp`); forward and
backward count three times as many. `compiled simple` is `torch.compile` of the simple eager form.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.harness import Row, spread
from benchmarks.kernels import Case, Problem, cases, ours, simple

__all__ = ["run"]


def run(args: argparse.Namespace) -> Iterator[Row]:
    if not args.device.startswith("cuda"):
        print("kernels_cuda: skipped, it needs --device cuda")
        return
    copy, product = _ceilings(args)
    yield spread("kernels_cuda", "copy", "torch", "ceiling", "GB/s", [copy / 1e9])
    yield spread("kernels_cuda", "float32 matmul", "torch", "ceiling", "GFLOP/s", [product / 1e9])
    for case in cases(args.quick, args.device):
        if case.users > 8:
            yield from _case(case, copy, product, args)


def _case(case: Case, copy: float, product: float, args: argparse.Namespace) -> Iterator[Row]:
    p = _split(Problem.draw(case, args.device))
    grad = torch.randn(case.draws, case.users, device=args.device)
    torch._dynamo.reset()
    functions = {"compiled simple": torch.compile(_simple, dynamic=False), "ours": _ours}
    for metric in ("forward", "forward and backward"):

        def step(function: Callable[[Problem], Tensor], metric: str = metric) -> None:
            if metric == "forward":
                with torch.no_grad():
                    function(p)
            else:
                torch.autograd.grad(function(p), p.inputs, grad)

        times = {name: _milliseconds(lambda f=f: step(f), args) for name, f in functions.items()}
        moved, done = _work(case, p, metric)
        for name, values in times.items():
            seconds = statistics.median(values) / 1e3
            ratio = statistics.median(times["compiled simple"]) / statistics.median(values)
            case_name = str(case)
            yield spread(
                "kernels_cuda", case_name, name, metric, "ms", values,
                "faster: compiled simple", ratio,
            )  # fmt: skip
            yield spread(
                "kernels_cuda", case_name, name, f"{metric}, bytes", "GB/s",
                [moved / seconds / 1e9], "of copy", moved / seconds / copy,
            )  # fmt: skip
            yield spread(
                "kernels_cuda", case_name, name, f"{metric}, operations", "GFLOP/s",
                [done / seconds / 1e9], "of matmul", done / seconds / product,
            )  # fmt: skip


def _split(p: Problem) -> Problem:
    """Takes the mlp's first-layer products, which are not the kernels', out of what is timed."""
    if len(p.inputs) == 4:
        items, z, first, weight = (t.detach() for t in p.inputs)
        width = items.shape[-1]
        hidden = (items @ first[:, :width].T, z @ first[:, width:].T, weight)
        p.inputs = [t.requires_grad_() for t in hidden]
    return p


def _simple(p: Problem) -> Tensor:
    if len(p.inputs) < 3:
        return simple(p)
    items, user, weight = p.inputs
    left, right = (
        torch.relu(items[index] + user.unsqueeze(-2)) @ weight for index in (p.left, p.right)
    )
    sign = 2 * p.choice - 1
    return (torch.nn.functional.logsigmoid(sign * (left - right)) * p.mask).sum(-1)


def _ours(p: Problem) -> Tensor:
    if len(p.inputs) < 3:
        return ours(p)
    from fssa_bayes import kernels

    return kernels.pairwise_mlp(*p.inputs, p.left, p.right, p.choice, p.mask)


def _work(case: Case, p: Problem, metric: str) -> tuple[float, float]:
    """Returns the bytes that must be moved, and the operations of the margins."""
    inputs = sum(t.numel() * t.element_size() for t in p.inputs)
    indices = sum(t.numel() * t.element_size() for t in (p.left, p.right, p.choice, p.mask))
    results = 4 * case.draws * case.users
    each = {"gather": 1, "bilinear": 2 * case.width, "mlp": 4 * case.width}[case.operation]
    done = each * case.draws * case.users * case.comparisons
    if metric == "forward":
        return inputs + indices + results, done
    return 3 * inputs + 2 * indices + 2 * results, 3 * done


def _ceilings(args: argparse.Namespace) -> tuple[float, float]:
    """Measures bytes per second of a copy and operations per second of a float32 product."""
    size = 2**20 if args.quick else 2**28
    source = torch.ones(size, device=args.device)
    target = torch.empty_like(source)
    copy = statistics.median(_milliseconds(lambda: target.copy_(source), args))
    width = 512 if args.quick else 8192
    square = torch.ones(width, width, device=args.device)
    product = statistics.median(_milliseconds(lambda: square @ square, args))
    return 8 * size / copy * 1e3, 2 * width**3 / product * 1e3


def _milliseconds(function: Callable[[], object], args: argparse.Namespace) -> list[float]:
    """Times a function on the device itself, after it has been compiled and warmed up."""
    for _ in range(3):
        function()
    times = []
    for _ in range(5 if args.quick else 20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return times
