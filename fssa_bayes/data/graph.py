"""The graph whose nodes are items and whose edges are comparisons."""

from __future__ import annotations

import warnings

import numpy as np

from fssa_bayes.data.comparisons import Comparisons

__all__ = ["find_components", "warn_about_graph"]


def find_components(data: Comparisons) -> np.ndarray:
    """Labels the connected component of each item, largest first, −1 where never compared."""
    from scipy import sparse

    edges = sparse.coo_array(
        (np.ones(data.num_comparisons, dtype=np.int8), (data.left, data.right)),
        shape=(data.num_items, data.num_items),
    )
    _, labels = sparse.csgraph.connected_components(edges.astype(bool), directed=False)
    used = np.zeros(data.num_items, dtype=bool)
    used[data.left] = used[data.right] = True
    sizes = np.bincount(labels[used], minlength=labels.max(initial=0) + 1)
    rank = np.empty_like(sizes)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return np.where(used, rank[labels], -1)


def warn_about_graph(data: Comparisons, *, stacklevel: int) -> None:
    """Warns of items whose utility no comparison, or none with the other items, tells."""
    labels = find_components(data)
    unused = int((labels < 0).sum())
    if data.items is not None and unused:
        warnings.warn(
            f"{unused} of {data.num_items} items are never compared; their utilities rest on "
            "their features alone",
            stacklevel=stacklevel + 1,
        )
    if data.items is None and labels.max() > 0:
        shown = []
        for component in range(min(3, labels.max() + 1)):
            names = [repr(name) for name in data.item_names[labels == component][:3]]
            more = ", …" if (labels == component).sum() > 3 else ""
            shown.append("{" + ", ".join(names) + more + "}")
        warnings.warn(
            f"the comparison graph has {labels.max() + 1} connected components, so utilities "
            f"of different components cannot be compared: {', '.join(shown)}"
            + (", …" if labels.max() > 2 else ""),
            stacklevel=stacklevel + 1,
        )
