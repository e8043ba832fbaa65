"""People dealt into folds."""

from __future__ import annotations

import numpy as np
import pytest

from fssa_bayes.data.folds import deal_into_folds


def test_folds_hold_everybody_once_in_equal_numbers_and_depend_on_the_seed_alone() -> None:
    folds = deal_into_folds(17, 5, seed=3)
    assert sorted(np.bincount(folds)) == [3, 3, 3, 4, 4]
    assert np.array_equal(folds, deal_into_folds(17, 5, seed=3))
    assert not np.array_equal(folds, deal_into_folds(17, 5, seed=4))


@pytest.mark.parametrize("num_folds", [1, 18, 2.0])
def test_a_number_of_folds_that_cannot_be_is_refused(num_folds: object) -> None:
    with pytest.raises(ValueError, match="num_folds must be an integer between 2 and the 17"):
        deal_into_folds(17, num_folds)
