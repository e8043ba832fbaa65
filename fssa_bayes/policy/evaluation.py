r"""Does a policy follow the person? Accuracy, traits, wins, and the effect of averaging over z.

Everything is measured on people and prompts that training has not seen. A context never shares a
prompt with the pair to predict, and standard errors are clustered by person.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fssa_bayes._random import seeded
from fssa_bayes.diagnostics import clustered_mean
from fssa_bayes.policy.checks import check_positive, expand_factors
from fssa_bayes.policy.conditioning import surrounding_z
from fssa_bayes.policy.contexts import Contexts
from fssa_bayes.policy.latents import device_of
from fssa_bayes.policy.tokens import ResponseBatch, TokenisedPairs

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fssa_bayes.data import Batch

__all__ = [
    "accuracy",
    "accuracy_by_context",
    "by_group",
    "draw_given",
    "implicit_margin",
    "implicit_reward",
    "posterior_gap",
    "trait_rates",
    "win_rate",
]


@torch.no_grad()
def implicit_reward(
    policy: nn.Module,
    batch: ResponseBatch,
    z: Tensor | None = None,
    *,
    beta: float = 1.0,
    averaged: bool = False,
    reference: Tensor | None = None,
    batch_size: int = 64,
) -> Tensor:
    r"""Evaluates :math:`β \log \frac{π(y \mid x, z)}{π_0(y \mid x)}`, the implicit reward of y.

    The policy is optimal for this reward, up to a constant of each prompt.

    Args:
        policy: A `SteerablePolicy`.
        batch: R prompts with a response to each.
        z: Latent factors (K,), (R, K), or draws (S, R, K); None for those of the surrounding
            :func:`fssa_bayes.policy.steered`, else z = 0 (under FiLM the adapter alone).
        beta: The `beta` of :func:`fssa_bayes.policy.dpo_loss` that the policy was trained with.
        averaged: Whether to evaluate the one policy that draws average to,
            :math:`\barπ(y \mid x) = \tfrac1S \sum_s π(y \mid x, z_s)`, in place of each.
        reference: Log-probabilities of the responses under the reference policy, in nats with
            shape (R,), None to compute them.
        batch_size: Sequences scored at a time.

    Returns:
        Rewards in nats with shape (R,), or (S, R) for draws that are not averaged.

    Raises:
        ValueError: If a number is not positive or a shape is another.

    References:
        Rafailov et al. (2023), Direct preference optimization, arXiv 2305.18290.
    """
    check_positive(beta=beta, batch_size=batch_size)
    rows = len(batch)
    if reference is not None and reference.shape != (rows,):
        raise ValueError(f"reference must have shape ({rows},), got {tuple(reference.shape)}")
    z = surrounding_z(rows) if z is None else z
    if z is not None:
        z = expand_factors(z, rows, policy.latent_dim)
    has_draws = z is not None and z.ndim == 3
    ratios = torch.empty((len(z), rows) if has_draws else (rows,))
    for part in (
        batch.attention_mask.sum(-1).argsort(descending=True, stable=True).split(batch_size)
    ):
        tokens = batch.select(part).to(policy.device)
        log_prob = policy.sequence_log_prob(
            tokens, None if z is None else z[..., part, :].to(policy.device)
        )
        if reference is None:
            with policy.reference():
                base = policy.sequence_log_prob(tokens)
        else:
            base = reference[part].to(log_prob)
        ratios[..., part] = (log_prob - base).float().cpu()
    if averaged and has_draws:
        ratios = ratios.logsumexp(0) - math.log(len(z))
    return beta * ratios


def implicit_margin(
    policy: nn.Module,
    pairs: TokenisedPairs,
    z: Tensor | None = None,
    *,
    beta: float = 1.0,
    averaged: bool = False,
    reference: Tensor | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Evaluates the implicit reward of the chosen response less that of the rejected one.

    Args:
        policy: A `SteerablePolicy`.
        pairs: P pairs.
        z: Latent factors (K,), (P, K), or draws (S, P, K); None for those of the surrounding
            :func:`fssa_bayes.policy.steered`, else z = 0 (under FiLM the adapter alone).
        beta: See :func:`implicit_reward`.
        averaged: See :func:`implicit_reward`.
        reference: Log-probabilities of chosen and rejected responses under the reference policy,
            in nats with shape (2, P), None to compute them.
        batch_size: Sequences scored at a time.

    Returns:
        Margins in nats with shape (P,), or (S, P) for draws that are not averaged; above 0 the
        policy agrees with the person.
    """
    if reference is not None and reference.shape != (2, len(pairs)):
        raise ValueError(
            f"reference must have shape (2, {len(pairs)}), got {tuple(reference.shape)}"
        )
    z = surrounding_z(len(pairs)) if z is None else z
    if z is not None:
        z = expand_factors(z, len(pairs), policy.latent_dim)
        z = torch.cat([z, z], -2)
    rewards = implicit_reward(
        policy,
        pairs.batch(np.arange(len(pairs))),
        z,
        beta=beta,
        averaged=averaged,
        reference=None if reference is None else reference.flatten(),
        batch_size=batch_size,
    )
    chosen, rejected = rewards.chunk(2, -1)
    return chosen - rejected


