"""Which coefficients no comparison tells, found from the items that were compared."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fssa_bayes.data import Preferences, first_names
from fssa_bayes.model import HeterogeneousBTL

__all__ = ["describe_null", "find_null", "in_null", "warn_of_null"]

_LEAST = 1e-9  # Eigenvalue, by the largest, above which differences of items tell a direction.
_SHARE = 1e-6  # Of the squared length of a contrast: more in the null space, and it is not told.


def find_null(model: HeterogeneousBTL, data: Preferences) -> Tensor | None:
    """Finds the changes of coefficients that change no difference of utilities compared.

    Items without features have one for each connected component of the comparison graph, by which
    the component's utilities rise together, and one for each item never compared; features have
    them where they are constant or collinear.

    Args:
        model: A model with linear utility, in whose units coefficients are.
        data: The comparisons.

    Returns:
        An orthonormal basis with shape (D, n), in double precision; None where a prior on the
        coefficients (`penalty`) tells them. Where coefficients are log-normal or in
        willingness-to-pay space, only features that are constant are found.
    """
    if model.penalty:
        return None
    if data.items is None:
        basis = _null_of_graph(data.components())
    else:
        basis = _null_of_features(model, data)
    if model.utility.map.is_identity:
        return basis
    eye = torch.eye(len(basis), dtype=torch.float64)
    return eye[:, in_null(eye, basis, share=1 - 1e-6)]


def _null_of_graph(labels: np.ndarray) -> Tensor:
    """Returns a column for each component and for each item without comparisons, (M, n)."""
    labels = labels.copy()
    alone = labels < 0
    labels[alone] = labels.max(initial=-1) + 1 + np.arange(alone.sum())
    basis = torch.from_numpy(np.eye(labels.max() + 1)[labels])
    return basis / basis.norm(dim=0)


def _null_of_features(model: HeterogeneousBTL, data: Preferences) -> Tensor:
    """Returns the null space of the differences of the features compared, (D, n)."""
    features = model.standardise(data.items.to(model.device)).double().cpu()
    ones = np.ones(data.num_comparisons)
    graph = sparse.coo_array((ones, (data.left, data.right)), shape=(data.num_items,) * 2)
    laplacian = sparse.csgraph.laplacian((graph + graph.T).tocsr())
    gram = features.T @ torch.from_numpy(laplacian @ features.numpy())
    eigenvalues, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return vectors[:, eigenvalues <= _LEAST * eigenvalues[-1].clamp(min=1e-300)]


def in_null(contrasts: Tensor, basis: Tensor, share: float = _SHARE) -> Tensor:
    """Tells which linear contrasts (Q, P) depend on directions of a null space (P, n), (Q,)."""
    hidden = (contrasts @ basis).square().sum(-1)
    return hidden > share * contrasts.square().sum(-1)


def describe_null(basis: Tensor, data: Preferences) -> str:
    """Names features that are constant, and sets of collinear ones, given their null space."""
    weight = (basis @ basis.T).numpy()
    own = weight.diagonal()
    constant, hidden = own > 1 - _SHARE, own > _SHARE
    said = []
    if constant.any():
        which = "is" if constant.sum() == 1 else "are"
        names = first_names(data.feature_names[constant])
        said.append(f"{names} {which} the same for the two items of every comparison")
    rest = np.flatnonzero(hidden & ~constant)
    linked = sparse.csr_array(np.abs(weight[np.ix_(rest, rest)]) > _SHARE)
    for label in range(sparse.csgraph.connected_components(linked)[0] if len(rest) else 0):
        own = rest[sparse.csgraph.connected_components(linked)[1] == label]
        said.append(f"{first_names(data.feature_names[own])} are collinear")
    return "; ".join(said)


def warn_of_null(basis: Tensor | None, data: Preferences) -> None:
    """Warns of features whose coefficients no comparison tells; reading warned of the graph."""
    if data.items is None or basis is None or not basis.shape[1]:
        return
    number = int(in_null(torch.eye(len(basis), dtype=torch.float64), basis).sum())
    warnings.warn(
        f"the comparisons do not tell {number} of {len(basis)} coefficients, which are NaN: "
        f"{describe_null(basis, data)}. Leave out constant columns, and a column of each collinear "
        "set",
        stacklevel=5,
    )
