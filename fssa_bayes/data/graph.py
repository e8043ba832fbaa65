"""The graph whose nodes are items and whose edges are comparisons, or wins."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fssa_bayes.data.comparisons import Comparisons, Data, replace
from fssa_bayes.data.judgements import Judgements
from fssa_bayes.data.keys import distinct_keys
from fssa_bayes.data.names import first_names
from fssa_bayes.data.ragged import offsets_of
from fssa_bayes.data.rankings import list_stage_wins

if TYPE_CHECKING:
    from scipy import sparse

__all__ = [
    "Wins",
    "as_pairs",
    "describe_separation",
    "find_components",
    "find_win_classes",
    "label_components",
    "list_wins",
    "rank_classes",
    "warn_about_graph",
]


class Wins(NamedTuple):
    """Lists who won over whom: a half win is a win either way.

    Attributes:
        winner: Position of the winner of each of Q wins, with shape (Q,).
        loser: Position of the loser, (Q,).
        number: Number of the comparison that the win belongs to, or of a row of its ranking, (Q,).
        on_left: Whether the winner stood on the left, (Q,).
    """

    winner: np.ndarray
    loser: np.ndarray
    number: np.ndarray
    on_left: np.ndarray


def list_wins(data: Comparisons) -> Wins:
    """Lists the wins of comparisons that stand alone, then those that rankings tell.

    In a ranking the winner of each stage won over all items that were left.
    """
    alone = ~data.judgements.inside
    by_left = np.flatnonzero(alone & (data.choice >= 0.5))
    by_right = np.flatnonzero(alone & (data.choice <= 0.5))
    slots, _ = data.judgements.list_slots(data.left, data.right, data.choice)
    _, winner, loser = list_stage_wins(slots)
    rows = np.flatnonzero(data.judgements.inside)[slots.row[loser]]
    return Wins(
        np.concatenate([data.left[by_left], data.right[by_right], slots.item[winner]]),
        np.concatenate([data.right[by_left], data.left[by_right], slots.item[loser]]),
        np.concatenate([by_left, by_right, rows]),
        np.arange(len(by_left) + len(by_right) + len(rows)) < len(by_left),
    )


def as_pairs(data: Data) -> Data:
    """Breaks rankings into the pairs that they tell, each a comparison of its own.

    The item with the lower position is on the left, so that places do not depend on the outcome.
    """
    wins, alone = list_wins(data), np.flatnonzero(~data.judgements.inside)
    ranked = data.judgements.inside[wins.number]
    winner, loser, rows = wins.winner[ranked], wins.loser[ranked], wins.number[ranked]
    number = np.concatenate([alone, rows])
    order = np.argsort(data.judgements.head_of(number), kind="stable")
    number = number[order]
    parts = {
        "left": (data.left[alone], np.minimum(winner, loser)),
        "right": (data.right[alone], np.maximum(winner, loser)),
        "choice": (data.choice[alone], winner < loser),
    }
    joined = {
        name: np.concatenate(values).astype(values[0].dtype)[order]
        for name, values in parts.items()
    }
    slots, own = data.judgements.list_slots(data.left, data.right, data.choice)
    return replace(
        data,
        **joined,
        offsets=offsets_of(np.bincount(data.person[number], minlength=len(data))),
        judgements=Judgements(len(number)),
        side=None if data.side is None else data.side[number],
        broken=(len(own), int((slots.last - 1).sum())),  # A stage for each place but the last.
    )


def find_components(data: Comparisons) -> np.ndarray:
    """Labels the connected component of each item, largest first, −1 where never compared."""
    labels = label_components(data.left, data.right, data.num_items)
    used = np.zeros(data.num_items, dtype=bool)
    used[data.left] = used[data.right] = True
    sizes = np.bincount(labels[used], minlength=labels.max(initial=0) + 1)
    rank = np.empty_like(sizes)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return np.where(used, rank[labels], -1)


def label_components(first: np.ndarray, second: np.ndarray, num_items: int) -> np.ndarray:
    """Labels the component of each item, (M,), in the graph of pairs (Q,) given by position."""
    from scipy import sparse

    edges = _list_edges(first, second, num_items)
    return sparse.csgraph.connected_components(edges, directed=False)[1]


def find_win_classes(winner: np.ndarray, loser: np.ndarray, num_items: int) -> np.ndarray:
    """Labels the strongly connected component of each item in the graph of wins, with shape (M,).

    Two items of a class lost to one another, directly or through others. The maximum of the
    likelihood puts a finite distance between them, and none between items of different classes.

    References:
        Ford (1957), Solution of a ranking problem from binary comparisons, American Mathematical
        Monthly 64.
    """
    from scipy import sparse

    edges = _list_edges(winner, loser, num_items)
    return sparse.csgraph.connected_components(edges, connection="strong")[1]


def _list_edges(start: np.ndarray, end: np.ndarray, size: int) -> sparse.coo_array:
    """Lists the different edges (Q,) of a graph of some size, in order."""
    from scipy import sparse

    pairs = distinct_keys(start.astype(np.int64) * size + end, size**2)
    return sparse.coo_array(
        (np.ones(len(pairs), dtype=bool), np.divmod(pairs, size)), shape=(size, size)
    )


def rank_classes(winner: np.ndarray, loser: np.ndarray, count: int) -> np.ndarray:
    """Returns levels of classes (count,), such that each winner stands above each loser.

    Args:
        winner: The class that won each of Q edges of a graph without a cycle, with shape (Q,).
        loser: The class that lost, (Q,).
        count: Number of classes.
    """
    level = np.zeros(count, dtype=np.int64)
    while True:
        low = level[winner] <= level[loser]
        if not low.any():
            return level
        np.maximum.at(level, winner[low], level[loser[low]] + 1)


def describe_separation(data: Comparisons) -> str:
    """Names the items without a finite utility, for items without features; `""` for none.

    In every component of the comparison graph the largest class of :func:`find_win_classes` is
    what the other items are compared with.
    """
    wins, components = list_wins(data), find_components(data)
    labels = find_win_classes(wins.winner, wins.loser, data.num_items)
    said = []
    for component in range(components.max(initial=-1) + 1):
        members = np.flatnonzero(components == component)
        sizes = np.bincount(labels[members])
        if np.count_nonzero(sizes) == 1:
            continue
        if sizes.max() == 1:
            said.append(
                f"no two of {len(members)} items ({first_names(data.item_names[members])}) have "
                "utilities with a finite distance, as no item both lost to another and won "
                "against it, directly or through others"
            )
            continue
        reference = labels == sizes.argmax()
        above = _reach(wins.loser, wins.winner, reference)
        below = _reach(wins.winner, wins.loser, reference)
        own = (components == component) & ~reference
        for which, what in (
            (own & above, "won every comparison with the other items"),
            (own & below, "lost every comparison with the other items"),
            (own & ~above & ~below, "won and lost in a way that gives no finite distance"),
        ):
            if which.any():
                said.append(f"{first_names(data.item_names[which])} {what}")
    return "; ".join(said)


def _reach(start: np.ndarray, end: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Marks the items that some of the members (M,) reach along edges from start to end, (M,)."""
    from scipy import sparse

    size = len(members)
    first = np.flatnonzero(members)[0]
    # One node in place of the members, which reach one another.
    start, end = (np.where(members[nodes], first, nodes) for nodes in (start, end))
    edges = _list_edges(start, end, size)
    found = np.zeros(size, dtype=bool)
    order = sparse.csgraph.breadth_first_order(edges.tocsr(), first, return_predecessors=False)
    found[order] = True
    return found


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
