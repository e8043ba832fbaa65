"""People scored by Spark: every partition holds whole people, and loads the model once.

Needs the extra `spark`, and Java 17.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from fssa_bayes.scale.table import Scorer

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["score_frame"]

_TYPES = {
    pa.string(): "STRING",
    pa.int64(): "BIGINT",
    pa.int32(): "INT",
    pa.float32(): "FLOAT",
    pa.bool_(): "BOOLEAN",
}


def score_frame(
    frame: DataFrame, model_dir: str | os.PathLike, *, num_partitions: int, **options: object
) -> DataFrame:
    """Scores the people of a Spark DataFrame; the rows are those of :func:`score_table`.

    Args:
        frame: Comparisons, one a row in any order.
        model_dir: Folder of a model that :func:`fssa_bayes.save` wrote, which every executor can
            read.
        num_partitions: Number of partitions that people are dealt to; a partition is held whole.
        **options: Arguments of :class:`fssa_bayes.scale.Scorer`.

    Returns:
        The scores.

    Raises:
        ValueError: As :class:`fssa_bayes.scale.Scorer`, before any work.
    """
    model_dir = str(model_dir)
    scorer = Scorer(model_dir, **options)
    chosen = frame.select(*scorer.columns.all)
    kinds = {"string": pa.string()} | dict.fromkeys(
        ("tinyint", "smallint", "int", "bigint"), pa.int64()
    )
    fields = [(name, kinds.get(kind, pa.float64())) for name, kind in chosen.dtypes]
    schema = scorer.schema(pa.schema(fields))

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = list(batches)
        if rows:
            torch.set_num_threads(1)
            table = pa.Table.from_batches(rows)
            yield from Scorer(model_dir, **options).score(table).to_batches()

    columns = ", ".join(f"`{field.name}` {_TYPES[field.type]}" for field in schema)
    return chosen.repartition(num_partitions, scorer.columns.user).mapInArrow(score, columns)
