"""Bad input of what simulation-based calibration and agreement take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fssa_bayes import diagnostics as dg

VALUES, TRUTH = torch.randn(30, 25, 2), torch.zeros(25, 2)
BAD = [
    (dg.weighted_pit, (VALUES[0], None, TRUTH), r"values must have shape \(S, U, Q\).*\(25, 2\)"),
    (dg.weighted_pit, (VALUES, None, TRUTH[:4]), r"truth must have shape \(25, 2\).*\(4, 2\)"),
    (dg.weighted_pit, (VALUES[:19], None, TRUTH), "draws in values must be at least 20, got 19"),
    (dg.weighted_pit, (VALUES / 0 * 0, None, TRUTH), r"values must be finite, got nan at \(0, 0"),
    (dg.weighted_pit, (VALUES, VALUES[..., 0].T, TRUTH), r"log_weights must have shape \(30, 25\)"),
    (
        dg.weighted_pit,
        (VALUES, torch.full((30, 25), torch.nan), TRUTH),
        "log_weights must be below",
    ),
    (dg.weighted_pit, (VALUES, torch.full((30, 25), -torch.inf), TRUTH), "largest of each"),
    (dg.ecdf_band, (19,), "num_values must be at least 20, got 19"),
    (dg.ecdf_band, (100, 0), "num_tests must be at least 1, got 0"),
    (dg.sbc_test, (np.full((30, 1), 1.5),), r"pit must lie between 0 and 1, got 1.5 at \(0, 0\)"),
    (dg.sbc_test, (np.full(30, 0.5),), r"pit must have shape \(U, Q\).*got \(30,\)"),
    (dg.sbc_test, (np.full((30, 1), 0.5), [0] * 29 + [3]), "group 3 must be at least 20, got 1"),
    (dg.sbc_test, (np.full((30, 1), 0.5), [0] * 29), r"groups must have shape \(30,\).*\(29,\)"),
    (dg.coverage, (np.full((5, 1), 0.5),), "users in group all must be at least 20, got 5"),
    (dg.tarp, (VALUES, None, TRUTH, TRUTH[:, :1]), r"references must have shape \(25, 2\)"),
    (dg.tarp, (VALUES[:, :5], None, TRUTH[:5], TRUTH[:5]), "users must be at least 20, got 5"),
    (dg.contraction, ([1.0, 0.0], VALUES[0].abs()), "prior_sd must be positive, got 0.0 at 1"),
    (dg.kl_to_grid, (VALUES[..., 0], VALUES[:9, :, 0], 1.0), r"log_q must have shape \(30, 25\)"),
    (dg.kl_to_grid, (VALUES[..., 0], VALUES[..., 0], 0.0), "volume must be positive, got 0.0"),
    (dg.kl_to_grid, (VALUES[..., 0], VALUES[..., 0], [1.0]), r"volume must have shape \(25,\)"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), BAD)
def test_bad_input_is_named(function, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_an_error_names_level_and_type() -> None:
    with pytest.raises(ValueError, match="prob must lie between 0 and 1, got 1.5"):
        dg.ecdf_band(100, prob=1.5)
    with pytest.raises(TypeError, match="pit must be an array of numbers, got 'high'"):
        dg.sbc_test("high")
    with pytest.raises(ValueError, match="names must have length 1, one a quantity"):
        dg.sbc_test(np.full((30, 1), 0.5), names=["a", "b"])
    with pytest.raises(ValueError, match="truth_log_weight must be None where log_weights is"):
        dg.weighted_pit(VALUES, None, TRUTH, truth_log_weight=torch.zeros(25))
