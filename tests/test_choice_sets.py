"""Choices from sets: scored by the multinomial logit in every place that scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Preferences, exact, fit
from fssa_bayes.inference import Sleep
from fssa_bayes.population.information import population_information
from fssa_bayes.sampling import find_modes, grid

COLUMNS = {"user": "user", "situation": "situation", "item": "item", "chosen": "chosen"}


def simulate(
    num_users: int,
    situations: int,
    sizes: tuple[int, int] = (2, 6),
    *,
    spread: float = 1.0,
    features: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """A long table of choices by people with normal coefficients around 1, −1, 1, …"""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        beta = (-1.0) ** np.arange(features) + spread * rng.normal(size=features)
        for situation in range(situations):
            x = rng.normal(size=(rng.integers(*sizes, endpoint=True), features))
            winner = np.argmax(x @ beta + rng.gumbel(size=len(x)))
            rows += [
                (f"p{user}", situation, f"i{j}", j == winner, *values) for j, values in enumerate(x)
            ]
    names = [f"x{k}" for k in range(features)]
    return pd.DataFrame(rows, columns=[*COLUMNS, *names]).astype({"chosen": int})


def read(table: pd.DataFrame) -> Preferences:
    return Preferences.from_choices(
        table, **COLUMNS, features=[name for name in table.columns if name.startswith("x")]
    )


def by_hand(table: pd.DataFrame, beta: Tensor) -> Tensor:
    """Log-probability of each person's choices for coefficients (*, U, D), (*, U)."""
    totals = []
    for number, (_, own) in enumerate(table.groupby("user", sort=False)):
        total = beta.new_zeros(beta.shape[:-2])
        for _, rows in own.groupby("situation"):
            x = torch.from_numpy(rows.filter(regex="^x").to_numpy())
            utility = beta[..., number, :] @ x.T
            winner = int(rows["chosen"].to_numpy().argmax())
            total = total + utility[..., winner] - utility.logsumexp(-1)
        totals.append(total)
    return torch.stack(totals, -1)


def linear(data: Preferences, latent_dim: int, seed: int = 0) -> HeterogeneousBTL:
    """A linear model in the units of the features."""
    model = HeterogeneousBTL.for_data(data, latent_dim, utility="linear", seed=seed)
    with torch.no_grad():
        model.utility.mean.copy_(torch.linspace(1, -1, model.num_features))
    return model


@pytest.mark.parametrize("sizes", [(2, 2), (2, 6), (4, 4)])
def test_a_choice_has_the_probability_of_the_multinomial_logit(sizes) -> None:
    table = simulate(5, 4, sizes)
    data = read(table)
    model = linear(data, 2)
    z = torch.randn(3, 5, 2)
    batch = data.batch()
    value = model.choice(batch, z).log_prob(batch.choice)
    torch.testing.assert_close(value.double(), by_hand(table, model.coefficients(z).double()),
                               atol=1e-4, rtol=1e-5)  # fmt: skip


def test_sets_of_two_are_comparisons() -> None:
    table = simulate(30, 6, (2, 2))
    data = read(table)
    first, second = (table[table["item"] == name].reset_index() for name in ("i0", "i1"))
    items = pd.concat([first, second]).filter(regex="^x")
    items.index = [f"{name}{k}" for name in "ab" for k in range(len(first))]
    pairs = Preferences.from_dataframe(
        pd.DataFrame(
            {
                "user": first["user"],
                "left": [f"a{k}" for k in range(len(first))],
                "right": [f"b{k}" for k in range(len(first))],
                "choice": first["chosen"],
            }
        ),
        **{name: name for name in ("user", "left", "right", "choice")},
        items=items,
    )
    assert not data.has_rankings
    results = [
        fit(HeterogeneousBTL.for_data(own, 1, utility="linear"), None, own, progress_bar=False)
        for own in (data, pairs)
    ]
    tables = [result.population() for result in results]
    # The order of items in the table alone may change the last digits.
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-6)


