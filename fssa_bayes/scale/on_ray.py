"""People scored by Ray: actors hold the model, and Ray deals people to them.

Needs the extra `ray`.
"""

from __future__ import annotations

import math
import os
import warnings
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from fssa_bayes.scale.pieces import part_of
from fssa_bayes.scale.table import Scorer

if TYPE_CHECKING:
    from ray.data import Dataset

__all__ = ["Actor", "score_dataset"]

_PART = "__part__"


class Actor:
    """Holds a scorer in a process of its own, with one thread.

    Args:
        model_dir: Folder of the model, which every node can read.
        options: Arguments of the scorer.
    """

    def __init__(self, model_dir: str, options: dict[str, object]) -> None:
        torch.set_num_threads(1)
        self.scorer = Scorer(model_dir, **options)

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.scorer.score(table)


def score_dataset(
    dataset: Dataset,
    model_dir: str | os.PathLike,
    *,
    num_parts: int,
    actors: int = 1,
    num_cpus: float | None = None,
    num_gpus: float = 0,
    **options: object,
) -> Dataset:
    """Scores the people of a Ray dataset; the rows are those of :func:`score_table`.

    People are brought together by a shuffle, which Ray spills to disk. Ray starts a dead actor
    again and repeats its work.

    Args:
        dataset: Comparisons, one a row in any order, such as `ray.data.read_parquet(...)` returns.
        model_dir: Folder of a model that :func:`fssa_bayes.save` wrote, which every node can read.
        num_parts: Number of parts that people are dealt to, for memory: a part is held whole. Ray's
            own default of 200 takes twenty seconds for a thousand rows.
        actors: Number of actors, each with the model.
        num_cpus: Processors that Ray reserves for an actor. None for 1, or for less where actors
            would leave no whole processor, which Ray needs to read and to shuffle: an actor is of
            one thread all the same.
        num_gpus: GPUs that Ray reserves for an actor, which uses one with `device="cuda"`.
        **options: Arguments of :class:`fssa_bayes.scale.Scorer`.

    Returns:
        The scores, parts in no particular order.

    Raises:
        ValueError: As :class:`fssa_bayes.scale.Scorer`, before any work.

    Warns:
        UserWarning: If `num_cpus` leaves no whole processor of the cluster, so that Ray may wait
            forever.
    """
    import ray
    from ray.data import ActorPoolStrategy

    there = ray.cluster_resources().get("CPU", 0)
    if num_cpus is None:  # Ray counts in ten-thousandths.
        num_cpus = min(1.0, math.floor(1e4 * max(there - 1, 0) / actors) / 1e4)
    elif actors * num_cpus > there - 1:
        warnings.warn(
            f"actors × num_cpus must leave a processor to read and to shuffle, got "
            f"{actors * num_cpus:g} of {there:g}: unless the cluster grows, Ray waits forever",
            stacklevel=2,
        )
    columns = Scorer(model_dir, **options | {"device": "cpu"}).columns

    def deal(batch: pa.Table) -> pa.Table:
        part = part_of(batch[columns.user], num_parts)
        return batch.select(columns.all).append_column(_PART, pa.array(part))

    dealt = dataset.map_batches(deal, batch_format="pyarrow", zero_copy_batch=True)
    return dealt.groupby(_PART, num_partitions=num_parts).map_groups(
        Actor,
        fn_constructor_args=(str(model_dir), options),
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
