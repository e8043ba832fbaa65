"""NUTS: against the grid and ArviZ, the cache, and what is said where chains fail."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import arviz
import h5py
import numpy as np
import pytest
import torch
from exact_problems import five_people, make_model

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences, exact
from fssa_bayes.sampling import mcmc

OPTIONS = {"num_samples": 120, "warmup_steps": 80, "num_chains": 2, "max_attempts": 1}


@pytest.fixture(scope="module")
def data() -> Preferences:
    return five_people()


class Sampled(NamedTuple):
    model: HeterogeneousBTL
    context: Preferences
    cache: Path
    posterior: exact.ExactPosterior


@pytest.fixture(scope="module")
def sampled(data, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    """Chains of a person with no comparison and of one with eight, cached."""
    model, context = make_model(2, "linear", "normal"), data.subset([0, 3])
    cache = tmp_path_factory.mktemp("nuts")
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* has not converged")
            posterior = exact.nuts(model, context, cache=cache, **OPTIONS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(state, torch.get_rng_state())
    return Sampled(model, context, cache, posterior)


def test_nuts_agrees_with_the_grid(sampled: Sampled) -> None:
    """Means and variances of choice probabilities within five Monte-Carlo standard errors."""
    model, context, _, posterior = sampled
    points = exact.grid(model, context)
    left, right = np.triu_indices(8, 1)
    pairs = Preferences(
        np.tile(left, 2), np.tile(right, 2), np.ones(56), [0, 28, 56],
        items=context.items, user_names=context.user_names,
    )  # fmt: skip
    draws = Posterior.from_draws(model, context, posterior)
    ours, exactly = (
        Posterior.from_draws(model, context, p).choice_prob(pairs) for p in (posterior, points)
    )
    with torch.no_grad():
        prob = model.choice(pairs.batch(), draws.z).mean
    error = prob.std(0) / posterior.ess_bulk.unsqueeze(-1).sqrt()
    assert ((ours.mean - exactly.mean).abs() < 5 * error).all()
    torch.testing.assert_close(ours.epistemic, exactly.epistemic, atol=0.05, rtol=0.2)
    assert ((ours.lower - exactly.lower).abs() < 0.1).all()
    assert posterior.r_hat.max() < 1.1
    assert posterior.num_divergences.max() == 0


def test_r_hat_and_ess_are_those_of_arviz(sampled: Sampled) -> None:
    """Recomputed from the draws for every quantity that is judged."""
    model, context, _, posterior = sampled
    for user in range(2):
        z = posterior.z[:, [user]]
        batch = context.subset([user]).batch()
        with torch.no_grad():
            utility = model.item_utility(context.items, z)[:, 0]
            choice = model.choice(batch, z)
            likelihood = choice.log_prob(batch.choice)
            log_joint = model.prior(1).log_prob(z) + likelihood
            quantities = [utility - utility.mean(-1, keepdim=True), log_joint]
            quantities += [choice.margin[:, 0], likelihood] if user else []
        torch.testing.assert_close(log_joint[:, 0], posterior.log_joint[:, user])
        series = torch.cat(quantities, -1).double().T.reshape(-1, 2, 120).numpy()
        r_hat = max(arviz.rhat(x) for x in series)
        of_tail = {"method": "tail", "prob": (0.05, 0.95)}  # ArviZ 1.x has no default for arrays.
        ess = {"bulk": min(arviz.ess(x, method="bulk") for x in series)}
        ess["tail"] = min(arviz.ess(x, **of_tail) for x in series)
        assert posterior.r_hat[user].item() == pytest.approx(r_hat, rel=1e-5)
        assert posterior.ess_bulk[user].item() == pytest.approx(ess["bulk"], rel=1e-4)
        assert posterior.ess_tail[user].item() == pytest.approx(ess["tail"], rel=1e-4)
        of_z = max(arviz.rhat(x) for x in z[:, 0].T.reshape(2, 2, 120).double().numpy())
        assert posterior.r_hat_z[user].item() == pytest.approx(of_z, rel=1e-5)


def again(sampled: Sampled, context: Preferences, **options) -> exact.ExactPosterior:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has not converged")
        return exact.nuts(sampled.model, context, cache=sampled.cache, **(OPTIONS | options))


def test_the_cache_gives_the_same_draws_to_the_bit(sampled: Sampled, monkeypatch) -> None:
    assert len(list(sampled.cache.iterdir())) == 2
    monkeypatch.setattr(mcmc, "sample_chain", None)  # Sampling again would fail.
    cached = again(sampled, sampled.context)
    for name in ("z", "log_joint", "converged", "r_hat", "ess_tail", "seconds", "num_divergences"):
        assert torch.equal(getattr(cached, name), getattr(sampled.posterior, name)), name
    alone = again(sampled, sampled.context.subset([1]))
    assert torch.equal(alone.z, sampled.posterior.z[:, [1]])


def test_the_cache_distinguishes_models_choices_and_options(sampled: Sampled, monkeypatch) -> None:
    def sampled_again(*args) -> None:
        raise InterruptedError

    monkeypatch.setattr(mcmc, "sample_chain", sampled_again)
    context = sampled.context
    for changed, options in [
        (context.swap(), {}),
        (context.with_choices(1 - context.choice), {}),
        (context, {"seed": 1}),
        (context, {"num_samples": 121}),
    ]:
        with pytest.raises(InterruptedError):
            again(sampled, changed, **options)
    with torch.no_grad():
        sampled.model.utility.mean[0] += 1e-6
    try:
        with pytest.raises(InterruptedError):
            again(sampled, context)
    finally:
        with torch.no_grad():
            sampled.model.utility.mean.copy_(torch.tensor([0.5, -0.3, 0.2]))


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_file_is_named_and_replaced(
    sampled: Sampled, monkeypatch, tmp_path: Path, damage: str
) -> None:
    """The sampler is replaced by one that replays the draws, which must come out whole."""
    chains = sampled.posterior.z.reshape(2, 120, 2, 2)
    replay = iter([(chains[chain, :, 1].numpy(), 0, 1.0) for chain in range(2)])
    monkeypatch.setattr(mcmc, "sample_chain", lambda *_: next(replay))
    person = sampled.context.subset([1])
    for file in sampled.cache.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    here = sampled._replace(cache=tmp_path)
    for file in tmp_path.iterdir():
        if damage == "altered":
            with h5py.File(file, "r+") as content:
                content["posterior/z"][1, 5, 0] += 1e-6
        else:
            file.write_bytes(file.read_bytes()[:2000] if damage == "truncated" else b"")
    with pytest.warns(UserWarning, match="cached draws in .* are damaged .* sampled again"):
        repaired = again(here, person)
    assert torch.equal(repaired.z, sampled.posterior.z[:, [1]])
    assert torch.equal(again(here, person).z, repaired.z)
    assert len(list(tmp_path.iterdir())) == 2


def test_chains_that_have_not_converged_are_named_and_returned(data) -> None:
    model, context = make_model(2, "linear", "normal", scale=6.0), data.subset([4])
    with pytest.warns(UserWarning, match="1 of 1 people has not converged, those of 'w20'"):
        posterior = exact.nuts(model, context, num_samples=8, warmup_steps=3, max_attempts=1)
    assert posterior.converged.tolist() == [False]
    assert posterior.z.shape == (32, 1, 2)
    assert posterior.summary()["converged"].tolist() == [False]


def test_a_person_who_has_not_converged_is_sampled_again_for_longer(data, monkeypatch) -> None:
    """The second attempt gets twice the length; its draws and not the first ones are returned."""
    lengths = []

    def chain(model, batch, options, length: int, seed: int) -> tuple[np.ndarray, int, float]:
        rng = np.random.default_rng(seed)
        lengths.append(length)
        offset = 10.0 * len(lengths) if length == 1 else 0.0  # Chains that never meet.
        draws = offset + rng.normal(size=(options.num_samples, 2))
        return draws.astype(np.float32), 0, 1.0

    monkeypatch.setattr(mcmc, "sample_chain", chain)
    model = make_model(2, "linear", "normal")
    posterior = exact.nuts(model, data.subset([0]), num_samples=300, num_chains=3)
    assert lengths == [1, 1, 1, 2, 2, 2]
    assert posterior.converged.all()
    assert posterior.z.abs().max() < 6


@pytest.mark.slow
def test_nuts_under_a_learned_prior_agrees_with_the_grid(data) -> None:
    model, context = make_model(1, "linear", "flow", scale=3.0), data.subset([2])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has not converged")
        posterior = exact.nuts(model, context, **(OPTIONS | {"warmup_steps": 50}))
    points = exact.grid(model, context)
    weights = points.log_weights.exp()[:, 0]
    mean = (weights * points.z[:, 0, 0]).sum()
    spread = (weights * (points.z[:, 0, 0] - mean).square()).sum().sqrt()
    error = spread / posterior.ess_bulk.sqrt()
    assert (posterior.z[:, 0, 0].mean() - mean).abs() < 5 * error
    assert posterior.z[:, 0, 0].std() / spread == pytest.approx(1, abs=0.25)


@pytest.mark.slow
def test_processes_give_the_same_chains(data) -> None:
    model, context = make_model(1, "linear", "flow"), data.subset([2])
    options = {"num_samples": 8, "warmup_steps": 8, "num_chains": 2, "max_attempts": 1}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has not converged")
        here, there = (exact.nuts(model, context, processes=n, **options) for n in (None, 2))
    assert torch.equal(here.z, there.z)


def test_bad_options_of_nuts_are_refused(data, tmp_path: Path) -> None:
    model = make_model(2, "linear", "normal")
    (tmp_path / "file").write_text("")
    for options, match in [
        ({"num_chains": 1}, "num_chains must be an integer of at least 2, got 1"),
        ({"num_samples": 0}, "num_samples must be an integer of at least 4, got 0"),
        ({"processes": 0}, "processes must be"),
        ({"target_r_hat": 1.0}, "target_r_hat must be above 1, got 1.0"),
        ({"cache": tmp_path / "file"}, "cache must be a folder, got the file"),
    ]:
        with pytest.raises(ValueError, match=match):
            exact.nuts(model, data, **options)
    with pytest.raises(ValueError, match="latent_dim of at least 1 for NUTS, got 0"):
        exact.nuts(HeterogeneousBTL(3, 0), data)
    with torch.no_grad():
        model.utility.mean[0] = torch.nan
    with pytest.raises(FloatingPointError, match="posterior of user"):
        exact.nuts(model, data)


def test_chains_are_exported_to_arviz(sampled: Sampled) -> None:
    model, context, _, posterior = sampled
    exported = Posterior.from_draws(model, context, posterior).to_inference_data()
    assert exported["posterior"]["z"].shape == (1, 240, 2, 2)
    lp = exported["sample_stats"]["lp"].values[0]
    np.testing.assert_array_equal(lp, posterior.log_joint.numpy())
    assert exported["posterior"].attrs["correct"] == "nuts"
