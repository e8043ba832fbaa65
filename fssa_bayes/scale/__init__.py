"""From one machine to many: people scored by processes, by Ray or by Spark.

The engines distribute; what they distribute is :class:`Scorer`, a pure function from the
comparisons of whole people to their scores. It needs the extra `parquet`, and the adapters of the
engines the extras `ray` and `spark`.
"""

from fssa_bayes.scale.job import Job, score_parquet
from fssa_bayes.scale.table import Scorer, model_digest, score_table

__all__ = ["Job", "Scorer", "model_digest", "score_parquet", "score_table"]
