"""ArviZ, of whichever version is installed: the only module that imports ArviZ."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import arviz
    import xarray

    InferenceData = arviz.InferenceData | xarray.DataTree

__all__ = ["Group", "build", "chain_diagnostics", "coordinate", "read_group"]


@dataclass(frozen=True)
class Group:
    """Holds the arrays of one group, each with the names of its dimensions.

    Attributes:
        variables: Name to (dimensions, array).
        coords: Coordinates by name, in the same form. One without its dimensions in the group is
            left out; one whose name is not its dimension is no index.
    """

    variables: Mapping[str, tuple[tuple[str, ...], np.ndarray]]
    coords: Mapping[str, tuple[tuple[str, ...], np.ndarray]]


def build(groups: Mapping[str, Group], attrs: Mapping[str, Any]) -> InferenceData:
    """Builds an `arviz.InferenceData`, or a `DataTree` from ArviZ 1.0 on.

    Args:
        groups: Groups by name. Arrays without elements are left out, since netCDF takes a dimension
            of length 0 for an unlimited one, and so are groups without arrays.
        attrs: Attributes of the whole and of every group. What is neither string, integer nor float
            becomes a JSON string: netCDF has no Booleans, no None and no mappings.

    Returns:
        The object; `to_netcdf(path)` writes the same file with either version.
    """
    import arviz
    import xarray

    attrs = {name: _attribute(value) for name, value in attrs.items()}
    datasets = {name: _dataset(group, attrs) for name, group in groups.items()}
    datasets = {name: dataset for name, dataset in datasets.items() if dataset.data_vars}
    if arviz.__version__.startswith("0."):
        return arviz.InferenceData(attrs=attrs, **datasets)
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attrs), **datasets})


def _dataset(group: Group, attrs: Mapping[str, str | int | float]) -> xarray.Dataset:
    import xarray

    variables = {name: (dims, x) for name, (dims, x) in group.variables.items() if x.size}
    present = {dim for dims, _ in variables.values() for dim in dims}
    coords = {name: entry for name, entry in group.coords.items() if present.issuperset(entry[0])}
    return xarray.Dataset(variables, coords=coords, attrs=attrs)


def _attribute(value: Any) -> str | int | float:
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if is_plain else json.dumps(value)


def coordinate(names: pd.Index) -> np.ndarray:
    """Turns names into values that netCDF can hold: integers, floats, or else strings.

    Names of several types become strings; where two would become the same, as 1 and "1", all are
    written as Python literals.
    """
    values = np.asarray(names)
    if values.dtype.kind in "iuf":
        return values
    strings = [str(name) for name in names]
    if len(set(strings)) < len(strings):
        strings = [repr(name) for name in names]
    # Objects, since strings of fixed width would all be as wide as the longest name.
    return np.array(strings, dtype=object)


def read_group(path: str | os.PathLike, group: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the arrays and the attributes of one group of a netCDF file that `build` wrote.

    Args:
        path: The file.
        group: Name of the group.

    Returns:
        Arrays by name, and attributes as they were written.

    Raises:
        OSError: If there is no such file or group.
    """
    import xarray

    with xarray.open_dataset(path, group=group, engine="h5netcdf") as dataset:
        arrays = {name: variable.values for name, variable in dataset.data_vars.items()}
        return arrays, dict(dataset.attrs)


def chain_diagnostics(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes R-hat and effective sample sizes of several quantities.

    Args:
        draws: Draws with shape (chains, draws, Q).

    Returns:
        Rank-normalised split R-hat, bulk and tail effective sample size (of the 5 % and 95 %
        quantiles), each with shape (Q,); NaN where there are fewer than 4 draws a chain or where a
        quantity does not vary.

    References:
        Vehtari et al. (2021), Rank-normalization, folding, and localization: an improved R-hat
        for assessing convergence of MCMC, Bayesian Analysis 16(2).
    """
    varies = np.ptp(draws, axis=(0, 1)) > 0
    out = np.full((3, draws.shape[-1]), np.nan)
    if draws.shape[1] < 4 or not varies.any():
        return tuple(out)
    import arviz
    import xarray

    dims = ("chain", "draw", "quantity")
    dataset = xarray.Dataset({"x": (dims, np.asarray(draws[..., varies], dtype=np.float64))})
    with np.errstate(divide="ignore", invalid="ignore"):  # A chain that never moves.
        out[0, varies] = arviz.rhat(dataset)["x"].values
        out[1, varies] = arviz.ess(dataset, method="bulk")["x"].values
        out[2, varies] = arviz.ess(dataset, method="tail", prob=(0.05, 0.95))["x"].values
    return tuple(out)
