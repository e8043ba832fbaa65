"""Steering is measured right: closed forms on models small enough to know by hand."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fssa_bayes.policy import Contexts, PreferenceRows, ResponseBatch
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

VOCABULARY = 5


class TiltedPolicy(nn.Module):
    """Writes tokens independently, token v with log-odds z·tilt_v on top of the reference's."""

    latent_dim = 2
    device = torch.device("cpu")

    def __init__(self, tilt: Tensor, base: Tensor) -> None:
        super().__init__()
        self.tilt, self.base, self.is_off = tilt, base, False

    @contextmanager
    def reference(self):
        self.is_off = True
        yield
        self.is_off = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, z=None) -> Tensor:
        steps = (*input_ids.shape, VOCABULARY)
        if self.is_off or z is None:
            return self.base.expand(steps)
        return (self.base + z @ self.tilt).unsqueeze(1).expand(steps)

    def sequence_log_prob(self, batch: ResponseBatch, z: Tensor | None = None) -> Tensor:
        if z is not None and z.ndim == 3:
            return torch.stack([self.sequence_log_prob(batch, draw) for draw in z])
        log_prob = self(batch.input_ids, z=z)[:, :-1].log_softmax(-1)
        tokens = log_prob.gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
        return (tokens * batch.response_mask[:, 1:]).sum(-1)


@pytest.fixture
def policy() -> TiltedPolicy:
    generator = torch.Generator().manual_seed(0)
    return TiltedPolicy(
        torch.randn(2, VOCABULARY, generator=generator),
        torch.randn(VOCABULARY, generator=generator),
    )


def sequences(responses: list[list[int]], prompt: int = 2) -> ResponseBatch:
    """Puts prompts of token 0 before responses, padded on the right."""
    width = prompt + max(map(len, responses))
    tokens = torch.zeros(len(responses), width, dtype=torch.long)
    attention, scored = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    for row, response in enumerate(responses):
        end = prompt + len(response)
        tokens[row, prompt:end] = torch.tensor(response)
        attention[row, :end], scored[row, prompt:end] = 1, True
    return ResponseBatch(tokens, attention, scored)


class Pairs:
    """P pairs of one-token responses, as `TokenisedPairs` serves them."""

    def __init__(self, chosen: list[int], rejected: list[int], rows: PreferenceRows) -> None:
        self.responses, self.rows, self.row = (chosen, rejected), rows, np.arange(len(chosen))

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, pairs: np.ndarray) -> ResponseBatch:
        return sequences([[side[p]] for side in self.responses for p in pairs])


def rows_of(users: list[str]) -> PreferenceRows:
    number = range(len(users))
    return PreferenceRows(
        [f"p{n}" for n in number], ["yes"] * len(users), ["no"] * len(users), users
    )


# Implicit rewards.


def test_implicit_reward_of_independent_tokens(policy: TiltedPolicy) -> None:
    responses = [[1, 2, 3], [4], [2, 2]]
    z = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(1))
    normaliser = (policy.base + z @ policy.tilt).logsumexp(-1) - policy.base.logsumexp(-1)
    tilt = torch.stack([policy.tilt[:, response].sum(-1) for response in responses])
    lengths = torch.tensor([3.0, 1.0, 2.0])
    expected = (z * tilt).sum(-1) - lengths * normaliser  # (S, R)
    batch = sequences(responses)
    for batch_size in (1, 4, 100):
        reward = implicit_reward(policy, batch, z, beta=0.5, batch_size=batch_size)
        torch.testing.assert_close(reward, 0.5 * expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(implicit_reward(policy, batch, z[1]), expected[1])
    one_z = implicit_reward(policy, batch, z[0, 0])
    torch.testing.assert_close(one_z[0], expected[0, 0])
    assert torch.equal(implicit_reward(policy, batch), torch.zeros(3))  # No z, no adapter.


def test_implicit_reward_takes_a_reference_that_is_known(policy: TiltedPolicy) -> None:
    batch, z = sequences([[1, 2], [3]]), torch.tensor([0.3, -1.0])
    with policy.reference():
        known = policy.sequence_log_prob(batch)
    assert not policy.is_off
    reward = implicit_reward(policy, batch, z)
    torch.testing.assert_close(implicit_reward(policy, batch, z, reference=known), reward)
    shifted = implicit_reward(policy, batch, z, reference=known - 2.0)
    torch.testing.assert_close(shifted, reward + 2.0)


def test_implicit_margin_is_a_difference_of_rewards(policy: TiltedPolicy) -> None:
    pairs = Pairs([1, 2, 3], [4, 1, 0], rows_of(["a", "a", "b"]))
    z = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(2))
    # One token each: normalisers cancel.
    expected = (z * (policy.tilt[:, [1, 2, 3]] - policy.tilt[:, [4, 1, 0]]).T).sum(-1)
    torch.testing.assert_close(implicit_margin(policy, pairs, z), expected, atol=1e-5, rtol=1e-5)
    margin = implicit_margin(policy, pairs, z[0, 0], beta=2.0)
    torch.testing.assert_close(margin[0], 2.0 * expected[0, 0])


