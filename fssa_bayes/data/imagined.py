"""The comparisons of real people, reassigned to simulated people.

Models without people take their batches from :func:`pool`; simulations ask simulated people what
real people were asked.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fssa_bayes.data.batch import Batch
from fssa_bayes.data.comparisons import Data, covariates_of, pad, replace, select
from fssa_bayes.data.judgements import Judgements
from fssa_bayes.data.keys import count_keys
from fssa_bayes.data.ragged import number_runs

__all__ = ["imagine", "merge", "pool", "resample"]


def pool(data: Data, width: int) -> Data:
    """Reassigns all comparisons in order to simulated people, about `width` to each."""
    # No ranking is divided between two people.
    heads = data.judgements.head_of(np.arange(0, data.num_comparisons, width))
    starts, _ = number_runs(heads)
    return replace(
        data,
        offsets=np.append(starts, data.num_comparisons),
        user_names=pd.RangeIndex(len(starts)),
        weights=None,
        covariates=None,
        covariate_names=pd.RangeIndex(0),
        covariate_levels={},
        dropped_ties=0,
        judgements=data.judgements if data.has_rankings else Judgements(data.num_comparisons),
        broken=(0, 0),
    )


def merge(data: Data, width: int) -> tuple[Data, np.ndarray | None]:
    """Pools comparisons, equal ones as one, where this halves their number at least.

    Args:
        data: The data.
        width: Number of comparisons of a simulated person.

    Returns:
        Distinct comparisons in an order that depends on these alone, and how many equal ones each
        stands for, (R,), a comparison for as many as its person's weight; or :func:`pool` and the
        weights, None without any.
    """
    weight = None if data.weights is None else data.weights[data.person]
    if data.has_rankings or data.num_items > 2**29:
        return pool(data, width), weight
    # A pair of positions below 2**29 and one of 12 answers make a number below 2**62.
    answer = (2 * data.choice).astype(np.int64)
    if data.side is not None:
        answer = 4 * answer + np.nan_to_num(data.side + 1, nan=3.0).astype(np.int64)
    pair = data.left.astype(np.int64) * data.num_items + data.right
    distinct, count = count_keys(12 * pair + answer, 12 * data.num_items**2, weight)
    if 2 * len(distinct) > data.num_comparisons:
        return pool(data, width), weight
    pair, answer = np.divmod(distinct, 12)
    left, right = np.divmod(pair, data.num_items)
    side = None
    if data.side is not None:
        answer, place = np.divmod(answer, 4)
        side = np.float32([-1, 0, 1, np.nan])[place]
    merged = replace(
        data,
        left=left.astype(data.left.dtype),
        right=right.astype(data.right.dtype),
        choice=answer.astype(np.float32) / 2,
        offsets=np.array([0, len(distinct)]),
        judgements=Judgements(len(distinct)),
        side=side,
    )
    return pool(merged, width), count


def resample(
    data: Data, counts: np.ndarray, rng: np.random.Generator, people: np.ndarray | None
) -> Batch:
    """Draws judgements at random from everybody's, `counts[u]` for each of U simulated people."""
    mask = np.arange(counts.max(initial=0)) < counts[:, None]
    judgement = rng.integers(data.num_judgements, size=mask.shape)[mask]
    return pad(data, *data.judgements.expand(judgement, counts), people)


def imagine(data: Data, judgement: np.ndarray, people: np.ndarray | None) -> Data:
    """Asks U simulated people N judgements each, given by number with shape (U, N)."""
    users, width = judgement.shape
    rows, counts = data.judgements.expand(judgement.ravel(), np.full(users, width))
    return select(
        data,
        rows,
        counts,
        user_names=pd.RangeIndex(users, name="user"),
        weights=None,
        covariates=covariates_of(data, people),
    )
