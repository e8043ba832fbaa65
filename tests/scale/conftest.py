"""Saved models that the tests of this folder score people by."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("pyarrow", reason="scores at scale need the extra parquet")

from many_people import save_model


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixed logit of six items without features."""
    return _save(tmp_path_factory, "linear")


@pytest.fixture(scope="session")
def bilinear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bilinear utility with its guide."""
    return _save(tmp_path_factory, "bilinear", latent_dim=3)


def _save(factory: pytest.TempPathFactory, utility: str, **options: object) -> Path:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Few people, and few steps.
        return save_model(factory.mktemp("models") / utility, utility, **options)
