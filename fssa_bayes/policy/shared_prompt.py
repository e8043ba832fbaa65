r"""A prompt shared by several responses, encoded once.

The responses of a group follow their prompt in one sequence. Each response has the positions that
it would have alone, and a mask hides the other responses. All tokens of the prompt but the last are
shared; the last one begins every response, because it predicts the first token of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fssa_bayes.policy.checks import check_factors
from fssa_bayes.policy.conditioning import surrounding_z
from fssa_bayes.policy.log_probs import token_log_prob
from fssa_bayes.policy.tokens import ResponseBatch

if TYPE_CHECKING:
    from fssa_bayes.policy.model import SteerablePolicy

__all__ = [
    "SharedPrompts",
    "pack_if_worthwhile",
    "pair_log_prob",
    "probe_sharing",
    "shares_prompts",
]

_WORTHWHILE = 0.1  # Smallest share of the tokens that packing must save.
_PROBE_PROMPT, _PROBE_TOKENS = 12, 48  # Two responses after the prompt: 12 + 2 · 36 = 84 tokens.


@dataclass(frozen=True)
class SharedPrompts:
    """Holds P groups of B responses, each group in one sequence after its prompt.

    Attributes:
        input_ids: Tokens, int64 with shape (P, T).
        position_ids: Position of each token in the sequence it comes from, with shape (P, T).
        segment: 0 for what is shared, b + 1 for response b, −1 for padding, with shape (P, T).
        response_mask: True at tokens that are scored, with shape (P, T).
    """

    input_ids: Tensor
    position_ids: Tensor
    segment: Tensor
    response_mask: Tensor

    @classmethod
    def pack(cls, batch: ResponseBatch, num_responses: int = 2) -> SharedPrompts:
        """Packs B P sequences: all first responses of P prompts, then all second ones, and so on.

        A group shares the tokens that all its sequences begin with, up to the token before the
        first one that is scored in any: none, if the prompts differ from the first token on.

        Args:
            batch: Sequences padded on the right, with shape (B P, T).
            num_responses: Number of responses B of each prompt.

        Raises:
            ValueError: If the number of sequences is no multiple of B, or padding is not on the
                right.
        """
        if num_responses < 1 or len(batch.input_ids) % num_responses:
            raise ValueError(
                f"batch must hold num_responses={num_responses} sequences a prompt, got "
                f"{len(batch.input_ids)} sequences"
            )
        present = batch.attention_mask.bool()
        if (present[:, 1:] & ~present[:, :-1]).any():
            raise ValueError("batch must be padded on the right, got a token after padding")
        lengths = present.sum(-1).view(num_responses, -1)
        shared = _common_lengths(batch, num_responses)
        # Where the responses begin and end after the shared tokens, (P, B).
        sizes = (lengths - shared).T
        ends = shared[:, None] + sizes.cumsum(-1)
        begins = ends - sizes
        place = torch.arange(int(ends[:, -1].max()), device=ends.device)
        inside = place >= shared[:, None]
        response = (place[:, None] >= ends[:, None, :]).sum(-1).clamp(max=num_responses - 1)
        position = place - begins.gather(1, response) + shared[:, None]
        position = torch.where(inside, position, place)
        padding = place >= ends[:, -1:]
        position = position.masked_fill(padding, 0)
        row = response * len(shared) + torch.arange(len(shared), device=ends.device)[:, None]
        return cls(
            input_ids=batch.input_ids[row, position],
            position_ids=position,
            segment=torch.where(inside, response + 1, 0).masked_fill(padding, -1),
            response_mask=batch.response_mask[row, position] & inside & ~padding,
        )

    def attention_mask(self, dtype: torch.dtype | None = None) -> Tensor:
        """Returns the mask of which tokens see which, with shape (P, 1, T, T).

        Args:
            dtype: Floating type of a mask that is added to scores, 0 or the smallest number; None
                for a Boolean mask, True where a token is seen.
        """
        segment = self.segment
        place = torch.arange(segment.shape[1], device=segment.device)
        same = segment[:, :, None] == segment[:, None, :]
        seen = (same | (segment == 0)[:, None, :]) & (place[:, None] >= place)
        seen = seen[:, None]
        if dtype is None:
            return seen
        return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)

    def sum(self, token: Tensor, num_responses: int = 2) -> Tensor:
        """Sums values of predicted tokens (P, T − 1) by response, with shape (B P,)."""
        segment = self.segment[:, :-1]
        parts = [torch.where(segment == b + 1, token, 0).sum(-1) for b in range(num_responses)]
        return torch.cat(parts)


def _common_lengths(batch: ResponseBatch, num_responses: int) -> Tensor:
    """Counts the tokens that each group's sequences begin with and that predict no scored token."""
    present = batch.attention_mask.bool()
    tokens = batch.input_ids.masked_fill(~present, -1).unflatten(0, (num_responses, -1))
    same = (tokens == tokens[0]).all(0) & present.view(tokens.shape).all(0)
    common = same.long().cumprod(-1).sum(-1)
    before = (~batch.response_mask & present).long().cumprod(-1).sum(-1)
    first = before.view(num_responses, -1).amin(0)
    return torch.minimum(common, first - 1).clamp(min=0)


