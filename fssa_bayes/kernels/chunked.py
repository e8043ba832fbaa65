r"""The pairwise log-likelihoods in bounded memory, with a backward written by hand.

Plain ATen on whole blocks of users, comparisons and draws; the derivation is in
:mod:`fssa_bayes.kernels`. Four things make it fast on a CPU, where memory and not arithmetic is
short:

- The problem, and not each call, is divided among threads: see
  :mod:`~fssa_bayes.kernels._workers`.
- A block is small enough for the cache, and its memory is used again for the next one.
- Comparisons are oriented so that y = utility of the item not preferred − that of the preferred:
  the log-probability is −log(1 + eʸ) and its derivative −σ(y), without a sign or a choice.
- A logarithm costs as much as everything else together. Up to eight factors 1 + exp(−\|y\|) are
  multiplied before one is taken.

Within a block the axes are users, comparisons, draws, so that what all draws share is a scalar of
the innermost loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from fssa_bayes.kernels._operation import Operation
from fssa_bayes.kernels._workers import num_workers, run_in_parts

__all__ = ["backward", "forward", "operation"]

# Elements of a block: margins, and hidden units of both items. Within 20 % of the best from a half
# to twice as many; a factor of 16 away costs a factor of three.
_MARGINS = 2**18
_HIDDEN = 2**20
_ROWS = 2**22  # Rows of A and of B are looked up for so many numbers at once.
_LEAST_COMPARISONS = 64  # Kept together before draws are, so that a user's draws are read once.
_ONE_HOT_ITEMS = 64  # Up to here a product with one-hot rows is faster than a look-up.
_TABLE_ITEMS = 1.5  # Items a comparison, up to which an mlp's utilities are computed item by item.
_DOUBLINGS = 3
_LEAST_PART = 2**17  # Margins, or hidden units, that are worth a thread.


class Block(NamedTuple):
    """Names a block of users, comparisons and draws."""

    users: slice
    comparisons: slice
    draws: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of users, comparisons and draws."""
        users, comparisons, draws = (part.stop - part.start for part in self)
        return users, comparisons, draws


