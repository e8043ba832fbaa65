"""The export to ArviZ, with ArviZ 0.x as with 1.x."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata

import arviz as az
import numpy as np
import pandas as pd
import pytest
import torch
from arviz_groups import ARVIZ_0, group, names, values
from scipy import stats

from fssa_bayes import FitResult, HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences
from fssa_bayes.data import user_batches
from fssa_bayes.posterior import export_draws
from fssa_bayes.sampling import Draws, draw_posterior

COUNTS = (3, 0, 5, 1, 7)
USERS = ["ann", "bo", "cé", "", "eve"]
ITEMS = list("pqrstu")
FEATURES = ["price", "time", "comfort"]
DRAW = ("chain", "draw")

plot_posterior = az.plot_posterior if ARVIZ_0 else az.plot_dist


def make_people(
    seed: int = 0,
    counts: Sequence[int] = COUNTS,
    users: Sequence = USERS,
    items: Sequence = ITEMS,
    covariates: np.ndarray | None = None,
) -> Preferences:
    rng = np.random.default_rng(seed)
    total = sum(counts)
    left = rng.integers(len(items), size=total)
    return Preferences(
        left,
        (left + rng.integers(1, len(items), size=total)) % len(items),
        rng.integers(3, size=total) / 2,
        np.concatenate([[0], np.cumsum(counts)]),
        items=rng.normal([5, -2, 0], [10, 0.5, 1], size=(len(items), 3)),
        item_names=items,
        feature_names=FEATURES,
        user_names=users,
        covariates=covariates,
    )


@pytest.fixture(scope="module")
def data() -> Preferences:
    return make_people(covariates=np.arange(10.0).reshape(5, 2))


@pytest.fixture(scope="module")
def target() -> Preferences:
    """Other pairs of the same people, from another item table."""
    return make_people(seed=1, counts=(2, 4, 0, 1, 3), items=[10, 20, 30, 40])


def make_pair(
    data: Preferences, utility: str = "linear"
) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    torch.manual_seed(0)
    model = HeterogeneousBTL(data.num_features, 2, utility=utility).eval()
    if data.items is not None:
        model.set_standardisation(data.items)
    if utility == "linear" and data.items is not None:
        with torch.no_grad():
            model.utility.mean.copy_(torch.tensor([0.5, -0.8, 0.3]))
            model.utility.loading.copy_(torch.tensor([[1.0, 0.0], [0.4, 0.8], [-0.5, 0.6]]))
    return model, NeuralProcessGuide(model, posterior="normal").eval()


@pytest.fixture(scope="module")
def pair(data: Preferences) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    return make_pair(data)


@pytest.fixture(scope="module")
def posterior(pair, data) -> Posterior:
    return Posterior(*pair, data, num_samples=200, seed=3, fallback=None)


@pytest.fixture(scope="module")
def exported(posterior, target):
    return posterior.to_inference_data(target=target)


def export_of(draws: Draws, pair, context: Preferences, target=None, items=None, **limits):
    """Exports these draws with the options of `exported`."""
    options = {"num_samples": len(draws.z), "seed": 3, "correct": "psis"} | limits
    return export_draws(*pair, context, lambda: draws, target=target, items=items, **options)


@pytest.fixture(scope="module")
def draws(pair, data) -> Draws:
    """The draws of `exported`."""
    return draw_posterior(*pair, data, 200, seed=3, correct="psis").resample(3, data.keys)


def coefficients(model: HeterogeneousBTL, z: np.ndarray) -> np.ndarray:
    """Coefficients per unit of the features, (S, U, D), from w0 + Λz, in NumPy."""
    mean, loading = (
        p.detach().double().numpy() for p in (model.utility.mean, model.utility.loading)
    )
    return (mean + z @ loading.T) / model.feature_scale.double().numpy()


def margins(beta: np.ndarray, data: Preferences) -> np.ndarray:
    """Margins (S, R) of coefficients (S, U, D), comparison by comparison."""
    items = data.items.double().numpy()
    person = np.repeat(np.arange(len(data)), data.counts)
    columns = [
        beta[:, u] @ (items[left] - items[right])
        for u, left, right in zip(person, data.left, data.right, strict=True)
    ]
    return np.stack(columns, -1)


def test_groups_variables_and_dimensions(exported) -> None:
    comparison, user = ("comparison",), ("user",)
    expected = {
        "posterior": {
            "z": (*DRAW, "user", "latent"),
            "coefficient": (*DRAW, "user", "feature"),
            "utility": (*DRAW, "user", "item"),
        },
        "prior": {"z": (*DRAW, "user", "latent"), "coefficient": (*DRAW, "user", "feature")},
        "posterior_predictive": {"choice": DRAW + comparison},
        "log_likelihood": {"choice": DRAW + comparison, "per_user": DRAW + user},
        "sample_stats": {
            "lp": DRAW + user,
            "log_q": DRAW + user,
            "pareto_k": user,
            "relative_ess": user,
            "guide_pareto_k": user,
            "guide_relative_ess": user,
        },
        "observed_data": {"choice": comparison},
        "constant_data": {
            "left": comparison,
            "right": comparison,
            "item_features": ("item", "feature"),
            "covariates": ("user", "covariate"),
            "feature_mean": ("feature",),
            "feature_scale": ("feature",),
        },
        "predictions": {"prob": DRAW + comparison, "choice": DRAW + comparison},
        "predictions_constant_data": {
            "left": comparison,
            "right": comparison,
            "item_features": ("item", "feature"),
        },
    }
    assert names(exported) == set(expected)
    for name, variables in expected.items():
        found = {key: array.dims for key, array in group(exported, name).data_vars.items()}
        assert found == variables, name


def test_every_dimension_has_its_coordinate_in_every_group(exported, data, target) -> None:
    expected = {
        "chain": [0],
        "draw": list(range(200)),
        "user": USERS,
        "latent": [0, 1],
        "feature": FEATURES,
        "covariate": [0, 1],
    }
    for name in names(exported):
        dataset, source = group(exported, name), target if "predictions" in name else data
        items = [10, 20, 30, 40] if source is target else ITEMS
        own = {"item": items, "comparison": list(range(source.num_comparisons))}
        for dim in dataset.dims:
            assert dataset.indexes[dim].tolist() == (expected | own)[dim], (name, dim)
        has_user = "comparison" in dataset.dims
        assert ("comparison_user" in dataset.coords) == has_user
        assert "comparison_user" not in dataset.indexes
        if has_user:
            person = np.repeat(USERS, source.counts).tolist()
            assert dataset["comparison_user"].values.tolist() == person


def test_observations_and_pairs_keep_the_order_of_the_data(exported, data) -> None:
    observed, constant = group(exported, "observed_data"), group(exported, "constant_data")
    assert observed["choice"].values.tolist() == data.choice.tolist()
    assert constant["left"].values.tolist() == [ITEMS[n] for n in data.left]
    assert constant["right"].values.tolist() == [ITEMS[n] for n in data.right]
    assert np.array_equal(constant["item_features"], data.items)
    assert np.array_equal(constant["covariates"], data.covariates)
    mean, scale = data.items.mean(0), data.items.std(0, unbiased=False)
    np.testing.assert_allclose(constant["feature_mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(constant["feature_scale"], scale, rtol=1e-6)


def test_coefficients_and_utilities_are_in_units_of_the_features(exported, pair, data) -> None:
    for name in ("posterior", "prior"):
        expected = coefficients(pair[0], values(exported, name, "z"))
        coefficient = values(exported, name, "coefficient")
        np.testing.assert_allclose(coefficient, expected, rtol=1e-4, atol=1e-5)
    utility = values(exported, "posterior", "coefficient") @ data.items.double().numpy().T
    expected = utility - utility.mean(-1, keepdims=True)
    np.testing.assert_allclose(values(exported, "posterior", "utility"), expected, atol=1e-4)


def test_log_likelihood_is_the_formula(exported, pair, data) -> None:
    margin = margins(coefficients(pair[0], values(exported, "posterior", "z")), data)
    expected = data.choice * margin - np.logaddexp(0, margin)
    log_likelihood = values(exported, "log_likelihood", "choice")
    np.testing.assert_allclose(log_likelihood, expected, rtol=1e-4, atol=1e-5)
    ends = data.offsets
    per_user = [expected[:, ends[u] : ends[u + 1]].sum(-1) for u in range(len(data))]
    total = values(exported, "log_likelihood", "per_user")
    np.testing.assert_allclose(total, np.stack(per_user, -1), rtol=1e-4, atol=1e-5)


def test_densities_of_prior_and_guide_are_those_of_the_draws(exported, pair, data) -> None:
    z = values(exported, "posterior", "z")
    lp = stats.norm.logpdf(z).sum(-1) + values(exported, "log_likelihood", "per_user")
    np.testing.assert_allclose(values(exported, "sample_stats", "lp"), lp, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        normal = pair[1].posterior(data.batch()).base_dist
    log_q = stats.norm.logpdf(z, normal.loc.numpy(), normal.scale.numpy()).sum(-1)
    found = values(exported, "sample_stats", "log_q")
    np.testing.assert_allclose(found, log_q, rtol=1e-4, atol=1e-4)


def test_draws_and_diagnostics_are_those_of_the_posterior(exported, posterior) -> None:
    sample_stats = group(exported, "sample_stats")
    assert np.array_equal(values(exported, "posterior", "z"), posterior.z)
    assert np.array_equal(sample_stats["pareto_k"], posterior.pareto_k)
    assert np.array_equal(sample_stats["relative_ess"], posterior.relative_ess)
    assert np.array_equal(sample_stats["guide_pareto_k"], posterior.guide_pareto_k)
    assert np.array_equal(sample_stats["guide_relative_ess"], posterior.guide_relative_ess)
    # The second person has made no choice: prior and posterior are one.
    assert sample_stats["relative_ess"].sel(user="bo").item() == pytest.approx(1)


def test_prior_is_standard_normal_and_independent_of_the_posterior(pair, data) -> None:
    exported = Posterior(*pair, data, num_samples=4000).to_inference_data(items=["p"])
    prior, posterior = values(exported, "prior", "z"), values(exported, "posterior", "z")
    assert np.abs(prior.mean(0)).max() < 5 / np.sqrt(4000)
    assert np.abs(prior.var(0) - 1).max() < 5 * np.sqrt(2 / 4000)
    # The draws of the person without choices differ, though the distribution is the same.
    correlation = np.corrcoef(np.sort(prior[:, 1, 0]), np.sort(posterior[:, 1, 0]))[0, 1]
    assert correlation > 0.99
    assert len(np.intersect1d(prior[:, 1, 0], posterior[:, 1, 0])) < 40


def test_predictions_of_another_item_table(exported, pair, target) -> None:
    margin = margins(coefficients(pair[0], values(exported, "posterior", "z")), target)
    prob = values(exported, "predictions", "prob")
    np.testing.assert_allclose(prob, 1 / (1 + np.exp(-margin)), atol=1e-5)
    constant = group(exported, "predictions_constant_data")
    assert constant["left"].values.tolist() == [10 * (n + 1) for n in target.left]
    assert constant["right"].values.tolist() == [10 * (n + 1) for n in target.right]
    used = constant["item_features"].sel(item=constant["left"].values)
    assert np.array_equal(used, target.items[target.left])


def test_choices_are_simulated_with_their_probabilities(pair, data, target) -> None:
    posterior = Posterior(*pair, data, num_samples=4000)
    exported = posterior.to_inference_data(target=target, items=["p"])
    margin = margins(coefficients(pair[0], values(exported, "posterior", "z")), data)
    expected = {
        "posterior_predictive": 1 / (1 + np.exp(-margin)),
        "predictions": values(exported, "predictions", "prob"),
    }
    for name, prob in expected.items():
        choice = values(exported, name, "choice")
        assert set(np.unique(choice)) == {0, 1}
        error = np.sqrt((prob * (1 - prob)).mean(0) / 4000)
        assert (np.abs((choice - prob).mean(0)) < 5 * error).all()
        # Draw by draw: each choice follows the probability of its own z.
        residual = (choice - prob) * (prob - prob.mean(0))
        spread = np.sqrt((prob * (1 - prob) * (prob - prob.mean(0)) ** 2).sum(0))
        assert (np.abs(residual.sum(0)) < 5 * spread).all()


def test_an_export_does_not_depend_on_the_batches_of_people(
    exported, draws, pair, data, target
) -> None:
    """So many draws that each person is a batch give the same numbers, but for simulated ones."""
    many = Draws.of_posterior(
        z=draws.z.repeat(200, 1, 1),
        log_joint=draws.log_joint.repeat(200, 1),
    )
    assert len(list(user_batches(data, len(many.z), pair[0].device))) == 5
    again = export_of(many, pair, data, target, ITEMS)
    for name, variable in [
        ("log_likelihood", "choice"),
        ("log_likelihood", "per_user"),
        ("posterior", "utility"),
        ("predictions", "prob"),
    ]:
        found, expected = values(again, name, variable), values(exported, name, variable)
        np.testing.assert_allclose(found[:200], expected, rtol=1e-5, atol=1e-5)
        assert np.array_equal(found[-200:], found[:200])


NAMES = {
    "strings": (USERS, ITEMS),
    "integers": ([7, 3, 11, 2, 5], [60, 50, 40, 30, 20, 10]),
    "floats": ([0.5, 1.5, 2.5, 3.5, 4.5], [0.25, 1, 2, 3, 4, 5]),
    "mixed": (["ann", 3, 2.5, b"a1", True], [1, "1", 2, "two", 3.5, "x"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_netcdf_round_trip(kind, pair, tmp_path) -> None:
    users, items = (pd.Index(given, tupleize_cols=False) for given in NAMES[kind])
    data = make_people(users=users, items=items)
    exported = Posterior(*pair, data, num_samples=30).to_inference_data(target=data)
    exported.to_netcdf(str(tmp_path / "posterior.nc"))
    again = az.from_netcdf(str(tmp_path / "posterior.nc"))
    assert names(again) == names(exported)
    for name in names(exported):
        assert group(again, name).identical(group(exported, name)), name
    assert dict(again.attrs) == dict(exported.attrs)


@pytest.mark.parametrize("kind", ["strings", "integers", "floats"])
def test_people_and_items_are_found_by_their_names(kind, pair) -> None:
    users, items = NAMES[kind]
    data = make_people(users=users, items=items)
    posterior = Posterior(*pair, data, num_samples=30)
    exported = group(posterior.to_inference_data(), "posterior")
    found = exported["utility"].sel(user=users[2], item=items[4]).values[0]
    assert np.array_equal(found, posterior.utility()[:, 2, 4])


def test_attributes_say_what_was_done(exported, pair, data) -> None:
    for attrs in (exported.attrs, group(exported, "posterior").attrs):
        assert attrs["inference_library"] == "fssa_bayes"
        assert attrs["utility"] == "linear"
        assert (attrs["latent_dim"], attrs["seed"], attrs["num_samples"]) == (2, 3, 200)
        assert (attrs["prior"], attrs["guide"], attrs["correct"]) == ("normal", "normal", "psis")
        assert attrs["arviz_version"] == az.__version__
        assert attrs["torch_version"] == metadata.version("torch")
        assert "empirical-Bayes" in attrs["intervals"]
    raw = Posterior(*pair, data, num_samples=30, correct=None).to_inference_data()
    assert json.loads(raw.attrs["correct"]) is None


def test_summary_has_the_moments_of_the_draws(exported, pair) -> None:
    summary = az.summary(exported, var_names=["coefficient"], kind="stats", round_to="none")
    beta = coefficients(pair[0], values(exported, "posterior", "z"))
    row = summary.loc["coefficient[cé, time]"]
    assert float(row["mean"]) == pytest.approx(beta[:, 2, 1].mean(), rel=1e-3)
    assert float(row["sd"]) == pytest.approx(beta[:, 2, 1].std(), rel=1e-2)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_loo_leaves_out_one_choice_at_a_time(exported, data) -> None:
    loo = az.loo(exported, var_name="choice", pointwise=True)
    # Plain importance sampling: p(y | others) = 1 / E[1 / p(y | z)].
    log_likelihood = values(exported, "log_likelihood", "choice")
    expected = np.log(len(log_likelihood)) - np.logaddexp.reduce(-log_likelihood, axis=0)
    pointwise = loo.loo_i if ARVIZ_0 else loo.elpd_i
    assert pointwise.dims == ("comparison",)
    np.testing.assert_allclose(pointwise, expected, atol=0.1)  # Of 200 draws.
    elpd = loo.elpd_loo if ARVIZ_0 else loo.elpd
    assert elpd == pytest.approx(expected.sum(), abs=0.2)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values")  # ArviZ 0.23
def test_compare_ranks_the_model_that_made_the_choices_first(pair) -> None:
    model, guide = pair
    data, _ = model.simulate(make_people(counts=(4,) * 20, users=range(20)), seed=0)
    wrong, its_guide = make_pair(data)
    with torch.no_grad():
        wrong.utility.mean.neg_()
    exports = {
        "right": Posterior(model, guide, data, num_samples=1000).to_inference_data(),
        "wrong": Posterior(wrong, its_guide, data, num_samples=1000).to_inference_data(),
    }
    table = az.compare(exports, var_name="choice")
    assert table.index.tolist() == ["right", "wrong"]


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # ArviZ 0.23
def test_forest_and_posterior_plots_are_drawn(exported) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    az.plot_forest(exported, var_names=["coefficient"], combined=True)
    plot_posterior(exported, var_names=["utility"], coords={"user": ["eve"], "item": ["p", "q"]})
    figures = [matplotlib.pyplot.figure(n) for n in matplotlib.pyplot.get_fignums()]
    texts = " ".join(
        text.get_text() for figure in figures for text in figure.findobj(matplotlib.text.Text)
    )
    matplotlib.pyplot.close("all")
    assert len(figures) == 2
    assert "price" in texts
    assert "eve" in texts


def test_the_seed_decides_and_the_global_state_is_kept(
    exported, posterior, pair, data, target
) -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    again, other = (
        Posterior(*pair, data, num_samples=200, seed=seed, fallback=None).to_inference_data(target)
        for seed in (3, 4)
    )
    for name in names(exported):
        assert group(again, name).identical(group(exported, name))
    for name, variable in [
        ("posterior", "z"),
        ("prior", "z"),
        ("posterior_predictive", "choice"),
        ("predictions", "choice"),
    ]:
        assert not np.array_equal(values(other, name, variable), values(exported, name, variable))
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])


def test_a_fit_exports_the_posteriors_of_its_people(exported, pair, data, target) -> None:
    result = FitResult(*pair, data, pd.DataFrame())
    again = result.to_inference_data(target=target, num_samples=200, seed=3)
    for name in names(exported):
        assert group(again, name).identical(group(exported, name))


def test_utilities_of_named_items_are_centred_over_them(posterior) -> None:
    exported = posterior.to_inference_data(items=["s", "p"])
    utility = group(exported, "posterior")["utility"]
    assert utility["item"].values.tolist() == ["s", "p"]
    assert np.array_equal(utility.values[0], posterior.utility(items=["s", "p"]))


def test_a_large_table_of_utilities_is_exported_on_request_only(draws, pair, data) -> None:
    size = 4 * 200 * 5 * 6
    exported = export_of(draws, pair, data, max_utility_bytes=size)
    assert "utility" in group(exported, "posterior")
    exported = export_of(draws, pair, data, max_utility_bytes=size - 1)
    assert "utility" not in group(exported, "posterior")
    compared = sorted({ITEMS[n] for n in (*data.left, *data.right)})
    assert group(exported, "constant_data")["item"].values.tolist() == compared
    exported = export_of(draws, pair, data, items=ITEMS, max_utility_bytes=size - 1)
    assert "utility" in group(exported, "posterior")


def test_items_of_one_person_each_have_no_common_utilities(pair) -> None:
    items = np.random.default_rng(0).normal([5, -2, 0], size=(8, 3))
    pairs = [0, 2, 4], [1, 3, 5]
    data = Preferences(*pairs, [1, 0, 1], [0, 1, 3], items=items, feature_names=FEATURES)
    exported = Posterior(*pair, data, num_samples=30).to_inference_data()
    assert "utility" not in group(exported, "posterior")
    # Only the items that somebody compared are exported.
    constant = group(exported, "constant_data")
    assert constant["item"].values.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(constant["item_features"], items[:6])


def test_items_without_features_have_utilities_for_coefficients(make_data) -> None:
    data = make_data((3, 4), num_features=None)
    model, guide = make_pair(data)
    exported = Posterior(model, guide, data, num_samples=30).to_inference_data()
    assert set(group(exported, "posterior").data_vars) == {"z", "utility"}
    assert set(group(exported, "constant_data").data_vars) == {"left", "right"}
    assert group(exported, "constant_data")["left"].values.tolist() == data.left.tolist()


@pytest.mark.parametrize("utility", ["linear", "bilinear"])
def test_a_homogeneous_model_has_one_draw(utility, data, tmp_path) -> None:
    torch.manual_seed(0)
    model = HeterogeneousBTL(3, 0, utility=utility).eval()
    model.set_standardisation(data.items)
    exported = Posterior(model, None, data, num_samples=10**9).to_inference_data()
    exported.to_netcdf(str(tmp_path / "posterior.nc"))
    assert "z" not in group(exported, "posterior")
    utility = values(exported, "posterior", "utility")[0, 0]
    margin = utility[data.left] - utility[data.right]
    expected = data.choice * margin - np.logaddexp(0, margin)
    log_likelihood = values(exported, "log_likelihood", "choice")
    assert log_likelihood.shape == (1, data.num_comparisons)
    np.testing.assert_allclose(log_likelihood[0], expected, rtol=1e-4, atol=1e-5)
    assert json.loads(exported.attrs["guide"]) is None


def test_people_without_any_choice(pair, target, tmp_path) -> None:
    nothing = make_people(counts=(0,) * 5)
    exported = Posterior(*pair, nothing, num_samples=30).to_inference_data(target=target)
    exported.to_netcdf(str(tmp_path / "posterior.nc"))
    assert names(exported) == {
        "posterior",
        "prior",
        "log_likelihood",
        "sample_stats",
        "constant_data",
        "predictions",
        "predictions_constant_data",
    }
    assert (values(exported, "log_likelihood", "per_user") == 0).all()


def test_the_size_is_that_of_what_depends_on_draws(exported, draws, pair, data, target) -> None:
    size = sum(
        array.nbytes
        for name in names(exported)
        for array in group(exported, name).data_vars.values()
        if "draw" in array.dims
    )
    again = export_of(draws, pair, data, target, max_bytes=size)
    for name in names(exported):
        assert group(again, name).identical(group(exported, name)), name
    with pytest.raises(ValueError, match=r"num_samples=.*context.subset\(\.\.\.\).*items="):
        export_of(draws, pair, data, target, max_bytes=size - 1)


def test_bad_input_is_refused_before_any_work(posterior, pair, data, target) -> None:
    result = FitResult(*pair, data, pd.DataFrame())
    fewer = target.subset([0, 1])
    for call, error, match in [
        (lambda: posterior.to_inference_data(items=["zz"]), ValueError, "items .* got 'zz'"),
        (lambda: posterior.to_inference_data(items="pq"), TypeError, "items .* string 'pq'"),
        (lambda: posterior.to_inference_data(items=data.items), TypeError, "got Tensor"),
        (lambda: posterior.to_inference_data(items=[]), ValueError, "at least one name"),
        (lambda: posterior.to_inference_data(target=fewer), ValueError, "same people"),
        (lambda: result.to_inference_data(target=fewer), ValueError, "same people"),
        (lambda: result.to_inference_data(num_samples=10), ValueError, "at least 25"),
        (lambda: result.to_inference_data(num_samples=10**10), ValueError, "GiB for 10000000000"),
    ]:
        with pytest.raises(error, match=match):
            call()
