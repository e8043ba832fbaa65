"""Reads the groups of an export, whether of ArviZ 0.x or 1.x."""

from __future__ import annotations

import arviz as az
import numpy as np

ARVIZ_0 = az.__version__.startswith("0.")


def names(inference_data) -> set[str]:
    if ARVIZ_0:
        return set(inference_data.groups())
    return {group.strip("/") for group in inference_data.groups} - {""}


def group(inference_data, name: str):
    """Returns a group as an xarray Dataset."""
    return inference_data[name] if ARVIZ_0 else inference_data[name].to_dataset()


def values(inference_data, name: str, variable: str) -> np.ndarray:
    """Returns a variable in double precision, without the chain."""
    array = group(inference_data, name)[variable]
    return (array.isel(chain=0) if "chain" in array.dims else array).values.astype(np.float64)
