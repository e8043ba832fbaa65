"""Diagnostics on posteriors that are exact, too narrow, too wide, shifted, or of other data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Normal

from fssa_bayes import diagnostics as dg

SIZES = (0, 1, 4)
NAMES = ["difference", "other difference", "probability", "log-likelihood"]


@dataclass(frozen=True)
class Study:
    """Holds simulated people: z ~ N(0, I) in two dimensions, seen through n noisy looks at z."""

    values: Tensor  # (S, U, 4)
    truth: Tensor  # (U, 4)
    size: np.ndarray  # (U,)
    loc: Tensor  # Of the exact posterior, (U, 2).
    sd: Tensor  # (U, 1)
    z: Tensor  # (S, U, 2)
    true_z: Tensor  # (U, 2)


def study(
    users: int = 400,
    draws: int = 100,
    *,
    scale: float = 1.0,
    shift: float = 0.0,
    kind: str = "posterior",
    sizes: tuple[int, ...] = SIZES,
    seed: int = 0,
) -> Study:
    """Simulates `users` people at each size and draws from a posterior that is wrong as told."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = torch.tensor(sizes).repeat_interleave(users)
    total, largest = len(size), max(sizes)
    true_z = noise(total, 2)
    looks = true_z.unsqueeze(1) + noise(total, largest, 2)
    seen = (torch.arange(largest) < size.unsqueeze(-1)).unsqueeze(-1).double()
    known = {"posterior": size, "prior": 0 * size, "half": size // 2}[kind]
    used = (torch.arange(largest) < known.unsqueeze(-1)).unsqueeze(-1).double()
    precision = (1 + known).double().unsqueeze(-1)
    loc, sd = (used * looks).sum(1) / precision, precision.rsqrt()
    z = loc + sd * (shift + scale * noise(draws, total, 2))

    def quantities(z: Tensor) -> Tensor:
        difference, other = (
            z @ torch.tensor([1.0, 0.5]).double(),
            z @ torch.tensor([0.2, 1]).double(),
        )
        log_prob = -0.5 * (seen * (looks - z.unsqueeze(-2)) ** 2).sum((-1, -2))
        return torch.stack([difference, other, torch.sigmoid(2 * z.sum(-1)), log_prob], -1)

    return Study(quantities(z), quantities(true_z), size.numpy(), loc, sd, z, true_z)


def verdict(people: Study, seed: int = 0) -> dg.SbcResult:
    pit = dg.weighted_pit(people.values, None, people.truth, seed=seed)
    return dg.sbc_test(pit, people.size, names=NAMES)


# ---------------------------------------------------------------------- ranks


def test_an_exact_posterior_is_rejected_at_most_as_often_as_allowed() -> None:
    repetitions = 100
    rejected = [verdict(study(60, 20, seed=seed), seed).rejected for seed in range(repetitions)]
    # .05 is guaranteed; 100 repetitions exceed 11 with a probability of .004.
    assert sum(rejected) <= 11


@pytest.mark.parametrize(
    ("fault", "direction"),
    [
        ({"scale": 0.7}, "over-confident"),
        ({"scale": 1.4}, "under-confident"),
        ({"shift": 0.3}, "biased"),
    ],
)
def test_a_wrong_posterior_is_named_at_every_size(fault: dict, direction: str) -> None:
    table = verdict(study(**fault)).table
    rows = table[table["quantity"] != "log-likelihood"]
    assert set(rows["group"]) == set(SIZES)
    assert rows["rejected"].all()
    assert (rows["direction"] == direction).all()
    linear = rows[rows["quantity"] == "difference"]
    # Normal scores are exact for normal quantities: 400 people give standard errors of .05, .04;
    # the shift is .3 in both dimensions, (1 + .5) / sqrt(1 + .25) of that along the difference.
    np.testing.assert_allclose(linear["scale"], fault.get("scale", 1.0), rtol=0.15)
    expected = -fault.get("shift", 0.0) * 1.5 / math.sqrt(1.25)
    np.testing.assert_allclose(linear["shift"], expected, atol=0.2)


@pytest.mark.parametrize("kind", ["prior", "half"])
def test_only_the_log_likelihood_sees_a_posterior_of_other_data(kind: str) -> None:
    table = verdict(study(kind=kind)).table
    sees = table["quantity"] == "log-likelihood"
    assert not table.loc[~sees, "rejected"].any()
    after = sees & (table["group"] > 0)
    assert (table.loc[after, "mean"] > 0.55).all()  # The truth explains the choices better.
    assert table.loc[after, "rejected"].all()
    # Without choices the prior is the posterior, and every log-likelihood is a tie.
    assert not table.loc[sees & (table["group"] == 0), "rejected"].any()


def test_a_fault_at_one_size_is_found_there_alone() -> None:
    good, bad = study(seed=1), study(scale=0.7, seed=2)
    pits = [dg.weighted_pit(people.values, None, people.truth) for people in (good, bad)]
    wrong = torch.from_numpy(good.size == 1).unsqueeze(-1)
    table = dg.sbc_test(torch.where(wrong, pits[1], pits[0])[:, :2], good.size).table
    assert set(table.loc[table["rejected"], "group"]) == {1}


def test_pit_is_exactly_uniform_with_ties_at_few_draws() -> None:
    # Values on three points: with 20 draws a rank without randomised ties, or without the truth's
    # own share, is far from uniform among 20,000 people.
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(3, (21, 20_000, 1), generator=generator)
    pit = dg.weighted_pit(values[1:], None, values[0])
    assert stats.kstest(pit.ravel().numpy(), "uniform").pvalue > 0.01
    counts = np.bincount((pit.ravel().numpy() * 21).astype(int), minlength=21)
    assert stats.chisquare(counts).pvalue > 0.01


def test_pit_of_weighted_draws_with_the_weight_of_the_truth_is_exactly_uniform() -> None:
    # The proposal N(.6, 1.5²) is far from the posterior N(0, 1), and there are 20 draws.
    torch.manual_seed(4)
    target, proposal = Normal(0.0, 1.0), Normal(0.6, 1.5)
    truth, values = target.sample((20_000, 1)), proposal.sample((20, 20_000, 1))
    log_weights, own = (
        (target.log_prob(x) - proposal.log_prob(x)).squeeze(-1) + 5 for x in (values, truth)
    )
    exact = dg.weighted_pit(values, log_weights, truth, truth_log_weight=own).ravel()
    assert stats.kstest(exact.numpy(), "uniform").pvalue > 0.01
    # Without it the mean is ½ and the variance 1/12 up to the order of 1 / ESS.
    usual = dg.weighted_pit(values, log_weights, truth).ravel()
    assert abs(usual.mean() - 0.5) < 0.02
    assert abs(usual.var() * 12 - 1) < 0.05
    # The weights matter, and draws of weight zero do not.
    assert abs(dg.weighted_pit(values, None, truth).mean() - 0.5) > 0.05
    none = torch.full((5, 20_000), -torch.inf)
    padded = dg.weighted_pit(
        torch.cat([values, torch.full((5, 20_000, 1), 9.0)]), torch.cat([log_weights, none]), truth
    )
    torch.testing.assert_close(padded.ravel(), usual)


def test_pit_by_hand() -> None:
    # 20 draws 0 … 19 and a truth above 5 of them, of which one has half of the weight.
    values = torch.arange(20.0).reshape(20, 1, 1)
    weights = torch.full((20, 1), 0.5 / 19)
    weights[2] = 0.5
    ess = 1 / (weights**2).sum().item()
    own, below = 1 / (1 + ess), 0.5 + 4 * 0.5 / 19
    pit = dg.weighted_pit(values, weights.log(), torch.tensor([[4.5]]), seed=7).item()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        uniform = torch.rand(1, 1, dtype=torch.float64).item()
    assert pit == pytest.approx((1 - own) * below + own * uniform)


def test_seeds_and_global_state() -> None:
    people, before = study(20, 20), torch.random.get_rng_state()
    first, again, other = (
        dg.weighted_pit(people.values, None, people.truth, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ---------------------------------------------------------------------- band


@pytest.mark.parametrize("num_values", [20, 137, 2000])
@pytest.mark.parametrize("num_tests", [1, 10])
def test_the_band_holds_all_points_with_its_probability(num_values: int, num_tests: int) -> None:
    band = dg.ecdf_band(num_values, num_tests, prob=0.9)
    cells = len(band.points) + 1
    rng = np.random.default_rng(num_values)
    counts = rng.multinomial(num_values, np.full(cells, 1 / cells), size=20_000)
    difference = counts.cumsum(1)[:, :-1] / num_values - band.points
    inside = (difference > band.lower - 1e-9) & (difference < band.upper + 1e-9)
    outside = 1 - inside.all(1).mean()
    error = math.sqrt(0.1 / num_tests / 20_000)
    # Counts are whole numbers, so that 20 values cannot use all that is allowed.
    assert outside < 0.1 / num_tests + 3 * error
    assert outside > (0.1 if num_values > 100 else 0.05) / num_tests - 3 * error


def simulated_levels(num_values: int, num_simulations: int = 20_000) -> np.ndarray:
    """Smallest pointwise p-value of uniform samples, from the definition."""
    cells = min(num_values, 100)
    points, table = np.arange(1, cells) / cells, np.arange(num_values + 1)[:, None]
    p_value = 2 * np.minimum(
        stats.binom.cdf(table, num_values, points), stats.binom.sf(table - 1, num_values, points)
    )
    even = np.full(cells, 1 / cells)
    counts = np.random.default_rng(0).multinomial(num_values, even, size=num_simulations)
    return p_value[counts.cumsum(1)[:, :-1], np.arange(cells - 1)].min(1)


def test_the_level_is_the_one_that_simulation_finds() -> None:
    # Säilynoja et al. (2022) find it as a quantile over simulated samples.
    gamma = np.quantile(simulated_levels(250), 0.05)
    assert dg.ecdf_band(250).level == pytest.approx(gamma, rel=0.06)


def test_p_values_of_few_values_count_what_is_as_extreme() -> None:
    # 20 values have few distinct ECDFs, so that p-values have large atoms.
    simulated = simulated_levels(20)
    for seed in range(30):
        pit = np.random.default_rng(seed).random((20, 1))
        points = np.arange(1, 20) / 20
        count = (pit <= points).sum(0)
        at_most, at_least = (
            stats.binom.cdf(count, 20, points),
            stats.binom.sf(count - 1, 20, points),
        )
        extreme = 2 * np.minimum(at_most, at_least).min()
        expected = (simulated <= extreme + 1e-12).mean()
        assert dg.sbc_test(pit).p_value == pytest.approx(expected, abs=0.015)


def test_the_test_rejects_where_the_band_is_left() -> None:
    rng = np.random.default_rng(1)
    band = dg.ecdf_band(200, 2, prob=0.8)
    for _ in range(50):
        pit = rng.random((200, 2)) ** rng.choice([0.8, 1.0, 1.2], size=2)
        ecdf = (pit[:, None] <= band.points[:, None]).mean(0) - band.points[:, None]
        left = (ecdf < band.lower[:, None] - 1e-9) | (ecdf > band.upper[:, None] + 1e-9)
        result = dg.sbc_test(pit, prob=0.8)
        assert result.table["rejected"].tolist() == left.any(0).tolist()
        assert result.rejected == (result.p_value <= 1 - 0.8 + 1e-12)


def test_p_values_are_uniform() -> None:
    pit = np.random.default_rng(2).random((100, 500))
    p_value = dg.sbc_test(pit).table["p_value"].to_numpy()
    for level in (0.01, 0.05, 0.2, 0.5):
        error = math.sqrt(level * (1 - level) / len(p_value))
        assert abs((p_value <= level).mean() - level) < 3.5 * error


# ---------------------------------------------------------------------- coverage


@pytest.mark.parametrize(
    ("fault", "sign"), [({}, 0), ({"scale": 0.7}, -1), ({"scale": 1.4}, 1), ({"shift": 0.8}, -1)]
)
def test_coverage_tells_the_direction(fault: dict, sign: int) -> None:
    people = study(1000, 200, sizes=(0, 4), **fault)
    pit = dg.weighted_pit(people.values[..., :2], None, people.truth[:, :2])
    direct = dg.coverage(pit, people.size)
    quantiles = dg.interval_coverage(
        people.values[..., :2], None, people.truth[:, :2], people.size, levels=(0.5, 0.8, 0.95)
    )
    assert len(direct) == 2 * 2 * 3
    for table in (direct, quantiles):
        if sign == 0:
            assert (table["z"].abs() < 3.5).all()
        else:
            assert (sign * table["z"] > 3).all()
    np.testing.assert_allclose(direct["covered"], quantiles["covered"], atol=0.02)
    if "scale" in fault:
        # P(|N(0, 1)| < scale · quantile), for intervals of a normal posterior.
        expected = (
            2 * stats.norm.cdf(fault["scale"] * stats.norm.ppf(0.5 + direct["level"] / 2)) - 1
        )
        np.testing.assert_allclose(direct["covered"], expected, atol=0.05)
    error = np.sqrt(direct["level"] * (1 - direct["level"]) / 1000)
    np.testing.assert_allclose(direct["standard_error"], error)


def test_interval_coverage_by_hand() -> None:
    # Draws 1 … 20 of equal weight: the 50 % interval is [5, 15], the inverse of the weighted
    # distribution function at .25 and .75.
    values = torch.arange(1.0, 21).reshape(20, 1, 1).expand(20, 40, 1)
    truth = torch.arange(0.5, 20.5, 0.5).reshape(40, 1)
    covered = dg.interval_coverage(values, None, truth, levels=(0.5,))["covered"].item()
    assert covered == ((truth >= 5) & (truth <= 15)).double().mean().item()


# ---------------------------------------------------------------------- TARP


def references(people: Study, seed: int) -> Tensor:
    """Points near what the looks at z suggest: functions of the data and of noise alone."""
    noise = torch.randn(people.true_z.shape, generator=torch.Generator().manual_seed(seed))
    return people.loc + 0.5 * people.sd * noise


def tarp(people: Study) -> dg.TarpResult:
    return dg.tarp(people.z, None, people.true_z, lambda seed: references(people, seed))


def test_tarp_tells_right_from_wrong() -> None:
    assert not tarp(study(1000)).rejected
    # The reference is near the centre: a narrow posterior has too much mass nearer than the truth.
    narrow, wide = tarp(study(1000, scale=0.7)), tarp(study(1000, scale=1.4))
    assert narrow.rejected
    assert wide.rejected
    assert narrow.pit.mean() > 0.52
    assert wide.pit.mean() < 0.48
    assert tarp(study(1000, shift=0.8)).rejected
    middle = len(narrow.level) // 2
    assert narrow.coverage[middle] < narrow.lower[middle]
    assert wide.coverage[middle] > wide.upper[middle]


def test_tarp_sees_the_prior_only_with_references_that_depend_on_the_data() -> None:
    people, exact = study(1000, kind="prior"), study(1000)
    blind = torch.randn(people.true_z.shape, generator=torch.Generator().manual_seed(9))
    assert not dg.tarp(people.z, None, people.true_z, blind.double()).rejected
    assert dg.tarp(people.z, None, people.true_z, references(exact, 0)).rejected


def test_tarp_by_context_size_is_one_more_quantity() -> None:
    good, bad = study(sizes=(1, 4)), study(sizes=(1, 4), scale=0.6, seed=1)
    pit = torch.where(torch.from_numpy(good.size == 4), tarp(bad).pit, tarp(good).pit)
    table = dg.sbc_test(pit.unsqueeze(-1), good.size, names=["TARP"]).table
    assert table["rejected"].tolist() == [False, True]


def test_tarp_divides_by_the_scale() -> None:
    people, unit = study(100), torch.tensor([1.0, 50.0])
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(9))
    plain = dg.tarp(people.z, None, people.true_z, points)
    scaled = dg.tarp(people.z * unit, None, people.true_z * unit, points * unit, scale=unit)
    torch.testing.assert_close(plain.pit, scaled.pit, atol=0.02, rtol=0)


# ---------------------------------------------------------------------- contraction


@pytest.mark.parametrize("scale", [1.0, 0.7, 1.4])
def test_contraction_is_that_of_the_variances(scale: float) -> None:
    people = study(500, 400, scale=scale)
    values = people.values[..., :2]
    sd = values.std(0, correction=0)
    prior_sd = torch.tensor([1.25, 1.04]).double().sqrt()
    shrunk = dg.contraction(prior_sd, sd)
    for size in SIZES:
        chosen = torch.from_numpy(people.size == size)
        # The exact posterior's variance is 1 / (1 + n) of the prior's.
        expected = 1 - scale**2 / (1 + size)
        assert shrunk[chosen].mean().item() == pytest.approx(expected, abs=0.03)


# ---------------------------------------------------------------------- importance weights


@pytest.mark.parametrize("sd", [1.0, 1.4])
def test_effective_sample_size_has_its_closed_form(sd: float) -> None:
    # N(0, 1) by draws of N(0, s²): E[w²] = s² / sqrt(2 s² − 1) for w of mean 1.
    target, proposal = Normal(0.0, 1.0), Normal(0.0, sd)
    z = proposal.sample((20_000, 3))
    ess = dg.effective_sample_size(target.log_prob(z) - proposal.log_prob(z) - 3)
    expected = math.sqrt(2 * sd**2 - 1) / sd**2
    np.testing.assert_allclose(ess / 20_000, expected, rtol=0.02)


# ---------------------------------------------------------------------- grids


def normal_grid(loc: float, scale: float, half_width: float = 10.0) -> tuple[Tensor, Tensor, float]:
    """Log-densities of N(0, 1) and N(loc, scale²) on a grid, with the volume of a cell."""
    points = torch.linspace(-half_width, half_width, 2001, dtype=torch.float64)
    exact, other = (torch.tensor(pair, dtype=torch.float64) for pair in ((0, 1), (loc, scale)))
    log_p, log_q = Normal(*exact).log_prob(points), Normal(*other).log_prob(points)
    return log_p[:, None], log_q[:, None], (points[1] - points[0]).item()


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.0, 0.7), (0.0, 1.4), (0.3, 1.0)])
def test_divergences_to_a_grid_are_those_of_normals(loc: float, scale: float) -> None:
    log_p, log_q, volume = normal_grid(loc, scale)
    expected = math.log(scale) + (1 + loc**2) / (2 * scale**2) - 0.5
    # A grid posterior is known up to a constant.
    kl = dg.kl_to_grid(log_p - 12.0, log_q, volume).item()
    assert kl == pytest.approx(expected, abs=1e-9)


