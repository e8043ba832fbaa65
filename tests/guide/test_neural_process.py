from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

from fssa_bayes.data import Batch, Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.model import HeterogeneousBTL

MakeData = Callable[..., Preferences]
Change = Callable[[Batch], Batch]
MakeGuide = Callable[..., NeuralProcessGuide]

KINDS = pytest.mark.parametrize(
    ("posterior", "prior"),
    list(
        itertools.product(
            ("normal", "multivariate_normal", "flow", "bent flow"),
            ("normal", "flow"),
        )
    ),
)
WIDTHS = pytest.mark.parametrize("latent_dim", [1, 2, 3])


@pytest.fixture
def make_guide(randomise: Callable) -> MakeGuide:
    """Returns a factory of guides that are far from where they start, as their flows are not."""

    def make(
        posterior: str = "flow",
        prior: str = "normal",
        latent_dim: int = 2,
        *,
        num_features: int = 3,
        utility: str = "bilinear",
        noise: float = 0.3,
    ) -> NeuralProcessGuide:
        model = HeterogeneousBTL(num_features, latent_dim, utility, prior, hidden_dim=8)
        for parameter in model.prior_flow.parameters():
            nn.init.normal_(parameter, std=0.3)
        coupling = "bent" if posterior == "bent flow" else "affine"
        family = posterior.removeprefix("bent ")
        guide = NeuralProcessGuide(model, family, 8, coupling)
        return randomise(guide, noise)

    return make


def points(batch: Batch, guide: NeuralProcessGuide, num: int = 101) -> Tensor:
    """Gives points (S, U, K) to score at, on a line through the origin for each person."""
    width = guide.model.latent_dim
    direction = nn.functional.normalize(torch.randn(batch.num_users, width), dim=-1)
    return torch.linspace(-6.0, 6.0, num)[:, None, None] * direction


def double(batch: Batch) -> Batch:
    items = batch.items if batch.items.dtype == torch.int64 else batch.items.double()
    return batch.replace(items=items, choice=batch.choice.double())


def assert_same_posterior(
    guide: NeuralProcessGuide, first: Batch, second: Batch, tolerance: float
) -> None:
    """Compares log-densities at draws, in double precision so that rounding does not show."""
    guide.double()
    guide.model.double()
    with torch.no_grad():
        z = guide.posterior(double(first)).sample((20,)).clone()
        expected, result = (guide.posterior(double(batch)).log_prob(z) for batch in (first, second))
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=0)


# Rule 1: no data, no news.


@WIDTHS
@KINDS
def test_posterior_of_an_empty_context_is_the_prior(
    posterior: str,
    prior: str,
    latent_dim: int,
    make_guide: MakeGuide,
    make_data: MakeData,
) -> None:
    guide = make_guide(posterior, prior, latent_dim)
    batch = make_data([3, 0, 5, 0], half_wins=True).batch()
    z = points(batch, guide)
    with torch.no_grad():
        expected = guide.model.prior(4).log_prob(z)
        result = guide.posterior(batch).log_prob(z)
    empty = batch.num_comparisons == 0
    torch.testing.assert_close(result[:, empty], expected[:, empty], atol=1e-5, rtol=1e-5)
    assert (result - expected)[:, ~empty].abs().mean(0).min() > 0.01, "contexts must tell something"


@KINDS
def test_posterior_is_the_prior_where_nobody_has_a_context(
    posterior: str, prior: str, make_guide: MakeGuide, make_data: MakeData
) -> None:
    guide = make_guide(posterior, prior)
    batch = make_data([2, 1]).batch()
    nothing = batch.replace(mask=torch.zeros_like(batch.mask))
    no_columns = make_data([0, 0]).batch()
    assert no_columns.mask.shape == (2, 0)
    z = points(batch, guide)
    with torch.no_grad():
        expected = guide.model.prior(2).log_prob(z)
        for empty in (nothing, no_columns):
            result = guide.posterior(empty).log_prob(z)
            torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


# Rule 2: order and sides.


def reorder(data: Preferences) -> Preferences:
    """Shuffles the comparisons of each person."""
    rows = [np.random.default_rng(1).permutation(np.arange(*ends)) for ends in bounds(data)]
    rows = np.concatenate(rows)
    return Preferences(
        data.left[rows], data.right[rows], data.choice[rows], data.offsets, items=data.items
    )


