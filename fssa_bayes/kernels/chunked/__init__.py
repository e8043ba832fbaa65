r"""The pairwise log-likelihoods in bounded memory, with a backward written by hand.

Plain ATen on whole blocks of users, comparisons and draws; the derivation is in
:mod:`fssa_bayes.kernels`. Four things make it fast on a CPU, where memory and not arithmetic is
short:

- The problem, and not each call, is divided among threads: see :mod:`fssa_bayes.kernels.workers`.
- A block is small enough for the cache, and its memory is used again for the next one.
- Comparisons are oriented so that y = utility of the item not preferred − that of the preferred:
  the log-probability is −log(1 + eʸ) and its derivative −σ(y), without a sign or a choice.
- A logarithm costs as much as everything else together. Up to eight factors 1 + exp(−\|y\|) are
  multiplied before one is taken.

Within a block the axes are users, comparisons, draws, so that what all draws share is a scalar of
the innermost loop.

`loop` holds the two passes and `blocks` how a problem is cut; `oriented` turns margins into
log-probabilities, `decoder` is what the operations share, and `gather`, `bilinear` and `mlp` are
the operations.
"""

from fssa_bayes.kernels._operation import Operation
from fssa_bayes.kernels.chunked.blocks import Limits, limits
from fssa_bayes.kernels.chunked.loop import backward, forward

__all__ = ["Limits", "backward", "forward", "limits", "operation"]

operation = Operation("chunked", forward, backward)
