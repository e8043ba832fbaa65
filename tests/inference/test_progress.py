"""The progress bar of a fit."""

from __future__ import annotations

import io
import sys

import pytest
from two_feature_people import fresh, simulate

from fssa_bayes import fit
from fssa_bayes.inference.progress import Progress


def test_a_broken_progress_bar_does_not_end_the_fit(monkeypatch) -> None:
    data = simulate(people=5)
    model, guide = fresh(data, utility="linear")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("fssa_bayes.inference.progress.tqdm.update", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="progress bar failed and is switched off"):
        result = fit(model, guide, data, steps=2)
    assert len(result.history) == 4


@pytest.mark.parametrize("seconds", [0.9, 1.1])
def test_nothing_is_shown_in_the_first_second(
    seconds: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with Progress(10, 0, True) as progress:
        progress.update("MaximumLikelihood", 0.5)
        now[0] = seconds
        progress.update("MaximumLikelihood", 0.4)
    shown = capsys.readouterr().err
    assert ("MaximumLikelihood 0.4000" in shown) == (seconds > 1)
    assert bool(shown) == (seconds > 1)
