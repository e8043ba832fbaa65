"""People who differ in how they answer: likelihood, modes, errors, recovery, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from fssa_bayes import (
    HeterogeneousBTL,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    exact,
    fit,
    load,
    save,
)
from fssa_bayes.comparison import heterogeneity_test
from fssa_bayes.diagnostics import sbc_test, weighted_pit
from fssa_bayes.model import BradleyTerry
from fssa_bayes.population.information import population_information
from fssa_bayes.sampling import find_modes

MEAN = (2.0, -1.0)
ANSWERS = {"log_tie": -0.4, "bias": 0.3, "lapse_logit": -2.0}
SD = {"ties": 1.0, "position_bias": 0.7, "lapses": 1.0, "scale": 0.5}
SETS = [("ties",), ("position_bias",), ("scale",), ("lapses",), tuple(SD)]
EACH = pytest.mark.parametrize("personal", SETS, ids=["+".join(names) for names in SETS])


def questions(number: int, seed: int, per_person: int = 20) -> Preferences:
    """Pairs of 25 common items with two features, without answers."""
    rng = np.random.default_rng(seed)
    left = rng.integers(25, size=number)
    right = (left + rng.integers(1, 25, size=number)) % 25
    offsets = np.arange(0, number + 1, per_person)
    return Preferences(left, right, np.zeros(number), offsets, items=rng.normal(size=(25, 2)))


def truth(personal: tuple[str, ...], latent_dim: int = 2, **options) -> HeterogeneousBTL:
    """The linear model with the means and deviations above, ties and bias correlated with taste."""
    model = HeterogeneousBTL(2, latent_dim, utility="linear", personal=personal, **options).eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor(MEAN))
        model.utility.loading.copy_(0.8 * torch.eye(2)[:, :latent_dim])
        for name, value in ANSWERS.items():
            if getattr(model, name) is not None:
                getattr(model, name).fill_(value)
        for row, name in enumerate(model.personal.names):
            model.personal.loading[row] = 0.0
            model.personal.loading[row, latent_dim + row] = SD[name]
            if latent_dim:
                model.personal.loading[row, 0] = 0.4
    return model


def answered(model: HeterogeneousBTL, number: int, seed: int, per_person: int = 20) -> Preferences:
    return model.simulate(questions(number, seed, per_person), seed=seed)[0]


# The likelihood.


def test_the_likelihood_is_that_of_the_formulas() -> None:
    model = truth(tuple(SD)).double()
    data = answered(truth(tuple(SD)), 200, 0)
    batch = data.batch().double()
    z = torch.randn(3, len(data), 6, generator=torch.Generator().manual_seed(0)).double()
    found = model.choice(batch, z).log_prob(batch.choice)
    rows = model.personal.directions
    log_tie, bias, lapse, scale = (
        (z * row).sum(-1, keepdim=True) + mean
        for row, mean in zip(rows, (*ANSWERS.values(), 0.0), strict=True)
    )
    beta = model.utility.mean + z[..., :2] @ model.utility.loading.T
    difference = batch.items[batch.left] - batch.items[batch.right]
    margin = scale.exp() * torch.einsum("sud,und->sun", beta, difference) + bias
    terms = torch.stack([margin / 2, -margin / 2, log_tie.expand_as(margin)]).softmax(0)
    rate = lapse.sigmoid()
    prob = (1 - rate) * terms + rate / 3
    picked = torch.where(batch.choice == 1, prob[0], torch.where(batch.choice == 0, *prob[1:]))
    torch.testing.assert_close(found, picked.log().sum(-1))
    one = model.choice(batch, z[0]).log_prob(batch.choice)  # As the Pyro program evaluates it.
    torch.testing.assert_close(one, found[0])


def test_sides_and_a_scale_leave_the_bias_as_it_is() -> None:
    model = truth(("position_bias", "scale"))
    data = questions(40, 0)
    side = np.random.default_rng(0).integers(-1, 2, size=40)
    with_sides = Preferences(
        data.left, data.right, data.choice, data.offsets, items=data.items.numpy(), side=side
    )
    z = torch.randn(4, len(data), 4, generator=torch.Generator().manual_seed(0))
    plain = HeterogeneousBTL(2, 2, utility="linear")
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    own, batch = model.answers(z), with_sides.batch()
    margin = plain.choice(batch, z[..., :2]).margin * own["log_scale"].exp()
    margin = margin + own["position_bias"] * batch.side
    torch.testing.assert_close(model.choice(batch, z).margin, margin)


@pytest.mark.parametrize("options", [{}, {"ties": "davidson", "position_bias": True}])
def test_nothing_changes_where_nothing_is_personal(options: dict) -> None:
    """Bitwise: the same weights, parameters and densities as a model without the argument."""
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, 2, utility="linear", personal=(), **options)
    torch.manual_seed(0)
    beside = HeterogeneousBTL(2, 2, utility="linear", personal=("scale",), **options)
    assert "personal" not in model.config
    assert model.personal is None
    batch = questions(100, 0).batch()
    batch = batch.replace(choice=torch.randint(0, 2, batch.choice.shape).float())
    z = torch.randn(3, 5, 3)
    with torch.no_grad():
        beside.personal.loading.zero_()
        assert torch.equal(model.utility.loading, beside.utility.loading)
        expected = model.choice(batch, z[..., :2].contiguous()).log_prob(batch.choice)
        torch.testing.assert_close(beside.choice(batch, z).log_prob(batch.choice), expected)


@EACH
def test_derivatives_are_those_of_the_density(personal: tuple[str, ...]) -> None:
    """First and second derivatives by the unscaled margin and by every parameter."""
    generator = torch.Generator().manual_seed(0)
    taste = 2 * torch.randn(1, 4, 5, generator=generator).double()
    names = ["log_tie", "position_bias", "lapse_logit", "log_scale"]
    start = {name: 0.5 * torch.randn(1, 4, 1, generator=generator).double() for name in names}
    ties = "ties" in personal
    if not ties:
        del start["log_tie"]
    choice = torch.tensor([0.0, 1.0, 0.5 if ties else 1.0, 0.0, 1.0]).expand(4, 5)

    def density(margin: Tensor, *values: Tensor) -> Tensor:
        own = dict(zip(start, values, strict=True))
        total = own["log_scale"].exp() * margin + own["position_bias"]
        return BradleyTerry.from_margin(total, **own).log_prob_each(choice).sum()

    values = [x.expand_as(taste).clone() for x in (taste, *start.values())]
    total = start["log_scale"].exp() * taste + start["position_bias"]
    found = BradleyTerry.from_margin(total, **start).differentiate(choice)
    gradient = torch.autograd.functional.jacobian(density, tuple(values))
    hessian = torch.autograd.functional.hessian(density, tuple(values))
    for i, first in enumerate(gradient):
        torch.testing.assert_close(found.first[i], first)
        for j in range(len(values)):
            own = hessian[i][j].reshape(taste.numel(), -1).diagonal().reshape(taste.shape)
            torch.testing.assert_close(found.second[i][j], own)


# Modes and posteriors.


@EACH
def test_modes_are_those_of_the_posterior(personal: tuple[str, ...]) -> None:
    model = truth(personal)
    data = answered(model, 400, 3)
    batch = data.batch()
    modes, width = find_modes(model, batch), model.latent_dim
    twin = truth(personal).double()

    def density(z: Tensor) -> Tensor:
        value = twin.choice(batch.double(), z).log_prob(batch.choice.double())
        return value - 0.5 * z.square().sum(-1)

    at = modes.z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(density(at).sum(), at)
    assert slope.abs().max() < 0.01
    hessian = torch.autograd.functional.hessian(lambda z: density(z).sum(), modes.z)
    own = torch.stack([hessian[u, :, u] for u in range(len(data))])
    information = modes.factor @ modes.factor.mT
    is_clear = torch.linalg.eigvalsh(-own)[:, 0] > 0.26
    assert is_clear.double().mean() > 0.9
    torch.testing.assert_close(information[is_clear], -own[is_clear], rtol=0.02, atol=0.02)
    assert (torch.linalg.eigvalsh(information) > 0.24).all()
    assert width == 2 + len(personal)


@pytest.mark.parametrize("name", list(SD))
def test_posteriors_agree_with_the_grid(name: str) -> None:
    """One dimension of taste and one of an answer: means and log evidence."""
    model = truth((name,), 1)
    data = answered(model, 200, 5)
    grid = exact.grid(model, data)
    posterior = Posterior(model, None, data, 4000, seed=0)
    weights = posterior.proposals[1].softmax(0).unsqueeze(-1)
    mean = (weights * posterior.proposals[0]).sum(0)
    expected = (grid.log_weights.exp().unsqueeze(-1) * grid.z).sum(0)
    torch.testing.assert_close(mean.double(), expected.double(), atol=0.04, rtol=0)
    assert (posterior.pareto_k < 0.7).all()


@pytest.mark.slow
def test_chains_agree_with_the_grid() -> None:
    model = truth(("ties",), 1)
    data = answered(model, 40, 5)
    chains = exact.nuts(model, data, num_samples=300, warmup_steps=300, num_chains=2, seed=0)
    grid = exact.grid(model, data)
    expected = (grid.log_weights.exp().unsqueeze(-1) * grid.z).sum(0)
    torch.testing.assert_close(chains.z.mean(0).double(), expected.double(), atol=0.15, rtol=0)


def test_the_program_has_the_density_of_its_parts() -> None:
    model = truth(("ties", "scale"), 1)
    batch = answered(model, 60, 5).batch()
    trace = pyro.poutine.trace(model).get_trace(batch)
    z = trace.nodes["z"]["value"]
    assert z.shape == (3, 3)
    expected = model.choice(batch, z).log_prob(batch.choice)
    expected = expected - 0.5 * z.square().sum(-1) - 1.5 * np.log(2 * np.pi)
    torch.testing.assert_close(trace.log_prob_sum(), expected.sum())


def test_modes_are_found_past_points_without_information() -> None:
    """Where the posterior of the fifth of these people is flat, a Newton step is endless.

    Newton's method stopped there, and draws had a log scale in the hundreds and weights of NaN.
    """
    data = answered(truth(("scale",), 1), 2500, 15, per_person=25)
    model = truth(("scale",), 1)
    model.take_units(data)
    with torch.no_grad():  # The maximum of the likelihood.
        model.utility.mean.copy_(torch.tensor([2.2577569484710693, -0.9951186776161194]))
        model.utility.loading.copy_(torch.tensor([[-0.9336453676223755], [0.08300752937793732]]))
        model.personal.loading[0, 1] = 0.4788670837879181
    batch = data.batch()
    modes = find_modes(model, batch)
    twin, at = model.double(), modes.z.clone().requires_grad_()
    batch = batch.double()
    density = twin.choice(batch, at).log_prob(batch.choice).sum() - 0.5 * at.square().sum()
    (slope,) = torch.autograd.grad(density, at)
    assert slope.abs().max() < 0.01
    assert (torch.linalg.eigvalsh(modes.factor @ modes.factor.mT) > 0.24).all()
    posterior = Posterior(model.float(), None, data, 200, seed=0)
    assert posterior.proposals[1].isfinite().all()


# The population.


@pytest.mark.parametrize("name", list(SD))
def test_information_is_that_of_the_marginal_likelihood(name: str) -> None:
    """Scores and observed information against derivatives of the likelihood on a grid of z."""
    model = truth((name,), 0).double()
    data = answered(truth((name,), 0), 300, 7)
    eye = torch.eye(1, dtype=torch.float64)
    outer, information = population_information(model, data, eye, 8_000, 0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(81)
    z = torch.from_numpy(nodes).reshape(-1, 1, 1).expand(-1, len(data), 1)
    log_weight = torch.from_numpy(np.log(weights / weights.sum())).unsqueeze(-1)
    parameters = [model.utility.mean, *model.answer_parameters().values()]
    parameters += [model.personal.loading]
    batch = data.batch().double()

    def likelihood(*values: Tensor) -> Tensor:
        names = {id(p): n for n, p in model.named_parameters()}
        given = {names[id(p)]: v for p, v in zip(parameters, values, strict=True)}
        log_prob = torch.func.functional_call(
            Likelihood(model), {f"model.{k}": v for k, v in given.items()}, (batch, z)
        )
        return (log_prob + log_weight).logsumexp(0)

    values = tuple(p.detach() for p in parameters)
    rows = torch.autograd.functional.jacobian(likelihood, values)
    scores = torch.cat([row.reshape(len(data), -1) for row in rows], -1)
    hessian = torch.autograd.functional.hessian(lambda *v: likelihood(*v).sum(), values)
    sizes = [v.numel() for v in values]
    table = torch.cat(
        [
            torch.cat([hessian[i][j].reshape(a, b) for j, b in enumerate(sizes)], 1)
            for i, a in enumerate(sizes)
        ]
    )
    # Coefficients come with a column of Λ each, which is not free here.
    number = information.shape[0]
    own = [0, 2, *range(4, number)]
    scale = table.diagonal().abs().sqrt()
    difference = (information[own][:, own] + table) / (scale * scale.unsqueeze(-1))
    assert difference.abs().max() < 0.03
    difference = (outer[own][:, own] - scores.T @ scores) / (scale * scale.unsqueeze(-1))
    assert difference.abs().max() < 0.03


class Likelihood(torch.nn.Module):
    """Evaluates log p(choices | z) of people as a function of the model's parameters."""

    def __init__(self, model: HeterogeneousBTL) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: object, z: Tensor) -> Tensor:
        return self.model.choice(batch, z).log_prob(batch.choice)


