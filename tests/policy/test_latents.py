"""Draws of z given contexts: their distribution, and what they depend on."""

from __future__ import annotations

import math

import torch
from tiny_policy import (
    ColourGuide,
    make_contexts,
    make_rows,
)
from torch import Tensor, nn

from fssa_bayes.policy import (
    draw_given,
    draw_latents,
)


def test_draws_depend_on_seed_step_and_rows_alone() -> None:
    contexts, guide = make_contexts(make_rows(), seed=1), ColourGuide()

    def draw(step: int = 3, seed: int = 2, **options) -> Tensor:
        rows = range(32)
        return draw_latents(
            guide.posterior, contexts, rows, step=step, num_draws=4, seed=seed, **options
        )

    state = torch.get_rng_state()
    z = draw()
    assert z.shape == (4, 32, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    assert torch.equal(draw(), z)
    for other in (draw(step=4), draw(seed=3)):
        assert not torch.isclose(other, z).any()
    noise = draw(num_context=0)  # No two rows or draws share it.
    assert len(noise.flatten(0, 1).unique(dim=0)) == 128


def test_draws_are_those_of_the_posterior() -> None:
    contexts, guide = make_contexts(make_rows(), seed=1), ColourGuide()
    draws = [
        draw_latents(guide.posterior, contexts, [5], step=step, num_draws=50, seed=0, num_context=3)
        for step in range(40)
    ]
    z = torch.cat(draws)[:, 0]
    # Row 5 is the first person's, who prefers red: three contexts of red give loc ¾, 0.
    assert torch.allclose(z.mean(0), torch.tensor([0.75, 0.0]), atol=4 * 0.22 / 2000**0.5)
    assert torch.allclose(z.std(0), torch.tensor(math.exp(-1.5)).expand(2), rtol=0.07)


def test_posteriors_that_are_known_need_no_gradient() -> None:
    rows = make_rows()

    def posterior(batch):
        parts = torch.distributions.Categorical(torch.ones(batch.num_users, 2))
        each = torch.distributions.Normal(torch.zeros(batch.num_users, 2, 2), 1.0)
        parted = torch.distributions.Independent(each, 1)
        return torch.distributions.MixtureSameFamily(parts, parted)

    z = draw_latents(posterior, make_contexts(rows), [0, 1, 2], step=0, num_draws=4, seed=0)
    assert z.shape == (4, 3, 2)
    z = draw_given(posterior, make_contexts(rows), [0, 1], num_context=1, num_draws=3)
    assert z.shape == (3, 2, 2)
    empty = nn.Module()  # A module without parameters.
    empty.forward = posterior
    assert draw_given(empty, make_contexts(rows), [0], num_context=1).shape == (1, 1, 2)
