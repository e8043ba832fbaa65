"""The Triton programs: on a GPU where there is one, and on a CPU by Triton's interpreter.

Whether Triton interprets is decided by its import, and an interpreting process cannot compile. So
one test runs this file's GPU tests in a process of its own that interprets; elsewhere they need a
GPU. What holds for every backend is in `kernel_problems.py`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from kernel_problems import (
    OPERATIONS,
    SIZES,
    Operation,
    Problem,
    assert_agrees_with_a_loop,
    assert_exact_at_the_edges,
    assert_garbage_under_the_mask_changes_nothing,
    assert_nan_stays_with_its_user,
    assert_not_finite_is_never_hidden,
    assert_soft_labels_agree_with_a_loop,
    assert_swapping_sides_and_choice_changes_nothing,
    assert_wider_padding_changes_nothing,
    normal,
    problem,
)
from torch import Tensor

from fssa_bayes.kernels import backends, chunked, reference
from fssa_bayes.kernels.comparisons import Comparisons

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton, which there is for Linux alone", allow_module_level=True)

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETS else "cuda"
# Smaller than for other backends: the interpreter runs one program after the other.
SMALL_SIZES = SIZES | {"odd": (3, 5, 7, 9)}
FORMS = ({}, {"reduce": False}, {"output": "margin"})

pytestmark = [
    # A test of what is not finite makes NaN, of which NumPy warns the interpreter.
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]


def programs(test: Callable) -> Callable:
    """Marks what runs on a GPU, or in the process that interprets."""
    missing = not INTERPRETS and not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(missing, reason="needs a CUDA device")(test))


def on_device(run: Callable[..., Tensor], *tensors: Tensor | None, **options: object) -> Tensor:
    """Runs an operation on the tests' device, with inputs and results on the CPU."""

    def move(value: object) -> object:
        return value.to(DEVICE) if isinstance(value, Tensor) else value

    options = {name: move(value) for name, value in options.items()}
    return run(*map(move, tensors), **options).cpu()


DEVICE_OPERATIONS = {
    name: operation._replace(run=partial(on_device, operation.run))
    for name, operation in OPERATIONS.items()
}
every_operation = pytest.mark.parametrize(
    "operation", DEVICE_OPERATIONS.values(), ids=DEVICE_OPERATIONS.keys()
)


def evaluate(
    operation: Operation,
    p: Problem,
    backend: str,
    dtype: torch.dtype = torch.float64,
    **form: object,
) -> list[Tensor]:
    """Returns the value and every gradient, those of inputs and of the position bias."""
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in p.inputs]
    bias = torch.tensor(0.3, dtype=dtype, requires_grad=True)
    value = p._replace(inputs=inputs).run(operation, backend=backend, position_bias=bias, **form)
    weight = torch.linspace(-1, 2, value.numel(), dtype=dtype).view(value.shape)
    return [value, *torch.autograd.grad((value * weight).sum(), [*inputs, bias])]


def assert_same(p: Problem, operation: Operation, **form: object) -> None:
    """Compares value and gradients with the reference."""
    found, truth = (evaluate(operation, p, backend, **form) for backend in ("triton", "reference"))
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@programs
@every_operation
@pytest.mark.parametrize("size", SMALL_SIZES.values(), ids=SMALL_SIZES.keys())
def test_agrees_with_a_loop_and_the_reference(
    operation: Operation, size: tuple[int, int, int, int]
) -> None:
    assert_agrees_with_a_loop(operation, "triton", size, -0.8)
    if size == SMALL_SIZES["odd"]:
        assert_soft_labels_agree_with_a_loop(operation, "triton")
    p = problem(operation, *size)
    for form in FORMS:
        assert_same(p, operation, **form)
    assert_same(p._replace(mask=None), operation)


