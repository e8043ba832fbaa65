"""Paired comparisons of many people: tables, storage, splits and batches."""

from fssa_bayes.data.alignment import find_columns
from fssa_bayes.data.batch import Batch
from fssa_bayes.data.chunks import user_batches
from fssa_bayes.data.covariates import covariate_rank, identified_covariates
from fssa_bayes.data.ids import (
    canonical_names,
    explain_unknown,
    factorise_names,
    find_names,
    names_from_json,
    names_to_json,
)
from fssa_bayes.data.names import first_names
from fssa_bayes.data.precision import (
    coarse_columns,
    column_moments,
    constant_columns,
    storage_type,
    usable_numbers,
)
from fssa_bayes.data.preferences import Preferences
from fssa_bayes.data.summary import Summary

__all__ = [
    "Batch",
    "Preferences",
    "Summary",
    "canonical_names",
    "coarse_columns",
    "column_moments",
    "constant_columns",
    "covariate_rank",
    "explain_unknown",
    "factorise_names",
    "find_columns",
    "find_names",
    "first_names",
    "identified_covariates",
    "names_from_json",
    "names_to_json",
    "storage_type",
    "usable_numbers",
    "user_batches",
]