def test_leaving_out_what_was_not_chosen_conditions_on_the_rest() -> None:
    table = simulate(4, 3, (4, 4))
    beta = torch.randn(2, 4, 2, dtype=torch.float64)
    data = read(table)
    left_out = table[(table["item"] != "i3") | (table["chosen"] == 1)]
    less = read(left_out)
    model = linear(data, 0)
    z = torch.zeros(1, 4, 0)
    for own, rows in ((data, table), (less, left_out)):
        batch = own.batch()
        value = model.choice(batch, z).log_prob(batch.choice)[0]
        mean = model.coefficients(z)[0].double().expand(4, -1)
        torch.testing.assert_close(value.double(), by_hand(rows, mean), atol=1e-4, rtol=1e-5)
    assert (by_hand(left_out, beta) >= by_hand(table, beta)).all()


def test_simulated_choices_have_the_stated_frequencies() -> None:
    table = simulate(1, 1, (4, 4), seed=3)
    table = pd.concat([table.assign(user=f"p{k}") for k in range(4000)], ignore_index=True)
    data = read(table)
    model = linear(data, 0)
    drawn, _ = model.simulate(data, seed=1)
    rows = drawn.choice.reshape(4000, 3)
    chosen = np.where((rows == 0).all(-1), 3, (rows == 1).argmax(-1))
    assert np.isin(np.sort(rows, -1), [0, 0.5, 1]).all()
    utility = data.items[:4].double() @ model.coefficients(torch.zeros(1, 1, 0))[0, 0].double()
    prob = utility.softmax(0).detach().numpy()
    share = np.bincount(chosen, minlength=4) / 4000
    assert (np.abs(share - prob) < 4.5 * np.sqrt(prob * (1 - prob) / 4000)).all()


def test_the_homogeneous_fit_is_the_direct_maximum() -> None:
    table = simulate(60, 5, spread=0.0)
    data = read(table)
    result = fit(HeterogeneousBTL.for_data(data, 0, utility="linear"), None, data,
                 progress_bar=False)  # fmt: skip

    def loss(vector: np.ndarray) -> tuple[float, np.ndarray]:
        beta = torch.tensor(vector, requires_grad=True)
        total = -by_hand(table, beta.expand(60, -1)).sum()
        return total.item(), torch.autograd.grad(total, beta)[0].numpy()

    direct = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8})
    estimates = result.population(kind="hessian")
    np.testing.assert_allclose(estimates["estimate"], direct.x, rtol=1e-5)
    errors = np.sqrt(np.diag(direct.hess_inv))
    np.testing.assert_allclose(estimates["se_hessian"], errors, rtol=0.05)


@pytest.mark.parametrize("posterior", ["multivariate_normal", "flow"])
def test_the_guide_sees_neither_the_order_of_alternatives_nor_the_base(posterior) -> None:
    table = simulate(6, 4, (2, 5))
    mixed = table.sample(frac=1, random_state=1).sort_values(["user", "situation"], kind="stable")
    one, other = read(table), read(mixed)
    assert one.digest() != other.digest()
    model = linear(one, 2)
    torch.manual_seed(0)
    guide = NeuralProcessGuide(model, posterior=posterior)
    z = torch.randn(5, 6, 2)
    densities = [guide.posterior(own.batch()).log_prob(z) for own in (one, other)]
    torch.testing.assert_close(*densities, atol=1e-4, rtol=1e-4)
    modes = [find_modes(model, own.batch()) for own in (one, other)]
    torch.testing.assert_close(modes[0].z, modes[1].z, atol=1e-5, rtol=1e-4)


def test_a_choice_has_the_same_digits_beside_full_rankings() -> None:
    """Or what is known of a person would depend on how others were asked."""
    rows = [
        ("ann", 0, name, rank) for name, rank in zip("abcd", (None, 1, None, None), strict=True)
    ]
    rows += [("ann", 1, name, rank) for name, rank in zip("bda", (None, None, 1), strict=True)]
    others = [("bob", 0, name, rank) for name, rank in zip("dbca", (1, 2, 3, 4), strict=True)]
    names = ["user", "ranking", "item", "rank"]
    items = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 2)), index=list("abcd"))
    alone, beside = (
        Preferences.from_rankings(
            pd.DataFrame(own, columns=names), **dict(zip(names, names, strict=True)), items=items
        )
        for own in (rows, rows + others)
    )
    model = linear(beside, 2)
    z = torch.randn(64, 2, 2)
    values = []
    for data in (alone, beside):
        batch = data.batch()
        likelihood = model.choice(batch, z[:, : len(data)], backend="chunked")
        values.append(likelihood.log_prob(batch.choice)[:, 0])
    assert torch.equal(*values)


