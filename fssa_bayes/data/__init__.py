"""Paired comparisons of many people: tables, storage, splits and batches."""

from fssa_bayes.data.batch import Batch
from fssa_bayes.data.chunks import user_batches, user_slices
from fssa_bayes.data.covariates import covariate_rank, identified_covariates
from fssa_bayes.data.names import first_names
from fssa_bayes.data.preferences import Preferences
from fssa_bayes.data.summary import Summary

__all__ = [
    "Batch",
    "Preferences",
    "Summary",
    "covariate_rank",
    "first_names",
    "identified_covariates",
    "user_batches",
    "user_slices",
]