def test_a_fit_finds_how_readily_people_call_a_tie(tmp_path: Path) -> None:
    """The maximum lies near the truth; table, file and export tell the same."""
    model = truth(("ties",), 1)
    data = answered(model, 2000, 1)
    fitted = HeterogeneousBTL(2, 1, utility="linear", personal=("ties",))
    result = fit(fitted, None, data, progress_bar=False)
    table = result.population(num_samples=256)
    of_ties = {"log nu": -0.4}
    for name, value in of_ties.items():
        estimate, error = table.loc[("answer", name), ["estimate", "se_hessian"]]
        assert abs(estimate - value) < 3 * error
    estimate, error = table.loc[("answer sd", "log nu"), ["estimate", "se_hessian"]]
    assert abs(estimate - np.hypot(1.0, 0.4)) < 3 * error
    assert 0 < error < 0.3
    assert ("answer correlation", "log nu, 0") in table.index
    found = fitted.personal.directions.norm().item()
    assert estimate == pytest.approx(found, rel=1e-5)
    save(tmp_path / "saved", fitted, None)
    again, _ = load(tmp_path / "saved")
    z = torch.randn(2, len(data), 2)
    for name, value in fitted.answers(z).items():
        assert torch.equal(again.answers(z)[name], value)
    posterior = Posterior(again, None, data, 100, seed=0)
    exported = posterior.to_inference_data()
    own = exported.posterior["answer"]
    assert list(own.coords["answer_parameter"].values) == ["log nu"]
    expected = again.answers(posterior.z)["log_tie"][..., 0].detach().numpy()
    np.testing.assert_allclose(own.values[0, :, :, 0], expected, rtol=1e-6)


