"""One model for each label of people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.baselines.base import Baseline, check_preferences
from fssa_bayes.baselines.homogeneous import HomogeneousBTL
from fssa_bayes.data import Preferences, canonical_names, find_names
from fssa_bayes.model import check_same_people
from fssa_bayes.posterior import ChoiceProbability, Predictor

__all__ = ["OneModelPerLabel", "PredictionsByLabel"]


class OneModelPerLabel(Baseline):
    """Fits a separate model to the people of each label: an oracle, which knows the labels.

    Args:
        labels: The label of every person, in training and later, by the name of the person.
        build: Returns a baseline, not yet fitted, for the people of one label.

    Attributes:
        members: The fitted baseline of each label.

    Raises:
        TypeError: If `labels` is no mapping or Series.
        ValueError: If a person has two labels.
    """

    members: dict[object, Baseline]

    def __init__(
        self, labels: Mapping | pd.Series, build: Callable[[], Baseline] = HomogeneousBTL
    ) -> None:
        if not isinstance(labels, Mapping | pd.Series):
            raise TypeError(
                "labels must be a mapping, or a Series indexed by user name, got "
                f"{type(labels).__name__}"
            )
        names, values = zip(*labels.items(), strict=True) if len(labels) else ((), ())
        index = canonical_names("the index of labels", names)
        if not index.is_unique:
            repeated = index[index.duplicated()].tolist()[0]
            raise ValueError(f"labels must have one for a person, got several for {repeated!r}")
        self.labels, self.build = pd.Series(values, index=index), build

    def fit(self, data: Preferences, *, seed: int = 0, progress_bar: bool = True) -> Self:
        """Fits one model a label, see :meth:`Baseline.fit`.

        Raises:
            ValueError: If a person has no label.
        """
        self.members = {
            label: self.build().fit(data.subset(people), seed=seed, progress_bar=progress_bar)
            for label, people in self.positions(data).items()
        }
        return self

    def predict(self, context: Preferences) -> PredictionsByLabel:
        """Returns the predictions of the model of each person's label.

        Raises:
            ValueError: If a person has no label, or one that was not trained.
        """
        people = self._known(context)
        parts = [
            (where, self.members[label].predict(context.subset(where)))
            for label, where in people.items()
        ]
        return PredictionsByLabel(context, parts)

    def log_evidence(self, data: Preferences) -> Tensor:
        """Evaluates log p(all choices of a person), in nats, with shape (U,)."""
        out = torch.empty(len(data), dtype=torch.float64)
        for label, where in self._known(data).items():
            out[where] = self.members[label].log_evidence(data.subset(where)).double()
        return out

    def coefficients(self) -> pd.DataFrame:
        """Tabulates the coefficients of each label's model, with `label` first in the index."""
        members = self.fitted("members").items()
        return pd.concat({label: m.coefficients() for label, m in members}, names=["label"])

    def _known(self, data: Preferences) -> dict[object, np.ndarray]:
        """Returns :meth:`positions`, of labels among those of the training people."""
        members, people = self.fitted("members"), self.positions(data)
        unknown = [label for label in people if label not in members]
        if unknown:
            raise ValueError(
                "labels must be among those of the training people, "
                f"{pd.Index(members).tolist()}, got {pd.Index(unknown).tolist()[0]!r}"
            )
        return people

    def positions(self, data: Preferences) -> dict[object, np.ndarray]:
        """Returns the positions of the people of each label.

        Raises:
            ValueError: If a person has no label.
        """
        check_preferences(data)
        row = find_names(data.user_names, self.labels.index)
        labels = self.labels.iloc[row]
        missing = (row < 0) | labels.isna().to_numpy()
        if missing.any():
            first = data.user_names[missing].tolist()[0]
            raise ValueError(
                f"labels must have one for every person, got none for user {first!r} "
                f"({int(missing.sum())} such people)"
            )
        return pd.Series(np.arange(len(data))).groupby(labels.to_numpy()).indices


class PredictionsByLabel:
    """Puts the predictions of each label's model together.

    Args:
        context: The people.
        parts: For each label, the positions of its people and the predictions for these people.
    """

    def __init__(self, context: Preferences, parts: list[tuple[np.ndarray, Predictor]]) -> None:
        self.context, self.parts = context, parts

    def choice_prob(self, target: Preferences) -> ChoiceProbability:
        """Describes each person's probability of preferring left, as `Posterior.choice_prob`."""
        check_same_people(self.context, target)
        width = int(target.counts.max(initial=0))
        names = [field.name for field in fields(ChoiceProbability)]
        out = {name: torch.full((len(target), width), math.nan) for name in names}
        for where, predictions in self.parts:
            part = predictions.choice_prob(target.subset(where))
            for name, table in out.items():
                value = getattr(part, name)
                table[where, : value.shape[1]] = value
        return ChoiceProbability(**out)

    def log_score(self, target: Preferences) -> Tensor:
        """Scores each person's unseen choices, (U,), in nats, as `Posterior.log_score`."""
        check_same_people(self.context, target)
        out = torch.empty(len(target))
        for where, predictions in self.parts:
            out[where] = predictions.log_score(target.subset(where))
        return out