def test_mass_off_the_grid_counts() -> None:
    # q is half p and half a far mode that the grid does not reach.
    log_p, _, volume = normal_grid(0.0, 1.0)
    log_q = log_p - math.log(2)
    assert dg.kl_to_grid(log_p, log_q, volume).item() == pytest.approx(math.log(2))


def test_points_may_stand_for_volumes_of_their_own() -> None:
    # Points at quantiles of N(0, 1) with the volumes between their neighbours, for two people.
    u = torch.linspace(0, 1, 4001, dtype=torch.float64)
    edges = Normal(0.0, 1.0).icdf(u[1:-1])
    points, volume = (edges[1:] + edges[:-1]) / 2, edges.diff()
    log_p = Normal(0.0, 1.0).log_prob(points)[:, None].expand(-1, 2)
    log_q = Normal(torch.tensor([0.0, 0.3]), 1.0).log_prob(points[:, None])
    kl = dg.kl_to_grid(log_p, log_q, volume[:, None].expand(-1, 2))
    np.testing.assert_allclose(kl, [0.0, 0.045], atol=1e-3)
    # A volume of each person, and points of no mass under p where q has none either.
    log_p, log_q, cell = normal_grid(0.3, 1.0, half_width=60.0)
    log_p = log_p.expand(-1, 2)
    kl = dg.kl_to_grid(log_p, log_q.expand(-1, 2), torch.full((2,), cell))
    np.testing.assert_allclose(kl, 0.045, atol=1e-6)
    impossible = torch.where(log_p < -50, -torch.inf, log_p)
    assert dg.kl_to_grid(impossible, impossible, cell).abs().max() < 1e-12
    assert (dg.kl_to_grid(log_p, impossible, cell) == torch.inf).all()