def test_a_network_learns_with_a_guide() -> None:
    """Any utility may have personal answers, and the guide proposes all dimensions."""
    data = answered(truth(("ties",), 1), 600, 1)
    model = HeterogeneousBTL.for_data(data, 1, utility="bilinear", personal=("ties",))
    guide = NeuralProcessGuide(model)
    fit(model, guide, data, steps=3, progress_bar=False, validation=None)
    posterior = Posterior(model, guide, data, 200)
    assert posterior.z.shape == (200, len(data), 2)
    assert posterior.log_score(data).isfinite().all()


# What cannot be.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"personal": ("taste",)}, "personal must name some of"),
        ({"personal": ("ties", "ties")}, "each once"),
        ({"personal": ("ties",), "prior": "flow"}, "needs prior='normal'"),
        ({"personal": ("ties",), "penalty": 0.5}, "penalty=0.5 needs"),
        ({"personal": ("ties",), "latent_dim": 3}, "latent_dim must be at most 2"),
        ({"personal": ("ties",), "utility": "distributional", "latent_dim": 0}, r"must be \(\)"),
    ],
)
def test_arguments_are_checked(options: dict, message: str) -> None:
    options = {"latent_dim": 1, "utility": "linear"} | options
    with pytest.raises(ValueError, match=message):
        HeterogeneousBTL(2, **options)


