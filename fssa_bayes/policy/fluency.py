r"""What steering costs in language: nats a token and divergence from the reference policy.

Accuracy of the implicit reward does not notice a policy that writes gibberish. Two numbers do: what
a text costs under a policy, :math:`-\frac1T \log π(y \mid x)`, and how far the policy's next tokens
are from the reference's along the text, :math:`\frac1T \sum_t KL(π(\cdot \mid y_{<t}) \,\|\,
π_0(\cdot \mid y_{<t}))`, both in nats a token. The token that ends a response is not counted, since
a text that was cut has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from fssa_bayes.policy.checks import check_positive, expand_factors
from fssa_bayes.policy.tokens import ResponseBatch

if TYPE_CHECKING:
    from fssa_bayes.policy.conversations import Conversation
    from fssa_bayes.policy.model import SteerablePolicy

__all__ = ["LanguageProbe", "TextCost", "text_batch", "text_cost"]


class TextCost(NamedTuple):
    """Holds costs of R responses, in nats a token, each with shape (R,).

    Attributes:
        nats: Under the policy.
        reference_nats: Under the reference policy.
        kl: Divergence of the policy's next token from the reference's, averaged over the tokens.
    """

    nats: Tensor
    reference_nats: Tensor
    kl: Tensor


@torch.no_grad()
def text_cost(
    policy: SteerablePolicy, batch: ResponseBatch, z: Tensor | None = None, *, batch_size: int = 8
) -> TextCost:
    """Measures what responses cost under the policy and the reference, and how far these are apart.

    Args:
        policy: The policy.
        batch: R sequences.
        z: Latent factors (K,) or (R, K); None for those of a policy that nothing steers.
        batch_size: Sequences whose logits are held at a time.

    Returns:
        Costs in float64 on the CPU; of a response without tokens all are 0.

    Raises:
        ValueError: If z has another shape, or `batch_size` is not positive.
    """
    return _text_costs(policy, batch, [z], batch_size)[0]


@torch.no_grad()
def _text_costs(
    policy: SteerablePolicy, batch: ResponseBatch, people: Sequence[Tensor | None], batch_size: int
) -> list[TextCost]:
    """Measures the same responses under several z; the reference, which has none, reads once."""
    check_positive(batch_size=batch_size)
    people = [z if z is None else expand_factors(z, len(batch), policy.latent_dim) for z in people]
    order = batch.attention_mask.sum(-1).argsort(descending=True, stable=True)
    costs = torch.zeros(len(people), 3, len(batch), dtype=torch.float64)
    for rows in order.split(batch_size):
        part = batch.select(rows).to(policy.device)
        own = [z if z is None else z[rows].to(policy.device) for z in people]
        costs[..., rows] = _costs(policy, part, own).double().cpu()
    return [TextCost(*cost) for cost in costs]


def _costs(policy: SteerablePolicy, part: ResponseBatch, people: Sequence[Tensor | None]) -> Tensor:
    """Computes the three costs under each z, with shape (M, 3, R)."""
    scored, targets = part.response_mask[:, 1:], part.input_ids[:, 1:]

    def next_token(z: Tensor | None) -> Tensor:
        logits = policy.logits_at(part.input_ids, scored, part.attention_mask, z=z)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def mean(values: Tensor) -> Tensor:
        placed = torch.zeros_like(scored, dtype=values.dtype).masked_scatter(scored, values)
        return placed.sum(-1) / scored.sum(-1).clamp(min=1)

    with policy.reference():
        base = next_token(None)
    chosen = targets[scored][:, None]
    base_nats = mean(-base.gather(1, chosen)[:, 0])
    costs = []
    for z in people:
        own = next_token(z)
        kl = (own.exp() * (own - base)).sum(-1).clamp(min=0)
        costs.append(torch.stack([mean(-own.gather(1, chosen)[:, 0]), base_nats, mean(kl)]))
    return torch.stack(costs)


def text_batch(
    policy: SteerablePolicy, prompts: Sequence[Conversation], texts: Sequence[str]
) -> ResponseBatch:
    """Tokenises generated texts with their prompts; the tokens that end them are not scored.

    An empty text is a sequence of which nothing is scored.
    """
    answers = [
        text or " " if isinstance(prompt, str) else [{"role": "assistant", "content": text or " "}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    batch = ResponseBatch.from_texts(
        policy.tokenizer, prompts, answers, after_end=False, joined=False
    )
    scored = batch.response_mask
    last = scored & (scored.long().cumsum(-1) == scored.sum(-1, keepdim=True))
    empty = torch.tensor([not text.strip() for text in texts])
    return replace(batch, response_mask=scored & ~last & ~empty[:, None])


class LanguageProbe:
    """Texts of the reference policy, and several people, on which a policy's language is measured.

    Args:
        batch: R prompts with texts that the reference policy wrote.
        z: Latent factors of M people, with shape (M, K).
        batch_size: Sequences whose logits are held at a time.
    """

    def __init__(self, batch: ResponseBatch, z: Tensor, *, batch_size: int = 8) -> None:
        self.batch, self.z, self.batch_size = batch, z, batch_size

    @classmethod
    def of(
        cls,
        policy: SteerablePolicy,
        prompts: Sequence[Conversation],
        z: Tensor,
        *,
        max_new_tokens: int = 48,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Self:
        """Lets the reference policy answer prompts.

        Args:
            policy: The policy; it may be trained already.
            prompts: R prompts.
            z: Latent factors of M people, with shape (M, K).
            max_new_tokens: Largest length of an answer, in tokens.
            temperature: Of the answers.
            seed: Of the answers.
        """
        with policy.reference():
            texts = policy.generate(
                prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
            )
        return cls(text_batch(policy, prompts, texts), z)

    def measure(self, policy: SteerablePolicy) -> dict[str, float]:
        """Measures, in nats a token, how the reference's own texts fare under each person's z.

        Returns:
            `language/reference_nats` under the reference; `language/nats` and `language/kl`
            averaged over people, and `language/nats_max`, `language/kl_max` of the person for whom
            they are largest.
        """
        training = policy.training
        policy.eval()
        try:
            costs = _text_costs(policy, self.batch, list(self.z), self.batch_size)
        finally:
            policy.train(training)
        nats = torch.stack([cost.nats.mean() for cost in costs])
        kl = torch.stack([cost.kl.mean() for cost in costs])
        return {
            "language/reference_nats": costs[0].reference_nats.mean().item(),
            "language/nats": nats.mean().item(),
            "language/nats_max": nats.max().item(),
            "language/kl": kl.mean().item(),
            "language/kl_max": kl.max().item(),
        }