QUANTILES = (np.arange(20_000) + 0.5) / 20_000


# ---------------------------------------------------------------------- bad input

VALUES, TRUTH = torch.randn(30, 25, 2), torch.zeros(25, 2)
NAN_WEIGHTS = torch.full((30, 25), torch.nan)
BAD = [
    (dg.weighted_pit, (VALUES[0], None, TRUTH), r"values must have shape \(S, U, Q\).*\(25, 2\)"),
    (dg.weighted_pit, (VALUES, None, TRUTH[:4]), r"truth must have shape \(25, 2\).*\(4, 2\)"),
    (dg.weighted_pit, (VALUES[:19], None, TRUTH), "draws in values must be at least 20, got 19"),
    (dg.weighted_pit, (VALUES / 0 * 0, None, TRUTH), r"values must be finite, got nan at \(0, 0"),
    (dg.weighted_pit, (VALUES, VALUES[..., 0].T, TRUTH), r"log_weights must have shape \(30, 25\)"),
    (
        dg.weighted_pit,
        (VALUES, torch.full((30, 25), torch.nan), TRUTH),
        "log_weights must be below",
    ),
    (dg.weighted_pit, (VALUES, torch.full((30, 25), -torch.inf), TRUTH), "largest of each"),
    (dg.ecdf_band, (19,), "num_values must be at least 20, got 19"),
    (dg.ecdf_band, (100, 0), "num_tests must be at least 1, got 0"),
    (dg.sbc_test, (np.full((30, 1), 1.5),), r"pit must lie between 0 and 1, got 1.5 at \(0, 0\)"),
    (dg.sbc_test, (np.full(30, 0.5),), r"pit must have shape \(U, Q\).*got \(30,\)"),
    (dg.sbc_test, (np.full((30, 1), 0.5), [0] * 29 + [3]), "group 3 must be at least 20, got 1"),
    (dg.sbc_test, (np.full((30, 1), 0.5), [0] * 29), r"groups must have shape \(30,\).*\(29,\)"),
    (dg.coverage, (np.full((5, 1), 0.5),), "users in group all must be at least 20, got 5"),
    (dg.tarp, (VALUES, None, TRUTH, TRUTH[:, :1]), r"references must have shape \(25, 2\)"),
    (dg.tarp, (VALUES[:, :5], None, TRUTH[:5], TRUTH[:5]), "users must be at least 20, got 5"),
    (dg.contraction, ([1.0, 0.0], VALUES[0].abs()), "prior_sd must be positive, got 0.0 at 1"),
    (dg.kl_to_grid, (VALUES[..., 0], VALUES[:9, :, 0], 1.0), r"log_q must have shape \(30, 25\)"),
    (dg.kl_to_grid, (VALUES[..., 0], VALUES[..., 0], 0.0), "volume must be positive, got 0.0"),
    (dg.kl_to_grid, (VALUES[..., 0], VALUES[..., 0], [1.0]), r"volume must have shape \(25,\)"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), BAD)
def test_bad_input_is_named(function, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_an_error_names_level_and_type() -> None:
    with pytest.raises(ValueError, match="prob must lie between 0 and 1, got 1.5"):
        dg.ecdf_band(100, prob=1.5)
    with pytest.raises(TypeError, match="pit must be an array of numbers, got 'high'"):
        dg.sbc_test("high")
    with pytest.raises(ValueError, match="names must have length 1, one a quantity"):
        dg.sbc_test(np.full((30, 1), 0.5), names=["a", "b"])
    with pytest.raises(ValueError, match="truth_log_weight must be None where log_weights is"):
        dg.weighted_pit(VALUES, None, TRUTH, truth_log_weight=torch.zeros(25))
