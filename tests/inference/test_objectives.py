"""What each objective maximises, against closed forms and grids."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pyro
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fssa_bayes
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference import (
    ELBO,
    ImportanceWeightedELBO,
    MaximumLikelihood,
    NeuralProcessELBO,
    Objective,
    PredictiveLikelihood,
    Sleep,
)
from fssa_bayes.inference.objectives import split_mask
from fssa_bayes.inference.readiness import warn_of_busy_people
from fssa_bayes.model import HeterogeneousBTL

MakeData = Callable[..., Preferences]
Pair = tuple[HeterogeneousBTL, NeuralProcessGuide]
DIRECTION, PRECISION, SHIFT = 0.8, 0.5, 0.6


def any_pair(prior: str = "normal", posterior: str = "flow") -> Pair:
    model = HeterogeneousBTL(3, 2, prior=prior, hidden_dim=8)
    return model, NeuralProcessGuide(model, posterior, hidden_dim=8)


def known_pair(slope: float, shift: float = SHIFT, precision: float = PRECISION) -> Pair:
    """Builds a line of utilities, (.3 + slope z) x, and a guide that sees only a context's size.

    Its posterior after n comparisons is normal with precision 1 + n λ v² and mean n a v over it.
    """
    model = HeterogeneousBTL(1, 1, "linear")
    guide = NeuralProcessGuide(model, "normal", hidden_dim=8)
    with torch.no_grad():
        model.utility.mean.fill_(0.3)
        model.utility.loading.fill_(slope)
        nn.init.zeros_(guide.direction.weight)
        nn.init.zeros_(guide.potential[-1].weight)
        softplus_inverse = math.log(math.expm1(precision)) if precision else -100.0
        guide.potential[-1].bias.copy_(torch.tensor([DIRECTION, softplus_inverse, shift]))
    return model, guide


def known_posterior(count: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance of the known guide after `count` comparisons."""
    precision = 1 + count * PRECISION * DIRECTION**2
    return count * SHIFT * DIRECTION / precision, 1 / precision


def margin(batch: Batch, z: Tensor, slope: float) -> Tensor:
    """Evaluates the line's margins for z with shape (*, U)."""
    x = batch.items[:, 0]
    return (0.3 + slope * z[..., None]) * (x[batch.left] - x[batch.right])


def log_lik(batch: Batch, z: Tensor, slope: float) -> Tensor:
    """Evaluates log p(choice | z) of each comparison, 0 under the mask."""
    return F.logsigmoid((2 * batch.choice - 1) * margin(batch, z, slope)) * batch.mask


def log_evidence(batch: Batch, slope: float, grid: Callable) -> Tensor:
    """Integrates p(choices | z) p(z) of the line over a grid, to shape (U,)."""
    z, cell = grid(1, 8.0, 2001)
    log_prior = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    log_joint = log_lik(batch, z.expand(-1, batch.num_users), slope).sum(-1) + log_prior
    return log_joint.logsumexp(0) + math.log(cell)


def gradients(objective: Objective, pair: Pair, batch: Batch, seed: int = 1) -> list[Tensor]:
    for module in pair:
        module.zero_grad()
    torch.manual_seed(seed)
    objective.backward(*pair, batch)
    return collect(pair)


def collect(pair: Pair) -> list[Tensor]:
    parameters = [parameter for module in pair for parameter in module.parameters()]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


# Importance weighting.


