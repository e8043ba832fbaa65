"""One model for each label is as many separate fits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import Preferences
from fssa_bayes.baselines import (
    HomogeneousBTL,
    OneModelPerLabel,
)


def test_the_oracle_is_separate_fits(two_classes: tuple[Preferences, np.ndarray]) -> None:
    data, member = two_classes
    labels = pd.Series(np.where(member == 0, "many", "few"))
    oracle = OneModelPerLabel(labels).fit(data, progress_bar=False)
    context, target = data.split_context(3, seed=0)
    prob, score = oracle.predict(context).choice_prob(target), oracle.predict(context)
    evidence = oracle.log_evidence(data)
    for number, label in enumerate(("many", "few")):
        own = np.flatnonzero(member == number)
        single = HomogeneousBTL().fit(data.subset(own), progress_bar=False)
        pd.testing.assert_frame_equal(oracle.coefficients().loc[label], single.coefficients())
        predictions = single.predict(context.subset(own))
        assert torch.equal(prob.mean[own], predictions.choice_prob(target.subset(own)).mean)
        assert torch.equal(score.log_score(target)[own], predictions.log_score(target.subset(own)))
        assert torch.equal(evidence[own], single.log_evidence(data.subset(own)))
    with pytest.raises(TypeError, match="labels must be a mapping"):
        OneModelPerLabel(["many", "few"])
    strange = OneModelPerLabel(labels.mask(labels.index == 7, "none of these"))
    strange.members = oracle.members
    with pytest.raises(ValueError, match="got 'none of these'"):
        strange.predict(context)
