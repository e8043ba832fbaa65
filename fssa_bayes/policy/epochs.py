"""The order in which the steps of training meet the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from fssa_bayes.policy.reference import LengthBuckets

__all__ = ["EpochSampler"]


class EpochSampler(Sampler[int]):
    """Orders the rows of an epoch by (seed, epoch), as many as fill whole batches of a step.

    Within a batch the rows are ordered by length, so that the parts of a batch have less padding.

    Args:
        lengths: Number of tokens of each row.
        batch_size: Rows of a step, over all processes and accumulation steps.
        strategy: `"random"`, `"group_by_length"` or `"sequential"`, as in `TrainingArguments`.
        seed: Seed of the orders.
        step: Function that tells the number of steps done.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        strategy: str,
        seed: int,
        step: Callable[[], int],
    ) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.strategy, self.step = str(getattr(strategy, "value", strategy)), step
        self._known: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Returns the number of rows of an epoch."""
        return len(self.lengths) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        # The epoch follows from the step, also after a run is resumed.
        epoch = self.step() // (len(self) // self.batch_size)
        yield from self.order(epoch).tolist()

    def pairs_of_step(self, step: int) -> np.ndarray:
        """Returns the positions of the pairs of a step, of all processes."""
        epoch, batch = divmod(step, len(self) // self.batch_size)
        return self.order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]

    def order(self, epoch: int) -> np.ndarray:
        """Returns the positions of the pairs of an epoch."""
        if self._known is None or self._known[0] != epoch:
            self._known = (epoch, self.arrange(epoch))
        return self._known[1]

    def arrange(self, epoch: int) -> np.ndarray:
        """Computes :meth:`order`, which keeps the last result."""
        if self.strategy == "sequential":
            return np.arange(len(self))
        if self.strategy == "group_by_length":
            buckets = LengthBuckets(self.lengths, self.batch_size, seed=self.seed, drop_last=True)
            buckets.set_epoch(epoch)
            return np.concatenate(buckets.batches())
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))
        batches = order[: len(self)].reshape(-1, self.batch_size)
        by_length = np.argsort(-self.lengths[batches], axis=1, kind="stable")
        return np.take_along_axis(batches, by_length, axis=1).ravel()
