"""Predictions of unseen choices by the number of choices that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from fssa_bayes.checks.held_out import expected_choice, word_for_judgements
from fssa_bayes.data import Preferences
from fssa_bayes.posterior import ChoiceProbability, Predictor

__all__ = ["compare_by_context", "score_by_context", "score_folds"]


def score_by_context(
    predictors: Mapping[str, Callable[[Preferences], Predictor]],
    data: Preferences,
    sizes: Sequence[int] = (0, 1, 3, 5, 10),
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores predictions of unseen choices by the number of choices that are known.

    Everybody who has more choices than are known takes part, so that the people, and their unseen
    choices, differ between sizes; all predictors see the same ones. A ranking is one choice, known
    or unseen as a whole.

    Args:
        predictors: By name, what turns known choices into predictions, such as
            `lambda context: Posterior(model, guide, context)`.
        data: People who took no part in any fit.
        sizes: Numbers of known choices.
        seed: Seed of the splits into known and unseen choices.

    Returns:
        One row a person, size and predictor. Columns: `known`, `predictor`, `user`; `unseen`, the
        number of choices that are predicted; `log_score`, their mean, nats a choice; `accuracy`,
        the share of those that are no ties of which the likelier side was chosen, an undecided
        prediction counting half; of a ranking, all pairs that it orders are counted.

    Raises:
        ValueError: If there are no predictors or sizes, or nobody has more choices than the
            smallest size.
    """
    if not predictors:
        raise ValueError("predictors must hold at least one, got none")
    if len(sizes) == 0:
        raise ValueError("sizes must hold at least one number of known choices, got none")
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
                "accuracy": _accuracy(predictor.choice_prob(target), target),
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

    People are dealt into folds at random, by `seed` alone, so that different fits are compared on
    the same folds.

    Args:
        fitters: By name, what fits to people and returns a predictor as :func:`score_by_context`
            wants it.
        data: The comparisons of all people.
        sizes: Numbers of known choices.
        num_folds: Number of folds.
        folds: Which folds are left out in turn, from 0; all if None.
        seed: Seed of the folds, and of splits into known and unseen choices.

    Returns:
        The table of :func:`score_by_context`, with a column `fold`: everybody stands once for each
        size and predictor, for :func:`compare_by_context`.

    Raises:
        ValueError: If `num_folds` does not lie between 2 and the number of people, or a fold is
            none of them or named twice.
    """
    if not isinstance(num_folds, int) or not 2 <= num_folds <= len(data):
        raise ValueError(
            f"num_folds must be an integer between 2 and the {len(data)} people, got {num_folds!r}"
        )
    folds = range(num_folds) if folds is None else folds
    unknown = [number for number in folds if number not in range(num_folds)]
    if unknown or len(folds) == 0:
        raise ValueError(f"folds must be some of 0 to {num_folds - 1}, got {list(folds)}")
    if len(sizes) == 0:
        raise ValueError("sizes must hold at least one number of known choices, got none")
    if len(set(folds)) < len(folds):
        raise ValueError(f"folds must name a fold once, got {list(folds)}")
    dealt = np.random.default_rng(seed).permutation(len(data)) % num_folds
    parts = []
    for number in folds:
        train, test = data.subset(dealt != number), data.subset(dealt == number)
        predictors = {name: fitter(train) for name, fitter in fitters.items()}
        scores = score_by_context(predictors, test, sizes, seed=seed)
        parts.append(scores.assign(fold=number))
    return pd.concat(parts, ignore_index=True)


def _accuracy(prob: ChoiceProbability, target: Preferences) -> np.ndarray:
    """Shares of right predictions among a person's pairs that are no ties, (U,)."""
    batch = target.batch()
    lean, answer = expected_choice(prob) - 0.5, batch.choice - 0.5
    right = torch.where(lean == 0, 0.5, (lean.sign() == answer.sign()).double())
    right = right.masked_fill(~batch.mask | (answer == 0), torch.nan)
    return right.nanmean(-1).numpy()


def compare_by_context(scores: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Compares predictors with one of them, person by person.

    Args:
        scores: Of :func:`score_by_context`; those of several folds can be put under each other if
            nobody stands in two.
        baseline: Name of the predictor that the others are compared with.

    Returns:
        One row a size and predictor (index `known`, `predictor`). Columns: `people`; `log_score`,
        the mean over people, nats a choice, and `accuracy`; `gain` in log score over the
        baseline, and its `standard_error` over people; `elpd_diff`, the sum of gains over all
        unseen choices, in nats, and `dse`, its standard error, clustered by person.

    Raises:
        ValueError: If `baseline` is none of the predictors, or a person stands twice.
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
