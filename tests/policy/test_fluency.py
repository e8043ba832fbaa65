"""What texts cost under a policy: beside whole logits, one at a time, and in training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from steered_policies import PROMPTS, factors, responses

from fssa_bayes.policy import LanguageProbe, text_batch, text_cost


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_costs_are_those_of_whole_logits(name: str, policy: Callable) -> None:
    moved, batch, z = policy(name), responses(), factors()
    found = text_cost(moved, batch, z, batch_size=3)
    with torch.no_grad():
        own = moved(batch.input_ids, batch.attention_mask, z=z).double().log_softmax(-1)
        with moved.reference():
            base = moved(batch.input_ids, batch.attention_mask).double().log_softmax(-1)
    for row in range(4):
        places = [t for t in range(1, 9) if batch.response_mask[row, t]]
        tokens = [int(batch.input_ids[row, t]) for t in places]
        at = [t - 1 for t in places]
        for mine, log_prob in ((found.nats, own), (found.reference_nats, base)):
            total = sum(-log_prob[row, t, v].item() for t, v in zip(at, tokens, strict=True))
            assert mine[row].item() == pytest.approx(total / len(places), rel=1e-4)
        kl = sum((own[row, t].exp() * (own[row, t] - base[row, t])).sum().item() for t in at) / len(
            at
        )
        assert found.kl[row].item() == pytest.approx(kl, rel=1e-3)
        assert kl > 0.01


def test_a_new_policy_costs_nothing(policy: Callable) -> None:
    cost = text_cost(policy(new=True), responses(), factors())
    assert torch.equal(cost.kl, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(cost.nats, cost.reference_nats)
    assert not policy(new=True).training


def test_texts_are_scored_without_what_ends_them(policy: Callable) -> None:
    made = policy(new=True)
    batch = text_batch(made, PROMPTS, ["w4 w5 w6", "", "w7"])
    assert batch.response_mask.sum(-1).tolist() == [3, 0, 1]
    assert batch.input_ids[0][batch.response_mask[0]].tolist() == [4, 5, 6]
    cost = text_cost(made, batch)
    assert cost.nats[1] == cost.kl[1] == 0
    assert cost.nats[0] > 0.1


def test_a_probe_measures_the_references_own_texts(policy: Callable) -> None:
    moved, z = policy().train(), factors(3)
    probe = LanguageProbe.of(moved, PROMPTS, z, max_new_tokens=6)
    with moved.reference():
        texts = moved.generate(PROMPTS, max_new_tokens=6)
    assert torch.equal(probe.batch.input_ids, text_batch(moved, PROMPTS, texts).input_ids)
    found = probe.measure(moved)
    assert moved.training
    costs = [text_cost(moved.eval(), probe.batch, row) for row in z]
    kl = torch.stack([cost.kl.mean() for cost in costs])
    nats = torch.stack([cost.nats.mean() for cost in costs])
    assert found == pytest.approx(
        {
            "language/reference_nats": costs[0].reference_nats.mean().item(),
            "language/nats": nats.mean().item(),
            "language/nats_max": nats.max().item(),
            "language/kl": kl.mean().item(),
            "language/kl_max": kl.max().item(),
        }
    )
    assert kl.max() > kl.min()


def test_a_probe_reads_the_reference_once_for_all_people(policy: Callable) -> None:
    moved, z = policy(), factors(3)
    calls = []
    moved.base.base_model.register_forward_hook(lambda *_: calls.append(1))
    LanguageProbe(responses(), z, batch_size=2).measure(moved)
    assert len(calls) == 2 * (1 + 3)


def test_options_out_of_range_are_refused(policy: Callable) -> None:
    with pytest.raises(ValueError, match="batch_size must be positive"):
        text_cost(policy(new=True), responses(), batch_size=0)
    with pytest.raises(ValueError, match="z must have shape"):
        text_cost(policy(new=True), responses(), factors(3))