@programs
@pytest.mark.parametrize("name", ["gather", "shared", "bilinear", "mlp"])
def test_more_than_one_tile_of_everything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every axis needs several tiles, items several pieces, and users several turns."""
    from fssa_bayes.kernels import triton

    monkeypatch.setattr(triton.limits, "rows", 1)
    monkeypatch.setattr(triton.limits, "piece", 8)
    operation, g = DEVICE_OPERATIONS[name], torch.Generator().manual_seed(2)
    draws, users, items, width = 65, 2, 3, 70 if name == "bilinear" else 37
    num = {"mlp": 9, "bilinear": 35}.get(name, 66)
    p = problem(operation, draws, users, num, items)
    shapes = {
        "gather": [(draws, users, 67)],
        "shared": [(draws, 1, items)],
        "bilinear": [(items, width), (draws, users, width)],
        "mlp": [(items, width), (draws, users, width), (width,)],
    }[name]
    p = p._replace(inputs=[normal(*shape, generator=g) for shape in shapes])
    assert_same(p, operation)
    assert_same(p._replace(mask=None), operation, reduce=False)


@programs
@every_operation
def test_axes_of_length_zero(operation: Operation) -> None:
    """No draws, no users or no comparisons: values of the right shape, gradients of 0."""
    whole = problem(operation, 3, 2, 4, 5)
    for draws, users, num in ((0, 2, 4), (3, 0, 4), (3, 2, 0), (0, 0, 0)):
        inputs = [t[:draws, :users] if t.ndim == 3 else t for t in whole.inputs]
        p = Problem(inputs, *(t[:users, :num] for t in whole[1:]))
        for form in FORMS:
            found = evaluate(operation, p, "triton", **form)
            truth = evaluate(operation, p, "reference", **form)
            for one, other in zip(found, truth, strict=True):
                assert torch.equal(one, other)


@programs
@every_operation
def test_single_precision_is_exact_at_the_edges(operation: Operation) -> None:
    for margin in (-1e4, -40.0, -20.0, -1.0, 0.0, 1.0, 20.0, 40.0, 1e4):
        for choice in (0.0, 0.5, 1.0):
            assert_exact_at_the_edges(operation, "triton", margin, choice)


@programs
@every_operation
def test_single_precision_is_as_exact_as_it_can_be(operation: Operation) -> None:
    p = problem(operation, 20, 5, 40, 50)
    p = p._replace(inputs=[t.float() for t in p.inputs])
    truth = evaluate(operation, p, "reference")
    for one, other in zip(evaluate(operation, p, "triton", torch.float32), truth, strict=True):
        assert (one - other).abs().max() < 2e-6 * other.abs().max()


@programs
@every_operation
def test_garbage_under_the_mask_changes_nothing(operation: Operation) -> None:
    for index, form in zip((-7, 10**9, -7), FORMS, strict=True):
        assert_garbage_under_the_mask_changes_nothing(operation, "triton", index, form)
    assert_wider_padding_changes_nothing(operation, "triton")
    assert_swapping_sides_and_choice_changes_nothing(operation, "triton")


@programs
@every_operation
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_never_hidden(operation: Operation, value: float) -> None:
    for form in FORMS[::2]:
        assert_not_finite_is_never_hidden(operation, "triton", value, form)


@programs
@pytest.mark.parametrize("name", ["gather", "many items", "bilinear", "mlp"])
def test_nan_stays_with_its_user(name: str) -> None:
    for place in ("user", "choice"):
        assert_nan_stays_with_its_user(DEVICE_OPERATIONS[name], place, "triton")


@programs
@every_operation
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_items_and_users_without_comparisons_have_no_effect(
    operation: Operation, value: float
) -> None:
    p = problem(operation, 3, 4, 6, 5)
    p = p._replace(left=p.left % 3, right=(p.left % 3) + 1)
    dirty = [tensor.clone() for tensor in p.inputs]
    if len(dirty) == 1:
        dirty[0][..., 4] = value
    else:
        dirty[0][4], dirty[1][:, 3] = value, value  # The last user has no comparisons.
    clean = evaluate(operation, p, "triton")
    found = evaluate(operation, p._replace(inputs=dirty), "triton")
    for one, other in zip(found, clean, strict=True):
        assert torch.equal(one, other)


@programs
@every_operation
def test_positions_outside_the_table_give_nan_and_are_not_read(operation: Operation) -> None:
    """Where positions are not checked beforehand, a wrong one makes its user's result NaN."""
    from fssa_bayes.kernels import triton

    p = problem(operation, 3, 4, 6, 5)
    item, user, weight = inputs_of(p)
    for wrong in (-1, 10**9):
        left = p.left.clone()
        left[1, 0] = wrong
        rest = (left, p.right, p.choice, None, None)
        for form in ("sum", "each"):
            inputs = [t if t is None else t.to(DEVICE) for t in (item, user, weight, *rest)]
            value, residual = triton.forward(*inputs, form, True)
            hurt = value.isnan() if form == "sum" else value.isnan().any(-1)
            assert hurt.cpu().equal(torch.tensor([False, True, False, False]).expand(3, 4))
            needs = [item is not None, True, weight is not None, True]
            grads = triton.backward(torch.ones_like(value), residual, *inputs, form, needs)
            spoilt = grads[1].isnan().any(-1)
            # Shared utilities have one gradient for all users.
            assert spoilt.equal(hurt if spoilt.shape == hurt.shape else hurt.any(1, keepdim=True))


