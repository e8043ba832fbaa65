"""TARP on posteriors that are exact, too narrow, too wide, shifted, or of other data."""

from __future__ import annotations

import torch
from diagnostic_studies import Study, study
from torch import Tensor

from fssa_bayes import diagnostics as dg


def references(people: Study, seed: int) -> Tensor:
    """Points near what the looks at z suggest: functions of the data and of noise alone."""
    noise = torch.randn(people.true_z.shape, generator=torch.Generator().manual_seed(seed))
    return people.loc + 0.5 * people.sd * noise


def tarp(people: Study) -> dg.TarpResult:
    return dg.tarp(people.z, None, people.true_z, lambda seed: references(people, seed))


def test_tarp_tells_right_from_wrong() -> None:
    assert not tarp(study(1000)).rejected
    # The reference is near the centre: a narrow posterior has too much mass nearer than the truth.
    narrow, wide = tarp(study(1000, scale=0.7)), tarp(study(1000, scale=1.4))
    assert narrow.rejected
    assert wide.rejected
    assert narrow.pit.mean() > 0.52
    assert wide.pit.mean() < 0.48
    assert tarp(study(1000, shift=0.8)).rejected
    middle = len(narrow.level) // 2
    assert narrow.coverage[middle] < narrow.lower[middle]
    assert wide.coverage[middle] > wide.upper[middle]


def test_tarp_sees_the_prior_only_with_references_that_depend_on_the_data() -> None:
    people, exact = study(1000, kind="prior"), study(1000)
    blind = torch.randn(people.true_z.shape, generator=torch.Generator().manual_seed(9))
    assert not dg.tarp(people.z, None, people.true_z, blind.double()).rejected
    assert dg.tarp(people.z, None, people.true_z, references(exact, 0)).rejected


def test_tarp_by_context_size_is_one_more_quantity() -> None:
    good, bad = study(sizes=(1, 4)), study(sizes=(1, 4), scale=0.6, seed=1)
    pit = torch.where(torch.from_numpy(good.size == 4), tarp(bad).pit, tarp(good).pit)
    table = dg.sbc_test(pit.unsqueeze(-1), good.size, names=["TARP"]).table
    assert table["rejected"].tolist() == [False, True]


def test_tarp_divides_by_the_scale() -> None:
    people, unit = study(100), torch.tensor([1.0, 50.0])
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(9))
    plain = dg.tarp(people.z, None, people.true_z, points)
    scaled = dg.tarp(people.z * unit, None, people.true_z * unit, points * unit, scale=unit)
    torch.testing.assert_close(plain.pit, scaled.pit, atol=0.02, rtol=0)
