"""The latent-conditioned policy: a language model whose behaviour follows a person's posterior."""

from fssa_bayes.policy.data import (
    Contexts,
    Conversation,
    Dropped,
    PreferenceRows,
    ResponseBatch,
    TokenisedPairs,
)
from fssa_bayes.policy.dpo import SteerableDPOTrainer, dpo_loss, draw_latents
from fssa_bayes.policy.film import FiLM, decoder_layers, steered
from fssa_bayes.policy.model import PolicyConfig, SteerablePolicy, interpolate

__all__ = [
    "Contexts",
    "Conversation",
    "Dropped",
    "FiLM",
    "PolicyConfig",
    "PreferenceRows",
    "ResponseBatch",
    "SteerableDPOTrainer",
    "SteerablePolicy",
    "TokenisedPairs",
    "decoder_layers",
    "dpo_loss",
    "draw_latents",
    "interpolate",
    "steered",
]