def test_averaged_draws_are_one_policy(policy: TiltedPolicy) -> None:
    batch, z = sequences([[1, 2], [3]]), 3 * torch.randn(5, 2, 2)
    with policy.reference():
        base = policy.sequence_log_prob(batch)
    probability = policy.sequence_log_prob(batch, z).exp().mean(0)  # Of the mixture.
    reward = implicit_reward(policy, batch, z, beta=0.3, averaged=True)
    torch.testing.assert_close(reward, 0.3 * (probability.log() - base))
    pairs = Pairs([1], [4], rows_of(["a"]))
    chosen, rejected = (
        implicit_reward(policy, sequences([[token]]), z[:, :1], averaged=True) for token in (1, 4)
    )
    margin = implicit_margin(policy, pairs, z[:, :1], averaged=True)
    torch.testing.assert_close(margin, chosen - rejected)


# Accuracy.


def test_accuracy_counts_shares_of_draws_and_ties_as_half() -> None:
    margin = torch.tensor([[1.0, -1.0, 0.0, 2.0], [3.0, -2.0, 0.0, -1.0]])
    table = accuracy(margin, [0, 1, 2, 3])
    assert table["value"].tolist() == [pytest.approx((1 + 0 + 0.5 + 0.5) / 4)]
    by_type = accuracy(margin[0], [0, 1, 2, 3], ["x", "x", "y", "y"])
    assert by_type["group"].tolist() == ["x", "y"]
    assert by_type["value"].tolist() == [0.5, 0.75]
    with pytest.raises(ValueError, match="NaN"):
        accuracy(torch.tensor([1.0, torch.nan]), [0, 1])


@pytest.mark.slow
def test_accuracy_by_context_of_a_policy_that_is_its_posterior() -> None:
    # Token 1 is liked for z_0 > 0, token 2 for z_0 < 0; type x always chooses 1, type y always 2.
    policy = TiltedPolicy(torch.tensor([[0.0, 1, -1, 0, 0], [0.0] * 5]), torch.zeros(VOCABULARY))
    users = [f"{t}{u}" for t in "xy" for u in range(40) for _ in range(6)]
    rows = rows_of(users)
    likes_one = np.array([user[0] == "x" for user in users])
    pairs = Pairs(np.where(likes_one, 1, 2).tolist(), np.where(likes_one, 2, 1).tolist(), rows)
    preferences = rows.to_preferences(torch.zeros(len(rows.item_texts()), 1))
    contexts = Contexts(rows, preferences, max_context=5)

    def posterior(batch):
        """After n choices the sign of z is known with probability (n + 1) / (n + 2)."""
        sign = torch.where(torch.from_numpy(batch.people < 40), 1.0, -1.0)
        known = (batch.num_comparisons + 1) / (batch.num_comparisons + 2)

        def rsample(shape):
            right = torch.rand(*shape, len(sign)) < known
            z = torch.where(right, sign, -sign)
            return torch.stack([z, torch.zeros_like(z)], -1)

        return SimpleNamespace(rsample=rsample, sample=rsample)

    table = accuracy_by_context(
        policy,
        pairs,
        contexts,
        posterior,
        likes_one,
        num_contexts=(0, 1, 4),
        num_draws=20,
        averaged=False,
    )
    assert table["contexts"].tolist() == [0, 0, 1, 1, 4, 4]
    expected = (table["contexts"] + 1) / (table["contexts"] + 2)
    assert (abs(table["value"] - expected) < 4 * table["standard_error"]).all()
    # 240 pairs and 20 draws of each.
    assert table["standard_error"].to_numpy() == pytest.approx(
        np.sqrt(expected * (1 - expected) / 4800), rel=0.4
    )
    # Averaged, the policy knows the type as soon as a choice makes it more probable than not.
    averaged = accuracy_by_context(
        policy, pairs, contexts, posterior, likes_one, num_contexts=(0, 4), num_draws=200
    )
    assert (averaged["value"][:2] - 0.5).abs().max() < 4 * averaged["standard_error"][:2].max()
    assert (averaged["value"][2:] > 0.99).all()


