"""Time of a new person's posterior, against NUTS on the same model and the same comparisons.

A fitted model meets people it has not seen, with ten comparisons each. `Posterior` infers all of
them; NUTS (500 warm-up steps, 500 draws, one chain, z alone, the decoder fixed and without
gradients, validation off) a few of them, one at a time and in turn with it. Both then evaluate ten
further choice probabilities of each person, whose means are compared, so that the times are those
of the same posterior; in standard errors where a mean lies between 1 and 99 %. NUTS's effective
draws are the smallest bulk effective sample size of z's dimensions, those of `Posterior` the one of
its smoothed importance weights.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from benchmarks import recovery
from benchmarks.harness import Row, spread
from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.datasets import two_mode
from fssa_bayes.sampling import effective_sample_size

COMPARISONS = 10


def run(args: argparse.Namespace) -> Iterator[Row]:
    people, draws, chains, steps = (20, 50, 1, 10) if args.quick else (1000, 1000, 5, 500)
    for name in ("bilinear", "linear"):
        problem = _problem(name, people, args)
        values = measure(problem, draws, chains, steps)
        case = f"{name}, {COMPARISONS} comparisons"
        nuts, ours = f"NUTS {steps} + {steps}", f"Posterior, S = {draws}"
        for metric in ("posterior", "posterior and 10 choices"):
            slow, fast = values["nuts", metric], values["ours", metric]
            yield spread("inference", case, nuts, metric, "s a person", slow)
            yield spread("inference", case, ours, metric, "s a person", fast)
            rate, ratio = 1 / np.asarray(fast), np.median(slow) / np.median(fast)
            yield spread("inference", case, ours, metric, "people a second", rate, nuts, ratio)
        slow, fast = values["nuts", "effective"], values["ours", "effective"]
        metric, ratio = "effective draws", np.median(fast) / np.median(slow)
        yield spread("inference", case, nuts, metric, "a second", slow)
        yield spread("inference", case, ours, metric, "a second", fast, nuts, ratio)
        for metric, unit in (("relative effective sample size", ""), ("Pareto k-hat", "")):
            yield spread("inference", case, ours, metric, unit, values["ours", metric])
        difference, error = np.array(values["difference"]), np.array(values["error"])
        metric = "|difference of choice prob.|"
        yield spread("inference", case, "both", metric, "", difference)
        metric = "its Monte-Carlo standard error"
        yield spread("inference", case, "both", metric, "", error)
        # A mean below 1 % rests on rare draws, which a standard error from few does not cover.
        uncertain = np.minimum(values["prob"], 1 - np.array(values["prob"])) > 0.01
        if uncertain.any():
            metric = "|difference| / s.e., if uncertain"
            ratio = (difference / error)[uncertain]
            yield spread("inference", case, "both", metric, "", ratio)


@dataclass(frozen=True)
class Problem:
    """Holds a fitted model and new people, with what is known of them and what is asked."""

    model: HeterogeneousBTL
    guide: NeuralProcessGuide
    context: Preferences
    target: Preferences


def measure(problem: Problem, draws: int, chains: int, steps: int) -> dict:
    """Times both ways in turn, once each for every chain, after a warm-up of both."""
    values = defaultdict(list)
    _ours(problem, draws)
    _nuts(problem, 0, 5)
    for person in range(chains):
        posterior, mean, *seconds = _ours(problem, draws)
        _record(values, "ours", seconds, len(problem.context))
        log_weights = posterior.proposals[1]
        effective = effective_sample_size(log_weights).sum().item() / seconds[0]
        values["ours", "effective"].append(effective)
        prob, error = _weighted_error(problem, posterior, person)
        z, nuts_prob, *seconds = _nuts(problem, person, steps)
        _record(values, "nuts", seconds, 1)
        smallest = min(_ess(column, "bulk") for column in z.T)
        values["nuts", "effective"].append(smallest / seconds[0])
        values["prob"].extend(prob)
        values["difference"].extend(np.abs(prob - nuts_prob.mean(0)))
        values["error"].extend(np.hypot(error, _chain_error(nuts_prob)))
        assert np.allclose(prob, mean[person], atol=1e-3)
    values["ours", "relative effective sample size"] = posterior.relative_ess.tolist()
    values["ours", "Pareto k-hat"] = posterior.pareto_k.tolist()
    return values


def _problem(name: str, people: int, args: argparse.Namespace) -> Problem:
    training, steps = (100, 10) if args.quick else (3000, 400)
    seed, width = args.seeds[0], 2 * COMPARISONS
    if name == "bilinear":
        data, new = (
            two_mode.simulate(count, width, seed=seed + offset).data
            for offset, count in ((0, training), (1, people))
        )
    else:
        data, new = recovery.simulate(training + people, width, 500, seed).split_users(
            people / (training + people), seed=seed
        )
    torch.manual_seed(seed)
    model = HeterogeneousBTL(data.num_features, latent_dim=2, utility=name)
    # The families that the README recommends for either utility.
    family = "multivariate_normal" if name == "linear" else "flow"
    guide = NeuralProcessGuide(model, family)
    stages = [ImportanceWeightedELBO(steps=steps), Sleep(steps=steps)]
    options = {"learning_rate": 5e-3, "validation": None, "progress_bar": False}
    fit(model, guide, data, objective=stages, seed=seed, **options)
    return Problem(model, guide, *new.split_context(COMPARISONS, seed=seed))


def _ours(problem: Problem, draws: int) -> tuple[Posterior, np.ndarray, float, float]:
    start = time.perf_counter()
    posterior = Posterior(problem.model, problem.guide, problem.context, draws)
    middle = time.perf_counter()
    mean = posterior.choice_prob(problem.target).mean
    return posterior, mean.numpy(), middle - start, time.perf_counter() - start


@pyro.validation_enabled(False)
def _nuts(problem: Problem, person: int, steps: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Returns draws (S, K) of a person's z, choice probabilities (S, N) and both times."""
    context = problem.context.subset([person]).batch()
    target = problem.target.subset([person]).batch()
    parameters = list(problem.model.parameters())
    torch.manual_seed(person)
    for parameter in parameters:
        parameter.requires_grad_(False)
    start = time.perf_counter()
    mcmc = MCMC(NUTS(problem.model), steps, warmup_steps=steps, disable_progbar=True)
    mcmc.run(context)
    z = mcmc.get_samples()["z"]
    middle = time.perf_counter()
    with torch.no_grad():
        prob = _choice_prob(problem.model, target, z)
    end = time.perf_counter()
    for parameter in parameters:
        parameter.requires_grad_(True)
    return z[:, 0].double().numpy(), prob.double().numpy(), middle - start, end - start


