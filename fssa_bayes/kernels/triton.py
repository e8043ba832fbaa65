r"""The pairwise log-likelihoods on a CUDA GPU, in Triton; the programs are in `_programs.py`.

One launch forward and one backward, margins never in memory, no atomics and no wait for the GPU:

- Forward, a program is one user and a block of draws; it reads the user's comparisons up to the
  last and holds the block's sums. `bilinear` multiplies tiles (64 draws, 32 comparisons); `mlp`
  holds (4 comparisons, 64 draws, 32 units) of w·(max(A, −B) − max(A', −B)) and sums over units
  once, after the last unit, because sums across threads cost more than all else.
- Backward, a program is one user and a block of units or factors, and reads all draws: no other
  program adds to that part of the user's gradient. The gradient of items is written as a row for
  each comparison, for as many users at a time as fit into 256 MB; the rows are then sorted by item
  and summed in pieces of 128, so that neither a popular item nor a large table is slow.
- `gather`'s gradient multiplies by differences of one-hot rows, made in registers. Utilities that
  all users share are summed by item like the rows above.

float32 products are exact (`"ieee"`). The interpreter (`TRITON_INTERPRET=1` before Triton is
imported) runs the same programs on a CPU, slowly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fssa_bayes.kernels import _programs
from fssa_bayes.kernels._operation import Operation

__all__ = [
    "INTERPRETED",
    "OPTIONS",
    "Limits",
    "Pairs",
    "add_by_item",
    "backward",
    "bilinear_backward",
    "evaluate",
    "forward",
    "gather_backward",
    "launch",
    "limits",
    "margin_gradient",
    "mlp_backward",
    "operation",
    "shared_backward",
    "sort_by_item",
    "split_users",
    "tile_size",
]

INTERPRETED = not isinstance(_programs.segment_sum, triton.JITFunction)
"""Whether Triton's interpreter runs the programs."""

# With more stages the copies of loop bodies spill registers.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}
"""How every program is compiled."""


@dataclass(slots=True)
class Limits:
    """Holds the sizes at which the sums over an item's comparisons are divided.

    Attributes:
        rows: Numbers in the rows that are in memory at once, for all users of one launch.
        piece: Rows that one program sums.
    """

    rows: int = 2**26
    piece: int = 128


limits = Limits()
"""The sizes in force, of every call in this process. Smaller ones divide small problems as large
ones are divided."""


class Pairs(NamedTuple):
    """Holds the comparisons as the programs read them.

    Attributes:
        left: Position of the left item, int64 with shape (U, N).
        right: The same for the right item.
        choice: Choices with shape (U, N); None for margins.
        mask: 1 where there is a comparison, int8 with shape (U, N); None if everywhere.
        lengths: Number of comparisons up to a user's last, with shape (U,); None for N.
        bias: Position bias; None for 0.
    """

    left: Tensor
    right: Tensor
    choice: Tensor | None
    mask: Tensor | None
    lengths: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(
        cls,
        left: Tensor,
        right: Tensor,
        choice: Tensor | None,
        mask: Tensor | None,
        bias: Tensor | None,
    ) -> Pairs:
        """Makes comparisons contiguous, and finds the number up to each user's last comparison."""
        lengths = None
        if mask is not None:
            count = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=torch.int32)
            last = mask * count
            lengths = last.amax(1) if mask.shape[1] else last.sum(1, dtype=torch.int32)
            mask = mask.contiguous().view(torch.int8)
        choice = None if choice is None else choice.contiguous()
        return cls(left.contiguous(), right.contiguous(), choice, mask, lengths, bias)

    def of_users(self, users: slice) -> Pairs:
        """Takes the comparisons of some users."""
        *parts, bias = self
        return Pairs(*(part if part is None else part[users] for part in parts), bias)


