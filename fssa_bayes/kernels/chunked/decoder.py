"""What all operations have in common: parts for threads, blocks, sums of gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy

import torch
from torch import Tensor

from fssa_bayes.kernels.chunked.blocks import (
    Block,
    Scratch,
    even_step,
    grid,
    lane_step,
    limits,
    slices,
)
from fssa_bayes.kernels.chunked.oriented import Oriented
from fssa_bayes.kernels.workers import num_workers

__all__ = ["Decoder"]

# Comparisons of a block are a multiple of it, as products of fewer rows round differently.
_ROWS = 8


class Decoder:
    """Computes the margins of a block, and pulls their gradient back.

    Margins are the first item's utility less the second's, in the order of `oriented.pair`.
    """

    shares_users = False  # Whether all users have one gradient.

    def __init__(
        self, item: Tensor | None, user: Tensor, weight: Tensor | None, oriented: Oriented
    ) -> None:
        self.item, self.user, self.weight, self.oriented = item, user, weight, oriented
        self.scratch = Scratch(user)
        self.grad_item = user.new_empty(0)
        users, comparisons = oriented.pair.shape[1:]
        self.whole = Block(slice(0, users), slice(0, comparisons), slice(0, len(user)))

    def divide(self) -> list[Decoder]:
        """Divides users, or else draws, among threads: the first part is this decoder's own."""
        users, comparisons, draws = self.whole.shape
        threads = 1 if self.user.device.type != "cpu" else num_workers()
        hidden = 1 if self.weight is None else len(self.weight)
        threads = min(threads, users * comparisons * draws * hidden // limits.least_part)
        axis = 0 if users >= threads and not self.shares_users else 2
        step = even_step(self.whole.shape[axis], -(-self.whole.shape[axis] // max(threads, 1)))
        whole, decoders = self.whole, [self]
        for part in slices(whole[axis], step):
            if part.start > whole[axis].start:
                decoders.append(copy(self))
                decoders[-1].scratch = Scratch(self.user)
                decoders[-1].grad_item = torch.zeros_like(self.grad_item)
            decoders[-1].whole = whole._replace(**{Block._fields[axis]: part})
        return decoders

    def blocks(self) -> Iterator[Block]:
        """Divides users, comparisons and draws into blocks."""
        users, comparisons, draws = self.whole.shape
        together = max(1, min(comparisons, limits.least_comparisons))
        draw_step = lane_step(draws, limits.margins // together)
        # Not an even step: where a block ends must not depend on the padding.
        step = max(limits.margins // max(draw_step, 1) // _ROWS * _ROWS, 1)
        user_step = even_step(users, limits.margins // max(draw_step * min(step, comparisons), 1))
        return grid(self.whole, (user_step, step, draw_step))

    def load(self, block: Block) -> None:
        """Reads what a block's margins and their gradients have in common."""

    def margin(self, block: Block) -> Tensor:
        """Returns the margins (u, n, s) of the block loaded; the next block overwrites them."""
        raise NotImplementedError

    def oriented_margin(self, block: Block, bias: Tensor | None, form: str) -> Tensor:
        """Returns the margins with the position bias, and a fixed value under the mask."""
        y = self.margin(block)
        if bias is not None:
            y += self.oriented.signed(bias, block)
        # A masked comparison is certain, whatever its margin: σ(−∞) = log(1 + e^−∞) = 0.
        return self.oriented.fill(y, block, 0.0 if form == "margin" else -torch.inf)

    def start(self, needs: Sequence[bool]) -> None:
        """Makes room for the gradients of item, user and weight that are asked for."""
        self.needs = needs
        shapes = (
            tensor.shape if need and tensor is not None else 0
            for tensor, need in zip((self.item, self.user, self.weight), needs, strict=False)
        )
        item, user, weight = shapes
        self.grad_item, self.grad_weight = self.user.new_zeros(item), self.user.new_zeros(weight)
        # The block of a user's first comparisons writes the user's gradient, if there is one.
        asked = self.oriented.pair.shape[-1] > 0
        self.grad_user = self.user.new_empty(user) if asked else self.user.new_zeros(user)

    def pull(self, block: Block, g: Tensor) -> None:
        """Adds the gradients for the gradient g (u, n, s) of the margins of the block loaded."""
        raise NotImplementedError

    def copy_users(self, block: Block) -> Tensor:
        """Copies a block's users (u, s, *): a product of contiguous factors is faster."""
        rows = self.user[block.draws, block.users].transpose(0, 1)
        return self.scratch.take("users", rows.shape).copy_(rows)

    def add_user(self, block: Block, part: Tensor) -> None:
        """Adds a block's part (u, s, *) of the users' gradient."""
        total = self.grad_user[block.draws, block.users]
        # Blocks come in the order of their comparisons: the first writes, the others add.
        (total.copy_ if block.comparisons.start == 0 else total.add_)(part.transpose(0, 1))

    def add_items(self, block: Block, rows: Tensor) -> None:
        """Adds rows (u, n, *) to the gradient of the first items, less those of the second."""
        pair = self.oriented.pair[:, *block[:2]].reshape(2, -1)
        rows = rows.view(-1, rows.shape[-1])
        # Not index_add_ with alpha = −1, which is four times slower than a change of sign.
        self.grad_item.index_add_(0, pair[0], rows).index_add_(0, pair[1], rows.neg_())

    def finish(self, others: Sequence[Decoder]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients of item, user and weight, with those of the other parts."""
        for other in others:
            self.grad_item += other.grad_item
        return self.grad_item, self.grad_user, self.grad_weight