def _choice_prob(model: HeterogeneousBTL, target: object, z: Tensor) -> Tensor:
    """Evaluates the choice probabilities (S, N) of one person's draws (S, 1, K)."""
    return model.choice(target, z).margin[:, 0].sigmoid()


def _record(values: dict, who: str, seconds: list[float], people: int) -> None:
    for metric, second in zip(("posterior", "posterior and 10 choices"), seconds, strict=True):
        values[who, metric].append(second / people)


@torch.no_grad()
def _weighted_error(
    problem: Problem, posterior: Posterior, person: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weighted means (N,) of choice probabilities and their standard errors."""
    z, log_weights = posterior.proposals
    target = problem.target.subset([person]).batch()
    prob = _choice_prob(problem.model, target, z[:, [person]]).double()
    weights = log_weights[:, person].double().exp().unsqueeze(-1)
    mean = (weights * prob).sum(0)
    return mean.numpy(), (weights * (prob - mean)).square().sum(0).sqrt().numpy()


def _chain_error(prob: np.ndarray) -> np.ndarray:
    """Returns the standard errors (N,) of the means of a chain's choice probabilities (S, N)."""
    effective = np.array([_ess(column, "mean") for column in prob.T])
    return prob.std(0) / np.sqrt(effective)


def _ess(series: np.ndarray, method: str) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return float(arviz.ess(series[None], method=method))