def pair_log_prob(
    policy: SteerablePolicy,
    batch: ResponseBatch,
    z: Tensor | None = None,
    *,
    num_responses: int = 2,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Computes :math:`\log \pi(y \mid x, z)` of B responses to each of P prompts, in nats.

    Each prompt is encoded once where :func:`shares_prompts` finds that the model can share prompts
    and this saves a tenth of the tokens, otherwise with each response, as by
    :meth:`SteerablePolicy.sequence_log_prob`. Draws of z are evaluated one after the other, so that
    each rounds as the reference policy does.

    Args:
        policy: The policy.
        batch: B P sequences: all first responses, then all second ones, and so on.
        z: Latent factors (K,) for all, (P, K) one a prompt, or draws (S, P, K); None for those of
            the surrounding :func:`steered`, one a prompt, if any.
        num_responses: Number of responses B of each prompt.
        chunk_size: Logits held at a time; see :func:`response_log_prob`.

    Returns:
        Log-probabilities with shape (B P,), or (S, B P) for draws.

    Raises:
        ValueError: If z has another shape, or the sequences are no groups of B.
    """
    if z is not None:
        check_factors("z", z)
    if z is not None and z.ndim == 3:
        if not len(z):
            raise ValueError("z must have at least 1 draw, got none")
        each = [
            pair_log_prob(policy, batch, draw, num_responses=num_responses, chunk_size=chunk_size)
            for draw in z
        ]
        return torch.stack(each)
    prompts = len(batch.input_ids) // num_responses
    z = surrounding_z(prompts) if z is None else z
    if z is not None and z.shape not in ((policy.latent_dim,), (prompts, policy.latent_dim)):
        raise ValueError(
            f"z must have shape (K,), (P, K) or (S, P, K) with K = {policy.latent_dim} and P = "
            f"{prompts}, got {tuple(z.shape)}"
        )
    policy.check_length(batch)
    packed = pack_if_worthwhile(policy, batch, num_responses)
    if packed is None:
        z = z.repeat(num_responses, 1) if z is not None and z.ndim == 2 else z
        return policy.sequence_log_prob(batch, z, chunk_size=chunk_size)
    hidden = _encode(policy, packed, z)[:, :-1]
    token = token_log_prob(
        hidden,
        policy.output_layer,
        packed.input_ids[:, 1:],
        packed.response_mask[:, 1:],
        softcap=policy.softcap,
        chunk_size=chunk_size,
    )
    return packed.sum(token, num_responses)


def pack_if_worthwhile(
    policy: SteerablePolicy, batch: ResponseBatch, num_responses: int = 2
) -> SharedPrompts | None:
    """Packs a batch; None if the model cannot share prompts, or too few tokens are saved.

    A packed sequence must fit into the attention window of every layer, because the mask of a pack
    replaces the masks of sliding windows.
    """
    if num_responses < 2 or not shares_prompts(policy):
        return None
    packed = SharedPrompts.pack(batch, num_responses)
    config = policy.base.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    window = min((window for window in windows if window), default=float("inf"))
    if packed.input_ids.shape[1] > window:
        return None
    before, after = batch.input_ids.numel(), packed.input_ids.numel()
    return packed if after <= (1 - _WORTHWHILE) * before else None


def _encode(policy: SteerablePolicy, packed: SharedPrompts, z: Tensor | None) -> Tensor:
    # Eager attention adds its mask to the scores; other implementations take a Boolean mask.
    eager = policy.base.config._attn_implementation == "eager"
    mask = packed.attention_mask(policy.base.dtype if eager else None)
    return policy.hidden_states(packed.input_ids, mask, packed.position_ids, z=z)


def shares_prompts(policy: SteerablePolicy) -> bool:
    """Tells whether a model computes the same for two responses after one prompt as for each alone.

    :func:`probe_sharing` finds out, once for each model and attention implementation.
    """
    attention = policy.base.config._attn_implementation
    if attention not in policy.shares_prompts:
        policy.shares_prompts[attention] = probe_sharing(policy)
    return policy.shares_prompts[attention]


def probe_sharing(policy: SteerablePolicy) -> bool:
    """Compares 84 random tokens as one sequence of two responses, and as two sequences.

    They differ where attention ignores the mask or the positions, or where the model has a state
    that runs along the sequence.
    """
    device, size = policy.device, policy.base.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(size, (2, _PROBE_TOKENS), generator=generator)
    tokens[1, :_PROBE_PROMPT] = tokens[0, :_PROBE_PROMPT]
    scored = torch.arange(_PROBE_TOKENS).expand(2, -1) >= _PROBE_PROMPT
    batch = ResponseBatch(tokens, torch.ones_like(tokens), scored).to(device)
    packed = SharedPrompts.pack(batch)
    training = policy.training
    policy.eval()
    try:
        off = torch.autocast(device.type, enabled=False)  # Autocast would hide the precision.
        with torch.no_grad(), policy.reference(), off:
            alone = policy.hidden_states(batch.input_ids, batch.attention_mask).float()
            found = _encode(policy, packed, None).float()
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return False
    finally:
        policy.train(training)
    row = (packed.segment[0] - 1).clamp(min=0)
    expected = alone[row, packed.position_ids[0]]
    error = (found[0] - expected).norm() / expected.norm()
    # Rounding stays below this; a model that ignores the mask or the positions is tenths off.
    return bool(error < (5e-2 if policy.base.dtype.itemsize < 4 else 1e-4))
