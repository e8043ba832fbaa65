"""Margins looked up in a table of utilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fssa_bayes.kernels.chunked.blocks import Block
from fssa_bayes.kernels.chunked.decoder import Decoder

__all__ = ["Gather", "OneHot", "Shared"]


class Shared(Decoder):
    """Looks margins up in utilities (S, 1, M) that all users share."""

    shares_users = True

    def margin(self, block: Block) -> Tensor:
        pair = self.oriented.pair[:, *block[:2]].reshape(2, -1)
        table = self.user[block.draws, 0].T.contiguous()
        size = (pair.shape[1], block.shape[2])
        y = torch.index_select(table, 0, pair[0], out=self.scratch.take("y", size))
        y -= torch.index_select(table, 0, pair[1], out=self.scratch.take("second", size))
        return y.view(block.shape)

    def start(self, needs: Sequence[bool]) -> None:
        super().start(needs)
        self.grad_user.zero_()

    def pull(self, block: Block, g: Tensor) -> None:
        pair, rows = self.oriented.pair[:, *block[:2]].reshape(2, -1), g.view(-1, g.shape[-1])
        table = self.user.new_zeros(self.user.shape[-1], g.shape[-1])
        table.index_add_(0, pair[0], rows).index_add_(0, pair[1], rows, alpha=-1)
        self.grad_user[block.draws, 0] += table.T


class OneHot(Decoder):
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


class Gather(Decoder):
    """Looks margins up in utilities (S, U, M)."""

    def margin(self, block: Block) -> Tensor:
        user = self.user[block.draws, block.users]
        first, second = (user.gather(-1, pair) for pair in self.positions(block))
        y = self.scratch.take("y", block.shape)
        torch.sub(first, second, out=y.permute(2, 0, 1))
        return y

    def pull(self, block: Block, g: Tensor) -> None:
        users, _, draws = block.shape
        part = self.scratch.take("part", (draws, users, self.user.shape[-1])).zero_()
        g = g.permute(2, 0, 1).contiguous()
        first, second = self.positions(block)
        part.scatter_add_(-1, first, g).scatter_add_(-1, second, -g)
        self.add_user(block, part.transpose(0, 1))

    def positions(self, block: Block) -> Tensor:
        """Returns the positions of the two items for every draw, with shape (2, s, u, n)."""
        pair = self.oriented.pair[:, *block[:2]]
        return pair.unsqueeze(1).expand(-1, block.shape[-1], -1, -1)
