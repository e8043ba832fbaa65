"""Utilities of items to people, a few people at a time."""

from __future__ import annotations

import pytest
import torch

from fssa_bayes import HeterogeneousBTL
from fssa_bayes.posterior.utilities import centred_utilities


@pytest.mark.parametrize("chunk", [1, 150, 10**6])
def test_utilities_are_centred_and_complete_however_many_people_at_a_time(chunk: int) -> None:
    """100 utilities a person: chunks of one, one and all of five people."""
    model = HeterogeneousBTL(3, 2, utility="linear")
    z, table = torch.randn(20, 7, 2), torch.randn(5, 3)
    people = torch.tensor([4, 0, 6, 2, 5])
    parts = list(centred_utilities(model, z, table, people, chunk=chunk))
    assert [index for where, _ in parts for index in range(5)[where]] == list(range(5))
    assert len(parts) == (1 if chunk == 10**6 else 5)
    with torch.no_grad():
        utility = model.item_utility(table, z[:, people])
    expected = utility - utility.mean(-1, keepdim=True)
    torch.testing.assert_close(torch.cat([part for _, part in parts], 1), expected)
