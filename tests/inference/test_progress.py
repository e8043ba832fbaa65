"""The progress bar of a fit."""

from __future__ import annotations

import io
import sys

import pytest
from two_feature_people import fresh, simulate

from fssa_bayes import fit


def test_a_broken_progress_bar_does_not_end_the_fit(monkeypatch) -> None:
    data = simulate(people=5)
    model, guide = fresh(data, utility="linear")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("fssa_bayes.inference.progress.tqdm.update", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="progress bar failed and is switched off"):
        result = fit(model, guide, data, steps=2)
    assert len(result.history) == 4