def bounds(data: Preferences) -> list[tuple[int, int]]:
    return list(itertools.pairwise(data.offsets.tolist()))


def swap_some(data: Preferences) -> Preferences:
    return data.swap(np.arange(data.num_comparisons) % 2 == 0)


@pytest.mark.parametrize("change", [reorder, swap_some], ids=["order", "sides"])
@WIDTHS
@KINDS
def test_order_and_sides_do_not_matter(
    posterior: str,
    prior: str,
    latent_dim: int,
    change: Callable,
    make_guide: MakeGuide,
    make_data: MakeData,
) -> None:
    guide = make_guide(posterior, prior, latent_dim)
    data = make_data([6, 1, 4], half_wins=True)
    changed = change(data)
    assert (changed.left != data.left)[data.choice == 0.5].any()
    assert_same_posterior(guide, data.batch(), changed.batch(), 1e-5)


@KINDS
def test_choices_and_items_do_matter(
    posterior: str, prior: str, make_guide: MakeGuide, make_data: MakeData
) -> None:
    guide = make_guide(posterior, prior)
    batch = make_data([3, 1]).batch()
    z = points(batch, guide)
    with torch.no_grad():
        before = guide.posterior(batch).log_prob(z)
        for change in ({"choice": 1 - batch.choice}, {"items": batch.items.flip(0)}):
            after = guide.posterior(batch.replace(**change)).log_prob(z)
            assert (after - before).abs().mean(0).min() > 0.01


@KINDS
def test_two_half_wins_are_a_win_each(
    posterior: str, prior: str, make_guide: MakeGuide, make_data: MakeData
) -> None:
    items = make_data().items
    left, right, ends = np.array([0, 0, 2]), np.array([1, 1, 3]), np.array([0, 3])
    ties, wins = (
        Preferences(left, right, np.array(choice), ends, items=items).batch()
        for choice in ([0.5, 0.5, 1], [1, 0, 1])
    )
    guide = make_guide(posterior, prior)
    assert_same_posterior(guide, ties, wins, 1e-5)


# Rule 3: the mask.


@WIDTHS
@KINDS
def test_garbage_under_the_mask_changes_nothing(
    posterior: str,
    prior: str,
    latent_dim: int,
    make_guide: MakeGuide,
    make_data: MakeData,
    soil: Change,
) -> None:
    guide = make_guide(posterior, prior, latent_dim)
    clean = make_data([3, 0, 5, 2], half_wins=True).batch()
    z = points(clean, guide)
    results = []
    for batch in (clean, soil(clean)):
        torch.manual_seed(1)
        guide.zero_grad()
        q = guide.posterior(batch)
        draws = q.rsample((5,))
        log_prob = q.log_prob(z)
        (log_prob.sum() + draws.sum()).backward()
        gradients = [p.grad.clone() for p in guide.parameters() if p.grad is not None]
        results.append([draws, log_prob, *gradients])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("half_wins", [False, True])
@KINDS
def test_wider_padding_changes_nothing(
    posterior: str,
    prior: str,
    half_wins: bool,
    make_guide: MakeGuide,
    make_data: MakeData,
    widen: Change,
) -> None:
    guide = make_guide(posterior, prior)
    batch = make_data([3, 0, 5, 2], half_wins=half_wins).batch()
    assert_same_posterior(guide, batch, widen(batch), 1e-6)


# People and items.


