"""The latent-conditioned policy: a language model whose behaviour follows a person's posterior."""

from fssa_bayes.policy.conditioning import interpolate, steered
from fssa_bayes.policy.config import PolicyConfig
from fssa_bayes.policy.contexts import Contexts
from fssa_bayes.policy.conversations import Conversation
from fssa_bayes.policy.evaluation import (
    accuracy,
    accuracy_by_context,
    by_group,
    draw_given,
    implicit_margin,
    implicit_reward,
    posterior_gap,
    trait_rates,
    win_rate,
)
from fssa_bayes.policy.film import FiLM, decoder_layers
from fssa_bayes.policy.fluency import LanguageProbe, TextCost, text_batch, text_cost
from fssa_bayes.policy.gates import Gates
from fssa_bayes.policy.latents import draw_latents
from fssa_bayes.policy.log_probs import response_log_prob, token_log_prob
from fssa_bayes.policy.losses import PairScores, PreferenceLoss, dpo_loss
from fssa_bayes.policy.model import SteerablePolicy
from fssa_bayes.policy.reference import LengthBuckets, ReferenceCache, fingerprint
from fssa_bayes.policy.rows import PreferenceRows
from fssa_bayes.policy.shared_prompt import pair_log_prob, shares_prompts
from fssa_bayes.policy.streaming import TextStream
from fssa_bayes.policy.text_report import TextReport, text_report
from fssa_bayes.policy.tokens import Dropped, ResponseBatch, TokenisedPairs
from fssa_bayes.policy.trainer import SteerableDPOTrainer

__all__ = [
    "Contexts",
    "Conversation",
    "Dropped",
    "FiLM",
    "Gates",
    "LanguageProbe",
    "LengthBuckets",
    "PairScores",
    "PolicyConfig",
    "PreferenceLoss",
    "PreferenceRows",
    "ReferenceCache",
    "ResponseBatch",
    "SteerableDPOTrainer",
    "SteerablePolicy",
    "TextCost",
    "TextReport",
    "TextStream",
    "TokenisedPairs",
    "accuracy",
    "accuracy_by_context",
    "by_group",
    "decoder_layers",
    "dpo_loss",
    "draw_given",
    "draw_latents",
    "fingerprint",
    "implicit_margin",
    "implicit_reward",
    "interpolate",
    "pair_log_prob",
    "posterior_gap",
    "response_log_prob",
    "shares_prompts",
    "steered",
    "text_batch",
    "text_cost",
    "text_report",
    "token_log_prob",
    "trait_rates",
    "win_rate",
]
