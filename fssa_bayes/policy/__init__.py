"""The latent-conditioned language model: a policy steered by a person's posterior."""

from fssa_bayes.policy.data import (
    Contexts,
    Conversation,
    Dropped,
    PreferenceRows,
    ResponseBatch,
    TokenisedPairs,
)

__all__ = [
    "Contexts",
    "Conversation",
    "Dropped",
    "PreferenceRows",
    "ResponseBatch",
    "TokenisedPairs",
]
