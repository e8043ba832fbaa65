"""Paired comparisons of many people: tables, storage, splits and batches."""

from fssa_bayes.data.alignment import align_covariates, find_columns
from fssa_bayes.data.batch import Batch
from fssa_bayes.data.chunks import user_batches, user_slices
from fssa_bayes.data.covariates import covariate_rank, identified_covariates
from fssa_bayes.data.graph import (
    describe_separation,
    find_win_classes,
    label_components,
    list_wins,
    rank_classes,
)
from fssa_bayes.data.ids import (
    canonical_names,
    explain_unknown,
    factorise_names,
    find_names,
    find_values,
    names_from_json,
    names_to_json,
)
from fssa_bayes.data.keys import count_keys, distinct_keys
from fssa_bayes.data.names import check_column, first_names
from fssa_bayes.data.parquet import ParquetFile, find_parquet_files
from fssa_bayes.data.precision import (
    coarse_columns,
    column_moments,
    constant_columns,
    storage_type,
    usable_numbers,
)
from fssa_bayes.data.preferences import Preferences
from fssa_bayes.data.rankings import list_stage_wins
from fssa_bayes.data.readers.categories import expand_levels, name_levels
from fssa_bayes.data.readers.outcomes import NAMED, read_values
from fssa_bayes.data.summary import Summary, find_recurrence
from fssa_bayes.data.weights import check_unweighted, total_weight
from fssa_bayes.kernels.plackett_luce import StagePairs

__all__ = [
    "NAMED",
    "Batch",
    "ParquetFile",
    "Preferences",
    "StagePairs",
    "Summary",
    "align_covariates",
    "canonical_names",
    "check_column",
    "check_unweighted",
    "coarse_columns",
    "column_moments",
    "constant_columns",
    "count_keys",
    "covariate_rank",
    "describe_separation",
    "distinct_keys",
    "expand_levels",
    "explain_unknown",
    "factorise_names",
    "find_columns",
    "find_names",
    "find_parquet_files",
    "find_recurrence",
    "find_values",
    "find_win_classes",
    "first_names",
    "identified_covariates",
    "label_components",
    "list_stage_wins",
    "list_wins",
    "name_levels",
    "names_from_json",
    "names_to_json",
    "rank_classes",
    "read_values",
    "storage_type",
    "total_weight",
    "usable_numbers",
    "user_batches",
    "user_slices",
]