def test_a_name_alone_is_refused() -> None:
    with pytest.raises(TypeError, match="tuple of names"):
        HeterogeneousBTL(2, 1, utility="linear", personal="ties")


def test_rankings_are_refused() -> None:
    data = Preferences.from_rankings([["a", "b", "c"], ["b", "c", "a"]])
    model = HeterogeneousBTL(3, 1, utility="linear", personal=("scale",))
    with pytest.raises(ValueError, match="log scale"):
        fit(model, None, data, progress_bar=False)


def test_one_person_tells_nothing_of_differences() -> None:
    data = answered(truth(("ties",), 0), 30, 1, per_person=30)
    model = HeterogeneousBTL(2, 0, utility="linear", personal=("ties",))
    with pytest.raises(ValueError, match=r"use latent_dim=0 and personal=\(\)"):
        fit(model, None, data, progress_bar=False)


# Do people differ in it?


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SD))
def test_the_test_sees_who_differs_and_who_does_not(name: str) -> None:
    """Tastes differ in both sets; the answers differ in one."""

    def build() -> tuple[HeterogeneousBTL, None]:
        return HeterogeneousBTL(2, 1, utility="linear", personal=(name,)), None

    model = truth((name,), 1)
    differ = answered(model, 4000, 11, per_person=40)
    found = heterogeneity_test(build, differ, of=name)
    assert found.p_value < 0.01
    assert "do differ in" in found.verdict
    with torch.no_grad():
        model.personal.loading.zero_()
    alike = answered(model, 4000, 11, per_person=40)
    beside = heterogeneity_test(build, alike, of=name)
    assert beside.p_value > 0.01
    assert beside.statistic < found.statistic
    assert found.degrees == (1 if name in ("ties", "position_bias") else 0)


