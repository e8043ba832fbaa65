"""Which covariates of people vary by themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from fssa_bayes.data.precision import constant_columns

__all__ = ["covariate_rank", "identified_covariates"]


def covariate_rank(covariates: Tensor) -> int:
    """Counts the independent directions in which people's covariates (U, W) vary."""
    return int(_varied_directions(covariates)[0].sum())


def identified_covariates(covariates: Tensor) -> Tensor:
    """Tells which covariates (U, W) vary between people where the others are held fixed, (W,)."""
    varied, vectors = _varied_directions(covariates)
    return vectors[:, ~varied].square().sum(-1) < 1e-6


def _varied_directions(covariates: Tensor) -> tuple[Tensor, Tensor]:
    """Returns eigenvectors (W, W) of the correlations, and which of them have any variance."""
    table = covariates.double().cpu()
    centred = table - table.mean(0)
    centred[:, constant_columns(table)] = 0  # Rounding alone.
    centred = centred / centred.std(0, unbiased=False).clamp(min=1e-300)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    return values > 1e-9, vectors
