"""Predictions of unseen choices by the number of choices that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from fssa_bayes.checks.enough import word_for_judgements
from fssa_bayes.checks.held_out import expected_choice
from fssa_bayes.data import Preferences, check_unweighted
from fssa_bayes.data.folds import deal_into_folds
from fssa_bayes.posterior import ChoiceProbability, Predictor

__all__ = ["accuracy", "compare_by_context", "score_by_context", "score_folds"]


def score_by_context(
    predictors: Mapping[str, Callable[[Preferences], Predictor]],
    data: Preferences,
    sizes: Sequence[int] = (0, 1, 3, 5, 10),
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores predictions of unseen choices by the number of choices that are known.

    At each size, the people with more choices than that take part, so that people and unseen
    choices differ between sizes. All predictors see the same people and choices. A ranking is one
    choice, known or unseen as a whole.

    Args:
        predictors: By name, a function from known choices to predictions, such as
            `lambda context: Posterior(model, guide, context)`.
        data: People who took no part in any fit.
        sizes: Numbers of known choices.
        seed: Seed of the splits into known and unseen choices.

    Returns:
        One row a person, size and predictor. Columns: `known`, `predictor`, `user`; `unseen`, the
        number of choices that are predicted; `log_score`, the mean log-probability of these
        choices, in nats a choice; `accuracy`, the share of choices whose likelier side was chosen.
        For accuracy ties are left out, an undecided prediction counts half, and a ranking counts
        as all the pairs that it orders.

    Raises:
        ValueError: If there are no predictors or sizes, or nobody has more choices than the
            smallest size.
    """
    if not predictors:
        raise ValueError("predictors must hold at least one, got none")
    if len(sizes) == 0:
        raise ValueError("sizes must hold at least one number of known choices, got none")
    check_unweighted(data, "score_by_context()")
    if not (data.judgement_counts > min(sizes)).any():
        raise ValueError(
            f"data must have people with more than min(sizes) = {min(sizes)} "
            f"{word_for_judgements(data)}, got {data.judgement_counts.max()} at most"
        )
    parts = []
    for size in sizes:
        enough = data.judgement_counts > size
        if not enough.any():
            continue
        context, target = data.subset(enough).split_context(size, seed=seed)
        for name, predict in predictors.items():
            predictor = predict(context)
            columns = {
                "known": size,
                "predictor": name,
                "user": target.user_names,
                "unseen": target.judgement_counts,
                "log_score": predictor.log_score(target).double().numpy(),
                "accuracy": accuracy(predictor.choice_prob(target), target),
            }
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def score_folds(
    fitters: Mapping[str, Callable[[Preferences], Callable[[Preferences], Predictor]]],
    data: Preferences,
    sizes: Sequence[int] = (0, 1, 3, 5, 10),
    *,
    num_folds: int = 5,
    folds: Sequence[int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Fits to some people and scores predictions for the others, fold by fold.

    People are dealt into folds by `seed` alone (:func:`fssa_bayes.data.folds.deal_into_folds`), so
    that different fits are compared on the same folds.

    Args:
        fitters: By name, what fits to people and returns a predictor as :func:`score_by_context`
            wants it.
        data: The comparisons of all people.
        sizes: Numbers of known choices.
        num_folds: Number of folds.
        folds: Numbers of the folds that are left out in turn, from 0; all if None.
        seed: Seed of the folds, and of splits into known and unseen choices.

    Returns:
        The table of :func:`score_by_context`, with a column `fold`: every person has one row for
        each size and predictor, as :func:`compare_by_context` asks.

    Raises:
        ValueError: If `num_folds` does not lie between 2 and the number of people, or `folds` holds
            a number that is no fold's or that is named twice.
    """
    dealt = deal_into_folds(len(data), num_folds, seed=seed)
    folds = range(num_folds) if folds is None else folds
    unknown = [number for number in folds if number not in range(num_folds)]
    if unknown or len(folds) == 0:
        raise ValueError(f"folds must be some of 0 to {num_folds - 1}, got {list(folds)}")
    if len(sizes) == 0:
        raise ValueError("sizes must hold at least one number of known choices, got none")
    if len(set(folds)) < len(folds):
        raise ValueError(f"folds must name a fold once, got {list(folds)}")
    parts = []
    for number in folds:
        train, test = data.subset(dealt != number), data.subset(dealt == number)
        predictors = {name: fitter(train) for name, fitter in fitters.items()}
        scores = score_by_context(predictors, test, sizes, seed=seed)
        parts.append(scores.assign(fold=number))
    return pd.concat(parts, ignore_index=True)


def compare_by_context(scores: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Compares predictors with one of them, person by person.

    Args:
        scores: The table of :func:`score_by_context`; tables of several folds can be concatenated
            if no person is in two.
        baseline: Name of the predictor that the others are compared with.

    Returns:
        One row a size and predictor (index `known`, `predictor`). Columns: `people`; `log_score`,
        the mean over people, nats a choice, and `accuracy`; `gain` in log score over the
        baseline, and its `standard_error` over people; `elpd_diff`, the sum of gains over all
        unseen choices, in nats, and `dse`, its standard error, clustered by person.

    Raises:
        ValueError: If `baseline` is none of the predictors, or a person has two rows for a size
            and predictor.
    """
    names = list(dict.fromkeys(scores["predictor"]))
    if baseline not in names:
        raise ValueError(f"baseline must be one of {names}, got {baseline!r}")
    if scores.duplicated(["known", "predictor", "user"]).any():
        raise ValueError("scores must have one row a size, predictor and user, got more")
    rows = {}
    for size, of_size in scores.groupby("known", sort=True):
        reference = of_size[of_size["predictor"] == baseline].set_index("user")
        for name in names:
            own = of_size[of_size["predictor"] == name].set_index("user").loc[reference.index]
            gain = own["log_score"] - reference["log_score"]
            total = gain * own["unseen"]
            people = len(own)
            rows[size, name] = {
                "people": people,
                "log_score": own["log_score"].mean(),
                "accuracy": own["accuracy"].mean(),
                "gain": gain.mean(),
                "standard_error": gain.std() / people**0.5,
                "elpd_diff": total.sum(),
                "dse": total.std() * people**0.5,
            }
    index = pd.MultiIndex.from_tuples(rows, names=["known", "predictor"])
    return pd.DataFrame(list(rows.values()), index=index)


def accuracy(prob: ChoiceProbability, target: Preferences) -> np.ndarray:
    """Computes each person's share of pairs whose likelier side was chosen, with shape (U,).

    Ties are left out, and an undecided prediction counts half.
    """
    batch = target.batch()
    lean, answer = expected_choice(prob) - 0.5, batch.choice - 0.5
    right = torch.where(lean == 0, 0.5, (lean.sign() == answer.sign()).double())
    right = right.masked_fill(~batch.mask | (answer == 0), torch.nan)
    return right.nanmean(-1).numpy()
