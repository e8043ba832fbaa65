"""Simulation-based calibration: how often exact posteriors are rejected, and which faults."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diagnostic_studies import NAMES, SIZES, Study, study

from fssa_bayes import diagnostics as dg


def verdict(people: Study, seed: int = 0) -> dg.SbcResult:
    pit = dg.weighted_pit(people.values, None, people.truth, seed=seed)
    return dg.sbc_test(pit, people.size, names=NAMES)


@pytest.mark.slow
def test_an_exact_posterior_is_rejected_at_most_as_often_as_allowed() -> None:
    repetitions = 100
    rejected = [verdict(study(60, 20, seed=seed), seed).rejected for seed in range(repetitions)]
    # .05 is guaranteed; 100 repetitions exceed 11 with a probability of .004.
    assert sum(rejected) <= 11


@pytest.mark.parametrize(
    ("fault", "direction"),
    [
        ({"scale": 0.7}, "over-confident"),
        ({"scale": 1.4}, "under-confident"),
        ({"shift": 0.3}, "biased"),
    ],
)
def test_a_wrong_posterior_is_named_at_every_size(fault: dict, direction: str) -> None:
    table = verdict(study(**fault)).table
    rows = table[table["quantity"] != "log-likelihood"]
    assert set(rows["group"]) == set(SIZES)
    assert rows["rejected"].all()
    assert (rows["direction"] == direction).all()
    linear = rows[rows["quantity"] == "difference"]
    # Normal scores are exact for normal quantities: 400 people give standard errors of .05, .04;
    # the shift is .3 in both dimensions, (1 + .5) / sqrt(1 + .25) of that along the difference.
    np.testing.assert_allclose(linear["scale"], fault.get("scale", 1.0), rtol=0.15)
    expected = -fault.get("shift", 0.0) * 1.5 / math.sqrt(1.25)
    np.testing.assert_allclose(linear["shift"], expected, atol=0.2)


@pytest.mark.parametrize("kind", ["prior", "half"])
def test_only_the_log_likelihood_sees_a_posterior_of_other_data(kind: str) -> None:
    table = verdict(study(kind=kind)).table
    sees = table["quantity"] == "log-likelihood"
    assert not table.loc[~sees, "rejected"].any()
    after = sees & (table["group"] > 0)
    assert (table.loc[after, "mean"] > 0.55).all()  # The truth explains the choices better.
    assert table.loc[after, "rejected"].all()
    # Without choices the prior is the posterior, and every log-likelihood is a tie.
    assert not table.loc[sees & (table["group"] == 0), "rejected"].any()


def test_a_fault_at_one_size_is_found_there_alone() -> None:
    good, bad = study(seed=1), study(scale=0.7, seed=2)
    pits = [dg.weighted_pit(people.values, None, people.truth) for people in (good, bad)]
    wrong = torch.from_numpy(good.size == 1).unsqueeze(-1)
    table = dg.sbc_test(torch.where(wrong, pits[1], pits[0])[:, :2], good.size).table
    assert set(table.loc[table["rejected"], "group"]) == {1}
