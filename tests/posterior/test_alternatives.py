"""The probability of each alternative, against a grid and against the laws of probability."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences
from fssa_bayes.exact import grid

COUNTS = (0, 1, 3, 8)  # Situations of each person, beside `extra`.


def make_sets(seed: int = 0, sizes: tuple[int, ...] = (2, 3, 4, 6), extra: int = 4) -> Preferences:
    """Choices of four people from sets of different sizes, whose features vary by situation."""
    rng = np.random.default_rng(seed)
    rows = []
    for user, count in enumerate(COUNTS):
        for situation in range(count + extra):
            size = sizes[situation % len(sizes)]
            chosen = rng.integers(size)
            for item in range(size):
                features = rng.normal(size=2)
                rows.append((f"p{user}", situation, f"i{item}", item == chosen, *features))
    df = pd.DataFrame(rows, columns=["user", "situation", "item", "chosen", "x", "y"])
    columns = {"user": "user", "situation": "situation", "item": "item", "chosen": "chosen"}
    return Preferences.from_choices(df, **columns, features=["x", "y"])


def make_model(latent_dim: int) -> HeterogeneousBTL:
    model = HeterogeneousBTL(2, latent_dim, "linear").eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.8, -0.4]))
        loading = torch.tensor([[1.2, 0.3], [-0.5, 0.9]])
        model.utility.loading.copy_(loading[:, :latent_dim])
    return model


def by_hand(
    model: HeterogeneousBTL, context: Preferences, target: Preferences
) -> tuple[list[Tensor], list[Tensor]]:
    """Probabilities (G, J) of each situation of the target at points of z, and their weights."""
    axis = torch.linspace(-6, 6, 241 if model.latent_dim == 1 else 101, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * model.latent_dim).reshape(-1, model.latent_dim)
    weights = [model.utility.mean, model.utility.loading]
    mean, loading = (x.detach().double() for x in weights)
    beta = mean + z @ loading.T

    def situations(data: Preferences, user: int) -> list[tuple[Tensor, int]]:
        found = []
        start, stop = data.offsets[user : user + 2]
        number = np.arange(start, stop) if data.ranking is None else data.ranking[start:stop]
        for one in dict.fromkeys(number):
            rows = start + np.flatnonzero(number == one)
            items = [*data.left[rows], data.right[rows[0]]]
            won = np.flatnonzero(data.choice[rows] == 1)
            prob = (beta @ data.items[items].double().T).softmax(-1)
            found.append((prob, int(won[0]) if len(won) else len(rows)))
        return found

    probs, masses = [], []
    for user in range(len(context)):
        log_mass = -z.square().sum(-1) / 2
        for prob, chosen in situations(context, user):
            log_mass = log_mass + prob[:, chosen].log()
        for prob, _ in situations(target, user):
            probs.append(prob)
            masses.append(log_mass.softmax(0))
    return probs, masses


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_probabilities_scores_and_information_are_those_of_a_grid(latent_dim: int) -> None:
    model, data = make_model(latent_dim), make_sets()
    context, target = data.split_context(3, seed=1)
    probs, masses = by_hand(model, context, target)
    posterior = Posterior.from_draws(model, context, grid(model, context))
    table = posterior.alternative_prob(target)
    assert set(table.groupby(["user", "situation"]).size()) == {2, 3, 4, 6}
    mean = [mass @ prob for prob, mass in zip(probs, masses, strict=True)]
    np.testing.assert_allclose(table["mean"], torch.cat(mean), atol=2e-3)
    np.testing.assert_allclose(table["mean"].groupby(level=[0, 1]).sum(), 1, atol=1e-5)

    each = table.groupby(level=[0, 1], sort=False)
    inner = [m @ torch.special.entr(p).sum(-1) for p, m in zip(probs, masses, strict=True)]
    outer = [torch.special.entr(p).sum() for p in mean]
    np.testing.assert_allclose(each["aleatoric"].first(), inner, atol=2e-3)
    np.testing.assert_allclose(each["epistemic"].first(), np.subtract(outer, inner), atol=2e-3)

    score = [(mean[i] @ rows).log().item() for i, rows in enumerate(_chosen(table))]
    users = each.first().index.get_level_values("user")
    expected = pd.Series(score, users).groupby(level=0, sort=False).mean()
    np.testing.assert_allclose(posterior.log_score(target), expected, atol=3e-3)


def _chosen(table: pd.DataFrame) -> list[Tensor]:
    groups = table["chosen"].groupby(level=[0, 1], sort=False)
    return [torch.tensor(rows.to_numpy(), dtype=torch.float64) for _, rows in groups]


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_intervals_hold_the_stated_share_of_the_posterior(latent_dim: int) -> None:
    model, data = make_model(latent_dim), make_sets()
    context, target = data.split_context(3, seed=1)
    posterior = Posterior(model, NeuralProcessGuide(model), context, 8000)
    table = posterior.alternative_prob(target, level=0.8)
    bounds = torch.tensor(table[["lower", "upper"]].to_numpy(), dtype=torch.float64)
    start = 0
    for prob, mass in zip(*by_hand(model, context, target), strict=True):
        lower, upper = bounds[start : start + prob.shape[1]].T
        below, above = (mass @ (prob < lower).double(), mass @ (prob > upper).double())
        # Four standard errors at a relative effective sample size of .2, and the grid's steps.
        np.testing.assert_allclose(below, 0.1, atol=0.045)
        np.testing.assert_allclose(above, 0.1, atol=0.045)
        start += prob.shape[1]


def test_pairs_have_the_probabilities_of_choice_prob() -> None:
    model, data = make_model(2), make_sets(sizes=(2,))
    context, target = data.split_context(3, seed=1)
    posterior = Posterior(model, NeuralProcessGuide(model), context, 1000)
    table, prob = posterior.alternative_prob(target), posterior.choice_prob(target)
    mask = target.batch().mask
    left, right = table.iloc[::2], table.iloc[1::2]
    for name in ("mean", "lower", "upper", "epistemic", "aleatoric"):
        expected = getattr(prob, name)[mask]
        np.testing.assert_allclose(left[name], expected, atol=1e-5)
    np.testing.assert_allclose(right["mean"], 1 - prob.mean[mask], atol=1e-5)
    # Quantiles from either end differ by one draw at most.
    np.testing.assert_allclose(right["lower"], 1 - prob.upper[mask], atol=5e-3)
    np.testing.assert_allclose(right["upper"], 1 - prob.lower[mask], atol=5e-3)
    assert left["chosen"].tolist() == target.choice.tolist()
    assert left.index.get_level_values("item").tolist() == list(target.item_names[target.left])


def test_ties_leave_the_rest_and_half_wins_are_halves() -> None:
    data = Preferences([0, 1], [1, 2], [0.5, 1], [0, 2], items=np.eye(3)[:, :2], ties="keep")
    model = HeterogeneousBTL(2, 2, "linear", ties="davidson").eval()
    posterior = Posterior(model, NeuralProcessGuide(model), data, 1000)
    table, prob = posterior.alternative_prob(data), posterior.choice_prob(data)
    total = table["mean"].groupby(level=1).sum()
    np.testing.assert_allclose(total, 1 - prob.tie[0], atol=1e-5)
    np.testing.assert_allclose(table["aleatoric"].iloc[::2], prob.aleatoric[0], atol=1e-5)
    assert table["chosen"].tolist() == [0.5, 0.5, 1, 0]


def reversed_sets(data: Preferences) -> Preferences:
    """The same choices from sets whose alternatives are listed the other way round."""
    left, right, choice = [], [], []
    for one in np.unique(data.ranking):
        rows = np.flatnonzero(data.ranking == one)
        items = [*data.left[rows], data.right[rows[0]]][::-1]
        chosen = np.flatnonzero(data.choice[rows] == 1)
        won = len(items) - 1 - (chosen[0] if len(chosen) else len(rows))
        none = 0.5 if len(items) > 2 else 0
        left += items[:-1]
        right += items[-1:] * len(rows)
        choice += [0 if won == len(rows) else 1 if j == won else none for j in range(len(rows))]
    kept = {"items": data.items, "item_names": data.item_names, "user_names": data.user_names}
    return Preferences(left, right, choice, data.offsets, ranking=data.ranking, **kept)


def test_the_order_of_alternatives_does_not_matter() -> None:
    model, data = make_model(2), make_sets()
    context, target = data.split_context(3, seed=1)
    posterior = Posterior(model, NeuralProcessGuide(model), context, 1000)
    table = posterior.alternative_prob(target)
    other = posterior.alternative_prob(reversed_sets(target))
    assert other.index.tolist() != table.index.tolist()
    pd.testing.assert_frame_equal(other.loc[table.index], table, atol=1e-5)


def test_a_person_has_the_same_numbers_beside_others() -> None:
    model, data = make_model(2), make_sets()
    context, target = data.split_context(3, seed=1)
    guide = NeuralProcessGuide(model)
    table = Posterior(model, guide, context, 1000).alternative_prob(target)
    for user in range(len(context)):
        alone = Posterior(model, guide, context.subset([user]), 1000)
        one = alone.alternative_prob(target.subset([user]))
        pd.testing.assert_frame_equal(one, table.loc[[context.user_names[user]]], check_exact=True)


def test_the_first_rank_and_the_worst_of_a_set() -> None:
    """Rows (a, c), (b, c) hold a > b > c; rows (c, a), (c, b) that c is the worst of three."""
    items = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    kept = {"items": items, "item_names": list("abc"), "ranking": [0, 0]}
    ranked = Preferences([0, 1], [2, 2], [1.5, 1.0], [0, 2], **kept)
    worst = Preferences([2, 2], [0, 1], [0, 0], [0, 2], **kept)
    model = HeterogeneousBTL(2, 0, "linear").eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.8, -0.4]))
    utility = torch.tensor([0.8, -0.4, 0.2])
    for data, value, chosen in ((ranked, utility, 0), (worst, -utility, 2)):
        table = Posterior(model, None, data).alternative_prob(data)
        np.testing.assert_allclose(table["mean"], value.softmax(0), atol=1e-6)
        np.testing.assert_allclose(table["epistemic"], 0, atol=1e-6)
        assert table.index.get_level_values("item").tolist() == list("abc")
        assert np.flatnonzero(table["chosen"]).tolist() == [chosen]


def test_levels_outside_of_0_and_1_are_refused() -> None:
    data, model = make_sets(), make_model(1)
    posterior = Posterior(model, NeuralProcessGuide(model), data, 100)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 1"):
        posterior.alternative_prob(data, level=1)


def test_exported_choices_decode_into_one_alternative_each() -> None:
    """The last situation of the target has the frequencies of its probabilities."""
    model, data = make_model(2), make_sets()
    context, target = data.split_context(3, seed=1)
    posterior = Posterior(model, NeuralProcessGuide(model), context, 4000)
    exported = posterior.to_inference_data(target)
    for group, sets in (("posterior_predictive", context), ("predictions", target)):
        dataset = exported[group]
        simulated = dataset["choice"].values[0]
        number = dataset["comparison_judgement"].values
        assert number.tolist() == sets.ranking.tolist()
        # 1 in the row of the chosen alternative and ½ in the others; 0 in all where it is the base.
        rows = [simulated[:, number == one] for one in np.unique(number)]
        for row in rows:
            won = (row == 1).sum(1)
            assert (won <= 1).all()
            assert (row[won == 0] == 0).all()
            if row.shape[1] > 1:
                assert ((row == 0.5).sum(1)[won == 1] == row.shape[1] - 1).all()
        shares = [np.append((row == 1).mean(0), (row == 0).all(1).mean()) for row in rows]
        expected = posterior.alternative_prob(sets)["mean"]
        # Four standard errors of 4,000 draws, resampled from fewer effective ones.
        np.testing.assert_allclose(np.concatenate(shares), expected, atol=0.05)