class Oriented(NamedTuple):
    """Holds the comparisons with the preferred item last, so that margins need no sign.

    Attributes:
        pair: Positions of the item not preferred and of the preferred one, int64 with shape
            (2, U, N); as they were, left before right, for margins.
        sign: −1 where left was preferred, else 1, with shape (U, N); None for margins.
        slack: The choice where it is neither 0 nor 1 (½, or NaN), else 0, with shape (U, N); None
            if there is no such choice.
        mask: True where there is a comparison, with shape (U, N); None if there is one everywhere.
    """

    pair: Tensor
    sign: Tensor | None
    slack: Tensor | None
    mask: Tensor | None

    def signed(self, value: Tensor, block: Block) -> Tensor:
        """Multiplies by the sign, for a block (u, n, 1)."""
        return value if self.sign is None else self.sign[block[:2]].unsqueeze(-1) * value

    def fill(self, rows: Tensor, block: Block, value: float) -> Tensor:
        """Fills the masked rows of a block (u, n, *), whatever stands there."""
        if self.mask is not None:
            masked = (~self.mask[block[:2]]).reshape(-1).nonzero().squeeze(-1)
            rows.view(-1, rows.shape[-1]).index_fill_(0, masked, value)
        return rows


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
    """Evaluates log-likelihoods or margins block by block.

    Args:
        item: The items' part of the utility, with shape (M, *); None for `gather`.
        user: The users' part with shape (S, U, *), or utilities.
        weight: The output layer with shape (H,); None but for `mlp`.
        left: See :class:`~fssa_bayes.kernels._comparisons.Comparisons`, as for all up to `form`.
        right: Positions of the right items.
        choice: Choices.
        mask: Mask.
        bias: Position bias.
        form: `"sum"`, `"each"` or `"margin"`.
        save: Whether a backward is to follow.

    Returns:
        The result in its form, and what the backward cannot compute again cheaply: for `mlp` the
        derivatives by the oriented margins with shape (U, N, S), negated; otherwise nothing.
    """
    oriented = _orient(left, right, choice, mask)
    shape = (*left.shape, user.shape[0])
    first = _choose(item, user, weight, oriented)
    total = user.new_zeros(shape[0], shape[2])
    each = user.new_empty(0 if form == "sum" else shape)
    residual = user.new_empty(shape if save and weight is not None and form != "margin" else 0)

    def evaluate(decoder: _Decoder) -> None:
        for block in decoder.blocks():
            decoder.load(block)
            y = _oriented_margin(decoder, bias, block, form)
            if residual.numel():
                _probability(y, oriented, block, out=residual[block])
            if form == "margin":
                each[block] = y
            elif form == "each":
                each[block] = _log_prob(y, oriented, block, decoder.scratch)
            else:
                part = _sum_log_prob(y, oriented, block, decoder.scratch)
                total[block.users, block.draws] += part

    run_in_parts(evaluate, first.divide())
    return (total.T.contiguous() if form == "sum" else each.permute(2, 0, 1)), residual


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
    """Pulls the gradient of the result back to item, user, weight and bias, block by block.

    Args:
        grad: Gradient of the result, in the result's shape.
        residual: What :func:`forward` saved, or nothing.
        item: As for :func:`forward`, like all up to `form`.
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
    oriented = _orient(left, right, choice, mask)
    first = _choose(item, user, weight, oriented)
    first.start(needs)
    grad = grad.T.neg().contiguous().unsqueeze(1) if form == "sum" else grad.permute(1, 2, 0)

    def pull(decoder: _Decoder) -> Tensor:
        grad_bias = user.new_zeros(())
        for block in decoder.blocks():
            decoder.load(block)
            part = grad[block.users, :, block.draws] if form == "sum" else grad[block]
            part = -part if form == "each" else part
            if form == "margin":
                g = decoder.scratch.take("y", block.shape).copy_(part)
                oriented.fill(g, block, 0.0)
            elif residual.numel():
                g = torch.mul(residual[block], part, out=decoder.scratch.take("y", block.shape))
            else:
                y = _oriented_margin(decoder, bias, block, form)
                g = _probability(y, oriented, block, out=y).mul_(part)
            if any(needs[:3]):
                decoder.pull(block, g)
            if needs[3]:
                grad_bias += oriented.signed(g.sum(-1, keepdim=True), block).sum()
        return grad_bias

    parts = first.divide()
    grad_bias = sum(run_in_parts(pull, parts))
    return *first.finish(parts[1:]), grad_bias


def _orient(left: Tensor, right: Tensor, choice: Tensor | None, mask: Tensor | None) -> Oriented:
    if choice is None:
        return Oriented(torch.stack([left, right]), None, None, mask)
    if mask is not None:
        choice = choice.masked_fill(~mask, 1.0)
    lost = choice == 0
    slack = choice.masked_fill(choice == 1, 0.0)
    return Oriented(
        pair=torch.stack([torch.where(lost, left, right), torch.where(lost, right, left)]),
        sign=2 * lost.to(choice.dtype) - 1,
        slack=slack if bool(slack.any()) else None,
        mask=mask,
    )


def _oriented_margin(decoder: _Decoder, bias: Tensor | None, block: Block, form: str) -> Tensor:
    y = decoder.margin(block)
    if bias is not None:
        y += decoder.oriented.signed(bias, block)
    # What is masked is certain: σ(−∞) = log(1 + e^−∞) = 0, whatever the margin was, a NaN too.
    return decoder.oriented.fill(y, block, 0.0 if form == "margin" else -torch.inf)


def _probability(y: Tensor, oriented: Oriented, block: Block, out: Tensor) -> Tensor:
    r"""Evaluates σ(y) − slack, minus the derivative of the log-probability by y (u, n, s)."""
    torch.sigmoid(y, out=out)
    if oriented.slack is not None:
        out -= oriented.slack[block[:2]].unsqueeze(-1)
    return out


def _log_prob(y: Tensor, oriented: Oriented, block: Block, scratch: _Scratch) -> Tensor:
    r"""Evaluates slack·y − log(1 + eʸ) for margins y (u, n, s), which are overwritten."""
    extra = _slack(y, oriented, block)
    high, tail = _softplus_parts(y, scratch)
    log_prob = tail.log1p_().add_(high).neg_()
    if extra is not None:
        log_prob.view(-1, y.shape[-1]).index_add_(0, *extra)
    return log_prob


def _sum_log_prob(y: Tensor, oriented: Oriented, block: Block, scratch: _Scratch) -> Tensor:
    r"""Sums slack·y − log(1 + eʸ) over comparisons to (u, s), for y (u, n, s)."""
    extra = _slack(y, oriented, block)
    high, tail = _softplus_parts(y, scratch)
    total = high.sum(1).add_(_sum_log1p(tail)).neg_()
    if extra is not None:
        total.index_add_(0, extra[0] // y.shape[1], extra[1])
    return total


def _slack(y: Tensor, oriented: Oriented, block: Block) -> tuple[Tensor, Tensor] | None:
    """Returns the rows of y (u n, s) with slack, and slack·y there."""
    if oriented.slack is None:
        return None
    slack = oriented.slack[block[:2]].reshape(-1)
    rows = slack.nonzero().squeeze(-1)
    return rows, y.view(-1, y.shape[-1])[rows] * slack[rows].unsqueeze(-1)


def _softplus_parts(y: Tensor, scratch: _Scratch) -> tuple[Tensor, Tensor]:
    r"""Returns max(y, 0) and exp(−\|y\|): log(1 + eʸ) is the first plus log1p of the second."""
    high = torch.clamp_min(y, 0.0, out=scratch.take("high", y.shape))
    return high, y.sub_(high, alpha=2).exp_()


def _sum_log1p(tail: Tensor) -> Tensor:
    r"""Sums log(1 + e) over the second axis of e (u, n, s) in [0, 1], which is overwritten.

    Products of up to eight factors come first. A product less one,
    :math:`p \leftarrow a + b + ab`, keeps every digit of a small e.
    """
    for _ in range(_DOUBLINGS):
        half = tail.shape[1] // 2
        left, right = tail[:, :half], tail[:, tail.shape[1] - half :]
        left.addcmul_(left, right).add_(right)
        tail = tail[:, : tail.shape[1] - half]
    return tail.log1p().sum(1)


def _grid(whole: Block, steps: Sequence[int]) -> Iterator[Block]:
    """Divides users, comparisons and draws into blocks."""
    users, comparisons, draws = (
        _parts(axis, step) for axis, step in zip(whole, steps, strict=True)
    )
    for user in users:
        for draw in draws:
            for comparison in comparisons:
                yield Block(user, comparison, draw)


def _even_step(size: int, most: int) -> int:
    """Returns a step of at most `most`, but at least 1, that leaves no small remainder."""
    return math.ceil(size / max(1, math.ceil(size / max(most, 1))))


def _parts(axis: slice, step: int) -> list[slice]:
    starts = range(axis.start, axis.stop, max(step, 1))
    return [slice(start, min(start + step, axis.stop)) for start in starts]


class _Scratch:
    """Hands out the same memory for every block: fresh memory costs page faults."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.memory: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Returns memory of a shape, with whatever stands in it."""
        size = math.prod(shape)
        if name not in self.memory or len(self.memory[name]) < size:
            self.memory[name] = self.like.new_empty(size)
        return self.memory[name][:size].view(shape)