def test_contexts_share_no_prompt_and_draws_follow_their_seed() -> None:
    rows = rows_of(["a"] * 5 + ["b"] * 4)
    preferences = rows.to_preferences(torch.arange(18.0)[:, None])
    contexts = Contexts(rows, preferences, max_context=4)
    seen = []

    def posterior(batch):
        seen.append(batch)
        return torch.distributions.Normal(batch.num_comparisons.float(), 1.0)

    z = draw_given(posterior, contexts, np.arange(9), num_context=3, num_draws=2, seed=5)
    assert z.shape == (2, 9)
    assert torch.equal(
        z, draw_given(posterior, contexts, np.arange(9), num_context=3, num_draws=2, seed=5)
    )
    assert not torch.equal(
        z, draw_given(posterior, contexts, np.arange(9), num_context=3, num_draws=2)
    )
    for row in range(9):  # Items 2 r and 2 r + 1 are those of row r.
        batch = seen[0]
        items = batch.items[torch.stack([batch.left[row], batch.right[row]])].flatten() // 2
        assert len(items.unique()) == 3
        assert row not in items
    with pytest.raises(ValueError, match="num_context=4"):
        draw_given(posterior, contexts, [8], num_context=4)


# Groups and their errors.


def test_errors_are_clustered_by_person() -> None:
    rng = np.random.default_rng(0)
    person = rng.normal(size=30)
    values = np.repeat(person, 10)  # Ten copies of a person tell no more than one.
    table = by_group(values, np.repeat(np.arange(30), 10))
    assert table["value"][0] == pytest.approx(person.mean())
    assert table["standard_error"][0] == pytest.approx(person.std(ddof=1) / np.sqrt(30))
    assert table["users"][0] == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [0, 0]), "at least 2 people"),
        (([1.0, 2.0], [0, 1, 2]), "one shape"),
        (([1.0, np.nan], [0, 1]), "NaN"),
        (([1.0, 2.0, 3.0], [0, 1, 2], ["a", "a", "b"]), "'b' must have at least 2 people"),
    ],
)
def test_groups_that_cannot_be_tabulated(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_group(*arguments)


# Text.


def test_trait_rates_of_known_texts() -> None:
    texts = ["a b", "a b c", "x", "x"]
    traits = {"words": lambda text: len(text.split()), "has a": lambda text: "a" in text}
    table = trait_rates(texts, traits, [0, 1, 2, 3], ["p", "p", "q", "q"])
    assert table["trait"].tolist() == ["words", "words", "has a", "has a"]
    assert table["value"].tolist() == [2.5, 1.0, 1.0, 0.0]
    assert table["standard_error"].tolist() == [0.5, 0.0, 0.0, 0.0]
    draws = trait_rates([texts, ["x"] * 4], traits, [0, 1, 2, 3])
    assert draws["value"].tolist() == [pytest.approx((7 / 4 + 1) / 2), 0.25]


def test_win_rate_is_the_probability_of_a_choice() -> None:
    worth = {"good": 2.0, "bad": 0.5}

    def reward(texts):
        """One draw that tells the texts apart and one that does not."""
        utility = torch.tensor([worth[text] for text in texts])
        return torch.stack([utility, torch.zeros_like(utility)])

    table = win_rate(["good", "good", "bad"], ["bad", "good", "good"], reward, [0, 1, 2], [0, 0, 0])
    sigmoid = 1 / (1 + np.exp(-1.5))
    expected = np.mean([sigmoid / 2 + 0.25, 0.5, (1 - sigmoid) / 2 + 0.25])
    assert table["value"][0] == pytest.approx(expected)
    assert win_rate(["bad"] * 3, ["bad"] * 3, reward, [0, 1, 2])["value"][0] == 0.5


# Averaging over z.


def test_posterior_gap_vanishes_without_uncertainty(policy: TiltedPolicy) -> None:
    batch = sequences([[1, 2, 3], [4, 1]])
    z = torch.tensor([[0.5, -1.0], [2.0, 0.1]]).expand(6, 2, 2)
    table = posterior_gap(policy, batch, z, ["a", "b"])
    assert table["value"][0] == pytest.approx(0.0, abs=1e-12)


def test_posterior_gap_of_one_token(policy: TiltedPolicy) -> None:
    z = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(3))
    prob = (policy.base + z @ policy.tilt).softmax(-1).double()
    plug_in = (policy.base + z.mean(0) @ policy.tilt).softmax(-1).double()
    mixture = prob.mean(0)
    expected = (mixture * (mixture / plug_in).log()).sum(-1).mean()
    table = posterior_gap(policy, sequences([[1], [2]]), z, ["a", "b"])
    assert table["value"][0] == pytest.approx(expected.item(), rel=1e-5)
    other = posterior_gap(policy, sequences([[1], [2]]), z, ["a", "b"], plug_in=z[0])
    assert other["value"][0] != pytest.approx(expected.item(), rel=1e-2)


