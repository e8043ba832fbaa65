"""Margins of the utility w·relu(A + B)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fssa_bayes.kernels.chunked.blocks import Block, even_step, grid, lane_step, limits, slices
from fssa_bayes.kernels.chunked.decoder import Decoder
from fssa_bayes.kernels.chunked.oriented import Oriented

__all__ = ["MLP", "MLPTable", "sum_products"]


class MLP(Decoder):
    r"""Sums w·(relu(A + B) − relu(A' + B)) over hidden units.

    With T = −B and l ≤ h the ordered A and A', the difference of the two relu is
    :math:`\pm(h - \min(\max(T, l), h))`: one pass over hidden units instead of four.
    """

    def blocks(self) -> Iterator[Block]:
        users, comparisons, draws = self.whole.shape
        # Not an even step: where a block ends must not depend on the padding.
        step = min(comparisons, limits.least_comparisons)
        draw_step = lane_step(draws, limits.margins // max(step, 1))
        rows = len(self.weight) * (2 * step + draw_step)
        most = min(limits.margins // max(step * draw_step, 1), limits.rows // max(rows, 1))
        return grid(self.whole, (even_step(users, most), step, draw_step))

    def margin(self, block: Block) -> Tensor:
        _, rows, threshold = self.operands(block)
        first, second = rows.chunk(2, 1)
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        slope = self.weight * torch.where(first > second, 1.0, -1.0).to(rows)
        offset = (slope * high).sum(-1)
        y = self.scratch.take("y", block.shape)
        for users, draws in self.inner(block, block.shape[1]):
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
        pair, rows, threshold = self.operands(block)
        per_item, per_user = self.pull_rows(block, rows, threshold, torch.cat([g, -g], 1))
        if self.needs[0]:
            self.grad_item.index_add_(0, pair, per_item.flatten(0, 1))
        if self.needs[1]:
            self.add_user(block, per_user)

    def pull_rows(
        self, block: Block, rows: Tensor, threshold: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pulls the gradient g (u, r, s) of w·relu back to A (u, r, h) and B (u, s, h)."""
        by_draw = g.transpose(1, 2).contiguous()
        per_item = g.new_zeros(g.shape[0], g.shape[1], rows.shape[-1])
        per_user = torch.empty_like(threshold.squeeze(1))
        for users, draws in self.inner(block, g.shape[1]):
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

    def finish(self, others: Sequence[Decoder]) -> tuple[Tensor, Tensor, Tensor]:
        super().finish(others)
        # The sums are P and Q, without the weight, whose gradient is therefore ΣA∘P + ΣB∘Q.
        if self.needs[2]:
            parts = ((self.item, self.grad_item), (self.user, self.grad_user))
            self.grad_weight = sum(sum_products(*part) for part in parts).to(self.user)
        grads = zip((self.grad_item, self.grad_user), self.wanted, strict=False)
        item, user = (grad.mul_(self.weight) if want else grad.new_empty(0) for grad, want in grads)
        return item, user, self.grad_weight

    def operands(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the positions of the items (u 2n), A (u, 2n, 1, h) and T (u, 1, s, h)."""
        pair = self.oriented.pair[:, *block[:2]].transpose(0, 1).reshape(-1)
        size = (block.shape[0], 2 * block.shape[1], 1, len(self.weight))
        return pair, self.item.index_select(0, pair).view(size), self.threshold(block)

    def threshold(self, block: Block) -> Tensor:
        """Returns T = −B with shape (u, 1, s, h)."""
        threshold = self.user[block.draws, block.users].transpose(0, 1).neg()
        # At B = ∞ a margin is the difference of two infinities; at B = −∞ that of two zeros.
        threshold = threshold.nan_to_num_(nan=torch.nan, posinf=torch.inf, neginf=torch.nan)
        return threshold.unsqueeze(1)

    def inner(self, block: Block, rows: int) -> Iterator[tuple[slice, slice]]:
        """Divides a block by users and draws so that its hidden units stay in the cache."""
        users, _, draws = block.shape
        each = rows * max(1, len(self.weight))
        draw_step = lane_step(draws, limits.hidden // each)
        user_step = even_step(users, limits.hidden // (each * draw_step))
        for user in slices(slice(0, users), user_step):
            for draw in slices(slice(0, draws), draw_step):
                yield user, draw


class MLPTable(MLP):
    r"""Sums w·relu(A + B) once for every item of a small table, all finite, and looks margins up.

    Where T = −B, :math:`\mathrm{relu}(A + B) = \max(A, T) - T`, and T cancels in the margins.
    """

    def __init__(
        self, item: Tensor | None, user: Tensor, weight: Tensor | None, oriented: Oriented
    ) -> None:
        # A position outside of the table would read another person's utilities. Other operations
        # look items up, which raises an error; so does this, without a wait for a device.
        known = torch.arange(len(item), device=item.device)
        pair = known.index_select(0, oriented.pair.flatten()).view_as(oriented.pair)
        super().__init__(item, user, weight, oriented._replace(pair=pair))

    def blocks(self) -> Iterator[Block]:
        users, comparisons, draws = self.whole.shape
        step = even_step(comparisons, limits.margins)
        most = max(step, len(self.item), 1)
        draw_step = even_step(draws, limits.margins // most)
        rows = draw_step * len(self.weight)
        user_step = min(limits.margins // max(most * draw_step, 1), limits.rows // max(rows, 1))
        return grid(self.whole, (even_step(users, user_step), step, draw_step))

    def margin(self, block: Block) -> Tensor:
        # From the largest A on all items are equal, and larger numbers would cost digits.
        threshold = torch.minimum(self.threshold(block), self.item.amax(0))
        utility = self.table(block)
        for users, draws in self.inner(block, len(self.item)):
            part = threshold[users, :, draws]
            size = (len(part), len(self.item), *part.shape[2:])
            hidden = self.scratch.take("hidden", size)
            torch.maximum(self.item.unsqueeze(1), part, out=hidden)
            utility[users, :, draws] = (hidden.flatten(0, 2) @ self.weight).view(size[:3])
        first, second = self.places(block)
        size = (len(first), block.shape[2])
        rows = utility.view(-1, size[1])
        y = torch.index_select(rows, 0, first, out=self.scratch.take("y", size))
        y -= torch.index_select(rows, 0, second, out=self.scratch.take("high", size))
        return y.view(block.shape)

    def pull(self, block: Block, g: Tensor) -> None:
        per_utility = self.table(block).zero_()
        rows, (first, second) = g.reshape(-1, g.shape[-1]), self.places(block)
        places = per_utility.view(-1, g.shape[-1])
        places.index_add_(0, first, rows).index_add_(0, second, rows.neg())
        items = self.item.unsqueeze(1).expand(block.shape[0], *self.item.unsqueeze(1).shape)
        parts = self.pull_rows(block, items, self.threshold(block), per_utility)
        if self.needs[0]:
            self.grad_item += parts[0].sum(0)
        if self.needs[1]:
            self.add_user(block, parts[1])

    def table(self, block: Block) -> Tensor:
        """Returns memory for all items' utilities (u, m, s)."""
        users, _, draws = block.shape
        return self.scratch.take("table", (users, len(self.item), draws))

    def places(self, block: Block) -> Tensor:
        """Returns the rows of the two items in a table (u m, s), with shape (2, u n)."""
        users = torch.arange(block.shape[0], device=self.item.device).unsqueeze(-1)
        return (self.oriented.pair[:, *block[:2]] + users * len(self.item)).reshape(2, -1)


def sum_products(value: Tensor, grad: Tensor) -> Tensor:
    """Sums value·grad (*, h) over all axes but the last, in double precision between blocks."""
    total = grad.new_zeros(grad.shape[-1], dtype=torch.float64)
    step = max(1, limits.margins // max(1, grad[:1].numel()))
    for part, of in zip(value.split(step), grad.split(step), strict=True):
        # A value without a gradient adds nothing, even if it is infinite or NaN.
        total += (part * of).masked_fill_(of == 0, 0.0).flatten(0, -2).sum(0)
    return total