def test_modes_are_those_of_a_grid() -> None:
    table = simulate(6, 5, (2, 5))
    data = read(table)
    model = linear(data, 1)
    points = torch.linspace(-6, 6, 4801).view(-1, 1, 1).expand(-1, 6, 1)
    heights = by_hand(table, model.coefficients(points).double()) - 0.5 * points[..., 0] ** 2
    best = points[heights.argmax(0), 0, 0]
    torch.testing.assert_close(find_modes(model, data.batch()).z[:, 0].float(), best,
                               atol=3e-3, rtol=0)  # fmt: skip
    evidence = (heights - 0.5 * np.log(2 * np.pi) + np.log(12 / 4800)).logsumexp(0)
    exact_evidence = exact.grid(model, data).log_evidence
    torch.testing.assert_close(exact_evidence.double(), evidence, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_maximum_likelihood_recovers_the_population() -> None:
    table = simulate(400, 8, (3, 5), spread=0.7, seed=5)
    data = read(table)
    model = HeterogeneousBTL.for_data(data, None, utility="linear", correlation="none")
    result = fit(model, None, data, progress_bar=False)
    population = result.population()
    truth = np.array([1.0, -1.0, 0.7, 0.7])
    distance = (population["estimate"].to_numpy()[:4] - truth) / population["se_sandwich"][:4]
    assert (np.abs(distance) < 4).all()
    evidence = grid(result.model, data).log_evidence.sum().item()
    estimate = result.log_marginal_likelihood()
    assert abs(estimate.value - evidence) < 4 * estimate.standard_error + 0.05


def test_information_is_that_of_finite_differences() -> None:
    table = simulate(25, 4, (3, 5), features=2, seed=2)
    data = read(table)
    model = linear(data, 1).double()
    points = torch.linspace(-8, 8, 401, dtype=torch.float64).view(-1, 1, 1).expand(-1, 25, 1)
    names = [model.utility.mean, model.utility.loading]

    def log_likelihood(theta: Tensor) -> Tensor:
        mean, loading = theta[:2], theta[2:].view(2, 1)
        beta = (mean + points @ loading.T) / model.feature_scale
        prior = -0.5 * points[..., 0] ** 2 - 0.5 * np.log(2 * np.pi) + np.log(16 / 400)
        return (by_hand(table, beta) + prior).logsumexp(0).sum()

    theta = torch.cat([value.detach().flatten() for value in names])
    hessian = torch.autograd.functional.hessian(log_likelihood, theta)
    _, information = population_information(model, data, torch.eye(1, dtype=torch.float64), 4096, 0)
    order = [0, 2, 1, 3]  # Feature by feature: mean and loading.
    torch.testing.assert_close(information, -hessian[order][:, order], atol=0.2, rtol=0.02)


@pytest.mark.slow
def test_sleep_teaches_the_guide_of_choice_sets() -> None:
    data = read(simulate(80, 5, (2, 5)))
    model = linear(data, 2)
    torch.manual_seed(1)
    guide = NeuralProcessGuide(model)
    context, _ = data.split_context(3, seed=0)
    gold = grid(model, context)

    def divergence() -> float:
        """Σ p log (p / q) over the grid's points, averaged over people."""
        log_q = guide.posterior(context.batch()).log_prob(gold.z)
        log_p = gold.log_joint - gold.log_evidence
        return ((log_p - log_q) * gold.log_weights.exp()).sum(0).mean().item()

    with torch.no_grad():
        before = divergence()
    fit(model, guide, data, objective=[Sleep(steps=400)], seed=0, progress_bar=False)
    with torch.no_grad():
        after = divergence()
    assert after < 0.15
    assert after < 0.5 * before