@programs
@every_operation
def test_inputs_may_have_any_memory_layout(operation: Operation) -> None:
    """Expanded and transposed inputs, and gradients of one input at a time."""
    p = problem(operation, 4, 3, 6, 5)
    for change in (
        lambda t: t[:1].expand(4, *t.shape[1:]) if t.ndim == 3 else t,
        lambda t: t[..., :1].expand(t.shape),
        lambda t: t[:, :1].expand(t.shape) if t.ndim == 3 else t,
        lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
        lambda t: torch.stack([t, t], -1)[..., 1],
    ):
        inputs = [change(t) for t in p.inputs]
        moved = p._replace(
            inputs=inputs,
            left=p.left.T.contiguous().T,
            choice=torch.stack([p.choice] * 2, -1)[..., 0],
        )
        for asked in range(len(inputs)):
            results = []
            for backend in ("reference", "triton"):
                mine = [t.detach().requires_grad_(i == asked) for i, t in enumerate(inputs)]
                value = moved._replace(inputs=mine).run(operation, backend=backend)
                # The gradient of a sum is expanded: all its entries share one place in memory.
                results.append([value, *torch.autograd.grad(value.sum(), mine[asked])])
            for found, truth in zip(*results, strict=True):
                torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


@programs
@every_operation
def test_poisoned_memory_is_not_read_and_runs_repeat(
    operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(operation, 3, 4, 6, 5)
    first = [evaluate(operation, p, "triton", **form) for form in FORMS]
    fresh = Tensor.new_empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        tensor = fresh(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    for form, truth in zip(FORMS, first, strict=True):
        for one, other in zip(evaluate(operation, p, "triton", **form), truth, strict=True):
            assert torch.equal(one, other)


@programs
@every_operation
def test_gradients_agree_with_finite_differences(operation: Operation) -> None:
    p = problem(operation, 2, 2, 3, 3)
    variables = [tensor.requires_grad_() for tensor in p.inputs]
    variables.append(torch.tensor(0.3, dtype=torch.float64, requires_grad=True))

    def run(*tensors: Tensor) -> Tensor:
        changed = p._replace(inputs=tensors[:-1])
        return changed.run(operation, backend="triton", position_bias=tensors[-1])

    assert torch.autograd.gradcheck(run, variables, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, variables, fast_mode=True)


def inputs_of(p: Problem) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Returns a problem's item, user and weight, None where there is none."""
    return {1: (None, *p.inputs, None), 2: (*p.inputs, None)}.get(len(p.inputs), tuple(p.inputs))


@programs
@every_operation
def test_custom_operator_is_sound(operation: Operation) -> None:
    from fssa_bayes.kernels import triton

    p = problem(operation, 3, 2, 4, 5)
    variables = [t if t is None else t.to(DEVICE).requires_grad_() for t in inputs_of(p)]
    index = [side.masked_fill(~p.mask, 0) for side in (p.left, p.right)]
    bias = torch.tensor(0.3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    for form in ("sum", "each", "margin"):
        choice = None if form == "margin" else p.choice.to(DEVICE)
        rest = (*(side.to(DEVICE) for side in index), choice, p.mask.to(DEVICE), bias, form, True)
        torch.library.opcheck(triton.operation.forward_op, (*variables, *rest))


@programs
@pytest.mark.parametrize("name", ["gather", "bilinear", "mlp"])
def test_whole_programs_are_traced(name: str) -> None:
    """As one graph, from the choice of the backend on."""
    p = problem(OPERATIONS[name], 3, 2, 4, 5)
    inputs = [tensor.to(DEVICE).requires_grad_() for tensor in p.inputs]
    rest = [tensor.to(DEVICE) for tensor in p[1:]]

    def run() -> Tensor:
        return OPERATIONS[name].run(*inputs, *rest, backend="triton").exp()

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")()
    plain = run()
    torch.testing.assert_close(compiled, plain)
    expected = torch.autograd.grad(plain.sum(), inputs)
    for found, truth in zip(torch.autograd.grad(compiled.sum(), inputs), expected, strict=True):
        torch.testing.assert_close(found, truth)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETS, reason="interprets already")
def test_the_interpreter_agrees() -> None:
    """Runs the tests of the programs in a process that interprets them; none may be skipped."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        __file__,
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\d+ passed", run.stdout), run.stdout
    assert "skipped" not in run.stdout, run.stdout


@pytest.mark.skipif(INTERPRETS, reason="interprets already")
def test_a_cpu_is_refused_without_the_interpreter() -> None:
    p = problem(OPERATIONS["mlp"], 2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"inputs must be on a CUDA device.*got cpu"):
        p.run(OPERATIONS["mlp"], backend="triton")
    half = p._replace(inputs=[tensor.half() for tensor in p.inputs])
    with pytest.raises(TypeError, match=r"float32 or float64 with backend='triton', got.*float16"):
        half.run(OPERATIONS["mlp"], backend="triton")


def test_without_triton_the_backend_says_so() -> None:
    p = problem(OPERATIONS["mlp"], 2, 3, 4, 5)
    comparisons = Comparisons(p.left, p.right, p.choice, p.mask, None, "sum")
    with pytest.raises(ValueError, match=r"backend must not be 'triton' where Triton is not"):
        backends.named("triton", *p.inputs[:2], comparisons, has_triton=False)


def test_which_backend_runs_on_a_gpu() -> None:
    from fssa_bayes.kernels import triton

    with torch._subclasses.FakeTensorMode():
        index = torch.zeros(3, 4, dtype=torch.int64, device="cuda")
        expected = {
            torch.float32: triton.operation,
            torch.float64: chunked.operation,
            torch.float16: reference.run,
        }
        for dtype, backend in expected.items():
            user = torch.zeros(2, 3, 5, dtype=dtype, device="cuda")
            comparisons = Comparisons(index, index, index.to(dtype), None, None, "sum")
            assert backends.fastest(user, None, comparisons) is backend
        without = backends.fastest(user.float(), None, comparisons, has_triton=False)
        assert without is chunked.operation


class Launch:
    """Records launches and starts none."""

    def __init__(self) -> None:
        self.noted: dict[tuple, tuple] = {}

    def __call__(
        self, kernel: object, programs: int, args: tuple, tile: dict, warps: int = 4
    ) -> None:
        kinds = tuple(arg.dtype if isinstance(arg, Tensor) else arg is None for arg in args)
        self.noted[kernel.__name__, kinds, tuple(tile.items())] = (kernel, args, tile, warps)


def compiled(kernel: object, args: tuple, tile: dict, warps: int, target: object) -> object:
    """Compiles a launch as Triton would: 1 is a constant, and what is divisible by 16 is known."""
    import triton
    from triton.compiler import ASTSource

    from fssa_bayes.kernels.triton import OPTIONS

    types = {torch.float32: "fp32", torch.int64: "i64", torch.int32: "i32", torch.int8: "i8"}
    signature, constants, attributes = {}, dict(tile), {}
    for place, (name, arg) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if isinstance(arg, Tensor):
            signature[name] = f"*{types[arg.dtype]}"
        elif arg is None or arg == 1:
            signature[name], constants[name] = "constexpr", arg
        else:
            signature[name] = "i32"
        if isinstance(arg, Tensor) or (isinstance(arg, int) and arg != 1 and arg % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(tile, "constexpr")
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options={"num_warps": warps, **OPTIONS})


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETS, reason="cannot compile where it interprets")
@pytest.mark.parametrize("name", ["gather", "shared", "bilinear", "mlp", "odd mlp"])
def test_programs_compile_for_sm_90_and_nothing_spills(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ahead of time, without a GPU; the registers and the stack are those of the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget

    from fssa_bayes.kernels import triton as backend

    launch = Launch()
    monkeypatch.setattr(backend, "launch", launch)
    draws, users, num, items, width = 64, 16, 50, 160, 37 if name == "odd mlp" else 256
    item, user, weight = {
        "gather": (None, torch.zeros(draws, users, 50), None),
        "shared": (None, torch.zeros(draws, 1, 50), None),
        "bilinear": (torch.zeros(items, 32), torch.zeros(draws, users, 32), None),
    }.get(name, (torch.zeros(items, width), torch.zeros(draws, users, width), torch.zeros(width)))
    index = torch.zeros(users, num, dtype=torch.int64)
    rest = (index, index, index.float(), index == 0, torch.zeros(()))
    for form in ("sum", "each") if name in ("bilinear", "mlp") else ("sum",):
        value, residual = backend.forward(item, user, weight, *rest, form, True)
        needs = [item is not None, True, weight is not None, True]
        backend.backward(value, residual, item, user, weight, *rest, form, needs)
    assert launch.noted
    for kernel, args, tile, warps in launch.noted.values():
        cubin = tmp_path / "program.cubin"
        program = compiled(kernel, args, tile, warps, GPUTarget("cuda", 90, 32))
        cubin.write_bytes(program.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        assert found, usage
        registers, stack, local = map(int, found.groups())
        assert stack == local == 0, f"{kernel.__name__} {tile} spills: {usage}"
        assert registers <= 255
