from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fssa_bayes.distributions import BradleyTerry

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
