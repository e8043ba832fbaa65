"""The latent-conditioned policy: a language model whose behaviour follows a person's posterior."""

from fssa_bayes.policy.film import FiLM, decoder_layers, steered
from fssa_bayes.policy.model import PolicyConfig, SteerablePolicy, interpolate

__all__ = [
    "FiLM",
    "PolicyConfig",
    "SteerablePolicy",
    "decoder_layers",
    "interpolate",
    "steered",
]
