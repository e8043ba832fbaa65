"""Scores and information by the density of coefficients, against the likelihood on a grid."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from fssa_bayes import HeterogeneousBTL, Preferences
from fssa_bayes.population.complete_data import has_density, information_by_density
from fssa_bayes.population.information import batch_information
from fssa_bayes.sampling import Streams, draw_around_modes

PEOPLE, COMPARISONS, NODES = 25, 6, 41


@dataclass(frozen=True)
class Case:
    """A model of two features and its parameters, ω in place of β in willingness to pay."""

    kinds: tuple[str, str]
    mean: tuple[float, float]
    loading: list[list[float]]
    options: dict = field(default_factory=dict)
    effects: tuple[float, ...] = ()
    bias: float | None = None


CASES = {
    "normal": Case(("normal", "normal"), (0.8, -0.5), [[1.0, 0.0], [0.4, 0.7]]),
    "log-normal": Case(("lognormal", "-lognormal"), (0.2, -0.4), [[0.8, 0.0], [0.3, 0.6]]),
    "uncorrelated": Case(
        ("normal", "-lognormal"), (0.5, -0.4), [[0.9, 0.0], [0.0, 0.7]], {"correlation": "none"}
    ),
    "fixed": Case(("-lognormal", "fixed"), (0.1, 0.6), [[0.8], [0.0]]),
    "covariate": Case(
        ("normal", "-lognormal"), (0.5, -0.4), [[0.9, 0.0], [0.2, 0.7]],
        {"num_covariates": 1}, (0.6, -0.4),
    ),
    "answers": Case(
        ("fixed", "lognormal"), (0.4, 0.1), [[0.0], [0.7]], {"position_bias": True}, bias=0.3
    ),
    "willingness to pay": Case(("fixed", "normal"), (-0.9, 0.5), [[0.0], [0.8]], {"price": 0}),
}  # fmt: skip


def build(case: Case) -> tuple[HeterogeneousBTL, Preferences]:
    rng = np.random.default_rng(0)
    left = rng.integers(30, size=PEOPLE * COMPARISONS)
    right = (left + rng.integers(1, 30, size=len(left))) % 30
    covariates = rng.normal(size=(PEOPLE, 1)) if case.effects else None
    data = Preferences(
        left, right, rng.integers(2, size=len(left)), np.arange(0, len(left) + 1, COMPARISONS),
        items=rng.normal(size=(30, 2)), covariates=covariates,
    )  # fmt: skip
    model = HeterogeneousBTL(2, None, utility="linear", coefficients=case.kinds, **case.options)
    model.take_units(data)
    model.double()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor(case.mean))
        model.utility.loading.copy_(torch.tensor(case.loading))
        if case.effects:
            model.effects.copy_(torch.tensor(case.effects).unsqueeze(-1))
        for value in model.answer_parameters().values():
            value.fill_(case.bias)
    return model, data


def coefficients(case: Case, eta: Tensor) -> Tensor:
    values = []
    for kind, column in zip(case.kinds, eta.unbind(-1), strict=True):
        values.append({"lognormal": 1, "-lognormal": -1}.get(kind, 0) * column.exp())
        if "lognormal" not in kind:
            values[-1] = column
    if "price" in case.options:
        values[1] = -values[0] * values[1]
    return torch.stack(values, -1)


def log_likelihoods(
    case: Case, model: HeterogeneousBTL, data: Preferences, theta: Tensor
) -> Tensor:
    """Log-likelihood of each person at θ: w0, Λ row by row, B, bias; by Gauss and Hermite."""
    rank = model.latent_dim
    sizes = [2, 2 * rank, len(case.effects)]
    mean, loading, effects, bias = theta.split([*sizes, len(theta) - sum(sizes)])
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    grid = torch.cartesian_prod(*[torch.from_numpy(nodes)] * rank).reshape(-1, rank)
    log_weights = torch.from_numpy(np.log(weights / weights.sum()))
    log_weights = torch.cartesian_prod(*[log_weights] * rank).reshape(-1, rank).sum(-1)
    z = grid.unsqueeze(1)
    if case.effects:
        table = data.covariates.double()
        table = (table - table.mean(0)) / table.std(0, correction=0)
        z = z + table @ effects.unsqueeze(0)
    beta = coefficients(case, mean + z @ loading.reshape(2, rank).T)
    items = (data.items.double() - model.feature_mean) / model.feature_scale
    batch = data.batch()
    margin = torch.einsum(
        "sud,und->sun", beta.expand(-1, PEOPLE, 2), items[batch.left] - items[batch.right]
    )
    margin = margin + (bias if len(bias) else 0.0)
    sign = 2 * batch.choice.double() - 1
    log_prob = torch.nn.functional.logsigmoid(sign * margin).sum(-1)
    return (log_prob + log_weights[:, None]).logsumexp(0)


@pytest.mark.parametrize("name", CASES)
def test_scores_and_information_are_those_of_a_grid(name: str) -> None:
    case = CASES[name]
    model, data = build(case)
    rank = model.latent_dim
    assert has_density(model)
    answers = [v.detach().reshape(1) for v in model.answer_parameters().values()]
    parts = [model.utility.mean, model.utility.directions.flatten(), model.effects.flatten()]
    theta = torch.cat([p.detach().double() for p in (*parts, *answers)])
    score = torch.autograd.functional.jacobian(
        lambda x: log_likelihoods(case, model, data, x), theta
    )
    hessian = torch.autograd.functional.hessian(
        lambda x: log_likelihoods(case, model, data, x).sum(), theta
    )
    # Here coefficients come feature by feature, each with its row of Λ.
    table = torch.cat([torch.arange(2)[:, None], 2 + torch.arange(2 * rank).reshape(2, rank)], 1)
    order = torch.cat([table.flatten(), torch.arange(2 + 2 * rank, len(theta))])
    is_free = torch.cat([torch.ones(2, 1, dtype=torch.bool), model.utility.free], 1).flatten()
    free = torch.cat([is_free, torch.ones(len(order) - len(is_free), dtype=torch.bool)])
    batch = data.batch()
    batch = batch.replace(items=batch.items.double(), choice=batch.choice.double())
    draws = draw_around_modes(model, batch, 8000, Streams(0, "the test"))
    eye = torch.eye(rank, dtype=torch.float64)
    weights = draws.log_weights.softmax(0)
    for way in (information_by_density, batch_information):
        scores, information = way(model, batch, draws.z, weights, eye)
        expected = score[:, order][:, free]
        torch.testing.assert_close(scores[:, free], expected, atol=0.02, rtol=0.01)
        expected = -hessian[order][:, order][free][:, free]
        scale = (expected.diagonal().abs() + 2).sqrt()  # Complete data have a few times 25.
        gap = (information[free][:, free] - expected) / torch.outer(scale, scale)
        assert gap.abs().max() < 0.06, way.__name__


@pytest.mark.parametrize("name", CASES)
def test_a_person_with_weight_w_counts_as_w_people(name: str) -> None:
    """Repeated people with the same draws have equal information, and scores that add up."""
    model, data = build(CASES[name])
    times = np.arange(PEOPLE) % 3 + 1
    batch = data.with_weights(times).batch()
    repeated = np.repeat(np.arange(PEOPLE), times)
    draws = draw_around_modes(model, data.batch(), 50, Streams(0, "the test"))
    weights = draws.log_weights.softmax(0)
    eye = torch.eye(model.latent_dim, dtype=torch.float64)
    score, information = information_by_density(model, batch, draws.z, weights, eye)
    many = data.batch(repeated)
    each, expected = information_by_density(
        model, many, draws.z[:, repeated], weights[:, repeated], eye
    )
    torch.testing.assert_close(information, expected, atol=1e-8, rtol=1e-8)
    sums = torch.zeros_like(score).index_add(0, torch.from_numpy(repeated), each)
    torch.testing.assert_close(score, sums, atol=1e-8, rtol=1e-8)


def test_a_rotation_changes_the_names_of_directions_alone() -> None:
    """Scores of ΛR are those of Λ times R, so that outer products and information follow."""
    case = CASES["log-normal"]
    model, data = build(case)
    batch = data.batch()
    draws = draw_around_modes(model, batch, 500, Streams(0, "the test"))
    weights = draws.log_weights.softmax(0)
    eye = torch.eye(2, dtype=torch.float64)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    plain, turned = (
        information_by_density(model, batch, draws.z, weights, rotation) for rotation in (eye, turn)
    )
    table = torch.kron(eye, torch.block_diag(torch.ones(1, 1).double(), turn))
    torch.testing.assert_close(turned[0], plain[0] @ table)
    torch.testing.assert_close(turned[1], table.T @ plain[1] @ table, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(
    ("latent_dim", "loading", "expected"),
    [
        (2, [[1.0, 0.0], [0.3, 0.5]], True),
        (2, [[1.0, 0.5], [2.0, 1.0]], False),  # Of rank 1.
        (1, [[1.0], [0.5]], False),
        (0, [[], []], False),
    ],
)
def test_a_density_needs_a_direction_for_every_coefficient(
    latent_dim: int, loading: list, expected: bool
) -> None:
    model = HeterogeneousBTL(2, latent_dim, utility="linear")
    with torch.no_grad():
        model.utility.loading.copy_(torch.tensor(loading).reshape(2, latent_dim))
    assert has_density(model) is expected
