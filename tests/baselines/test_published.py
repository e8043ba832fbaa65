"""The published signal: predictions at one point."""

from __future__ import annotations

import torch
from class_people import people

from fssa_bayes.baselines import (
    DeterministicNeuralProcess,
)


def test_the_published_signal_predicts_at_one_point() -> None:
    data = people()
    baseline = DeterministicNeuralProcess(hidden_dim=8, steps=5).fit(data, progress_bar=False)
    context, target = data.split_context(3, seed=0)
    z = baseline.guide.location(context.batch())
    batch = target.batch()
    expected = baseline.model.choice(batch, z.unsqueeze(0)).mean[0]
    prob = baseline.predict(context).choice_prob(target)
    torch.testing.assert_close(prob.mean[batch.mask], expected[batch.mask])
    assert torch.equal(prob.lower[batch.mask], prob.upper[batch.mask])
    assert prob.epistemic[batch.mask].max() < 1e-6
    assert baseline.result.history["stage"].unique().tolist() == ["PredictiveLikelihood"]