@KINDS
def test_posterior_does_not_depend_on_who_else_is_asked(
    posterior: str, prior: str, make_guide: MakeGuide, make_data: MakeData
) -> None:
    """Compared in double precision, so that rounding does not show."""
    guide = make_guide(posterior, prior).double()
    guide.model.double()
    data = make_data([3, 0, 6, 1], half_wins=True)
    with torch.no_grad():
        together = guide.posterior(double(data.batch()))
        z = together.sample((20,)).clone()
        expected = together.log_prob(z)
        for person in range(4):
            alone = guide.posterior(double(data.batch([person]))).log_prob(z[:, [person]])
            torch.testing.assert_close(alone[:, 0], expected[:, person], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_features", [3, None], ids=["features", "positions"])
@KINDS
def test_items_that_repeat_are_embedded_as_those_that_do_not(
    posterior: str,
    prior: str,
    num_features: int | None,
    make_guide: MakeGuide,
    make_data: MakeData,
) -> None:
    """Items that nobody meets make the table longer than the comparisons, as distinct items do."""
    guide = make_guide(posterior, prior, num_features=num_features or 6)
    batch = make_data([3, 0, 6], num_features=num_features, half_wins=True).batch()
    longer = batch.replace(items=torch.cat([batch.items] * 10))
    comparisons = int(batch.mask.sum())
    assert len(batch.items) < comparisons < len(longer.items) / 2
    assert_same_posterior(guide, batch, longer, 1e-5)


@pytest.mark.parametrize("utility", ["linear", "bilinear", "mlp"])
def test_item_without_features_is_its_indicator(
    utility: str, make_guide: MakeGuide, make_data: MakeData
) -> None:
    data = make_data([3, 0, 6], num_features=None)
    explicit = Preferences(data.left, data.right, data.choice, data.offsets, items=np.eye(6))
    guide = make_guide(num_features=6, utility=utility)
    assert_same_posterior(guide, data.batch(), explicit.batch(), 1e-5)


def test_guide_takes_a_utility_of_ones_own(make_data: MakeData, randomise: Callable) -> None:
    """Of such a utility nothing is known, so that its values have no influence on the guide."""

    class Constant(nn.Module):
        value = 0.0

        def forward(self, items: Tensor, z: Tensor) -> Tensor:
            return self.value + 0 * (items.sum(-1) + z.sum(-1))

    model = HeterogeneousBTL(3, 2, Constant())
    guide = randomise(NeuralProcessGuide(model, hidden_dim=8))
    batch = make_data().batch()
    z = points(batch, guide)
    with torch.no_grad():
        before = guide.posterior(batch).log_prob(z)
        model.utility.module.value = 1.0
        assert torch.equal(guide.posterior(batch).log_prob(z), before)


def test_units_of_the_features_do_not_matter(make_guide: MakeGuide, make_data: MakeData) -> None:
    data = make_data()
    guide = make_guide()
    before = data.batch()
    guide.model.set_standardisation(data.items)
    z = points(before, guide)
    with torch.no_grad():
        expected = guide.posterior(before).log_prob(z)
        guide.model.is_standardised.fill_(False)
        guide.model.set_standardisation(60 * data.items + 7)
        result = guide.posterior(before.replace(items=60 * before.items + 7)).log_prob(z)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


# Densities.


@pytest.mark.slow
@pytest.mark.parametrize(("latent_dim", "num"), [(1, 4001), (2, 601)])
@pytest.mark.parametrize("prior", ["normal", "flow"])
@pytest.mark.parametrize("posterior", ["normal", "multivariate_normal", "flow", "bent flow"])
def test_posterior_is_a_density(
    posterior: str,
    prior: str,
    latent_dim: int,
    num: int,
    make_guide: MakeGuide,
    make_data: MakeData,
    grid: Callable,
) -> None:
    # Less noise than elsewhere: the tails of many couplings leave any grid.
    guide = make_guide(posterior, prior, latent_dim=latent_dim, noise=0.1)
    z, cell = grid(latent_dim, 12.0, num)
    batch = make_data([1, 4]).batch()
    with torch.no_grad():
        density = guide.posterior(batch).log_prob(z[:, None].expand(-1, 2, -1)).double().exp()
    total = density.sum(0) * cell
    torch.testing.assert_close(total, torch.ones_like(total), atol=3e-3, rtol=0)


@WIDTHS
@KINDS
def test_draws_are_scored_as_other_points_are(
    posterior: str,
    prior: str,
    latent_dim: int,
    make_guide: MakeGuide,
    make_data: MakeData,
) -> None:
    """A flow remembers the way its draws came; a copy has to be inverted."""
    guide = make_guide(posterior, prior, latent_dim)
    q = guide.posterior(make_data().batch())
    with torch.no_grad():
        draws = q.sample((50,))
        remembered = q.log_prob(draws)
        inverted = q.log_prob(draws.clone())
    torch.testing.assert_close(inverted, remembered, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("posterior", ["normal", "multivariate_normal"])
@WIDTHS
def test_no_context_makes_a_normal_posterior_wider_than_the_prior(
    posterior: str, latent_dim: int, make_guide: MakeGuide, make_data: MakeData
) -> None:
    guide = make_guide(posterior, latent_dim=latent_dim)
    with torch.no_grad():
        q = guide.posterior(make_data([1, 2, 5, 20, 300]).batch())
        variance = (
            q.covariance_matrix if hasattr(q, "covariance_matrix") else q.variance.diag_embed()
        )
    largest = torch.linalg.eigvalsh(variance)[:, -1]
    assert (largest <= 1 + 1e-5).all()


@KINDS
def test_repeating_a_context_does_not_widen_the_posterior(
    posterior: str, prior: str, make_guide: MakeGuide, make_data: MakeData
) -> None:
    guide = make_guide(posterior, prior, noise=0.0)
    context = make_data([3]).batch()
    repeated = context.replace(
        **{
            name: getattr(context, name).repeat(1, 20)
            for name in ("left", "right", "choice", "mask")
        }
    )
    spread = []
    for batch in (context, repeated):
        torch.manual_seed(1)
        with torch.no_grad():
            q = guide.posterior(batch)
            draws = q.sample((4000,))
            assert torch.isfinite(q.log_prob(draws)).all()
        spread.append(draws.std(0).squeeze(0))
    assert (spread[1] < 1.02 * spread[0]).all()
    assert spread[1].prod() < 0.7 * spread[0].prod()


# What it is made of.


@KINDS
def test_guide_owns_neither_the_model_nor_batch_statistics(
    posterior: str, prior: str, make_guide: MakeGuide, make_data: MakeData
) -> None:
    guide = make_guide(posterior, prior)
    own = {id(parameter) for parameter in guide.parameters()}
    assert not own & {id(parameter) for parameter in guide.model.parameters()}
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in guide.modules())
    batch = make_data().batch()
    with torch.no_grad():
        training, evaluation = (
            guide.train(mode).posterior(batch).log_prob(points(batch, guide) * 0)
            for mode in (True, False)
        )
    assert torch.equal(training, evaluation)


@pytest.mark.parametrize("utility", ["linear", "bilinear", "mlp"])
def test_guide_sends_no_gradient_into_the_utility(
    utility: str, make_guide: MakeGuide, make_data: MakeData
) -> None:
    guide = make_guide(utility=utility)
    batch = make_data().batch()
    guide.posterior(batch).log_prob(points(batch, guide)).sum().backward()
    assert all(parameter.grad is None for parameter in guide.model.utility.parameters())
    assert all(parameter.grad is not None for parameter in guide.parameters())


def test_guide_draws_the_site_z_of_every_person(make_guide: MakeGuide, make_data: MakeData) -> None:
    guide, batch = make_guide(), make_data().batch()
    site = pyro.poutine.trace(guide).get_trace(batch).nodes["z"]
    expected = guide.posterior(batch).log_prob(site["value"])
    torch.testing.assert_close(site["fn"].log_prob(site["value"]), expected)
    assert [frame.dim for frame in site["cond_indep_stack"]] == [-1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"posterior": "laplace"}, r"posterior must be one of \('normal', .*got 'laplace'"),
        ({"coupling": "spline"}, r"coupling must be one of \('affine', 'bent'\), got 'spline'"),
    ],
)
def test_bad_option_is_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        NeuralProcessGuide(HeterogeneousBTL(3, 2), **options)