def forward(
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
    """Evaluates log-likelihoods or margins.

    Args:
        item: As for :func:`fssa_bayes.kernels.chunked.forward`, like all others.
        user: The users' part, or utilities.
        weight: The output layer.
        left: Positions of the left items.
        right: Positions of the right items.
        choice: Choices.
        mask: Mask.
        bias: Position bias.
        form: `"sum"`, `"each"` or `"margin"`.
        save: Whether a backward is to follow.

    Returns:
        The result in its form, and for `mlp` the derivatives of the log-probabilities by the
        margins with shape (U, N, S), if a backward is to follow; otherwise nothing.
    """
    pairs = Pairs.of(left, right, choice, mask, bias)
    each = (*left.shape, user.shape[0])
    out = user.new_empty(user.shape[0], len(left)) if form == "sum" else _fresh(user, each, mask)
    saves = save and weight is not None and form != "margin"
    residual = _fresh(user, each, mask) if saves else None
    evaluate(item, user, weight, pairs, form, out, residual)
    result = out if form == "sum" else out.permute(2, 0, 1)
    return result, user.new_empty(0) if residual is None else residual


def backward(
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
    """Pulls the gradient of the result back to item, user, weight and bias.

    Args:
        grad: As for :func:`fssa_bayes.kernels.chunked.backward`, like all others.
        residual: What :func:`forward` saved, or nothing.
        item: The items' part of the utility.
        user: The users' part.
        weight: The output layer.
        left: Positions of the left items.
        right: Positions of the right items.
        choice: Choices.
        mask: Mask.
        bias: Position bias.
        form: `"sum"`, `"each"` or `"margin"`.
        needs: Which of the four gradients are asked for; the others are empty, the bias's is 0.
    """
    if not left.numel() or not len(user):
        tensors = zip((item, user, weight), needs[:3], strict=True)
        return *(user.new_zeros(t.shape if need else 0) for t, need in tensors), user.new_zeros(())
    pairs = Pairs.of(left, right, choice, mask, bias)
    if weight is not None:
        slope = margin_gradient(grad, residual, mask, form)
        item_grad, user_grad, weight_grad = mlp_backward(item, user, weight, slope, pairs, needs)
        bias_grad = slope.sum() if needs[3] else user.new_zeros(())
        return item_grad, user_grad, weight_grad, bias_grad
    if item is not None:
        item_grad, user_grad, bias_grad = bilinear_backward(grad, item, user, pairs, form, needs)
        return item_grad, user_grad, user.new_empty(0), bias_grad
    if user.shape[1] == len(left):
        user_grad, bias_grad = gather_backward(grad, user, pairs, form, needs)
    else:
        user_grad, bias_grad = shared_backward(grad, user, pairs, mask, form, needs)
    return user.new_empty(0), user_grad, user.new_empty(0), bias_grad


def _fresh(user: Tensor, shape: Sequence[int], mask: Tensor | None) -> Tensor:
    """Allocates memory for a program's result, with 0 for masked comparisons."""
    return user.new_empty(shape) if mask is None else user.new_zeros(shape)


def evaluate(
    item: Tensor | None,
    user: Tensor,
    weight: Tensor | None,
    pairs: Pairs,
    form: str,
    out: Tensor | None,
    residual: Tensor | None,
) -> None:
    """Fills `out` or `residual` or both."""
    (users, comparisons), draws = pairs.left.shape, user.shape[0]
    user = _lined_up(user)
    if item is None:
        strides = user.stride(0), user.stride(1) if user.shape[1] == users else 0
        tile = {"tile_s": tile_size(draws, 32), "tile_n": tile_size(comparisons, 64)}
        launch(
            _programs.gather_forward,
            users * triton.cdiv(draws, tile["tile_s"]),
            (user, *pairs, out, residual, draws, users, comparisons, user.shape[2], *strides),
            {"form": form, **tile},
        )
        return
    # An empty table gets a row of NaN in place of the items that comparisons name.
    item = _lined_up(item) if len(item) else item.new_full((1, item.shape[1]), torch.nan)
    sizes = (draws, users, comparisons, *item.shape, item.stride(0), *user.stride()[:2])
    if weight is None:
        tile = {"tile_s": 64, "tile_n": 32, "tile_k": 16}
        launch(
            _programs.bilinear_forward,
            users * triton.cdiv(draws, tile["tile_s"]),
            (item, user, *pairs, out, *sizes),
            {"form": form, **tile},
        )
        return
    tile = {"tile_s": tile_size(draws, 64), "tile_n": 4, "tile_h": 16}
    launch(
        _programs.mlp_forward,
        users * triton.cdiv(draws, tile["tile_s"]),
        (item, user, weight.contiguous(), *pairs, out, residual, *sizes),
        {"form": form, "even": len(weight) % tile["tile_h"] == 0, **tile},
    )


def gather_backward(
    grad: Tensor, user: Tensor, pairs: Pairs, form: str, needs: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of every user's own utilities and of the bias."""
    draws, users, items = user.shape
    grad_user = user.new_empty(user.shape if needs[1] else 0)
    tile = {"tile_s": 64, "tile_n": 32, "tile_m": tile_size(items, 64)}
    blocks = triton.cdiv(draws, tile["tile_s"])
    columns = max(1, triton.cdiv(items, tile["tile_m"])) if needs[1] else 1
    grad_bias = user.new_empty(users * blocks)
    user = _lined_up(user)
    launch(
        _programs.gather_backward,
        users * blocks * columns,
        (
            *(user, grad, *pairs),
            *(grad_user if needs[1] else None, grad_bias if needs[3] else None),
            *(draws, users, pairs.left.shape[1], items, columns),
            *(*user.stride()[:2], *_strides(grad)),
        ),
        {"form": form, **tile},
    )
    return grad_user, grad_bias.sum() if needs[3] else user.new_zeros(())


def shared_backward(
    grad: Tensor, user: Tensor, pairs: Pairs, mask: Tensor | None, form: str, needs: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of utilities that all users share and of the bias."""
    draws, _, items = user.shape
    grad_bias = user.new_zeros(())
    table = user.new_zeros(items, draws)
    grad = grad.unsqueeze(-1) if grad.ndim == 2 else grad
    for users in split_users(pairs.left.shape, draws):
        some, hidden = pairs.of_users(users), None if mask is None else mask[users]
        residual = user.new_empty(0)
        if form != "margin":
            residual = _fresh(user, (*some.left.shape, draws), hidden)
            evaluate(None, user, None, some, "residual", None, residual)
        rows = margin_gradient(grad[:, users], residual, hidden, form)
        if needs[1]:
            add_by_item(table, rows.view(-1, draws), some)
        grad_bias += rows.sum()
    return table.T.unsqueeze(1).contiguous() if needs[1] else user.new_empty(0), grad_bias


def bilinear_backward(
    grad: Tensor, item: Tensor, user: Tensor, pairs: Pairs, form: str, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of item factors, user factors and the bias."""
    (users, comparisons), factors = pairs.left.shape, item.shape[1]
    grad_item = user.new_zeros(item.shape if needs[0] else 0)
    grad_user = user.new_empty(user.shape if needs[1] else 0)
    grad_bias = user.new_zeros(users)
    item, user = _lined_up(item), _lined_up(user)
    tile = {"tile_s": 64, "tile_n": 32, "tile_k": tile_size(factors, 32)}
    columns = max(1, triton.cdiv(factors, tile["tile_k"]))
    for part in split_users((users, comparisons), factors if needs[0] else 0):
        count = part.stop - part.start
        rows = user.new_empty(count * comparisons, factors) if needs[0] else None
        launch(
            _programs.bilinear_backward,
            count * columns,
            (
                *(item, user, grad, *pairs),
                *(grad_user if needs[1] else None, rows, grad_bias if needs[3] else None),
                *(len(grad), users, comparisons, *item.shape),
                *(item.stride(0), *user.stride()[:2], *_strides(grad), part.start),
            ),
            {"form": form, **tile},
        )
        if rows is not None:
            add_by_item(grad_item, rows, pairs.of_users(part))
    return grad_item, grad_user, grad_bias.sum()


def mlp_backward(
    item: Tensor, user: Tensor, weight: Tensor, slope: Tensor, pairs: Pairs, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of item, user and weight, given those of the margins."""
    users, comparisons, draws = slope.shape
    width = len(weight)
    grad_item = user.new_zeros(item.shape if needs[0] else 0)
    grad_user = user.new_empty(user.shape if needs[1] else 0)
    grad_weight = user.new_empty(users, width) if needs[2] else None
    item, user, weight = _lined_up(item), _lined_up(user), weight.contiguous()
    tile = {"tile_s": tile_size(draws, 32), "tile_h": tile_size(width, 32)}
    for part in split_users((users, comparisons), 2 * width if needs[0] else 0):
        count = part.stop - part.start
        rows = user.new_empty(2 * count * comparisons, width) if needs[0] else None
        launch(
            _programs.mlp_backward,
            count * triton.cdiv(width, tile["tile_h"]) if any(needs[:3]) else 0,
            (
                *(item, user, weight, slope, *pairs[:2], *pairs[3:5]),
                *(grad_user if needs[1] else None, rows, grad_weight),
                *(draws, users, comparisons, *item.shape),
                *(item.stride(0), *user.stride()[:2]),
                *(part.start, count * comparisons * width),
            ),
            tile,
            warps=1,
        )
        if rows is not None:
            add_by_item(grad_item, rows, pairs.of_users(part))
    if grad_weight is None:
        return grad_item, grad_user, user.new_empty(0)
    return grad_item, grad_user, grad_weight.sum(0, dtype=torch.float64).to(user)


def margin_gradient(grad: Tensor, residual: Tensor, mask: Tensor | None, form: str) -> Tensor:
    """Returns the gradient by the margins with shape (U, N, S)."""
    grad = grad.T.unsqueeze(1) if grad.ndim == 2 else grad.permute(1, 2, 0)
    slope = (
        grad.clone(memory_format=torch.contiguous_format) if form == "margin" else residual * grad
    )
    return slope if mask is None else slope.masked_fill_(~mask.unsqueeze(-1), 0.0)


def add_by_item(table: Tensor, rows: Tensor, pairs: Pairs) -> None:
    """Adds rows (U N, *), or (2 U N, *), to those of both items, with a minus for the right one.

    An item with more rows than a piece is summed in pieces, of which there are less than twice as
    many as there are rows for them; so nothing has to be counted before the programs start.
    """
    (items, width), count = table.shape, pairs.left.numel()
    if not table.numel() or not count:
        return
    order, bounds = sort_by_item(pairs, items)
    first, numbers = bounds[:-1], bounds.diff()
    pieces = torch.where(numbers > limits.piece, (numbers + (limits.piece - 1)) // limits.piece, 0)
    last = pieces.cumsum(0)
    piece = torch.arange(4 * count // limits.piece, device=last.device)
    owner = torch.searchsorted(last, piece, right=True).clamp_(max=items - 1)
    starts = first[owner] + (piece - (last - pieces)[owner]) * limits.piece
    ends = torch.minimum(starts + limits.piece, bounds[owner + 1])
    few = torch.where(pieces > 0, first, bounds[1:])
    parts = table.new_zeros(len(piece), width)
    tile = {"tile_e": 16, "tile_h": tile_size(width, 64)}
    for of, sorting, begin, end, out in (
        (rows, order, first, few, table),
        (rows, order, starts, ends, parts),
        (parts, None, last - pieces, last, table),
    ):
        launch(
            _programs.segment_sum,
            len(begin) * triton.cdiv(width, tile["tile_h"]),
            (of, sorting, begin, end, out, len(of), count, width),
            tile,
        )


def sort_by_item(pairs: Pairs, items: int) -> tuple[Tensor, Tensor]:
    """Sorts left and right positions (2 U N); returns the order and the items' bounds (M + 1).

    Masked positions and positions outside the table come last, after the last bound.
    """
    keys = torch.stack([pairs.left, pairs.right]).view(-1)
    wrong = (keys < 0) | (keys >= items)
    if pairs.mask is not None:
        wrong |= (pairs.mask == 0).view(-1).repeat(2)
    keys, order = keys.masked_fill_(wrong, items).sort(stable=True)
    return order, torch.searchsorted(keys, torch.arange(items + 1, device=keys.device))


def split_users(shape: Sequence[int], width: int) -> list[slice]:
    """Divides users so that the rows of a group's comparisons hold at most `limits.rows`."""
    users, comparisons = shape
    step = max(1, limits.rows // max(1, comparisons * width)) if width else max(1, users)
    return [slice(start, min(start + step, users)) for start in range(0, users, step)]


def _strides(grad: Tensor) -> tuple[int, int, int]:
    """Returns the strides of draws, users and comparisons in a gradient."""
    return (*grad.stride(), 0) if grad.ndim == 2 else grad.stride()


def _lined_up(table: Tensor) -> Tensor:
    """Copies a table unless each row is contiguous; rows may lie in any order, or be shared."""
    return table if table.shape[-1] < 2 or table.stride(-1) == 1 else table.contiguous()


def tile_size(size: int, most: int) -> int:
    """Rounds a size up to a power of two, at least 16, as a product needs, and at most `most`."""
    return min(max(16, triton.next_power_of_2(size)), most)


def launch(
    kernel: triton.JITFunction, programs: int, args: tuple, tile: dict, warps: int = 4
) -> None:
    """Starts a kernel as a number of programs; `tile` holds its compile-time values."""
    if not programs:
        return
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](*args, **tile, num_warps=warps, **OPTIONS)


operation = Operation("triton", forward, backward)