@pytest.mark.parametrize("prior", ["normal", "flow"])
@pytest.mark.parametrize("posterior", ["normal", "multivariate_normal", "flow"])
@pytest.mark.parametrize("num_particles", [1, 2, 16])
def test_importance_weighted_elbo_is_a_log_mean_of_weights(
    num_particles: int, posterior: str, prior: str, make_data: MakeData
) -> None:
    pair = model, guide = any_pair(prior, posterior)
    batch = make_data().batch()
    objective = ImportanceWeightedELBO(num_particles)
    result = gradients(objective, pair, batch)
    torch.manual_seed(1)
    loss = objective.loss(model, guide, batch).item()

    for module in pair:
        module.zero_grad()
    torch.manual_seed(1)
    q = guide.posterior(batch)
    z = q.rsample((num_particles,))
    log_weight = (
        model.prior(len(z[0])).log_prob(z)
        + model.choice(batch, z).log_prob(batch.choice)
        - q.log_prob(z)
    )
    expected = (math.log(num_particles) - log_weight.logsumexp(0)).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(result, collect(pair), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("utility", ["linear", "bilinear", "mlp"])
@pytest.mark.parametrize(
    "objective",
    [
        ImportanceWeightedELBO(4),
        ELBO(),
        NeuralProcessELBO(),
        PredictiveLikelihood(4),
        PredictiveLikelihood(deterministic=True),
        Sleep(),
        Sleep(4),
    ],
    ids=lambda objective: str(objective.config),
)
def test_a_step_computes_item_factors_once(
    objective: Objective, utility: str, make_data: MakeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guide and model share them: with new items in every step, they cost a tenth of it or more."""
    model = HeterogeneousBTL(3, 2, utility, hidden_dim=8)
    guide, calls, compute = NeuralProcessGuide(model, hidden_dim=8), [], model.utility.item_factors
    monkeypatch.setattr(model.utility, "item_factors", lambda x: calls.append(1) or compute(x))
    objective.backward(model, guide, make_data().batch())
    assert len(calls) == 1


@pytest.mark.parametrize("objective", [ImportanceWeightedELBO(4), ELBO(), Sleep()])
def test_gradients_accumulate(objective: Objective, make_data: MakeData) -> None:
    pair, batch = any_pair(), make_data().batch()
    once = gradients(objective, pair, batch)
    torch.manual_seed(1)
    objective.backward(*pair, batch)
    torch.testing.assert_close(collect(pair), [2 * gradient for gradient in once])


@pytest.mark.parametrize("num_particles", [1, 4])
def test_nothing_enters_the_parameter_store(num_particles: int, make_data: MakeData) -> None:
    pyro.param("mine", torch.tensor(3.0))
    gradients(ImportanceWeightedELBO(num_particles), any_pair(), make_data().batch())
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert pyro.param("mine").item() == 3


def test_elbo_has_one_particle(make_data: MakeData) -> None:
    pair, batch = any_pair(), make_data().batch()
    results = [gradients(each, pair, batch) for each in (ELBO(), ImportanceWeightedELBO(1))]
    assert all(torch.equal(*both) for both in zip(*results, strict=True))


@pytest.mark.parametrize("objective", [ELBO(), ImportanceWeightedELBO(3)], ids=["one", "three"])
def test_bound_is_tight_where_the_guide_is_exact(objective: Objective, make_data: MakeData) -> None:
    """Where z has no influence the prior is the posterior, and every weight is p(choices)."""
    batch = make_data([4, 1, 7], num_features=1).batch()
    pair = known_pair(slope=0.0, shift=0.0, precision=0.0)
    expected = -log_lik(batch, torch.zeros(3), 0.0).sum(-1).mean().item()
    assert objective.loss(*pair, batch).item() == pytest.approx(expected, abs=1e-5)


def test_many_particles_approach_the_marginal_likelihood(
    make_data: MakeData, grid: Callable
) -> None:
    batch = make_data([4, 1, 7], num_features=1).batch()
    evidence = log_evidence(batch, 1.5, grid)
    pair = known_pair(slope=1.5, shift=0.0, precision=0.0)
    # The guide is the prior, so the variance of a weight comes from the grid with twice the data.
    z, cell = grid(1, 8.0, 2001)
    log_prior = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    squared = 2 * log_lik(batch, z.expand(-1, 3), 1.5).sum(-1) + log_prior
    variance = (squared.logsumexp(0) + math.log(cell) - 2 * evidence).exp() - 1
    error = (variance.sum() / 20_000).sqrt().item() / 3
    losses = [ImportanceWeightedELBO(num).loss(*pair, batch).item() for num in (1, 20_000)]
    assert error < 0.02
    assert abs(losses[1] + evidence.mean().item()) < 4 * error
    assert losses[0] + evidence.mean().item() > 20 * error, "one particle must not pass"


@pytest.mark.parametrize("num_particles", [1, 2])
def test_subset_takes_every_size_but_all(num_particles: int, make_data: MakeData) -> None:
    """Of n comparisons (n − 1) / 2 are taken on average, the others do not count."""
    batch = make_data([5] * 4000, num_features=1).batch()
    pair = known_pair(slope=0.0, shift=0.0, precision=0.0)
    per_comparison = -log_lik(batch, torch.zeros(4000), 0.0)
    error = per_comparison.sum(-1).std().item() / 4000**0.5
    torch.manual_seed(1)
    loss = ImportanceWeightedELBO(num_particles, subset=True).backward(*pair, batch)
    assert abs(loss - 2 * per_comparison.mean().item()) < 4 * error


# Few-shot objectives.


def test_neural_process_elbo_is_likelihood_and_divergence(make_data: MakeData) -> None:
    """Where z has no influence, all sizes of a context average to a closed form."""
    size, people, repeats = 4, 500, 60
    batch = make_data([size] * people, num_features=1).batch()
    pair = known_pair(slope=0.0)
    mean, variance = known_posterior(torch.arange(size + 1.0))
    divergence = (
        (variance[-1] + (mean[-1] - mean).square()) / variance - 1 - (variance[-1] / variance).log()
    ) / 2
    expected_target = (size + 1) / 2
    per_comparison = -log_lik(batch, torch.zeros(people), 0.0).mean()
    expected = expected_target * per_comparison + divergence[:-1].mean()
    with torch.no_grad():
        losses = torch.stack([NeuralProcessELBO().loss(*pair, batch) for _ in range(repeats)])
    error = losses.std() / repeats**0.5
    assert error < 0.01
    assert (losses.mean() - expected).abs() < 4 * error
    assert divergence[0] > 0.2


def test_neural_process_elbo_of_single_comparisons_is_the_elbo(make_data: MakeData) -> None:
    """The context of one comparison is empty, and q(z | ∅) is the prior."""
    pair, batch = any_pair(), make_data([1] * 6).batch()
    torch.manual_seed(1)
    result = NeuralProcessELBO().loss(*pair, batch)
    torch.manual_seed(1)
    split_mask(batch.mask)
    torch.testing.assert_close(result, ELBO().loss(*pair, batch))


def test_predictive_likelihood_of_single_comparisons_is_marginal(
    make_data: MakeData, grid: Callable
) -> None:
    batch = make_data([1] * 6, num_features=1).batch()
    expected = log_evidence(batch, 1.5, grid)
    loss = PredictiveLikelihood(20_000).loss(*known_pair(slope=1.5), batch).item()
    # A probability has a variance below 1/4; relative to itself it is a few times larger.
    error = (0.25 / 20_000 / expected.exp().square()).sum().sqrt().item() / 6
    assert abs(loss + expected.mean().item()) < 4 * error


def test_predictive_likelihood_scores_the_target_alone(make_data: MakeData) -> None:
    """Where z has no influence, (n + 1) / 2 of n comparisons are scored on average."""
    batch = make_data([5] * 4000, num_features=1).batch()
    per_comparison = -log_lik(batch, torch.zeros(4000), 0.0)
    loss = PredictiveLikelihood(2).loss(*known_pair(slope=0.0), batch).item()
    error = per_comparison.sum(-1).std().item() / 4000**0.5
    assert abs(loss - 3 * per_comparison.mean().item()) < 4 * error


@pytest.mark.parametrize("num_particles", [1, 7])
def test_predictive_likelihood_is_a_log_mean(num_particles: int, make_data: MakeData) -> None:
    pair = model, guide = any_pair()
    batch = make_data([1, 3, 5]).batch()
    torch.manual_seed(1)
    result = PredictiveLikelihood(num_particles).loss(model, guide, batch)
    torch.manual_seed(1)
    context, target = split_mask(batch.mask)
    z = pair[1].posterior(batch.replace(mask=context)).rsample((num_particles,))
    prob = model.choice(batch.replace(mask=target), z).log_prob(batch.choice).exp()
    torch.testing.assert_close(result, -prob.mean(0).log().mean(), atol=1e-5, rtol=1e-5)


def test_deterministic_predictive_likelihood_is_that_of_one_point(make_data: MakeData) -> None:
    """The target's likelihood at the known mean of q(z | C); only the split is drawn."""
    batch = make_data([1, 3, 5], num_features=1).batch()
    objective, pair = PredictiveLikelihood(deterministic=True), known_pair(slope=1.5)
    torch.manual_seed(1)
    result = objective.loss(*pair, batch)
    torch.manual_seed(1)
    context, target = split_mask(batch.mask)
    loc, _ = known_posterior(context.sum(-1))
    expected = -(log_lik(batch, loc, 1.5) * target).sum(-1).mean()
    torch.testing.assert_close(result.detach(), expected)
    assert objective.config["deterministic"]
    assert objective.num_particles == 1
    with pytest.raises(TypeError, match="deterministic must be True or False"):
        PredictiveLikelihood(16, "yes")


def test_likelihood_of_a_homogeneous_model(make_data: MakeData) -> None:
    batch = make_data([2, 5]).batch()
    loss = MaximumLikelihood().loss(HeterogeneousBTL(3, 0, "linear"), None, batch)
    torch.testing.assert_close(loss.detach(), torch.tensor(3.5 * math.log(2)))


# Sleep.


@pytest.mark.parametrize("particles", [1, 2, 8])
@pytest.mark.parametrize("slope", [0.0, 1.5])
def test_sleep_scores_draws_of_the_prior(slope: float, particles: int, make_data: MakeData) -> None:
    """The known guide ignores the choices, so that its loss has a closed form."""
    batch = make_data([0, 1, 4] * 5000, num_features=1).batch()
    mean, variance = known_posterior(batch.num_comparisons.float())
    cross_entropy = (torch.log(2 * math.pi * variance) + (1 + mean.square()) / variance) / 2
    # Variance of (z − m)² / (2 v) for z ~ N(0, 1).
    noise = (2 + 4 * mean.square()) / (4 * variance.square())
    # More particles have less noise and, although they are weighted, no bias.
    loss = Sleep(particles).loss(*known_pair(slope), batch).item()
    assert abs(loss - cross_entropy.mean().item()) < 4 * noise.mean().sqrt().item() / 15_000**0.5


def test_sleep_draws_choices_given_z(make_data: MakeData) -> None:
    pair = model, guide = any_pair("flow")
    batch = make_data([1, 0, 5]).batch()
    torch.manual_seed(1)
    result = Sleep().loss(model, guide, batch)
    torch.manual_seed(1)
    z = model.prior(3).sample()
    choice = torch.bernoulli(model.choice(batch, z).margin.sigmoid()) * batch.mask
    expected = -guide.posterior(batch.replace(choice=choice)).log_prob(z.clone()).mean()
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    assert Sleep().trained(*pair) == list(guide.parameters())


@pytest.mark.slow
def test_particles_take_noise_out_of_sleep(make_data: MakeData) -> None:
    """A guide that is the posterior (of a utility that is flat) leaves the loss to its draws."""
    batch = make_data([3] * 64, num_features=1).batch()
    model, guide = known_pair(slope=0.0, shift=0.0, precision=0.0)
    losses = {
        particles: [Sleep(particles).loss(model, guide, batch).item() for _ in range(200)]
        for particles in (1, 16)
    }
    # Sixteen draws of the posterior instead of one.
    ratio = np.var(losses[1]) / np.var(losses[16])
    assert 16 / 1.8 < ratio < 16 * 1.8


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("prior", ["normal", "flow"])
@pytest.mark.parametrize("utility", ["linear", "bilinear"])
def test_sleep_leaves_the_model_bitwise_alone(
    utility: str, prior: str, particles: int, make_data: MakeData
) -> None:
    data = make_data([3] * 12)
    model = HeterogeneousBTL(3, 2, utility, prior, hidden_dim=8)
    guide = NeuralProcessGuide(model, hidden_dim=8)
    before = [copy.deepcopy(dict(module.named_parameters())) for module in (model, guide)]
    fssa_bayes.fit(
        model,
        guide,
        data,
        objective=Sleep(particles, steps=3, batch_size=8),
        validation=None,
        progress_bar=False,
    )
    assert all(torch.equal(p, before[0][name]) for name, p in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert not all(torch.equal(p, before[1][name]) for name, p in guide.named_parameters())


def test_sleep_asks_training_questions_of_every_number(make_data: MakeData) -> None:
    counts = [2, 3, 1]
    data = make_data(counts, num_items=30, num_features=1)
    model, _ = known_pair(slope=1.0)
    rng = np.random.default_rng(0)
    batch = Sleep(batch_size=3000).draw_batch(model, data, rng)
    sizes, frequency = batch.num_comparisons.unique(return_counts=True)
    # For a person with n: half uniform on 0 … 2 n, half the whole part of a log-uniform number in
    # [1, 2 n + 2), less 1; and each of the three people as often.
    expected = torch.zeros(7)
    for largest in (2 * n for n in counts):
        edges = torch.arange(1.0, largest + 3).log() / math.log(largest + 2)
        expected[: largest + 1] += 1000 * (0.5 / (largest + 1) + 0.5 * edges.diff())
    assert sizes.tolist() == list(range(7))
    assert ((frequency - expected).abs() < 4 * expected.sqrt()).all()
    features = data.items[:, 0]
    asked = {
        (features[i].item(), features[j].item()) for i, j in zip(data.left, data.right, strict=True)
    }
    pairs = torch.stack([batch.items[side][batch.mask, 0] for side in (batch.left, batch.right)])
    assert {tuple(pair) for pair in pairs.T.tolist()} == asked


def test_one_busy_person_does_not_set_the_memory_of_a_step(make_data: MakeData) -> None:
    """Contexts of a step have 2¹⁹ comparisons with padding; whoever has more than half is named."""
    data = make_data([3, 2, 50, 4], num_items=30, num_features=1)
    stage = Sleep(batch_size=2**16)
    assert stage.most_judgements(data) == stage.largest_context(data) == 8
    model, _ = known_pair(slope=1.0)
    batch = stage.draw_batch(model, data, np.random.default_rng(0))
    assert batch.mask.shape == (2**16, 8)
    _, frequency = batch.num_comparisons.unique(return_counts=True)
    # Half uniform on 0 … m, half log-uniform, for m of 6, 4, 8 and 8.
    assert frequency[8] / 2**16 == pytest.approx(
        (1 / 9 + math.log(10 / 9) / math.log(10)) / 4, abs=0.005
    )
    with pytest.warns(UserWarning, match=r"at most 8 comparisons.*up to 50\) have the people 2\."):
        warn_of_busy_people([ELBO(), stage], data)
    assert Sleep().largest_context(data) == 100
    assert ELBO().largest_context(data) == 50
    warn_of_busy_people([Sleep()], data)  # Nobody is busy: no warning, which is an error here.


# Splits.


def test_context_and_target_share_the_comparisons() -> None:
    mask = torch.rand(2000, 6) < 0.7
    context, target = split_mask(mask)
    assert not (context & target).any()
    assert torch.equal(context | target, mask)
    assert target.any(-1)[mask.any(-1)].all()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_context_has_every_size_and_place_alike(size: int) -> None:
    """Padding stands between the comparisons, so that none is favoured by its place."""
    people = 20_000
    columns = torch.arange(0, 2 * size, 2)
    mask = torch.zeros(people, 2 * size + 1, dtype=torch.bool)
    mask[:, columns] = True
    context, _ = split_mask(mask)
    frequency = context.sum(-1).bincount(minlength=size) / people
    assert len(frequency) == size
    assert (frequency - 1 / size).abs().max() <= 4 * (1 / size * (1 - 1 / size) / people) ** 0.5
    share = (size - 1) / 2 / size
    place = context[:, columns].float().mean(0)
    assert (place - share).abs().max() <= 4 * (share * (1 - share) / people) ** 0.5
    together = context[:, 0].float() @ context[:, columns[-1]].float() / people
    if size > 2:  # E[s (s − 1)] / (n (n − 1)), so that a choice of places is even as well.
        expected = (size - 2) / 3 / size
        assert abs(together - expected) < 4 * (expected * (1 - expected) / people) ** 0.5


def test_no_comparisons_make_no_split() -> None:
    for mask in (torch.zeros(3, 0, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)):
        assert not any(part.any() for part in split_mask(mask))


# Options.


@pytest.mark.parametrize(
    "objective", [ImportanceWeightedELBO, ELBO, NeuralProcessELBO, PredictiveLikelihood, Sleep]
)
@pytest.mark.parametrize("option", ["steps", "batch_size"])
def test_bad_size_is_named(objective: type, option: str) -> None:
    with pytest.raises(ValueError, match=rf"{option} must be at least 1, got 0"):
        objective(**{option: 0})
    assert getattr(objective(**{option: 7}), option) == 7


@pytest.mark.parametrize("objective", [ImportanceWeightedELBO, PredictiveLikelihood, Sleep])
def test_bad_number_of_particles_is_named(objective: type) -> None:
    with pytest.raises(ValueError, match=r"num_particles must be at least 1, got 0"):
        objective(0)


def test_batches_hold_distinct_people(make_data: MakeData) -> None:
    data = make_data([2] * 9)
    model, _ = any_pair()
    rng = np.random.default_rng(0)
    few = ImportanceWeightedELBO(batch_size=4).draw_batch(model, data, rng)
    assert len(set(few.people)) == 4
    everybody = ImportanceWeightedELBO(batch_size=20).draw_batch(model, data, rng)
    assert sorted(everybody.people) == list(range(9))