def test_posterior_gap_adds_up_to_the_divergence_of_responses(policy: TiltedPolicy) -> None:
    z = 2 * torch.randn(3, 2, generator=torch.Generator().manual_seed(4))
    every = [list(response) for response in itertools.product(range(VOCABULARY), repeat=3)]
    batch = sequences(every)
    rows = len(every)
    log_prob = policy.sequence_log_prob(batch, z[:, None].expand(3, rows, 2)).double()
    mixture = log_prob.logsumexp(0) - np.log(3)
    plug_in = policy.sequence_log_prob(batch, z.mean(0).expand(rows, 2)).double()
    divergence = (mixture.exp() * (mixture - plug_in)).sum().item()
    gap = np.array(
        [
            posterior_gap(
                policy,
                ResponseBatch(
                    batch.input_ids[[row, row]],
                    batch.attention_mask[[row, row]],
                    batch.response_mask[[row, row]],
                ),
                z[:, None].expand(3, 2, 2),
                [0, 1],
            )["value"][0]
            for row in range(rows)
        ]
    )
    assert 3 * (mixture.exp().numpy() * gap).sum() == pytest.approx(divergence, rel=1e-5)


# Bad input.


def test_bad_shapes_are_named(policy: TiltedPolicy) -> None:
    batch = sequences([[1], [2]])
    pairs = Pairs([1, 2], [2, 1], rows_of(["a", "b"]))
    wrong = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="z must have shape"):
        implicit_reward(policy, batch, wrong)
    with pytest.raises(ValueError, match="reference must have shape"):
        implicit_reward(policy, batch, torch.zeros(2), reference=torch.zeros(3))
    with pytest.raises(ValueError, match="reference must have shape"):
        implicit_margin(policy, pairs, torch.zeros(2), reference=torch.zeros(2))
    with pytest.raises(ValueError, match="beta must be positive"):
        implicit_reward(policy, batch, torch.zeros(2), beta=0.0)
    with pytest.raises(ValueError, match="z must have shape"):
        posterior_gap(policy, batch, wrong, ["a", "b"])
    with pytest.raises(ValueError, match="of one number"):
        win_rate(["x"], ["x", "y"], lambda texts: torch.zeros(len(texts)), [0, 1])
    with pytest.raises(ValueError, match="at least one function"):
        trait_rates(["x", "y"], {}, [0, 1])
