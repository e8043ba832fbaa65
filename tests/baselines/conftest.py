"""What the tests of baselines share."""

from __future__ import annotations

import numpy as np
import pytest
from class_people import CLASSES, SHARES, simulate

from fssa_bayes import Preferences


@pytest.fixture(scope="module")
def two_classes() -> tuple[Preferences, np.ndarray]:
    return simulate(CLASSES, SHARES, 400, 8)