class _Decoder:
    """Computes the margins of a block, and pulls their gradient back.

    Margins are the first item's utility less the second's, in the order of `oriented.pair`.
    """

    shares_users = False  # Whether all users have one gradient.

    def __init__(
        self, item: Tensor | None, user: Tensor, weight: Tensor | None, oriented: Oriented
    ) -> None:
        self.item, self.user, self.weight, self.oriented = item, user, weight, oriented
        self.scratch = _Scratch(user)
        self.grad_item = user.new_empty(0)
        users, comparisons = oriented.pair.shape[1:]
        self.whole = Block(slice(0, users), slice(0, comparisons), slice(0, len(user)))

    def divide(self) -> list[_Decoder]:
        """Divides users, or else draws, among threads: itself for the first, copies for others."""
        users, comparisons, draws = self.whole.shape
        threads = 1 if self.user.device.type != "cpu" else num_workers()
        hidden = 1 if self.weight is None else len(self.weight)
        threads = min(threads, users * comparisons * draws * hidden // _LEAST_PART)
        axis = 0 if users >= threads and not self.shares_users else 2
        step = _even_step(self.whole.shape[axis], -(-self.whole.shape[axis] // max(threads, 1)))
        whole, decoders = self.whole, [self]
        for part in _parts(whole[axis], step):
            if part.start > whole[axis].start:
                decoders.append(copy(self))
                decoders[-1].scratch = _Scratch(self.user)
                decoders[-1].grad_item = torch.zeros_like(self.grad_item)
            decoders[-1].whole = whole._replace(**{Block._fields[axis]: part})
        return decoders

    def blocks(self) -> Iterator[Block]:
        """Divides users, comparisons and draws into blocks."""
        users, comparisons, draws = self.whole.shape
        together = max(1, min(comparisons, _LEAST_COMPARISONS))
        draw_step = _even_step(draws, _MARGINS // together)
        step = _even_step(comparisons, _MARGINS // max(draw_step, 1))
        user_step = _even_step(users, _MARGINS // max(draw_step * step, 1))
        return _grid(self.whole, (user_step, step, draw_step))

    def load(self, block: Block) -> None:
        """Reads what a block's margins and their gradients have in common."""

    def margin(self, block: Block) -> Tensor:
        """Returns the margins (u, n, s) of the block loaded, in memory used again by the next."""
        raise NotImplementedError

    def start(self, needs: Sequence[bool]) -> None:
        """Makes room for the gradients of item, user and weight that are asked for."""
        self.needs = needs
        shapes = (
            tensor.shape if need and tensor is not None else 0
            for tensor, need in zip((self.item, self.user, self.weight), needs, strict=False)
        )
        item, user, weight = shapes
        self.grad_item, self.grad_weight = self.user.new_zeros(item), self.user.new_zeros(weight)
        # Every user's is written by the block of the first comparisons, if there is one.
        asked = self.oriented.pair.shape[-1] > 0
        self.grad_user = self.user.new_empty(user) if asked else self.user.new_zeros(user)

    def pull(self, block: Block, g: Tensor) -> None:
        """Adds the gradients for the gradient g (u, n, s) of the margins of the block loaded."""
        raise NotImplementedError

    def copy_users(self, block: Block) -> Tensor:
        """Copies a block's users (u, s, *): products read faster what lies together."""
        rows = self.user[block.draws, block.users].transpose(0, 1)
        return self.scratch.take("users", rows.shape).copy_(rows)

    def add_user(self, block: Block, part: Tensor) -> None:
        """Adds a block's part (u, s, *) of the users' gradient."""
        total = self.grad_user[block.draws, block.users]
        # Comparisons come one block after the other: the first is the first to write.
        (total.copy_ if block.comparisons.start == 0 else total.add_)(part.transpose(0, 1))

    def add_items(self, block: Block, rows: Tensor) -> None:
        """Adds rows (u, n, *) to the gradient of the first items, less those of the second."""
        pair = self.oriented.pair[:, *block[:2]].reshape(2, -1)
        rows = rows.view(-1, rows.shape[-1])
        # Not index_add_ with alpha = −1, which is four times slower than a change of sign.
        self.grad_item.index_add_(0, pair[0], rows).index_add_(0, pair[1], rows.neg_())

    def finish(self, others: Sequence[_Decoder]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients of item, user and weight, with what the copies have added."""
        for other in others:
            self.grad_item += other.grad_item
        return self.grad_item, self.grad_user, self.grad_weight


class _Shared(_Decoder):
    """Looks margins up in utilities (S, 1, M) that all users share."""

    shares_users = True

    def margin(self, block: Block) -> Tensor:
        pair = self.oriented.pair[:, *block[:2]].reshape(2, -1)
        table = self.user[block.draws, 0].T.contiguous()
        y = torch.index_select(table, 0, pair[0], out=self._rows("y", block))
        y -= torch.index_select(table, 0, pair[1], out=self._rows("second", block))
        return y.view(block.shape)

    def start(self, needs: Sequence[bool]) -> None:
        super().start(needs)
        self.grad_user.zero_()

    def pull(self, block: Block, g: Tensor) -> None:
        pair, rows = self.oriented.pair[:, *block[:2]].reshape(2, -1), g.view(-1, g.shape[-1])
        table = self.user.new_zeros(self.user.shape[-1], g.shape[-1])
        table.index_add_(0, pair[0], rows).index_add_(0, pair[1], rows, alpha=-1)
        self.grad_user[block.draws, 0] += table.T

    def _rows(self, name: str, block: Block) -> Tensor:
        users, comparisons, draws = block.shape
        return self.scratch.take(name, (users * comparisons, draws))


class _OneHot(_Decoder):
    """Multiplies utilities (S, U, M), all finite, by a difference of one-hot rows."""

    def load(self, block: Block) -> None:
        first, second = self.oriented.pair[:, *block[:2]].unsqueeze(-1)
        size = (*block.shape[:2], self.user.shape[-1])
        rows = self.scratch.take("difference", size).zero_()
        one = rows.new_ones(()).expand(first.shape)
        self.difference = rows.scatter_add_(-1, first, one).scatter_add_(-1, second, -one)

    def margin(self, block: Block) -> Tensor:
        user = self.copy_users(block)
        y = self.scratch.take("y", block.shape)
        return torch.bmm(self.difference, user.transpose(1, 2), out=y)

    def pull(self, block: Block, g: Tensor) -> None:
        part = self.scratch.take("users", (g.shape[0], g.shape[2], self.user.shape[-1]))
        self.add_user(block, torch.bmm(g.transpose(1, 2), self.difference, out=part))


class _Gather(_Decoder):
    """Looks margins up in utilities (S, U, M)."""

    def margin(self, block: Block) -> Tensor:
        user = self.user[block.draws, block.users]
        first, second = (user.gather(-1, pair) for pair in self._pairs(block))
        y = self.scratch.take("y", block.shape)
        torch.sub(first, second, out=y.permute(2, 0, 1))
        return y

    def pull(self, block: Block, g: Tensor) -> None:
        users, _, draws = block.shape
        part = self.scratch.take("part", (draws, users, self.user.shape[-1])).zero_()
        g = g.permute(2, 0, 1).contiguous()
        first, second = self._pairs(block)
        part.scatter_add_(-1, first, g).scatter_add_(-1, second, -g)
        self.add_user(block, part.transpose(0, 1))

    def _pairs(self, block: Block) -> Tensor:
        pair = self.oriented.pair[:, *block[:2]]
        return pair.unsqueeze(1).expand(-1, block.shape[-1], -1, -1)


class _Bilinear(_Decoder):
    """Multiplies differences of item factors by user factors.

    Looking margins up in the utilities of all items was slower, however few there were, but for
    128 factors and more.
    """

    def load(self, block: Block) -> None:
        first, second = self.oriented.pair[:, *block[:2]].reshape(2, -1)
        size = (len(first), self.item.shape[-1])
        rows = torch.index_select(self.item, 0, first, out=self.scratch.take("first", size))
        rows -= torch.index_select(self.item, 0, second, out=self.scratch.take("second", size))
        self.difference = self.oriented.fill(rows.view(*block.shape[:2], -1), block, 0.0)
        self.factors = self.copy_users(block)

    def margin(self, block: Block) -> Tensor:
        y = self.scratch.take("y", block.shape)
        return torch.bmm(self.difference, self.factors.transpose(1, 2), out=y)

    def pull(self, block: Block, g: Tensor) -> None:
        if self.needs[0]:
            rows = self.scratch.take("second", self.difference.shape)
            torch.bmm(g, self.factors, out=rows)
            # The gradient 0 of a masked margin times a NaN of its user is no gradient.
            self.add_items(block, self.oriented.fill(rows, block, 0.0))
        if self.needs[1]:
            part = self.factors  # Not needed any more.
            self.add_user(block, torch.bmm(g.transpose(1, 2), self.difference, out=part))


class _MLP(_Decoder):
    r"""Sums w·(relu(A + B) − relu(A' + B)) over hidden units.

    With T = −B and l ≤ h the ordered A and A', the difference of the two relu is
    :math:`\pm(h - \min(\max(T, l), h))`: one pass over hidden units instead of four.
    """

    def blocks(self) -> Iterator[Block]:
        users, comparisons, draws = self.whole.shape
        step = _even_step(comparisons, _LEAST_COMPARISONS)
        draw_step = _even_step(draws, _MARGINS // max(step, 1))
        rows = len(self.weight) * (2 * step + draw_step)
        most = min(_MARGINS // max(step * draw_step, 1), _ROWS // max(rows, 1))
        return _grid(self.whole, (_even_step(users, most), step, draw_step))

    def margin(self, block: Block) -> Tensor:
        _, rows, threshold = self._rows(block)
        first, second = rows.chunk(2, 1)
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        slope = self.weight * torch.where(first > second, 1.0, -1.0).to(rows)
        offset = (slope * high).sum(-1)
        y = self.scratch.take("y", block.shape)
        for users, draws in self._inner(block, block.shape[1]):
            part, bounds = threshold[users, :, draws], (low[users], high[users])
            size = (*bounds[0].shape[:2], *part.shape[2:])
            hidden = torch.clamp(part, *bounds, out=self.scratch.take("hidden", size)).flatten(0, 1)
            total = torch.bmm(slope[users].view(len(hidden), 1, -1), hidden.transpose(1, 2))
            y[users, :, draws] = total.view(size[:3])
        return torch.sub(offset, y, out=y)

    def start(self, needs: Sequence[bool]) -> None:
        self.wanted = needs  # The weight's gradient is made of the two others.
        super().start([needs[0] or needs[2], needs[1] or needs[2], needs[2]])

    def pull(self, block: Block, g: Tensor) -> None:
        pair, rows, threshold = self._rows(block)
        per_item, per_user = self._pull_rows(block, rows, threshold, torch.cat([g, -g], 1))
        if self.needs[0]:
            self.grad_item.index_add_(0, pair, per_item.flatten(0, 1))
        if self.needs[1]:
            self.add_user(block, per_user)

    def _pull_rows(
        self, block: Block, rows: Tensor, threshold: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pulls the gradient g (u, r, s) of w·relu back to A (u, r, h) and B (u, s, h)."""
        by_draw = g.transpose(1, 2).contiguous()
        per_item = g.new_zeros(g.shape[0], g.shape[1], rows.shape[-1])
        per_user = torch.empty_like(threshold.squeeze(1))
        for users, draws in self._inner(block, g.shape[1]):
            size = (len(per_item[users]), rows.shape[1], draws.stop - draws.start, rows.shape[-1])
            active = self.scratch.take("hidden", size)
            torch.gt(rows[users], threshold[users, :, draws], out=active)
            part = g[users, :, draws]
            if self.needs[0]:
                total = torch.bmm(part.reshape(-1, 1, size[2]), active.flatten(0, 1))
                per_item[users] += total.view(-1, *size[1::2])
            if size[0] == 1:
                total = torch.bmm(
                    by_draw[users, draws].view(size[2], 1, -1), active[0].transpose(0, 1)
                )
                per_user[users, draws] = total.transpose(0, 1)
            else:
                per_user[users, draws] = active.mul_(part.unsqueeze(-1)).sum(1)
        return per_item, per_user

    def finish(self, others: Sequence[_Decoder]) -> tuple[Tensor, Tensor, Tensor]:
        super().finish(others)
        # So far without the weight: relu is homogeneous, hence its gradient is ΣA∘P + ΣB∘Q.
        if self.needs[2]:
            parts = ((self.item, self.grad_item), (self.user, self.grad_user))
            self.grad_weight = sum(_columns(*part) for part in parts).to(self.user)
        grads = zip((self.grad_item, self.grad_user), self.wanted, strict=False)
        item, user = (grad.mul_(self.weight) if want else grad.new_empty(0) for grad, want in grads)
        return item, user, self.grad_weight

    def _rows(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the positions of the items (u 2n), A (u, 2n, 1, h) and T (u, 1, s, h)."""
        pair = self.oriented.pair[:, *block[:2]].transpose(0, 1).reshape(-1)
        size = (block.shape[0], 2 * block.shape[1], 1, len(self.weight))
        return pair, self.item.index_select(0, pair).view(size), self._threshold(block)

    def _threshold(self, block: Block) -> Tensor:
        """Returns T = −B with shape (u, 1, s, h)."""
        threshold = self.user[block.draws, block.users].transpose(0, 1).neg()
        # B = ∞ is the difference of two infinities. That of B = −∞ is one of zeros.
        threshold = threshold.nan_to_num_(nan=torch.nan, posinf=torch.inf, neginf=torch.nan)
        return threshold.unsqueeze(1)

    def _inner(self, block: Block, rows: int) -> Iterator[tuple[slice, slice]]:
        """Divides a block by users and draws so that its hidden units stay in the cache."""
        users, _, draws = block.shape
        each = rows * max(1, len(self.weight))
        draw_step = _even_step(draws, _HIDDEN // each)
        user_step = _even_step(users, _HIDDEN // (each * draw_step))
        for user in _parts(slice(0, users), user_step):
            for draw in _parts(slice(0, draws), draw_step):
                yield user, draw


class _MLPTable(_MLP):
    r"""Sums w·relu(A + B) once for every item of a small table, all finite, and looks margins up.

    Where T = −B, :math:`\mathrm{relu}(A + B) = \max(A, T) - T`, and T cancels in the margins.
    """

    def blocks(self) -> Iterator[Block]:
        users, comparisons, draws = self.whole.shape
        step = _even_step(comparisons, _MARGINS)
        most = max(step, len(self.item), 1)
        draw_step = _even_step(draws, _MARGINS // most)
        rows = draw_step * len(self.weight)
        user_step = min(_MARGINS // max(most * draw_step, 1), _ROWS // max(rows, 1))
        return _grid(self.whole, (_even_step(users, user_step), step, draw_step))

    def margin(self, block: Block) -> Tensor:
        # No larger than the largest A, above which all is equal: large numbers cost digits.
        threshold = torch.minimum(self._threshold(block), self.item.amax(0))
        utility = self._table(block)
        for users, draws in self._inner(block, len(self.item)):
            part = threshold[users, :, draws]
            size = (len(part), len(self.item), *part.shape[2:])
            hidden = self.scratch.take("hidden", size)
            torch.maximum(self.item.unsqueeze(1), part, out=hidden)
            utility[users, :, draws] = (hidden.flatten(0, 2) @ self.weight).view(size[:3])
        first, second = self._places(block)
        size = (len(first), block.shape[2])
        rows = utility.view(-1, size[1])
        y = torch.index_select(rows, 0, first, out=self.scratch.take("y", size))
        y -= torch.index_select(rows, 0, second, out=self.scratch.take("high", size))
        return y.view(block.shape)

    def pull(self, block: Block, g: Tensor) -> None:
        per_utility = self._table(block).zero_()
        rows, (first, second) = g.reshape(-1, g.shape[-1]), self._places(block)
        places = per_utility.view(-1, g.shape[-1])
        places.index_add_(0, first, rows).index_add_(0, second, rows.neg())
        items = self.item.unsqueeze(1).expand(block.shape[0], *self.item.unsqueeze(1).shape)
        parts = self._pull_rows(block, items, self._threshold(block), per_utility)
        if self.needs[0]:
            self.grad_item += parts[0].sum(0)
        if self.needs[1]:
            self.add_user(block, parts[1])

    def _table(self, block: Block) -> Tensor:
        """Returns memory for all items' utilities (u, m, s)."""
        users, _, draws = block.shape
        return self.scratch.take("table", (users, len(self.item), draws))

    def _places(self, block: Block) -> Tensor:
        """Returns the rows of the two items in a table (u m, s), with shape (2, u n)."""
        users = torch.arange(block.shape[0], device=self.item.device).unsqueeze(-1)
        return (self.oriented.pair[:, *block[:2]] + users * len(self.item)).reshape(2, -1)


def _columns(value: Tensor, grad: Tensor) -> Tensor:
    """Sums value·grad (*, h) over all axes but the last, in double precision between blocks."""
    total = grad.new_zeros(grad.shape[-1], dtype=torch.float64)
    step = max(1, _MARGINS // max(1, grad[:1].numel()))
    for part, of in zip(value.split(step), grad.split(step), strict=True):
        # What has no gradient has no part in it, infinite or NaN as it may be.
        total += (part * of).masked_fill_(of == 0, 0.0).flatten(0, -2).sum(0)
    return total


def _choose(
    item: Tensor | None, user: Tensor, weight: Tensor | None, oriented: Oriented
) -> _Decoder:
    if weight is not None:
        few = len(item) <= _TABLE_ITEMS * oriented.pair.shape[-1]
        table = few and bool(item.sum().isfinite())
        return (_MLPTable if table else _MLP)(item, user, weight, oriented)
    if item is not None:
        return _Bilinear(item, user, weight, oriented)
    if user.shape[1] != oriented.pair.shape[1]:
        return _Shared(item, user, weight, oriented)
    exact = user.dtype == torch.float64 or torch.get_float32_matmul_precision() == "highest"
    # Zero times what is not finite is not zero: an item that nobody is asked about must not count.
    if exact and user.shape[-1] <= _ONE_HOT_ITEMS and bool(user.sum().isfinite()):
        return _OneHot(item, user, weight, oriented)
    return _Gather(item, user, weight, oriented)


operation = Operation("chunked", forward, backward)
