from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from fssa_bayes.kernels.plackett_luce import Rankings
from fssa_bayes.model import BradleyTerry, Outcomes

MASK = torch.tensor([[True, True, False], [True, False, False]])


def margin(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(*shape, 2, 3, generator=generator, dtype=torch.float64)


def closed_form(m: Tensor, choice: Tensor) -> Tensor:
    prob = 1 / (1 + torch.exp(-m))
    return torch.where(MASK, choice * prob.log() + (1 - choice) * (1 - prob).log(), 0.0).sum(-1)


@pytest.mark.parametrize("draws", [(), (4,), (5, 4)], ids=str)
@pytest.mark.parametrize("value_draws", [(), (4,), (5, 4)], ids=str)
def test_log_prob_is_the_closed_form(draws: tuple, value_draws: tuple) -> None:
    m = margin(*draws)
    shape = (*value_draws, 2, 3)
    choice = torch.randint(3, shape, generator=torch.Generator().manual_seed(1)).double() / 2
    result = BradleyTerry.from_margin(m, MASK).log_prob(choice)
    torch.testing.assert_close(result, closed_form(m, choice))


def test_probabilities_of_all_outcomes_sum_to_one() -> None:
    """Masked choices have one outcome, so of 8 each person counts some several times."""
    distribution = BradleyTerry.from_margin(margin(), MASK)
    outcomes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    total = distribution.log_prob(outcomes[:, None].expand(-1, 2, -1)).exp().sum(0)
    torch.testing.assert_close(total, torch.tensor([2.0, 4.0], dtype=torch.float64))


def test_left_and_right_share_the_probability() -> None:
    m = margin()
    left, right = (BradleyTerry.from_margin(sign * m, MASK) for sign in (1, -1))
    torch.testing.assert_close((left.mean + right.mean), torch.ones_like(m))
    assert torch.equal(left.mean[~MASK], torch.full((3,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("expanded", [False, True])
def test_draws_have_the_stated_frequency(expanded: bool) -> None:
    m = margin()
    distribution = BradleyTerry.from_margin(m, MASK)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if expanded:
            draws = distribution.expand(torch.Size([5000, 2])).sample()
        else:
            draws = distribution.sample(torch.Size([5000]))
    prob = torch.sigmoid(m)
    error = (draws.mean(0) - prob).abs() / (prob * (1 - prob) / 5000).sqrt()
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert error[MASK].max() < 4
    assert not draws[:, ~MASK].any()


@pytest.mark.parametrize("ndim", [2, 3])
def test_expansion_repeats_the_log_prob(ndim: int) -> None:
    m = margin()
    choice = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.0]], dtype=torch.float64)
    distribution = BradleyTerry.from_margin(m, MASK).expand(torch.Size([4, 2]))
    assert distribution.batch_shape == (4, 2)
    result = distribution.log_prob(choice if ndim == 2 else choice.expand(4, 2, 3))
    torch.testing.assert_close(result, closed_form(m, choice).expand(4, 2))


def test_garbage_under_the_mask_changes_nothing() -> None:
    m, choice = margin(4), torch.ones(2, 3, dtype=torch.float64)
    clean = BradleyTerry.from_margin(m, MASK).log_prob(choice)
    dirty = BradleyTerry.from_margin(m.masked_fill(~MASK, torch.nan), MASK)
    assert torch.equal(dirty.log_prob(choice.masked_fill(~MASK, torch.nan)), clean)


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("wrong", [2.0, -1.0, 0.25, torch.nan])
def test_invalid_choice_is_refused(wrong: float, expanded: bool) -> None:
    m = margin()
    choice = torch.ones(2, 3, dtype=torch.float64)
    choice[0, 1] = wrong
    pairwise = BradleyTerry.from_margin(m, MASK).pairwise
    distribution = BradleyTerry(pairwise, MASK, torch.Size([2]), validate_args=True)
    if expanded:
        distribution = distribution.expand(torch.Size([4, 2]))
    with pytest.raises(ValueError, match="to be within the support"):
        distribution.log_prob(choice)


def test_no_comparisons_are_certain() -> None:
    empty = BradleyTerry.from_margin(torch.zeros(4, 2, 0), torch.zeros(2, 0, dtype=torch.bool))
    assert torch.equal(empty.log_prob(torch.zeros(2, 0)), torch.zeros(4, 2))


# Ties and lapses.


ANSWERS = pytest.mark.parametrize(
    ("log_tie", "lapse"),
    [(-0.4, None), (1.5, None), (None, 0.1), (None, 0.9), (-0.4, 0.1), (1.5, 0.6)],
)


def scalar(value: float | None, dtype: torch.dtype = torch.float64) -> Tensor | None:
    return None if value is None else torch.tensor(value, dtype=dtype)


def logit(rate: float | None) -> float | None:
    return None if rate is None else math.log(rate) - math.log1p(-rate)


def davidson(m: Tensor, log_tie: float | None, lapse: float | None) -> Tensor:
    """Probabilities of left, right and a tie, as they stand in the paper, then mixed."""
    worth_left, worth_right = torch.exp(m), torch.ones_like(m)
    parts = [worth_left, worth_right]
    if log_tie is not None:
        parts.append(math.exp(log_tie) * (worth_left * worth_right).sqrt())
    prob = torch.stack(parts)
    prob = prob / prob.sum(0)
    rate = 0.0 if lapse is None else lapse
    return (1 - rate) * prob + rate / len(parts)


@ANSWERS
def test_outcomes_are_davidsons_and_sum_to_one(log_tie: float | None, lapse: float | None) -> None:
    m = torch.linspace(-8, 8, 33, dtype=torch.float64)
    outcomes = Outcomes.of(m, scalar(log_tie), scalar(logit(lapse)))
    prob = torch.stack([x.exp() for x in outcomes if x is not None])
    torch.testing.assert_close(prob, davidson(m, log_tie, lapse))
    torch.testing.assert_close(prob.sum(0), torch.ones_like(m))
    torch.testing.assert_close(outcomes.entropy(), torch.special.entr(prob).sum(0))


@ANSWERS
def test_log_prob_picks_the_outcome(log_tie: float | None, lapse: float | None) -> None:
    m = margin(4)
    likelihood = BradleyTerry.from_margin(
        m, MASK, log_tie=scalar(log_tie), lapse_logit=scalar(logit(lapse))
    )
    prob = davidson(m, log_tie, lapse)
    tie = prob[2] if log_tie is not None else (prob[0] * prob[1]).sqrt()  # Half a win each.
    for choice in itertools.product((0.0, 0.5, 1.0), repeat=3):
        value = torch.tensor([choice, choice[::-1]], dtype=torch.float64)
        each = torch.where(value == 1, prob[0], torch.where(value == 0, prob[1], tie)).log()
        expected = torch.where(MASK, each, 0.0)
        torch.testing.assert_close(likelihood.log_prob(value), expected.sum(-1))
        torch.testing.assert_close(likelihood.log_prob(value.expand(4, 2, 3)), expected.sum(-1))
        torch.testing.assert_close(likelihood.log_prob_each(value), expected)
    torch.testing.assert_close(likelihood.mean[..., MASK], prob[0][..., MASK])


def test_without_ties_and_lapses_it_is_bradley_terry() -> None:
    """ν and λ so small that they do not show leave the fused log-likelihood."""
    m = margin(4)
    choice = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    plain = BradleyTerry.from_margin(m, MASK).log_prob(choice)
    for options in ({"log_tie": scalar(-60.0)}, {"lapse_logit": scalar(-60.0)}):
        result = BradleyTerry.from_margin(m, MASK, **options).log_prob(choice)
        torch.testing.assert_close(result, plain, rtol=1e-12, atol=0)


@ANSWERS
def test_left_and_right_are_alike(log_tie: float | None, lapse: float | None) -> None:
    """Turning a pair round with its answer changes nothing, and the plain sum is 1 less ties."""
    m = margin(4)
    parameters = scalar(log_tie), scalar(logit(lapse))
    there, back = Outcomes.of(m, *parameters), Outcomes.of(-m, *parameters)
    torch.testing.assert_close(there.left, back.right)
    torch.testing.assert_close(there.right, back.left)
    if log_tie is not None:
        torch.testing.assert_close(there.tie, back.tie)


@ANSWERS
def test_first_and_second_derivatives(log_tie: float | None, lapse: float | None) -> None:
    """Against finite differences, by margin, log ν and logit λ."""
    m = torch.linspace(-20, 20, 9, dtype=torch.float64).requires_grad_()
    variables = [x for x in (scalar(log_tie), scalar(logit(lapse))) if x is not None]
    variables = [m, *(x.requires_grad_() for x in variables)]

    def log_probs(m: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        rest = list(rest)
        tie = rest.pop(0) if log_tie is not None else None
        return tuple(x for x in Outcomes.of(m, tie, *rest) if x is not None)

    assert torch.autograd.gradcheck(log_probs, variables)
    assert torch.autograd.gradgradcheck(log_probs, variables)


@pytest.mark.parametrize(("log_tie", "lapse"), [(-0.4, None), (None, 0.1), (-0.4, 0.1)])
def test_float32_survives_margins_of_ten_thousand(
    log_tie: float | None, lapse: float | None
) -> None:
    """Values and gradients are those of exact arithmetic to float32's digits."""
    m = torch.tensor([-1e4, -300.0, -25.0, 25.0, 300.0, 1e4])
    results = []
    for dtype in (torch.float32, torch.float64):
        variables = [m.to(dtype), scalar(log_tie, dtype), scalar(logit(lapse), dtype)]
        variables = [None if x is None else x.requires_grad_() for x in variables]
        outcomes = [x for x in Outcomes.of(*variables) if x is not None]
        wanted = [x for x in variables if x is not None]
        grads = [
            g for x in outcomes for g in torch.autograd.grad(x.sum(), wanted, retain_graph=True)
        ]
        results.append([x.detach().double() for x in (*outcomes, *grads)])
    for single, exact in zip(*results, strict=True):
        assert torch.isfinite(single).all()
        torch.testing.assert_close(single, exact, rtol=1e-5, atol=1e-9)
    if lapse is None:  # Closed forms: the loser's log-probability is the margin itself.
        assert results[0][0][0] == -1e4
        tie = results[0][2]
        np.testing.assert_allclose(tie[[0, -1]], log_tie - 5e3, rtol=1e-6)
    else:  # Nobody is sure of an answer that may be careless.
        floor = math.log(lapse / (2 if log_tie is None else 3))
        assert results[0][0][0].item() == pytest.approx(floor, rel=1e-6)


@ANSWERS
@pytest.mark.parametrize("where", ["margin", "choice", "log_tie", "lapse"])
def test_nan_makes_nan(log_tie: float | None, lapse: float | None, where: str) -> None:
    if {"log_tie": log_tie, "lapse": lapse}.get(where, 0) is None:
        return
    m, choice = margin(), torch.ones(2, 3, dtype=torch.float64)
    parameters = {"log_tie": scalar(log_tie), "lapse_logit": scalar(logit(lapse))}
    if where == "margin":
        m[0, 1] = torch.nan
    elif where == "choice":
        choice[0, 1] = torch.nan
    else:
        parameters[{"lapse": "lapse_logit"}.get(where, where)] = scalar(torch.nan)
    with pyro.validation_enabled(False):  # Which refuses a choice of NaN.
        result = BradleyTerry.from_margin(m, MASK, **parameters).log_prob(choice)
    assert torch.isnan(result[0])
    assert torch.isnan(result[1]) == (where in ("log_tie", "lapse"))


@ANSWERS
def test_garbage_under_the_mask_changes_nothing_with_ties(
    log_tie: float | None, lapse: float | None
) -> None:
    choice = torch.full((2, 3), 0.5, dtype=torch.float64)
    results = []
    for soiled in (False, True):
        m, value = margin(4), choice.clone()
        if soiled:
            m, value = m.masked_fill(~MASK, torch.nan), value.masked_fill(~MASK, torch.nan)
        m.requires_grad_()
        parameters = {"log_tie": scalar(log_tie), "lapse_logit": scalar(logit(lapse))}
        result = BradleyTerry.from_margin(m, MASK, **parameters).log_prob(value)
        results.append((result, *torch.autograd.grad(result.sum(), m)))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


@ANSWERS
def test_draws_with_ties_have_the_stated_frequency(
    log_tie: float | None, lapse: float | None
) -> None:
    m = margin()
    parameters = {"log_tie": scalar(log_tie), "lapse_logit": scalar(logit(lapse))}
    draws = BradleyTerry.from_margin(m, MASK, **parameters).expand(torch.Size([5000, 2])).sample()
    for value, prob in zip((1.0, 0.0, 0.5), davidson(m, log_tie, lapse), strict=False):
        error = ((draws == value).double().mean(0) - prob) / (prob * (1 - prob) / 5000).sqrt()
        assert error[MASK].abs().max() < 4
    assert set(draws[:, MASK].unique().tolist()) <= {0.0, 0.5, 1.0}
    assert not draws[:, ~MASK].any()


def test_margins_need_no_mask() -> None:
    m, choice = margin(4), torch.ones(2, 3, dtype=torch.float64)
    everything = torch.ones_like(MASK)
    result = BradleyTerry.from_margin(m).log_prob(choice)
    torch.testing.assert_close(result, BradleyTerry.from_margin(m, everything).log_prob(choice))


# Draws and derivatives.


@ANSWERS
@pytest.mark.parametrize("with_bias", [False, True])
def test_derivatives_of_choices_are_those_of_their_log_probability(
    log_tie: float | None, lapse: float | None, with_bias: bool
) -> None:
    """Against automatic derivatives of the summed log-probability, and none under the mask."""
    m, choice = margin(4), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    named = {
        "log_tie": scalar(log_tie),
        "position_bias": scalar(0.3 if with_bias else None),
        "lapse_logit": scalar(logit(lapse)),
    }
    variables = [x.expand_as(m).clone() for x in named.values() if x is not None]
    names = [name for name, x in named.items() if x is not None]

    def total(m: Tensor, *variables: Tensor) -> Tensor:
        values = dict(zip(names, variables, strict=True))
        moved = m + values.pop("position_bias", 0.0)
        return BradleyTerry.from_margin(moved, MASK, **values).log_prob(choice).sum()

    biased = m + (0.3 if with_bias else 0.0)
    derivatives = BradleyTerry.from_margin(biased, MASK, **named).differentiate(choice)
    expected = torch.autograd.functional.jacobian(total, (m, *variables))
    torch.testing.assert_close(tuple(derivatives.first), expected)
    hessian = torch.autograd.functional.hessian(total, (m, *variables))
    for row, expected_row in zip(derivatives.second, hessian, strict=True):
        for value, expected in zip(row, expected_row, strict=True):
            size = m.numel()
            diagonal = expected.reshape(size, size).diagonal().view_as(m)
            torch.testing.assert_close(value, diagonal)
    assert derivatives.stages is None


@ANSWERS
def test_predictive_is_the_log_of_the_mean_probability(
    log_tie: float | None, lapse: float | None
) -> None:
    m, choice = margin(4), torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    parameters = {"log_tie": scalar(log_tie), "lapse_logit": scalar(logit(lapse))}
    likelihood = BradleyTerry.from_margin(m, MASK, **parameters)
    weights = torch.rand(4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = weights / weights.sum(0)
    prob = (weights.unsqueeze(-1) * davidson(m, log_tie, lapse)).sum(1)
    tie = prob[2] if log_tie is not None else (prob[0] * prob[1]).sqrt()
    expected = torch.where(choice == 1, prob[0], torch.where(choice == 0, prob[1], tie)).log()
    result = likelihood.log_predictive(weights.log(), choice)
    torch.testing.assert_close(result[MASK], expected[MASK])
    few = BradleyTerry.from_margin(m[:2], MASK, **parameters)
    log_weights = weights[:2].log().log_softmax(0)
    torch.testing.assert_close(
        likelihood.log_predictive(log_weights, choice), few.log_predictive(log_weights, choice)
    )


@pytest.mark.parametrize("log_tie", [None, torch.tensor(0.3)])
@pytest.mark.parametrize("lapse", [None, torch.tensor(-1.0)])
def test_choices_made_of_uniform_numbers_have_the_outcomes_probabilities(log_tie, lapse) -> None:
    margin = torch.tensor([[-1.0, 0.0, 2.0]])
    choice = BradleyTerry.from_margin(margin, log_tie=log_tie, lapse_logit=lapse)
    count = 10_000
    uniform = ((torch.arange(count) + 0.5) / count).reshape(-1, 1, 1).expand(-1, 1, 3)
    drawn = choice.decide(uniform)
    outcomes = choice.outcomes
    for value, log_prob in ((1.0, outcomes.left), (0.5, outcomes.tie), (0.0, outcomes.right)):
        prob = 0.0 if log_prob is None else log_prob.exp()
        assert ((drawn == value).double().mean(0) - prob).abs().max() < 2 / count


def test_rankings_made_of_uniform_numbers_are_plackett_luce() -> None:
    """Two rankings of three items and a comparison: first choices and whole orders."""
    utility = torch.tensor([0.0, 1.0, -0.5])
    left, right = torch.tensor([[0, 1, 0, 0, 1]]), torch.tensor([[2, 2, 2, 2, 2]])
    number = torch.tensor([[0, 0, 1, 2, 2]])
    mask, choice = torch.ones(1, 5, dtype=torch.bool), torch.tensor([[1.5, 1, 1, 1.5, 1]])
    rankings = Rankings.find(left, right, choice, mask, number)
    margin = (utility[left] - utility[right]).expand(60_000, 1, 5)
    distribution = BradleyTerry.from_margin(margin, mask, rankings=rankings)
    drawn = distribution.decide(torch.rand(60_000, 1, 5))
    prob = utility.softmax(0)
    for columns in ([0, 1], [3, 4]):
        first = drawn[:, 0, columns]
        orders = {
            (0, 1, 2): (1.5, 1.0),
            (0, 2, 1): (1.0, 0.0),
            (1, 0, 2): (1.0, 1.5),
            (2, 1, 0): (-0.5, 0.0),
        }
        for order, rows in orders.items():
            share = (first == torch.tensor(rows)).all(-1).double().mean()
            best, second, _ = order
            exact = prob[best] * prob[second] / (1 - prob[best])
            assert abs(share - exact) < 4 * (exact * (1 - exact) / 60_000) ** 0.5
    alone = torch.sigmoid(utility[0] - utility[2])
    assert abs(drawn[:, 0, 2].double().mean() - alone) < 4 * 0.5 / 60_000**0.5
    above = drawn[:, 0] > 0.5
    together = (above[:, 0] == above[:, 3]).double().mean()
    one = torch.sigmoid(utility[0] - utility[2])
    assert abs(together - (one**2 + (1 - one) ** 2)) < 4 * 0.5 / 60_000**0.5  # Independent.
