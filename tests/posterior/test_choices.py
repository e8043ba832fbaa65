"""Choices predicted from weighted draws."""

from __future__ import annotations

import torch

from fssa_bayes.posterior.choices import weighted_quantiles


def test_weighted_quantiles_match_repeated_values() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 5.0]).reshape(4, 1, 1)
    weights = torch.tensor([0.25, 0.25, 0.25, 0.25]).reshape(4, 1)
    assert [q.item() for q in weighted_quantiles(values, weights, (0.2, 0.5, 0.9))] == [1, 2, 5]
    heavy = torch.tensor([0.97, 0.01, 0.01, 0.01]).reshape(4, 1)
    assert [q.item() for q in weighted_quantiles(values, heavy, (0.05, 0.95))] == [3, 3]
