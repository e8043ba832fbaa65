r"""A prompt shared by several responses, encoded once.

The responses of a group follow their prompt in one sequence, each with the positions it would have
alone, and a mask keeps each from seeing the others. All but the last token of the prompt are
shared; that one begins every response, because it predicts another first token for each.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from fssa_bayes.policy.data import ResponseBatch
from fssa_bayes.policy.film import check_factors, surrounding_z
from fssa_bayes.policy.log_probs import token_log_prob

if TYPE_CHECKING:
    from fssa_bayes.policy.model import SteerablePolicy

__all__ = ["SharedPrompts", "pair_log_prob", "shares_prompts"]

_WORTHWHILE = 0.1
_PROBE_PROMPT, _PROBE_TOKENS = 12, 48


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

        What is shared is what the sequences of a group begin with in common, up to the token
        before the first that is scored in any: nothing, if the prompts differ.

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
        # Where the responses begin and end behind what is shared, (P, B).
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
        """Returns which tokens see which, with shape (P, 1, T, T).

        Args:
            dtype: Floating type of a mask that is added to scores, 0 or the smallest number; None
                for a Boolean one, True where a token is seen.
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
    """Counts what each group's sequences begin with in common and predicts no scored token."""
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

    Encodes each prompt once where :func:`shares_prompts` finds that the model can and it saves a
    tenth of the tokens; otherwise as :meth:`SteerablePolicy.sequence_log_prob` does. One draw of z
    is evaluated after the other, so that each rounds as the reference policy does.

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
    packed = _pack_if_worthwhile(policy, batch, num_responses)
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


def _pack_if_worthwhile(
    policy: SteerablePolicy, batch: ResponseBatch, num_responses: int
) -> SharedPrompts | None:
    """Packs a batch, unless the model cannot share prompts or hardly a token is saved."""
    if num_responses < 2 or not shares_prompts(policy):
        return None
    packed = SharedPrompts.pack(batch, num_responses)
    if packed.input_ids.shape[1] > _reach(policy.base.config):
        return None
    before, after = batch.input_ids.numel(), packed.input_ids.numel()
    return packed if after <= (1 - _WORTHWHILE) * before else None


def _encode(policy: SteerablePolicy, packed: SharedPrompts, z: Tensor | None) -> Tensor:
    # Eager attention adds its mask to the scores; the others take a Boolean one in any precision.
    eager = policy.base.config._attn_implementation == "eager"
    mask = packed.attention_mask(policy.base.dtype if eager else None)
    return policy.hidden_states(packed.input_ids, mask, packed.position_ids, z=z)


_known: weakref.WeakKeyDictionary[nn.Module, dict[str, bool]] = weakref.WeakKeyDictionary()


def shares_prompts(policy: SteerablePolicy) -> bool:
    """Tells whether a model gives two responses after one prompt what it gives each alone.

    Tried out once a model and attention implementation, on 84 random tokens: attention may
    ignore the mask or the positions, or the model may have a state that runs along the sequence.
    """
    known = _known.setdefault(policy.base, {})
    attention = policy.base.config._attn_implementation
    if attention not in known:
        known[attention] = _probe(policy)
    return known[attention]


def _probe(policy: SteerablePolicy) -> bool:
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
        off = torch.autocast(device.type, enabled=False)  # It would hide the model's precision.
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
    # Rounding, also of many layers, against the tenths that a mask or positions make.
    return bool(error < (5e-2 if policy.base.dtype.itemsize < 4 else 1e-4))


def _reach(config: PretrainedConfig) -> float:
    """Returns the largest length at which every layer still sees the whole sequence."""
    config = config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((window for window in windows if window), default=float("inf"))