def test_homogeneous_model_has_no_guide() -> None:
    with pytest.raises(ValueError, match=r"latent_dim of at least 1, got 0.*pass guide=None"):
        NeuralProcessGuide(HeterogeneousBTL(3, 0))


@KINDS
@WIDTHS
def test_location_is_the_centre_carried_through_the_flow(
    posterior: str,
    prior: str,
    latent_dim: int,
    make_guide: MakeGuide,
    make_data: MakeData,
) -> None:
    """Taken back through every transform it is the mode; there is no higher density beside it."""
    guide = make_guide(posterior, prior, latent_dim)
    batch = make_data().batch()
    z = guide.location(batch)
    distribution = guide.posterior(batch)
    back = z
    while isinstance(distribution, torch.distributions.TransformedDistribution):
        for transform in reversed(distribution.transforms):
            back = transform.inv(back)
        distribution = distribution.base_dist
    peak = distribution.log_prob(back)
    for direction in torch.eye(latent_dim):
        for step in (-0.05, 0.05):
            assert (distribution.log_prob(back + step * direction) < peak + 1e-6).all()
    if prior == "normal":  # What is known of nobody is the prior, whose centre is the origin.
        empty = batch.replace(mask=torch.zeros_like(batch.mask))
        torch.testing.assert_close(guide.location(empty), torch.zeros_like(z))