def test_a_test_is_refused_where_its_limit_is_unknown() -> None:
    data = answered(truth(("ties",), 1), 200, 1)

    def build(utility: str = "linear") -> tuple[HeterogeneousBTL, None]:
        return HeterogeneousBTL(2, 1, utility=utility, personal=("ties",)), None

    with pytest.raises(ValueError, match="of must be one of the model's"):
        heterogeneity_test(build, data, of="scale")
    with pytest.raises(ValueError, match="needs utility='linear'"):
        heterogeneity_test(lambda: build("bilinear"), data, of="ties")
    tastes = HeterogeneousBTL(2, 1, utility="linear", personal=("scale",))
    with pytest.raises(ValueError, match="needs a model of tastes alone"):
        heterogeneity_test(lambda: (tastes, None), data, null="mixture")


# Calibration.


def test_posteriors_of_all_four_at_once_hold_the_truth_as_often_as_they_say() -> None:
    """Simulation-based calibration of every personal parameter and of a taste."""
    model = truth(tuple(SD), 1)
    pit = []
    for per_person in (5, 40):
        data, z = model.simulate(questions(300 * per_person, 3, per_person), seed=per_person)
        posterior = Posterior(model, None, data, 600, seed=1)
        draws, log_weights = posterior.proposals
        quantities, true = (
            torch.cat([x[..., :1], x @ model.personal.directions.T], -1) for x in (draws, z)
        )
        pit.append(weighted_pit(quantities.detach(), log_weights, true.detach()))
    sizes = np.repeat([5, 40], 300)
    result = sbc_test(torch.cat(pit), sizes, prob=0.99)
    assert not result.rejected, result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ties", "scale"])
def test_intervals_cover_means_and_deviations(name: str) -> None:
    """In 12 simulated sets of 100 people with 30 answers, 95 % intervals, pooled."""
    model = truth((name,), 1)
    (label,) = model.personal.labels
    expected = {("answer sd", label): model.personal.directions.norm().item()}
    if name == "ties":
        expected["answer", label] = ANSWERS["log_tie"]
    distance = []
    for seed in range(12):
        data = answered(model, 3000, 100 + seed, per_person=30)
        fitted = HeterogeneousBTL(2, 1, utility="linear", personal=(name,))
        table = fit(fitted, None, data, progress_bar=False).population(num_samples=128)
        rows = table.loc[list(expected)]
        distance.append((rows["estimate"] - list(expected.values())) / rows["se_hessian"])
    distance = np.abs(distance)
    assert distance.max() < 4
    assert (distance < 1.96).mean() > 0.8
