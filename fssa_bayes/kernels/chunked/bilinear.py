"""Margins of the utility φ(x)·ψ(z)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fssa_bayes.kernels.chunked.blocks import Block
from fssa_bayes.kernels.chunked.decoder import Decoder

__all__ = ["Bilinear"]

_LEAST_ROWS = 4  # Products of fewer rows round differently, and a person's depend on the padding.


class Bilinear(Decoder):
    """Multiplies differences of item factors by user factors.

    Looking margins up in a table of utilities is slower, however few items there are, unless there
    are 128 factors or more.
    """

    def load(self, block: Block) -> None:
        first, second = self.oriented.pair[:, *block[:2]].reshape(2, -1)
        size = (len(first), self.item.shape[-1])
        rows = torch.index_select(self.item, 0, first, out=self.scratch.take("first", size))
        rows -= torch.index_select(self.item, 0, second, out=self.scratch.take("second", size))
        self.difference = self.oriented.fill(rows.view(*block.shape[:2], -1), block, 0.0)
        self.factors = self.copy_users(block)

    def margin(self, block: Block) -> Tensor:
        comparisons = block.shape[1]
        y = self.scratch.take("y", block.shape)
        factors = self.factors.transpose(1, 2)
        if comparisons >= _LEAST_ROWS:
            return torch.bmm(self.difference, factors, out=y)
        rows = F.pad(self.difference, (0, 0, 0, _LEAST_ROWS - comparisons))
        return y.copy_(torch.bmm(rows, factors)[:, :comparisons])

    def pull(self, block: Block, g: Tensor) -> None:
        if self.needs[0]:
            rows = self.scratch.take("second", self.difference.shape)
            torch.bmm(g, self.factors, out=rows)
            # A masked margin has the gradient 0, and 0 times a NaN of its user is NaN.
            self.add_items(block, self.oriented.fill(rows, block, 0.0))
        if self.needs[1]:
            part = self.factors  # Overwritten: the factors are not read again.
            self.add_user(block, torch.bmm(g.transpose(1, 2), self.difference, out=part))
