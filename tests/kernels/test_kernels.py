"""The pairwise log-likelihoods by every backend that runs on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

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
    problem,
)
from torch import Tensor
from torch.autograd import forward_ad

from fssa_bayes.kernels.chunked import limits
from fssa_bayes.kernels.workers import run_in_parts

every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
every_backend = pytest.mark.parametrize("backend", [None, "reference", "chunked"])


@pytest.fixture(autouse=True)
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes an mlp by utilities of all items for `by_table`, and for no other operation."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if "operation" in parameters:
        monkeypatch.setattr(limits, "table_items", 1e9 * parameters["operation"].by_table)


@pytest.fixture(params=[1, 3])
def tiny_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cuts every axis of the smallest problem into several blocks, on one thread and on three."""
    monkeypatch.setattr(limits, "least_part", 1)
    monkeypatch.setattr(limits, "margins", 6)
    monkeypatch.setattr(limits, "hidden", 30)
    monkeypatch.setattr(limits, "rows", 60)
    monkeypatch.setattr(limits, "least_comparisons", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(threads)


@every_operation
@every_backend
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("position_bias", [0.0, -0.8])
@pytest.mark.usefixtures("tiny_blocks")
def test_agrees_with_a_loop(
    operation: Operation, backend: str | None, size: tuple[int, int, int, int], position_bias: float
) -> None:
    assert_agrees_with_a_loop(operation, backend, size, position_bias)


@every_operation
@every_backend
@pytest.mark.usefixtures("tiny_blocks")
def test_soft_labels_agree_with_a_loop(operation: Operation, backend: str | None) -> None:
    assert_soft_labels_agree_with_a_loop(operation, backend)


@every_operation
@every_backend
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", [{}, {"reduce": False}, {"output": "margin"}])
def test_positions_outside_of_the_table_are_refused(
    operation: Operation, backend: str | None, side: str, form: dict
) -> None:
    """Another person's utilities lie next to a person's own: every position is tried there."""
    p = problem(operation, 3, 4, 6, 5)
    num_items = p.inputs[0].shape[-1 if len(p.inputs) == 1 else 0]
    for wrong in (-1, -num_items, num_items, 2 * num_items - 1, 10**9):
        for user, column in ((0, 0), (2, 0)):
            index = getattr(p, side).clone()
            index[user, column] = wrong
            with pytest.raises(ValueError, match=f"{side} must be positions .* got {wrong}"):
                p._replace(**{side: index}).run(operation, backend=backend, **form)


@every_operation
@every_backend
@pytest.mark.parametrize("wrong", [-1e-6, 1.001, 2.0, torch.inf])
def test_choices_outside_of_the_unit_interval_are_refused(
    operation: Operation, backend: str | None, wrong: float
) -> None:
    p = problem(operation, 3, 4, 6, 5)
    p.choice[0, 0], p.choice[2, 0] = torch.nan, wrong  # A NaN does not hide another's choice.
    with pytest.raises(ValueError, match="choice must be from 0 to 1, got"):
        p.run(operation, backend=backend)
    # Under a transform values cannot be looked at, and the person's result is NaN.
    found = torch.func.vmap(lambda y: p._replace(choice=y).run(operation))(p.choice.unsqueeze(0))
    expected = torch.tensor([True, False, True, False]).expand(1, 3, 4)
    assert torch.equal(found.isnan(), expected)


@every_operation
@every_backend
def test_missing_mask_means_all(operation: Operation, backend: str | None) -> None:
    p = problem(operation, 3, 2, 4, 5)
    everything = p._replace(mask=torch.ones_like(p.mask)).run(operation, backend=backend)
    assert torch.equal(p._replace(mask=None).run(operation, backend=backend), everything)


@every_operation
@every_backend
def test_gradients_agree_with_finite_differences(operation: Operation, backend: str | None) -> None:
    p = problem(operation, 2, 3, 4, 5)
    variables = [tensor.requires_grad_() for tensor in p.inputs]
    variables.append(torch.tensor(0.3, dtype=torch.float64, requires_grad=True))

    def run(*tensors: Tensor) -> Tensor:
        return p._replace(inputs=tensors[:-1]).run(
            operation, backend=backend, position_bias=tensors[-1]
        )

    assert torch.autograd.gradcheck(run, variables)
    assert torch.autograd.gradgradcheck(run, variables)


@every_operation
@every_backend
@pytest.mark.parametrize("choice", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("margin", [-1e4, -40.0, -20.0, -1.0, 0.0, 1.0, 20.0, 40.0, 1e4])
def test_single_precision_is_exact_at_the_edges(
    operation: Operation, backend: str | None, margin: float, choice: float
) -> None:
    """No clamp, no rounding of log(1 + exp) to 0: value and gradient keep their digits."""
    assert_exact_at_the_edges(operation, backend, margin, choice)


@every_operation
@every_backend
@pytest.mark.parametrize("index", [-7, 10**9])
@pytest.mark.parametrize("options", [{}, {"reduce": False}, {"output": "margin"}])
def test_garbage_under_the_mask_changes_nothing(
    operation: Operation, backend: str | None, index: int, options: dict
) -> None:
    assert_garbage_under_the_mask_changes_nothing(operation, backend, index, options)


@every_operation
@every_backend
def test_wider_padding_changes_nothing(operation: Operation, backend: str | None) -> None:
    assert_wider_padding_changes_nothing(operation, backend)


@every_backend
@pytest.mark.parametrize("name", ["gather", "many items", "bilinear", "mlp"])
@pytest.mark.parametrize("place", ["user", "choice"])
def test_nan_stays_with_its_user(name: str, place: str, backend: str | None) -> None:
    assert_nan_stays_with_its_user(OPERATIONS[name], place, backend)


@every_operation
@every_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_items_and_users_without_comparisons_have_no_effect(
    operation: Operation, backend: str | None, value: float
) -> None:
    """NaN or infinity of an item in no pair, or of a user without comparisons: on no gradient."""
    p = problem(operation, 3, 4, 6, 5)
    p = p._replace(left=p.left % 3, right=(p.left % 3) + 1)
    results = []
    for dirty in (False, True):
        inputs = [tensor.clone() for tensor in p.inputs]
        if dirty:
            if len(inputs) == 1:
                inputs[0][..., 4] = value
            else:
                inputs[0][4] = value
            # The plain weight's gradient is 0·relu(NaN), which is not 0.
            if len(inputs) == 2 or (len(inputs) == 3 and backend == "chunked"):
                inputs[1][:, 3] = value
        inputs = [tensor.requires_grad_() for tensor in inputs]
        result = p._replace(inputs=inputs).run(operation, backend=backend)
        results.append([result, *torch.autograd.grad(result.square().sum(), inputs)])
    for clean, found in zip(*results, strict=True):
        torch.testing.assert_close(found, clean)


@every_operation
@every_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("form", [{}, {"reduce": False}, {"output": "margin"}])
def test_what_is_not_finite_is_never_hidden(
    operation: Operation, backend: str | None, value: float, form: dict
) -> None:
    """A NaN anywhere leaves nothing finite; under an infinity what is finite is the limit."""
    assert_not_finite_is_never_hidden(operation, backend, value, form)


@every_operation
@pytest.mark.parametrize("form", [{}, {"reduce": False}, {"output": "margin"}])
@pytest.mark.usefixtures("tiny_blocks")
def test_blocks_add_up(operation: Operation, form: dict) -> None:
    """Value and every gradient, against the reference, with every axis cut into blocks."""
    p = problem(operation, 5, 7, 11, 13)
    variables = [tensor.requires_grad_() for tensor in p.inputs]
    bias = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    results = []
    for backend in ("reference", "chunked"):
        value = p.run(operation, backend=backend, position_bias=bias, **form)
        weight = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view(value.shape)
        results.append([value, *torch.autograd.grad((value * weight).sum(), [*variables, bias])])
    for found, truth in zip(*results, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-11)


@every_operation
def test_inputs_may_have_any_memory_layout(operation: Operation) -> None:
    """Expanded and transposed inputs, and gradients of one input at a time."""
    p = problem(operation, 4, 3, 6, 5)
    user = min(1, len(p.inputs) - 1)
    for change in (
        lambda t: t[:1].expand(4, *t.shape[1:]),
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: torch.stack([t, t], -1)[..., 1],
    ):
        inputs = [change(t) if i == user else t for i, t in enumerate(p.inputs)]
        for asked in range(len(inputs)):
            results = []
            for backend in ("reference", "chunked"):
                mine = [t.detach().requires_grad_(i == asked) for i, t in enumerate(inputs)]
                value = p._replace(inputs=mine).run(operation, backend=backend)
                results.append([value, *torch.autograd.grad(value.square().sum(), mine[asked])])
            for found, truth in zip(*results, strict=True):
                torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


@every_operation
def test_poisoned_memory_is_not_read(operation: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values in fresh memory have no effect on results, nor has an earlier run."""
    p = problem(operation, 3, 4, 6, 5)

    def run() -> list[Tensor]:
        inputs = [tensor.clone().requires_grad_() for tensor in p.inputs]
        value = p._replace(inputs=inputs).run(operation, backend="chunked")
        return [value, *torch.autograd.grad(value.square().sum(), inputs)]

    first = run()
    fresh = Tensor.new_empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        return fresh(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    for _ in range(2):
        for found, truth in zip(run(), first, strict=True):
            assert torch.equal(found, truth)


@every_operation
def test_single_precision_is_as_exact_as_it_can_be(operation: Operation) -> None:
    p = problem(operation, 30, 20, 40, 50)
    results = []
    for dtype in (torch.float64, torch.float32):
        inputs = [tensor.float().to(dtype).requires_grad_() for tensor in p.inputs]
        value = p._replace(inputs=inputs).run(operation, backend="chunked")
        results.append([value, *torch.autograd.grad(value.sum(), inputs)])
    for truth, found in zip(*results, strict=True):
        assert (found - truth).abs().max() < 2e-6 * truth.abs().max()


@every_operation
def test_custom_operator_is_sound(operation: Operation) -> None:
    p = problem(operation, 3, 4, 5, 6)
    tensors = [tensor.requires_grad_() for tensor in p.inputs]
    item, user, weight = {1: (None, *tensors, None), 2: (*tensors, None)}.get(len(tensors), tensors)
    index = [side.masked_fill(~p.mask, 0) for side in (p.left, p.right)]
    bias = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for form in ("sum", "each", "margin"):
        choice = None if form == "margin" else p.choice
        inputs = (item, user, weight, *index, choice, p.mask, bias, form, True)
        torch.library.opcheck(torch.ops.fssa_bayes.chunked.default, inputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", ["gather", "bilinear", "mlp"])
def test_whole_programs_compile(name: str) -> None:
    operation = OPERATIONS[name]
    p = problem(operation, 3, 4, 5, 6)
    inputs = [tensor.requires_grad_() for tensor in p.inputs]
    plain = p.run(operation, backend="chunked").exp()
    torch._dynamo.reset()
    compiled = torch.compile(lambda: p.run(operation).exp(), fullgraph=True)()
    torch.testing.assert_close(compiled, plain)
    expected = torch.autograd.grad(plain.sum(), inputs)
    for found, truth in zip(torch.autograd.grad(compiled.sum(), inputs), expected, strict=True):
        torch.testing.assert_close(found, truth)


Derivative = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def forward_derivative(run: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The derivative by both arguments at once, in forward mode without `torch.func`."""
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(run(forward_ad.make_dual(at, torch.ones_like(at)))).tangent


def hessian_by_backward(run: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The second derivatives of the sum, by two passes backward without `torch.func`."""
    return torch.autograd.functional.hessian(lambda t: run(t).sum(), at)


def jacobian_by_backward(run: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The first derivatives, one pass backward for each result."""
    return torch.autograd.functional.jacobian(run, at)


TRANSFORMS: dict[str, tuple[Derivative, Derivative]] = {  # and the same without a transform
    "vmap": (
        lambda run, at: torch.func.vmap(run)(torch.stack([at, 2 * at])),
        lambda run, at: torch.stack([run(at), run(2 * at)]),
    ),
    "grad": (
        lambda run, at: torch.func.grad(lambda t: run(t).sum())(at),
        lambda run, at: jacobian_by_backward(run, at).sum(0),
    ),
    "vjp": (
        lambda run, at: torch.func.vjp(run, at)[1](torch.ones(4, dtype=at.dtype))[0],
        lambda run, at: jacobian_by_backward(run, at).sum(0),
    ),
    "jvp": (
        lambda run, at: torch.func.jvp(run, (at,), (torch.ones_like(at),))[1],
        lambda run, at: jacobian_by_backward(run, at).sum(1),
    ),
    "dual numbers": (
        forward_derivative,
        lambda run, at: jacobian_by_backward(run, at).sum(1),
    ),
    "jacrev": (lambda run, at: torch.func.jacrev(run)(at), jacobian_by_backward),
    "jacfwd": (lambda run, at: torch.func.jacfwd(run)(at), jacobian_by_backward),
    "hessian": (
        lambda run, at: torch.func.hessian(lambda t: run(t).sum())(at),
        hessian_by_backward,
    ),
    "gradients of many people": (
        lambda run, at: torch.func.vmap(torch.func.grad(lambda t: run(t).sum()))(
            torch.stack([at, 2 * at])
        ),
        lambda run, at: torch.stack([jacobian_by_backward(run, k * at).sum(0) for k in (1, 2)]),
    ),
    "many gradients at once": (
        lambda run, at: torch.autograd.functional.jacobian(run, at, vectorize=True),
        jacobian_by_backward,
    ),
    "hessian of many gradients": (
        lambda run, at: torch.autograd.functional.hessian(
            lambda t: run(t).sum(), at, vectorize=True
        ),
        hessian_by_backward,
    ),
}


@every_operation
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize(
    ("backend", "size"),
    [(None, (3, 4, 6, 5)), (None, (128, 4, 90, 5)), ("chunked", (3, 4, 6, 5))],
    ids=["small", "large", "chunked"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_transforms_agree_with_plain_derivatives(
    operation: Operation,
    backend: str | None,
    transform: tuple[Derivative, Derivative],
    size: tuple[int, int, int, int],
) -> None:
    """At sizes where the default is the reference, and where it is another backend."""
    p = problem(operation, *size)

    def run(at: Tensor, backend: str | None = backend) -> Tensor:
        inputs = [tensor * (1 + at[0]) for tensor in p.inputs]
        changed = p._replace(inputs=inputs)
        return changed.run(operation, backend=backend, position_bias=at[1]).mean(0)

    at = torch.tensor([0.2, -0.4], dtype=torch.float64)
    found, truth = (derivative(run, at) for derivative in transform)
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)
    plain = transform[0](lambda t: run(t, "reference"), at)
    torch.testing.assert_close(found, plain, rtol=1e-11, atol=1e-11)


def test_choices_and_masks_of_many_people_at_once() -> None:
    """Comparisons, too, may be what a transform maps over."""
    p = problem(OPERATIONS["bilinear"], 3, 4, 6, 5)
    several = [torch.stack([t, t.roll(1, 0)]) for t in (p.left, p.right, p.choice, p.mask)]

    def run(*comparisons: Tensor) -> Tensor:
        return Problem(p.inputs, *comparisons).run(OPERATIONS["bilinear"])

    found = torch.func.vmap(run)(*several)
    for one, comparisons in zip(found, zip(*several, strict=True), strict=True):
        torch.testing.assert_close(one, run(*comparisons))


@every_operation
@every_backend
def test_swapping_sides_and_choice_changes_nothing(
    operation: Operation, backend: str | None
) -> None:
    assert_swapping_sides_and_choice_changes_nothing(operation, backend)


@pytest.mark.parametrize(
    ("name", "change", "error", "match"),
    [
        (
            "gather",
            {"left": torch.ones(3, dtype=int)},
            ValueError,
            r"left must have shape \(U, N\)",
        ),
        ("gather", {"left": torch.ones(3, 4)}, TypeError, r"left must be int64, got torch.float32"),
        ("mlp", {"right": torch.ones(3, 4).int()}, TypeError, r"right must be int64.*int32"),
        ("mlp", {"right": torch.ones(3, 5).long()}, ValueError, r"right must.*\(3, 4\).*\(3, 5\)"),
        ("gather", {"choice": torch.ones(3, 1)}, ValueError, r"choice must.*\(3, 4\).*\(3, 1\)"),
        ("gather", {"choice": None}, ValueError, r"choice must be given.*got None"),
        ("bilinear", {"mask": torch.ones(3, 4)}, TypeError, r"mask must be Boolean.*float32"),
        ("bilinear", {"mask": torch.ones(4) > 0}, ValueError, r"mask must.*\(3, 4\).*\(4,\)"),
        ("gather", {"output": "prob"}, ValueError, r"output must be one of.*got 'prob'"),
        ("mlp", {"backend": "abacus"}, ValueError, r"backend must be None or.*got 'abacus'"),
        (
            "gather",
            {0: torch.ones(3, 5).double()},
            ValueError,
            r"utility must have shape.*got \(3, 5\)",
        ),
        (
            "gather",
            {0: torch.ones(2, 2, 5).double()},
            ValueError,
            r"utility must have 1 or U = 3.*\(2, 2, 5\)",
        ),
        (
            "bilinear",
            {0: torch.ones(5).double()},
            ValueError,
            r"item_factors must have shape \(M, K\).*\(5,\)",
        ),
        (
            "bilinear",
            {1: torch.ones(3, 3).double()},
            ValueError,
            r"user_factors must have shape.*\(3, 3\)",
        ),
        (
            "bilinear",
            {1: torch.ones(2, 1, 3).double()},
            ValueError,
            r"user_factors must have U = 3.*\(2, 1, 3\)",
        ),
        (
            "bilinear",
            {1: torch.ones(2, 3, 4).double()},
            ValueError,
            r"user_factors must have the width 3",
        ),
        (
            "mlp",
            {0: torch.ones(2, 5, 1).double()},
            ValueError,
            r"item_hidden must have shape.*\(2, 5, 1\)",
        ),
        (
            "mlp",
            {1: torch.ones(2, 3, 4).double()},
            ValueError,
            r"user_hidden must have the width 5",
        ),
        (
            "mlp",
            {2: torch.ones(5, 1).double()},
            ValueError,
            r"weight must have shape \(H,\), got \(5, 1\)",
        ),
        (
            "mlp",
            {2: torch.ones(4).double()},
            ValueError,
            r"weight must have the width 5 of item_hidden",
        ),
        ("gather", {0: torch.ones(2, 3, 5).int()}, TypeError, r"utility must be floating.*int32"),
        ("mlp", {2: torch.ones(5).float()}, TypeError, r"weight must be torch.float64 as item_hid"),
        (
            "bilinear",
            {1: torch.ones(2, 3, 3, device="meta", dtype=torch.float64).double()},
            ValueError,
            r"user_factors must be on cpu as item_factors is, got meta",
        ),
        (
            "gather",
            {"left": torch.ones(3, 4, device="meta").long()},
            ValueError,
            r"left must be on cpu as the utilities are, got meta",
        ),
        ("gather", {"left": torch.full((3, 4), 5)}, ValueError, r"left must be.*M - 1 = 4, got 5"),
        ("mlp", {"right": torch.full((3, 4), -1)}, ValueError, r"right must be positions.*got -1"),
        ("mlp", {"position_bias": torch.ones(1)}, ValueError, r"position_bias must be a scalar"),
        ("mlp", {"reduce": "mean"}, TypeError, r"reduce must be True or False, got 'mean'"),
        (
            "gather",
            {"backend": "chunked", 0: torch.ones(2, 3, 5).half()},
            TypeError,
            r"inputs must be float32 or float64 with backend='chunked', got torch.float16",
        ),
        (
            "gather",
            {"backend": "chunked", "choice": torch.ones(3, 4, requires_grad=True)},
            ValueError,
            r"choice must not require a gradient with backend='chunked'",
        ),
    ],
)
def test_bad_inputs_are_refused(
    name: str, change: dict, error: type[Exception], match: str
) -> None:
    p = problem(OPERATIONS[name], 2, 3, 4, 5)
    p = p._replace(mask=torch.ones_like(p.mask))
    inputs = [change.get(place, tensor) for place, tensor in enumerate(p.inputs)]
    named = {"left": p.left, "right": p.right, "choice": p.choice, "mask": p.mask}
    named |= {key: value for key, value in change.items() if isinstance(key, str)}
    with pytest.raises(error, match=match):
        OPERATIONS[name].run(*inputs, **named)


def test_workers_leave_threads_as_they_were() -> None:
    """Each works on its own thread without gradients, results keep their order, errors arrive."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        parts = run_in_parts(
            lambda part: (part, torch.get_num_threads(), torch.is_grad_enabled()), [2, 0, 1]
        )
        assert parts == [(2, 1, False), (0, 1, False), (1, 1, False)]
        with ThreadPoolExecutor(1) as pool:
            seen = pool.submit(torch.get_num_threads).result()
        assert (torch.get_num_threads(), seen) == (3, 3)
        with pytest.raises(ZeroDivisionError):
            run_in_parts(lambda part: 1 / part, [1, 0])
    finally:
        torch.set_num_threads(before)


@every_operation
@pytest.mark.usefixtures("tiny_blocks")
def test_inference_mode_changes_nothing(operation: Operation) -> None:
    p = problem(operation, 5, 7, 11, 13)
    plain = p.run(operation, backend="chunked")
    with torch.inference_mode():
        assert torch.equal(p.run(operation, backend="chunked"), plain)
