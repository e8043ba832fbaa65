"""Classes with covariates: closed forms, derivatives, recovery, names and bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from class_people import CLASSES
from scipy import special

from fssa_bayes import Preferences
from fssa_bayes.baselines import HomogeneousBTL, MixtureBTL, choose_num_classes
from fssa_bayes.baselines.membership import (
    log_shares,
    maximise_membership,
    membership_information,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
REGIONS = ["north", "south", "west"]
# Log odds of class 2 against class 1: constant, of a year, of the south and of the west.
GAMMA = np.array([-2.0, 0.04, 1.0, -1.0])
ERRORS = ["se_hessian", "se_outer_product", "se_sandwich"]
OF_CLEAR_CLASSES = pytest.mark.filterwarnings("ignore:a coefficient of:UserWarning")


def draw_users(number: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    columns = {"age": rng.normal(45, 15, number).round(1), "region": rng.choice(REGIONS, number)}
    return pd.DataFrame(columns, index=[f"p{i}" for i in range(number)])


def by_hand(users: pd.DataFrame) -> np.ndarray:
    """Ones, age, and indicators of south and west, (U, 4)."""
    indicators = [users["region"] == level for level in REGIONS[1:]]
    return np.stack([np.ones(len(users)), users["age"], *indicators], -1).astype(float)


def answer(
    member: np.ndarray, users: pd.DataFrame, comparisons: int, *, scale: float = 1.0, seed: int = 1
) -> Preferences:
    """Lets people of two classes (U,) judge different pairs of 30 items."""
    rng = np.random.default_rng(seed)
    items = pd.DataFrame(rng.normal(size=(30, 2)), columns=["a", "b"])
    left, step = np.divmod([rng.permutation(30 * 29)[:comparisons] for _ in member], 29)
    right = (left + 1 + step) % 30
    table = items.to_numpy()
    margin = np.einsum("und,ud->un", table[left] - table[right], scale * CLASSES[member])
    frame = pd.DataFrame(
        {
            "user": np.repeat(users.index, comparisons),
            "left": left.ravel(),
            "right": right.ravel(),
            "choice": (rng.random(margin.shape) < special.expit(margin)).ravel().astype(int),
        }
    )
    columns = {name: name for name in ("user", "left", "right", "choice")}
    return Preferences.from_dataframe(frame, **columns, items=items, users=users)


@pytest.fixture(scope="module")
def users() -> pd.DataFrame:
    return draw_users(500)


@pytest.fixture(scope="module")
def data(users: pd.DataFrame) -> Preferences:
    share = special.expit(by_hand(users) @ GAMMA)
    member = (np.random.default_rng(7).random(len(users)) < share).astype(int)
    return answer(member, users, 10)


@pytest.fixture(scope="module")
def mixture(data: Preferences) -> MixtureBTL:
    baseline = MixtureBTL(2, covariates=True, num_restarts=2)
    return baseline.fit(data, seed=1, progress_bar=False)


def evidence_by_hand(data: Preferences, theta: np.ndarray) -> np.ndarray:
    """Log-likelihood of each person at coefficients of two classes and γ (8,), with NumPy."""
    difference = (data.items[data.left] - data.items[data.right]).double().numpy()
    sign = 2 * data.choice.astype(float) - 1
    logit = np.column_stack([np.ones(len(data)), data.covariates.double().numpy()]) @ theta[4:]
    share = np.stack([-np.logaddexp(0, logit), -np.logaddexp(0, -logit)], -1)
    classes = [
        np.add.reduceat(-np.logaddexp(0, -sign * (difference @ beta)), data.offsets[:-1])
        for beta in (theta[:2], theta[2:4])
    ]
    return special.logsumexp(np.stack(classes, -1) + share, axis=-1)


def estimates_of(mixture: MixtureBTL) -> np.ndarray:
    """Coefficients of both classes and γ, in the units given, (8,)."""
    classes = mixture.coefficients()["estimate"].drop("share", level="term")
    return np.concatenate([classes, mixture.membership_coefficients()["estimate"]])


# Closed forms.


def test_the_m_step_of_known_classes_is_the_log_odds() -> None:
    """A binary covariate saturates the classes: γ is the difference of the log odds."""
    counts = np.array([[30, 12, 6], [10, 25, 18]])  # People by covariate and class.
    covariate = np.repeat([0.0, 1.0], counts.sum(1))
    member = np.concatenate([np.repeat(np.arange(3), row) for row in counts])
    design = torch.from_numpy(np.column_stack([np.ones(len(member)), covariate]))
    gamma = maximise_membership(
        design, torch.eye(3, dtype=torch.float64)[member], torch.zeros(3, 2, dtype=torch.float64)
    )
    odds = np.log(counts[:, 1:] / counts[:, :1])
    np.testing.assert_allclose(gamma[1:], np.stack([odds[0], odds[1] - odds[0]], -1), atol=1e-8)
    assert (gamma[0] == 0).all()


@OF_CLEAR_CLASSES
def test_a_fit_of_clear_classes_gives_the_log_odds() -> None:
    """Choices tell the class of everybody, so that γ follows from the counts."""
    counts = np.array([[30, 12], [15, 27]])
    users = pd.DataFrame({"rural": np.repeat([0, 1], counts.sum(1))})
    users.index = [f"p{i}" for i in range(len(users))]
    member = np.concatenate([np.repeat([0, 1], row) for row in counts])
    data = answer(member, users, 80)
    mixture = MixtureBTL(2, covariates=["rural"], num_restarts=2).fit(data, progress_bar=False)
    prob = mixture.class_posterior(data).to_numpy()
    assert prob[np.arange(len(member)), member].min() > 1 - 1e-5
    table = mixture.membership_coefficients()
    odds = np.log(counts[:, 1] / counts[:, 0])
    np.testing.assert_allclose(table["estimate"], [odds[0], odds[1] - odds[0]], atol=1e-4)
    # The classical errors of log odds and of a log odds ratio.
    errors = np.sqrt([(1 / counts[0]).sum(), (1 / counts).sum()])
    np.testing.assert_allclose(table["se_hessian"], errors, rtol=1e-3)
    share = np.array([[30 / 42, 12 / 42], [15 / 42, 27 / 42]])
    shares = mixture.class_shares(pd.DataFrame({"rural": [0, 1]}))["estimate"].unstack()
    np.testing.assert_allclose(shares, share, atol=1e-5)
    effect = mixture.membership_effects()["estimate"]
    np.testing.assert_allclose(effect, share[1] - share[0], atol=1e-5)


def test_the_likelihood_is_a_plain_sum(mixture: MixtureBTL, data: Preferences) -> None:
    expected = evidence_by_hand(data, estimates_of(mixture))
    np.testing.assert_allclose(mixture.log_evidence(data), expected, rtol=1e-5)
    assert mixture.log_likelihood == pytest.approx(expected.sum(), abs=1e-3)


@pytest.mark.slow
def test_without_effect_it_is_the_mixture_without_covariates(data: Preferences) -> None:
    """A constant covariate has no effect; nor has γ = 0."""
    people = data.subset(range(150))
    plain = MixtureBTL(2, num_restarts=2)
    with pytest.warns(UserWarning, match="does not use the covariates"):
        plain.fit(people, progress_bar=False)
    users = pd.DataFrame({"one": np.full(150, 3.0)}, index=people.user_names)
    constant = Preferences(
        people.left,
        people.right,
        people.choice,
        people.offsets,
        items=people.items,
        user_names=people.user_names,
        covariates=users.to_numpy(),
        covariate_names=["one"],
    )
    other = MixtureBTL(2, covariates=True, num_restarts=2)
    with pytest.warns(UserWarning, match="'one' the same for everybody: their coefficients"):
        other.fit(constant, progress_bar=False)
    assert other.log_likelihood == pytest.approx(plain.log_likelihood, abs=1e-6)
    torch.testing.assert_close(other.weights, plain.weights, atol=1e-5, rtol=0)
    assert other.num_parameters == plain.num_parameters == 5
    shown, expected = other.coefficients(), plain.coefficients()
    np.testing.assert_allclose(shown, expected, rtol=1e-3)
    assert other.membership_coefficients().isna().all(axis=None)
    assert other.membership_effects().isna().all(axis=None)


def test_one_class_is_the_homogeneous_model_whatever_the_covariates(data: Preferences) -> None:
    people = data.subset(range(60))
    one = MixtureBTL(1, covariates=True).fit(people, progress_bar=False)
    with pytest.warns(UserWarning, match="does not use the covariates"):
        single = HomogeneousBTL().fit(people, progress_bar=False)
    torch.testing.assert_close(
        one.log_evidence(people), single.log_evidence(people), rtol=1e-6, atol=0
    )
    assert (one.class_posterior(people) == 1).all(axis=None)
    for method in (one.membership_coefficients, one.membership_effects):
        with pytest.raises(ValueError, match="needs at least 2 classes, got num_classes=1"):
            method()


@pytest.mark.slow
def test_covariates_never_lower_the_likelihood(data: Preferences) -> None:
    people = data.subset(range(60))
    for seed in range(3):
        with pytest.warns(UserWarning, match="does not use the covariates"):
            plain = MixtureBTL(2, num_restarts=2).fit(people, seed=seed, progress_bar=False)
        other = MixtureBTL(2, covariates=True, num_restarts=2)
        other.fit(people, seed=seed, progress_bar=False)
        assert other.log_likelihood > plain.log_likelihood


# Derivatives and errors.


def test_the_information_of_known_classes_by_automatic_differentiation() -> None:
    rng = np.random.default_rng(0)
    design = torch.from_numpy(np.column_stack([np.ones(40), rng.normal(size=(40, 2))]))
    gamma = torch.from_numpy(rng.normal(size=(2, 3)))
    weights = torch.from_numpy(rng.dirichlet(np.ones(3), size=40))

    def total(free: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([free.new_zeros(1, 3), free.view(2, 3)])
        return (weights * log_shares(design, whole)).sum()

    share = log_shares(design, torch.cat([gamma.new_zeros(1, 3), gamma])).exp()
    hessian = torch.autograd.functional.hessian(total, gamma.flatten())
    torch.testing.assert_close(membership_information(design, share), -hessian)


def test_errors_by_finite_differences(mixture: MixtureBTL, data: Preferences) -> None:
    """The score and the Hessian of the log-likelihood written out with NumPy."""
    theta = estimates_of(mixture)
    size = 1e-4 * np.array([1, 1, 1, 1, 1, 0.02, 1, 1])
    step = np.diag(size)

    def slope(at: np.ndarray) -> np.ndarray:
        ends = [(evidence_by_hand(data, at + h), evidence_by_hand(data, at - h)) for h in step]
        return np.stack([(up - down) for up, down in ends], -1) / (2 * size)

    score = slope(theta)
    assert np.abs(score.sum(0) * size / 1e-4).max() < 0.05  # It is a maximum.
    hessian = np.stack([(slope(theta + h) - slope(theta - h)).sum(0) for h in step])
    hessian /= 2 * size[:, None]
    bread, meat = np.linalg.inv(-(hessian + hessian.T) / 2), score.T @ score
    forms = (bread, np.linalg.inv(meat), bread @ meat @ bread)
    classes = mixture.coefficients().drop("share", level="term")
    table = pd.concat([classes, mixture.membership_coefficients()])
    for name, covariance in zip(ERRORS, forms, strict=True):
        np.testing.assert_allclose(table[name], np.sqrt(np.diag(covariance)), rtol=3e-3)

    # Average shares and effects: differences of the same, by hand.
    def shares(users: pd.DataFrame, gamma: np.ndarray) -> np.ndarray:
        return special.expit(by_hand(users) @ gamma)

    users = pd.DataFrame(
        {
            "age": data.covariates[:, 0].numpy(),
            "region": np.array(REGIONS)[(data.covariates[:, 1:].numpy() @ [1, 2]).astype(int)],
        }
    )
    half = users["age"].std(ddof=0) / 2
    older, younger = (users.assign(age=users["age"] + sign * half) for sign in (1, -1))
    south, north = (users.assign(region=level) for level in ("south", "north"))
    quantities = {
        "share": lambda g: shares(users, g).mean(),
        "age": lambda g: (shares(older, g) - shares(younger, g)).mean() / (2 * half),
        "region[T.south]": lambda g: (shares(south, g) - shares(north, g)).mean(),
    }
    effects = mixture.membership_effects()
    np.testing.assert_allclose(effects["estimate"].unstack().sum(axis=1), 0, atol=1e-9)
    for name, quantity in quantities.items():
        row = mixture.class_shares().loc[2] if name == "share" else effects.loc[(name, 2)]
        assert row["estimate"] == pytest.approx(quantity(theta[4:]), rel=1e-5)
        gradient = [
            (quantity(theta[4:] + h) - quantity(theta[4:] - h)) / (2 * h.sum())
            for h in step[4:, 4:]
        ]
        for error, covariance in zip(ERRORS, forms, strict=True):
            expected = np.sqrt(gradient @ covariance[4:, 4:] @ gradient)
            assert row[error] == pytest.approx(expected, rel=5e-3)


def test_the_classes_and_what_moves_them_are_recovered(
    mixture: MixtureBTL, users: pd.DataFrame
) -> None:
    table = mixture.membership_coefficients(level=0.9, p_values=True)
    terms = ["constant", "age", "region[T.south]", "region[T.west]"]
    assert table.index.tolist() == [(2, term) for term in terms]
    for error in ERRORS:
        assert (np.abs(table["estimate"] - GAMMA) < 3 * table[error]).all()
    assert (table["estimate"] - table["lower"] > 1.6 * table["se_sandwich"]).all()
    assert table.loc[(2, "age"), "p_value"] < 1e-3
    truth = special.expit(by_hand(users) @ GAMMA).mean()
    assert mixture.weights[1] == pytest.approx(truth, abs=0.08)
    other = mixture.membership_coefficients(reference=2)
    np.testing.assert_allclose(other["estimate"], -table["estimate"])
    np.testing.assert_allclose(other[ERRORS], table[ERRORS])
    with pytest.raises(ValueError, match="reference must be a class from 1 to 2, got 3"):
        mixture.membership_coefficients(reference=3)


@pytest.mark.slow
@pytest.mark.parametrize("num_stages", [1, 2], ids=["choices from sets", "rankings"])
def test_errors_of_classes_of_larger_sets_by_finite_differences(num_stages: int) -> None:
    """Plackett and Luce written out with NumPy: the first of three, then the first of two."""
    rng = np.random.default_rng(2)
    table = rng.normal(size=(12, 2))
    items = pd.DataFrame(table, columns=["a", "b"])
    rural = rng.integers(2, size=80)
    member = (rng.random(80) < np.where(rural, 0.7, 0.25)).astype(int)
    orders = np.stack([[rng.permutation(12)[:3] for _ in range(6)] for _ in range(80)])
    noise = rng.gumbel(size=orders.shape)
    value = np.einsum("urid,ud->uri", table[orders], CLASSES[member]) + noise
    orders = np.take_along_axis(orders, np.argsort(-value, -1), -1)
    ballots = {f"p{u}": [tuple(order) for order in own] for u, own in enumerate(orders.tolist())}
    tables = {"items": items, "users": pd.DataFrame({"rural": rural}, index=list(ballots))}
    if num_stages == 2:
        data = Preferences.from_rankings(ballots, **tables)
    else:
        rows = [
            (user, number, item, item == order[0])
            for user, own in ballots.items()
            for number, order in enumerate(own)
            for item in sorted(order)
        ]
        columns = ["user", "situation", "item", "chosen"]
        named = dict(zip(columns, columns, strict=True))
        data = Preferences.from_choices(pd.DataFrame(rows, columns=columns), **named, **tables)
    mixture = MixtureBTL(2, covariates=True, num_restarts=2).fit(data, progress_bar=False)

    def evidence(theta: np.ndarray) -> np.ndarray:
        classes = []
        for beta in (theta[:2], theta[2:4]):
            utility = (table @ beta)[orders]
            stages = [
                utility[..., i] - special.logsumexp(utility[..., i:], -1) for i in range(num_stages)
            ]
            classes.append(sum(stages).sum(-1))
        logit = theta[4] + theta[5] * rural
        share = np.stack([-np.logaddexp(0, logit), -np.logaddexp(0, -logit)], -1)
        return special.logsumexp(np.stack(classes, -1) + share, axis=-1)

    theta, step = estimates_of(mixture), 1e-4 * np.eye(6)
    assert mixture.log_likelihood == pytest.approx(evidence(theta).sum(), abs=1e-3)

    def slope(at: np.ndarray) -> np.ndarray:
        return np.stack([(evidence(at + h) - evidence(at - h)) / 2e-4 for h in step], -1)

    score = slope(theta)
    hessian = np.stack([(slope(theta + h) - slope(theta - h)).sum(0) / 2e-4 for h in step])
    bread, meat = np.linalg.inv(-(hessian + hessian.T) / 2), score.T @ score
    classes = mixture.coefficients().drop("share", level="term")
    shown = pd.concat([classes, mixture.membership_coefficients()])
    sandwich = bread @ meat @ bread * 80 / 79  # Of fewer than 100 people.
    forms = (bread, np.linalg.inv(meat), sandwich)
    for name, covariance in zip(ERRORS, forms, strict=True):
        np.testing.assert_allclose(shown[name], np.sqrt(np.diag(covariance)), rtol=3e-3)


# Separation.


@OF_CLEAR_CLASSES
def test_a_level_nobody_of_which_is_of_a_class_is_said() -> None:
    levels, counts = ["a", "b", "c"], {"a": (20, 10), "b": (15, 20), "c": (25, 0)}
    users = pd.DataFrame({"kind": np.repeat(levels, [sum(counts[x]) for x in levels])})
    users.index = [f"p{i}" for i in range(len(users))]
    member = np.concatenate([np.repeat([0, 1], counts[x]) for x in levels])
    data = answer(member, users, 60)
    mixture = MixtureBTL(2, covariates=True, num_restarts=2)
    with pytest.warns(
        UserWarning, match=r"separate the classes: 'kind\[T.c\]' of class 2 has no finite estimate"
    ):
        mixture.fit(data, progress_bar=False)
    table = mixture.membership_coefficients().loc[2]
    odds = np.log([10 / 20, 20 / 15])
    np.testing.assert_allclose(table["estimate"], [odds[0], odds[1] - odds[0], -np.inf], atol=1e-3)
    assert table.loc["kind[T.c]", ERRORS].isna().all()
    errors = np.sqrt([1 / 10 + 1 / 20, 1 / 10 + 1 / 20 + 1 / 20 + 1 / 15])
    np.testing.assert_allclose(table["se_hessian"].iloc[:2], errors, rtol=2e-3)
    shares = mixture.class_shares(pd.DataFrame({"kind": levels}))["estimate"].unstack()
    np.testing.assert_allclose(shares[2], [1 / 3, 20 / 35, 0], atol=1e-4)


# New people, names, bad input.


def test_without_choices_the_class_is_as_covariates_say(
    mixture: MixtureBTL, data: Preferences
) -> None:
    new = pd.DataFrame({"region": ["west", "south"], "age": [30.0, 70.0]}, index=["x", "y"])
    theta = mixture.membership_coefficients()["estimate"].to_numpy()
    expected = special.expit(by_hand(new) @ theta)
    items = pd.DataFrame(data.items.numpy(), columns=["a", "b"])
    empty = Preferences.empty(new, items)
    np.testing.assert_allclose(mixture.class_posterior(empty)[2], expected, rtol=1e-6)
    shares = mixture.class_shares(new)
    assert shares.index.tolist() == [("x", 1), ("x", 2), ("y", 1), ("y", 2)]
    np.testing.assert_allclose(shares["estimate"].unstack()[2], expected, rtol=1e-6)
    # With a choice: Bayes' rule.
    known = empty.append("x", 3, 8, "left")
    table = mixture.coefficients()["estimate"]
    gap = (data.items[3] - data.items[8]).double().numpy()
    odds = expected[0] / (1 - expected[0])
    odds *= np.divide(*[special.expit(gap @ [table[c, "a"], table[c, "b"]]) for c in (2, 1)])
    assert mixture.class_posterior(known).loc["x", 2] == pytest.approx(odds / (1 + odds), rel=1e-5)
    prob = mixture.predict(empty).choice_prob(known).mean[0, 0].item()
    wins = [special.expit(gap @ [table[c, "a"], table[c, "b"]]) for c in (1, 2)]
    mixed = (1 - expected[0]) * wins[0] + expected[0] * wins[1]
    assert prob == pytest.approx(mixed, rel=1e-5)


def test_a_persons_classes_do_not_depend_on_others(mixture: MixtureBTL, data: Preferences) -> None:
    whole = mixture.membership.log_share(data)
    for people in ([3], [3, 400, 17], range(101, 148)):
        assert torch.equal(mixture.membership.log_share(data.subset(people)), whole[list(people)])


def test_covariates_and_levels_are_found_by_name(
    mixture: MixtureBTL, data: Preferences, users: pd.DataFrame
) -> None:
    """Columns in another order, a further one, and levels that begin with another reference."""
    some = users.iloc[:30]
    moved = some.assign(
        height=1.0, region=pd.Categorical(some["region"], categories=["west", "north", "south"])
    )[["height", "region", "age"]]
    items = pd.DataFrame(data.items.numpy(), columns=["a", "b"])
    first = mixture.class_posterior(Preferences.empty(some, items))
    pd.testing.assert_frame_equal(mixture.class_posterior(Preferences.empty(moved, items)), first)
    shares = mixture.class_shares(moved)["estimate"].unstack().loc[some.index]
    np.testing.assert_allclose(shares, first, rtol=1e-9)


def test_some_covariates_are_used(data: Preferences) -> None:
    people = data.subset(range(120))
    mixture = MixtureBTL(2, covariates=["region"], num_restarts=1).fit(people, progress_bar=False)
    terms = mixture.membership_coefficients().index.get_level_values("term").tolist()
    assert terms == ["constant", "region[T.south]", "region[T.west]"]
    shares = mixture.class_shares(pd.DataFrame({"region": ["north"]}))  # No age is needed.
    constant = mixture.membership_coefficients().loc[(2, "constant"), "estimate"]
    assert shares["estimate"].iloc[1] == pytest.approx(special.expit(constant), rel=1e-6)
    with pytest.raises(ValueError, match=r"covariates must be those of the data.*got 'income'"):
        MixtureBTL(2, covariates=["age", "income"]).fit(people, progress_bar=False)


def test_covariates_without_names_are_told_by_their_place(data: Preferences) -> None:
    people = data.subset(range(80))
    parts = people.left, people.right, people.choice, people.offsets
    bare = Preferences(*parts, items=people.items, covariates=people.covariates)
    mixture = MixtureBTL(2, covariates=[0], num_restarts=1).fit(bare, progress_bar=False)
    assert mixture.membership_coefficients().index[1] == (2, 0)
    changed = people.covariates.clone()
    changed[:, 1:] = 7.0  # Columns that are not used.
    other = Preferences(*parts, items=people.items, covariates=changed)
    torch.testing.assert_close(mixture.log_evidence(other), mixture.log_evidence(bare))
    narrow = Preferences(*parts, items=people.items, covariates=people.covariates[:, :2])
    with pytest.raises(ValueError, match=r"covariates the classes depend on.*got 2 columns"):
        mixture.log_evidence(narrow)


def test_bad_input_is_refused(mixture: MixtureBTL, data: Preferences, users: pd.DataFrame) -> None:
    items = pd.DataFrame(data.items.numpy(), columns=["a", "b"])
    rule = "must have the covariates"
    with pytest.raises(ValueError, match=rf"{rule}.*without \['age'\]"):
        mixture.class_posterior(Preferences.empty(users[["region"]], items))
    with pytest.raises(ValueError, match=rf"{rule}.*'age'.*got none"):
        mixture.class_posterior(Preferences.empty(["x"], items))
    east = pd.DataFrame({"age": [40.0], "region": ["east"]}, index=["x"])
    for use in (
        lambda: mixture.class_posterior(Preferences.empty(east, items)),
        lambda: mixture.class_shares(east),
    ):
        with pytest.raises(ValueError, match="unknown level 'east' of 'region'"):
            use()
    with pytest.raises(ValueError, match=rf"{rule}.*without \['age'\]"):
        mixture.class_shares(users[["region"]])
    with pytest.raises(ValueError, match=r"finite numbers, got nan for 'p0', column 'age'"):
        mixture.class_shares(users.iloc[:2].assign(age=[np.nan, 3.0]))
    with pytest.raises(TypeError, match="users must be a DataFrame, got dict"):
        mixture.class_shares({"age": 3})
    with pytest.warns(UserWarning, match=r"covariate 'age' lies \d+ standard deviations"):
        mixture.class_shares(pd.DataFrame({"age": [4000.0], "region": ["west"]}))
    with pytest.raises(TypeError, match="covariates must be True, False or a list"):
        MixtureBTL(2, covariates="age")
    with pytest.raises(ValueError, match="covariates must be at least one name"):
        MixtureBTL(2, covariates=["age", "age"])
    parts = data.left, data.right, data.choice, data.offsets
    bare = Preferences(*parts, items=data.items)
    with pytest.raises(ValueError, match="data must have covariates of people for covariates="):
        MixtureBTL(2, covariates=True).fit(bare, progress_bar=False)
    plain = MixtureBTL(2, num_restarts=1).fit(bare, progress_bar=False)
    with pytest.raises(ValueError, match="needs covariates, got covariates=False"):
        plain.membership_effects()
    with pytest.raises(ValueError, match="users must be None for a mixture with covariates=False"):
        plain.class_shares(users)


# Number of classes.


def test_information_criteria_count_the_coefficients_of_covariates(data: Preferences) -> None:
    people = data.subset(range(200))

    def build(number: int) -> MixtureBTL:
        return MixtureBTL(number, covariates=True, num_restarts=1)

    chosen, table = choose_num_classes(build, people, (1, 2), criterion="bic")
    assert chosen == 2
    assert table["num_parameters"].tolist() == [2, 2 * 2 + 4]
    expected = -2 * table["log_likelihood"] + np.log(200) * table["num_parameters"]
    np.testing.assert_allclose(table["bic"], expected)
    expected = -2 * table["log_likelihood"] + 2 * table["num_parameters"]
    np.testing.assert_allclose(table["aic"], expected)
    with pytest.raises(ValueError, match="criterion must be 'held_out' or 'bic', got 'aic'"):
        choose_num_classes(build, people, (1, 2), criterion="aic")


def test_a_network_may_have_classes_with_covariates(data: Preferences) -> None:
    people = data.subset(range(80))
    mixture = MixtureBTL(2, "mlp", 4, covariates=["age"], num_restarts=1, tolerance=1e-2)
    mixture.fit(people, progress_bar=False)
    gained = mixture.history["log_likelihood"].diff().dropna()
    assert gained.min() > -1e-6
    assert (mixture.membership.coefficients[1] != 0).all()
    with pytest.raises(ValueError, match=r"membership_coefficients\(\) needs utility='linear'"):
        mixture.membership_coefficients()


# Another implementation.


@pytest.mark.slow
@OF_CLEAR_CLASSES  # Costs of routes differ less between two routes than between all.
@pytest.mark.skipif(not (DATA / "swiss_route.csv.gz").exists(), reason="needs the swiss route data")
def test_the_same_as_biogeme_on_route_choices() -> None:
    """biogeme 3.3.2: the best of nine starts, with its errors clustered by person.

    388 people chose between two routes nine times (Vrtic & Axhausen 2003, from the package apollo).
    """
    users = pd.read_csv(DATA / "swiss_route_users.csv", index_col=0)
    users["income"] = users["hh_inc_abs"] / 1000
    users = users[["income", "car_availability", "commute", "shopping", "business"]]
    data = Preferences.from_dataframe(
        pd.read_csv(DATA / "swiss_route.csv.gz"),
        user="user",
        left="left",
        right="right",
        choice="choice",
        items=pd.read_csv(DATA / "swiss_route_items.csv.gz", index_col=0),
        users=users,
    )
    mixture = MixtureBTL(2, covariates=True).fit(data, progress_bar=False)
    assert mixture.log_likelihood == pytest.approx(-1544.7075, abs=1e-3)
    table = mixture.coefficients().drop("share", level="term")
    classes = [
        -0.062513,
        -0.087175,
        -0.042229,
        -1.028692,
        -0.274745,
        -1.856808,
        -0.053996,
        -2.415972,
    ]
    errors = [0.011295, 0.020685, 0.004466, 0.116433, 0.086316, 0.377700, 0.011347, 0.500748]
    np.testing.assert_allclose(table["estimate"], classes, rtol=1e-3)
    np.testing.assert_allclose(table["se_sandwich"], errors, rtol=2e-3)
    gamma = mixture.membership_coefficients()
    # The coefficient of business trips is nearly separated, and biogeme stops short of it.
    expected = np.array([-0.617350, 0.000523, -0.397812, 0.410743, 0.232246, -2.906199])
    errors = np.array([0.377622, 0.004080, 0.362104, 0.448314, 0.685963, 2.749828])
    assert (np.abs(gamma["estimate"] - expected) < 0.005 * errors).all()
    np.testing.assert_allclose(gamma["se_sandwich"], errors, rtol=0.02)