def accuracy(margin: Tensor, user: ArrayLike, group: ArrayLike | None = None) -> pd.DataFrame:
    r"""Averages how often the chosen response has the higher implicit reward.

    With draws of z, a pair counts by the share of draws that agree, which is the expected accuracy
    of a policy that draws one z for a person. A margin of exactly 0 counts one half.

    Args:
        margin: Margins of P pairs with shape (P,), or (S, P) for draws.
        user: The person of every pair, with shape (P,).
        group: What to tabulate by, such as the person's type, with shape (P,); None for all
            together.

    Returns:
        See :func:`by_group`.
    """
    agrees = (margin > 0).double() + 0.5 * (margin == 0).double()
    agrees = agrees.masked_fill(margin.isnan(), torch.nan)
    return by_group(agrees if margin.ndim == 1 else agrees.mean(0), user, group)


def accuracy_by_context(
    policy: nn.Module,
    pairs: TokenisedPairs,
    contexts: Contexts,
    posterior: Callable[[Batch], torch.distributions.Distribution],
    group: ArrayLike | None = None,
    *,
    num_contexts: Sequence[int] = (0, 1, 2, 5, 10),
    num_draws: int = 8,
    averaged: bool = True,
    reference: Tensor | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Measures implicit-reward accuracy after 0, 1, … choices of each person.

    Each pair has a context of its own, drawn from the same person's other prompts; a smaller
    context is the beginning of a larger one. An empty context draws z from the prior.

    Args:
        policy: A `SteerablePolicy`.
        pairs: Pairs to predict, of people and prompts that training has not seen.
        contexts: Contexts of `pairs.rows`.
        posterior: q(z | context) as a function of a batch of contexts, such as `guide.posterior`.
        group: What to tabulate by, such as the person's type, with shape (P,).
        num_contexts: Sizes of the contexts.
        num_draws: Draws S of z for each pair.
        averaged: Whether to evaluate the policy that the draws average to, or each draw by itself.
        reference: See :func:`implicit_margin`.
        batch_size: Sequences scored at a time.
        seed: Seed of the draws of z.

    Returns:
        One row for each group and size: `group`, `contexts`, and the columns of :func:`by_group`.

    Raises:
        ValueError: If a person has fewer choices on other prompts than a size asks for.
    """
    check_positive(num_draws=num_draws)
    if reference is None:
        with torch.no_grad(), policy.reference():
            sequences = pairs.batch(np.arange(len(pairs)))
            parts = torch.arange(len(sequences)).split(batch_size)
            scores = [
                policy.sequence_log_prob(sequences.select(part).to(policy.device)) for part in parts
            ]
            reference = torch.cat(scores).cpu().reshape(2, -1)
    tables = []
    for size in num_contexts:
        z = draw_given(
            posterior, contexts, pairs.row, num_context=size, num_draws=num_draws, seed=seed
        )
        margin = implicit_margin(
            policy, pairs, z, averaged=averaged, reference=reference, batch_size=batch_size
        )
        table = accuracy(margin, pairs.rows.user[pairs.row], group)
        tables.append(table.assign(contexts=size))
    table = pd.concat(tables, ignore_index=True)
    return table[["group", "contexts", "value", "standard_error", "users"]]


@torch.no_grad()
def draw_given(
    posterior: Callable[[Batch], torch.distributions.Distribution],
    contexts: Contexts,
    rows: ArrayLike,
    *,
    num_context: int,
    num_draws: int = 1,
    seed: int = 0,
) -> Tensor:
    """Draws z given contexts of one size, for all rows at once.

    Args:
        posterior: q(z | context) as a function of a batch of contexts, such as `guide.posterior`.
        contexts: Where contexts come from.
        rows: Positions of R rows; no row shares its prompt with its own context.
        num_context: Size of the contexts.
        num_draws: Number of draws S.
        seed: Seed of z; `contexts` has a seed of its own.

    Returns:
        Draws with shape (S, R, K).

    Raises:
        ValueError: If a person has fewer than `num_context` rows on other prompts.
    """
    batch = contexts.batch(np.asarray(rows), num_context=num_context)
    with seeded(seed):
        return posterior(batch.to(device_of(posterior))).sample((num_draws,))


def trait_rates(
    texts: Sequence[str] | Sequence[Sequence[str]],
    traits: Mapping[str, Callable[[str], float]],
    user: ArrayLike,
    group: ArrayLike | None = None,
) -> pd.DataFrame:
    """Averages traits of generated text.

    Args:
        texts: R texts, or S lists of R of them, as `SteerablePolicy.generate` returns them.
        traits: Functions from a text to a number, such as 1 where the text has the trait, else 0.
        user: The person for whom each text was written, with shape (R,).
        group: What to tabulate by, with shape (R,).

    Returns:
        One row for each trait and group: `trait`, `group`, and the columns of :func:`by_group`.
    """
    draws = [[text] if isinstance(text, str) else list(text) for text in texts]
    if texts and isinstance(texts[0], str):
        draws = [list(texts)]
    if not traits:
        raise ValueError("traits must name at least one function, got none")
    tables = []
    for name, trait in traits.items():
        values = np.array([[float(trait(text)) for text in row] for row in draws])
        tables.append(by_group(values.mean(0), user, group).assign(trait=name))
    table = pd.concat(tables, ignore_index=True)
    return table[["trait", "group", "value", "standard_error", "users"]]


def win_rate(
    responses: Sequence[str],
    base_responses: Sequence[str],
    reward: Callable[[Sequence[str]], Tensor],
    user: ArrayLike,
    group: ArrayLike | None = None,
) -> pd.DataFrame:
    r"""Averages the probability that a person prefers the policy's response to the base policy's.

    With draws of the person's reward r from the posterior, the probability is
    :math:`\tfrac{1}{S} \sum_s σ(r_s(y) - r_s(y_0))`, ½ where the two responses are alike.

    Args:
        responses: A response of the policy to each of R prompts.
        base_responses: The base policy's responses to the same prompts.
        reward: Function from R responses, one a prompt and in the order of the prompts, to rewards
            in nats with shape (R,), or (S, R) for draws of each person's posterior.
        user: The person of every prompt, with shape (R,).
        group: What to tabulate by, with shape (R,).

    Returns:
        See :func:`by_group`.

    Raises:
        ValueError: If numbers of responses or shapes of rewards differ.
    """
    if len(responses) != len(base_responses):
        raise ValueError(
            f"responses and base_responses must be of one number, got {len(responses)} and "
            f"{len(base_responses)}"
        )
    ours, base = (torch.as_tensor(reward(texts)) for texts in (responses, base_responses))
    if ours.shape != base.shape or ours.shape[-1] != len(responses) or ours.ndim not in (1, 2):
        raise ValueError(
            f"reward must give shape ({len(responses)},) or (S, {len(responses)}), got "
            f"{tuple(ours.shape)} and {tuple(base.shape)}"
        )
    prob = (ours.double() - base.double()).sigmoid()
    return by_group(prob if prob.ndim == 1 else prob.mean(0), user, group)


@torch.no_grad()
def posterior_gap(
    policy: nn.Module,
    batch: ResponseBatch,
    z: Tensor,
    user: ArrayLike,
    group: ArrayLike | None = None,
    *,
    plug_in: Tensor | None = None,
) -> pd.DataFrame:
    r"""Measures how far the posterior-averaged policy is from the policy at the posterior mean.

    The policy averaged over draws, :math:`\barπ(y) = \tfrac1S \sum_s π(y \mid z_s)`, draws its
    next token from the mixture of the draws' distributions, each weighted by the probability that
    it gives the text so far. Along each response the mixture is compared with the policy at one z,

    .. math:: \tfrac1T \sum_t KL\bigl(\barπ(\cdot \mid y_{<t}) \,\|\,
        π(\cdot \mid y_{<t}, \bar z)\bigr).

    On responses that the averaged policy wrote itself (one draw a response), T times the mean of
    the gap is an unbiased estimate of the divergence between the two policies' whole responses.

    Args:
        policy: A `SteerablePolicy`.
        batch: R prompts with a response to each.
        z: Draws with shape (S, R, K).
        user: The person of every sequence, with shape (R,).
        group: What to tabulate by, with shape (R,).
        plug_in: The one z of each sequence, with shape (R, K); None for the mean of the draws.

    Returns:
        Nats a token, see :func:`by_group`; all tokens of a person count alike.
    """
    rows, width = len(batch), policy.latent_dim
    if z.shape[1:] != (rows, width):
        raise ValueError(f"z must have shape (S, {rows}, {width}), got {tuple(z.shape)}")
    plug_in = z.mean(0) if plug_in is None else plug_in
    if plug_in.shape != (rows, width):
        raise ValueError(f"plug_in must have shape ({rows}, {width}), got {tuple(plug_in.shape)}")
    gaps = []
    for row in range(rows):  # One at a time: S logits of every token of the vocabulary.
        sequence = batch.select(torch.tensor([row])).to(policy.device)
        points = torch.cat([plug_in[row : row + 1], z[:, row]]).to(policy.device)
        gaps.append(mixture_gap(*_next_token(policy, sequence, points)))
    tokens = np.array([len(gap) for gap in gaps])
    values = torch.cat(gaps).cpu().numpy()
    user, group = np.asarray(user), None if group is None else np.asarray(group)
    repeated = None if group is None else group.repeat(tokens)
    return by_group(values, user.repeat(tokens), repeated)


def _next_token(
    policy: nn.Module, sequence: ResponseBatch, points: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns log-probabilities (1 + S, T, V) of the tokens of a response, and the tokens (T,)."""
    copies = len(points)
    logits = policy(
        sequence.input_ids.repeat(copies, 1), sequence.attention_mask.repeat(copies, 1), z=points
    )
    scored = sequence.response_mask[0, 1:]
    return logits[:, :-1][:, scored].double().log_softmax(-1), sequence.input_ids[0, 1:][scored]


def mixture_gap(log_prob: Tensor, tokens: Tensor) -> Tensor:
    """Evaluates KL(mixture ‖ plug-in) of the next token at each of T positions.

    Args:
        log_prob: Log-probabilities of the plug-in and of S draws, with shape (1 + S, T, V).
        tokens: The T tokens of the response.

    Returns:
        Divergences in nats with shape (T,).
    """
    plug_in, draws = log_prob[0], log_prob[1:]
    of_token = draws.gather(-1, tokens.expand(len(draws), -1).unsqueeze(-1)).squeeze(-1)
    before = of_token.cumsum(-1) - of_token  # Log-probability of the tokens before.
    mixture = (draws + before.log_softmax(0).unsqueeze(-1)).logsumexp(0)
    return (mixture.exp() * (mixture - plug_in)).sum(-1).clamp(min=0)


def by_group(values: ArrayLike, user: ArrayLike, group: ArrayLike | None = None) -> pd.DataFrame:
    """Averages values in each group, every person with the same weight.

    Standard errors are clustered by person.

    Args:
        values: Numbers with shape (R,).
        user: The person of each, with shape (R,).
        group: What to tabulate by, with shape (R,); None for one group, `"all"`.

    Returns:
        One row a group, in order of first appearance: `group`, `value`, `standard_error`, `users`.

    Raises:
        ValueError: If lengths differ, a value is NaN, or a group has fewer than 2 people.
    """
    values, user = np.asarray(values, dtype=np.float64), np.asarray(user)
    group = np.full(values.shape, "all") if group is None else group
    group = np.asarray(group, dtype=object)
    if not values.shape == user.shape == group.shape or values.ndim != 1:
        raise ValueError(
            "values, user and group must have one shape (R,), got "
            f"{values.shape}, {user.shape} and {group.shape}"
        )
    rows = []
    for name in pd.unique(group):
        own = group == name
        if len(pd.unique(user[own])) < 2:
            raise ValueError(f"group {name!r} must have at least 2 people, got 1")
        score = clustered_mean(values[own], user[own])
        rows.append((name, score.value, score.standard_error, score.num_users))
    return pd.DataFrame(rows, columns=["group", "value", "standard_error", "users"])
