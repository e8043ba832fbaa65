"""Policies that several test files share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from steered_policies import move

from fssa_bayes.policy import SteerablePolicy


@pytest.fixture
def policy(tiny_model: Callable, word_tokenizer, randomise: Callable) -> Callable:
    """Returns a factory of policies, new or away from their initial weights."""

    def build(name: str = "llama", *, new: bool = False, dtype=torch.float32, **options):
        made = SteerablePolicy.from_model(
            tiny_model(name, dtype=dtype), word_tokenizer, latent_dim=2, lora_rank=2, **options
        )
        if not new:
            move(made)
        return made

    return build
