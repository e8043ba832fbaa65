"""What is known of a person, and what a person answers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd

from fssa_bayes.data import Preferences, canonical_names, find_names
from fssa_bayes.data.comparisons import select_where
from fssa_bayes.model import HeterogeneousBTL, align, positions

__all__ = ["add_answer", "read_answer", "read_person"]


def read_person(
    model: HeterogeneousBTL,
    context: Preferences | pd.DataFrame | Sequence | None,
    user: Hashable | None,
) -> Preferences:
    """Returns what is known of one person, in the items, features and covariates of the model.

    Arguments are those of :class:`Interview`.
    """
    if context is None:
        if model.feature_names is None or model.is_standardised:
            raise ValueError(
                "context must tell the items and their features, such as a table of features "
                "indexed by name, got None: the model knows no items by name"
            )
        context = model.feature_names
    if not isinstance(context, Preferences):
        if model.feature_names is not None and not isinstance(context, pd.DataFrame):
            positions("items of context", context, model.feature_names)
        ties = "keep" if model.has_ties else "half"
        context = Preferences.empty(["person" if user is None else user], context, ties=ties)
    if user is None:
        if len(context) > 1:
            raise ValueError(
                f"user must name the person to ask where context has several, {len(context)} here, "
                "got None"
            )
        user = context.user_names.tolist()[0]
    name = canonical_names("user", [user])
    position = find_names(name, context.user_names)
    if position[0] >= 0:
        return align(model, context.subset(position))
    none = np.zeros(context.subset([0]).num_comparisons, dtype=bool)
    parts = {"user_names": name, "weights": None, "covariates": None}
    return align(model, select_where(context.subset([0]), none, **parts))


def read_answer(
    question: tuple, choice: Hashable | Sequence, kind: str, has_ties: bool
) -> str | tuple:
    """Reads an answer: "left", "right" or "tie" of two items; else names, the best first.

    Args:
        question: Names of the items.
        choice: The answer, as :meth:`Interview.answer` takes it.
        kind: What is asked of more than two items.
        has_ties: Whether a tie is an answer.
    """
    if len(question) == 2:
        return read_comparison(question, choice, has_ties)
    if kind == "choice":
        if not is_among(choice, question):
            raise ValueError(f"choice must be one of the items {question}, got {choice!r}")
        return (choice,)
    ranked = () if isinstance(choice, str) or not np.iterable(choice) else tuple(choice)
    if len(ranked) != len(question) or not all(is_among(item, ranked) for item in question):
        raise ValueError(
            f"choice must rank the items {question}, each once, the best first, got {choice!r}"
        )
    return ranked


def read_comparison(question: tuple, choice: Hashable, has_ties: bool) -> str:
    """Reads an answer to two items as "left", "right" or "tie"."""
    named = {"left": question[0], "right": question[1]}
    words = ["left", "right", *(["tie"] if has_ties else [])]
    meanings = {word for word in words if isinstance(choice, str) and choice == word}
    if is_among(choice, question):
        meanings |= {word for word, item in named.items() if item == choice}
    if len(meanings) > 1:
        raise ValueError(f"choice is ambiguous: {choice!r} is an item and a place")
    if not meanings:
        has = "" if has_ties or choice != "tie" else ": the model has no ties"
        raise ValueError(
            f"choice must be one of the items {question} or of the words "
            f"{', '.join(map(repr, words))}, got {choice!r}{has}"
        )
    return meanings.pop()


def is_among(name: object, names: tuple) -> bool:
    """Says whether a value is one of some names; True is not the name 1."""
    if isinstance(name, bool) or not pd.api.types.is_hashable(name):
        return False
    return name in names


def add_answer(data: Preferences, question: tuple, answer: str | tuple) -> Preferences:
    """Adds one answer, as :func:`read_answer` returns it, to the data of one person."""
    user = data.user_names.tolist()[0]
    if isinstance(answer, tuple):
        return data.append_ranking(user, list(answer), choice_set=list(question))
    # A word or number might be the name of an item, and a Boolean is none.
    return data.append(user, *question, {"left": True, "right": False}.get(answer, answer))
