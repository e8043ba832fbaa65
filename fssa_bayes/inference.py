"""Fitting a model and its guide to the comparisons of many people."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyro
import torch
from scipy import optimize
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm.auto import tqdm

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.importance import (
    Estimate,
    estimate_log_marginal_likelihood,
    log_predictive,
    propose,
)
from fssa_bayes.model import HeterogeneousBTL, LinearUtility
from fssa_bayes.objectives import (
    ImportanceWeightedELBO,
    MaximumLikelihood,
    Objective,
    Sleep,
    split_mask,
)
from fssa_bayes.population import population_table

__all__ = ["FitResult", "check_data", "check_guide", "fit"]

_AUTO = "auto"
_CHECKS = 25  # Evaluations on the held-out people during a stage.
_PATIENCE = 6  # Evaluations without an improvement before a stage ends.
_LEAST_GAIN = 1e-4  # Nats a person by which an L-BFGS iteration must improve on the best one.
_WARM_UP = 0.05  # Share of the steps in which the learning rate rises.
_MAX_HELD_OUT = 512  # Held-out people scored at once.


@dataclass
class FitResult:
    """Holds a fitted model and what the fit can say about it.

    Attributes:
        model: The fitted model.
        guide: The fitted guide, or None for a homogeneous model.
        data: The comparisons the model was fitted to.
        history: One row a step: `stage`, `step`, `loss` (nats per person) and, where held-out
            people were scored, `validation_log_score` (nats per held-out person, by the stage's
            own objective).
        held_out: Log-loss of held-out people's unseen choices after each stage (nats per
            comparison, contexts of random size), for the raw guide and the importance-corrected
            posterior, with standard errors by person; None without `validation`.
    """

    model: HeterogeneousBTL = field(repr=False)
    guide: NeuralProcessGuide | None = field(repr=False)
    data: Preferences
    history: pd.DataFrame = field(repr=False)
    held_out: pd.DataFrame | None = None

    def log_marginal_likelihood(
        self,
        data: Preferences | None = None,
        num_samples: int = 1000,
        *,
        seed: int = 0,
        target_error: float = 0.3,
        max_samples: int = 64_000,
    ) -> Estimate:
        """Estimates the log marginal likelihood by importance sampling, summed over people.

        Args:
            data: The comparisons; those of the fit if None.
            num_samples: Draws of each person's z to begin with.
            seed: Seed of the draws.
            target_error: Standard error in nats below which no more draws are taken.
            max_samples: Largest number of draws of a person.

        Returns:
            The estimate with its Monte-Carlo standard error, its bias (log of a mean) and the
            smallest effective sample size of a person.

        Warns:
            UserWarning: If `max_samples` is reached before the standard error is.
        """
        data = self.data if data is None else data
        check_data(self.model, data)
        with seeded(seed), torch.no_grad():
            estimate = estimate_log_marginal_likelihood(
                self.model, self.guide, data, num_samples, target_error, max_samples
            )
        if estimate.standard_error > target_error:
            warnings.warn(
                f"the standard error of the log marginal likelihood is "
                f"{estimate.standard_error:.2f} after {max_samples} draws a person, above "
                f"target_error={target_error}",
                stacklevel=2,
            )
        return estimate

    def population(self, num_samples: int = 1000, *, seed: int = 0) -> pd.DataFrame:
        """Estimates mean, standard deviation and correlation of people's coefficients.

        See :func:`fssa_bayes.population.population_table` for columns, errors and sources.
        """
        return population_table(
            self.model, self.guide, self.data, num_samples=num_samples, seed=seed
        )


def fit(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    data: Preferences,
    *,
    objective: Objective | Sequence[Objective] | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float = 3e-3,
    population_learning_rate: float | None = None,
    validation: float | str | None = _AUTO,
    refit: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress_bar: bool = True,
) -> FitResult:
    """Fits a model and its guide to the comparisons of many people, in place.

    A model with a latent factor is fitted by Adam, with warm-up, cosine decay and gradient
    clipping; a homogeneous one by L-BFGS to convergence.

    Args:
        model: The model; it starts from the parameters it has.
        guide: Its guide; None for `latent_dim=0`.
        data: The comparisons of the training people.
        objective: One objective or a list of stages. None is `[ImportanceWeightedELBO(), Sleep()]`,
            twice over and with more particles the second time for the linear utility. A
            homogeneous model has maximum likelihood as its only objective.
        steps: Steps of every stage, in place of the objectives' own; for a homogeneous model the
            largest number of L-BFGS iterations.
        batch_size: People in a batch, in place of the objectives' own.
        learning_rate: Peak learning rate of the networks.
        population_learning_rate: That of the linear utility's w0 and Λ; ten times the networks'
            if None.
        validation: Share of the people who are held out to stop a stage early, or None to use
            everybody for a fixed number of steps. `"auto"` is None for the linear utility and .1
            for the others.
        refit: Whether to fit everybody afresh for the number of steps found by `validation`.
        seed: Seed of draws, batches and held-out people. Initial weights are drawn where model and
            guide are built: call `torch.manual_seed` there. The global random state and the
            parameter store of Pyro are left as they were.
        device: Where to fit, for example `"cuda"`; where the model is if None.
        progress_bar: Whether to show progress.

    Returns:
        The result; `model` and `guide` themselves are changed.

    Raises:
        ValueError: If data, model and guide do not fit each other or an option is out of range.
        FloatingPointError: If the loss or its gradient is not finite; the message names the step
            and the people, and the parameters are those before the step.

    Warns:
        UserWarning: If covariates are not used by the model, if a homogeneous fit did not
            converge or runs away (separation), or if `Sleep` costs held-out accuracy.

    Example:
        >>> from fssa_bayes.datasets import two_mode
        >>> data = two_mode.simulate(num_users=50, num_comparisons=6, seed=0).data
        >>> model = HeterogeneousBTL(data.num_features, latent_dim=2)
        >>> guide = NeuralProcessGuide(model)
        >>> result = fit(model, guide, data, steps=5, validation=None, progress_bar=False)
        >>> sorted(result.history["stage"].unique())
        ['ImportanceWeightedELBO', 'Sleep']
    """
    check_data(model, data)
    _check_training_data(model, guide, data)
    stages = _stages(model, objective, steps, batch_size)
    if validation == _AUTO:
        validation = None if isinstance(model.utility, LinearUtility) else 0.1
    if validation is not None and not 0 < validation < 1:
        raise ValueError(f"validation must lie between 0 and 1 or be None, got {validation}")
    if validation is not None and len(data) < 10:
        raise ValueError(
            f"validation={validation} (the default but for the linear utility) needs at least 10 "
            f"people, got {len(data)}: pass validation=None"
        )
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    rates = learning_rate, population_learning_rate or 10 * learning_rate
    if device is not None:
        model.to(device)
        if guide is not None:
            guide.to(device)
    with torch.no_grad():
        model.set_standardisation(None if data.items is None else data.items.to(model.device))
    model.feature_names = data.feature_names

    training, held_out = data, None
    if validation is not None:
        training, held_out = data.split_users(validation, seed=seed)
    with seeded(seed), pyro.validation_enabled(False), _trainable(model, guide):
        fitter = _Fitter(model, guide, rates, progress_bar, seed)
        start = fitter.state()
        table = fitter.run(stages, training, held_out)
        if held_out is not None and refit:
            fitter.restore(start)
            fitter.run(stages, data, None, fitter.best_steps)
    return FitResult(model, guide, data, pd.DataFrame(fitter.history), table)


def check_data(model: HeterogeneousBTL, data: Preferences) -> None:
    """Raises an error unless `data` can be scored by `model`."""
    if not isinstance(data, Preferences):
        raise TypeError(f"data must be Preferences, got {type(data).__name__}")
    if data.num_features != model.num_features:
        raise ValueError(
            f"data must have the model's num_features={model.num_features} features, "
            f"got {data.num_features}"
        )
    if model.feature_names is not None and not model.feature_names.equals(data.feature_names):
        kind = "items" if data.items is None else "features"
        raise ValueError(
            f"data must have the {kind} the model was fitted to, in the same order: "
            f"{_some(model.feature_names)}, got {_some(data.feature_names)}"
        )
    if model.is_standardised and data.items is not None:
        shift = (data.items.mean(0) - model.feature_mean.cpu()) / model.feature_scale.cpu()
        if shift.abs().max() > 20:
            name = data.feature_names[int(shift.abs().argmax())]
            warnings.warn(
                f"feature {name!r} lies {shift.abs().max():.0f} standard deviations from the data "
                "the model was first fitted to: are the units the same?",
                stacklevel=3,
            )
    if data.ties == "keep" and (data.choice == 0.5).any():
        raise ValueError(
            "data keeps ties, and the model has none: read the data with ties='half' or 'drop'"
        )


def check_guide(model: HeterogeneousBTL, guide: NeuralProcessGuide | None) -> None:
    """Raises an error unless `guide` is the model's, or None for a homogeneous model."""
    if guide is not None and guide.model is not model:
        raise ValueError("guide must be the guide of this model, got one of another model")
    if (guide is None) != (model.latent_dim == 0):
        raise ValueError(
            f"guide must be {'None' if guide is not None else 'given'} for a model with "
            f"latent_dim={model.latent_dim}"
        )


def _some(names: pd.Index) -> str:
    return f"{list(names[:5])}{', …' if len(names) > 5 else ''}"


def _check_training_data(
    model: HeterogeneousBTL, guide: NeuralProcessGuide | None, data: Preferences
) -> None:
    check_guide(model, guide)
    empty = np.flatnonzero(data.counts == 0)
    if len(empty):
        raise ValueError(
            f"every person must have comparisons, got none for user "
            f"{data.user_names[empty[0]]!r} ({len(empty)} such people)"
        )
    if len(data) == 1 and model.latent_dim:
        raise ValueError(
            "a heterogeneous model needs at least 2 people to tell how they differ, got 1: "
            "use latent_dim=0"
        )
    constant = [] if data.items is None else data.feature_names[(data.items.std(0) == 0).numpy()]
    if len(constant):
        warnings.warn(
            f"feature {constant[0]!r} is the same for all items ({len(constant)} such features): "
            "the data say nothing about its effect",
            stacklevel=3,
        )
    if data.covariates is not None:
        warnings.warn("the model does not use the covariates of the people in data", stacklevel=3)


def _stages(
    model: HeterogeneousBTL,
    objective: Objective | Sequence[Objective] | None,
    steps: int | None,
    batch_size: int | None,
) -> list[Objective]:
    if model.latent_dim == 0:
        if objective is not None:
            raise ValueError(
                "objective must be None for latent_dim=0, which is fitted by maximum likelihood, "
                f"got {objective!r}"
            )
        return [MaximumLikelihood(steps=steps)]
    if objective is None:
        stages = _default_stages(model)
    else:
        stages = list(objective) if isinstance(objective, Sequence) else [objective]
    if not stages or not all(isinstance(stage, Objective) for stage in stages):
        raise TypeError(f"objective must be an Objective or a list of them, got {objective!r}")
    stages = [copy.copy(stage) for stage in stages]
    for stage in stages:
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if value is not None:
                if not isinstance(value, int) or value < 1:
                    raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
                setattr(stage, name, value)
    return stages


def _default_stages(model: HeterogeneousBTL) -> list[Objective]:
    if not isinstance(model.utility, LinearUtility):
        return [ImportanceWeightedELBO(), Sleep()]
    # A likelihood is quoted from a linear fit, so its bound must be tight. Many particles starve
    # the guide of gradient; taught by Sleep first, it needs fewer (train-choice data: effective
    # sample size .25 to .49 with 128 particles alone, .52 to .59 with 64 after Sleep).
    return [
        ImportanceWeightedELBO(16, steps=600),
        Sleep(steps=300),
        ImportanceWeightedELBO(64, steps=1100, batch_size=128),
        Sleep(steps=500),
    ]


@dataclass
class _Fitter:
    """Runs the stages of a fit and keeps what they report."""

    model: HeterogeneousBTL
    guide: NeuralProcessGuide | None
    rates: tuple[float, float]
    progress_bar: bool
    seed: int
    history: list[dict] = field(default_factory=list)
    best_steps: list[int] = field(default_factory=list)

    def run(
        self,
        stages: list[Objective],
        training: Preferences,
        held_out: Preferences | None,
        limits: list[int] | None = None,
    ) -> pd.DataFrame | None:
        """Runs all stages, each up to its limit of steps, and scores the held-out people."""
        limits = limits or [stage.steps for stage in stages]
        scores = []
        with _Progress(sum(limits), self.progress_bar) as progress:
            for index, (stage, limit) in enumerate(zip(stages, limits, strict=True)):
                suffix = " (refit)" if self.best_steps and held_out is None else ""
                stage_seed = int(np.random.default_rng([self.seed, index]).integers(2**31))
                torch.manual_seed(stage_seed)
                rng = np.random.default_rng(stage_seed)
                run = _maximise if isinstance(stage, MaximumLikelihood) else _descend
                best = run(self, stage, training, held_out, limit, rng, progress, suffix)
                if held_out is not None:
                    self.best_steps.append(best)
                    scores.append(_held_out_scores(self.model, self.guide, held_out, stage.name))
        if self.guide is not None:
            largest = int(training.counts.max()) * (2 if isinstance(stages[-1], Sleep) else 1)
            self.guide.largest_context.fill_(largest)
        if not scores:
            return None
        if len(scores) > 1 and isinstance(stages[-1], Sleep):
            _compare_with_sleep(scores)
        return pd.concat(scores, ignore_index=True)

    def modules(self) -> list[nn.Module]:
        return [self.model] if self.guide is None else [self.model, self.guide]

    def state(self) -> list[dict]:
        return [copy.deepcopy(module.state_dict()) for module in self.modules()]

    def restore(self, state: list[dict]) -> None:
        for module, values in zip(self.modules(), state, strict=True):
            module.load_state_dict(values)

    def record(self, stage: str, step: int, loss: float, validation: float | None) -> None:
        self.history.append(
            {"stage": stage, "step": step, "loss": loss, "validation_log_score": validation}
        )


def _descend(
    fitter: _Fitter,
    stage: Objective,
    training: Preferences,
    held_out: Preferences | None,
    steps: int,
    rng: np.random.Generator,
    progress: _Progress,
    suffix: str,
) -> int:
    """Runs Adam on a stage; with held-out people, ends at the best step and returns its number."""
    model, guide = fitter.model, fitter.guide
    parameters = [p for p in stage.trained(model, guide) if p.requires_grad]
    groups = _groups(model, parameters, fitter.rates)
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _schedule(steps))
    frozen = [] if stage.learns_model else [p for p in model.parameters() if p.requires_grad]
    # A simulated stage cannot overfit the people, so it is not stopped early.
    watch = held_out is not None and stage.learns_model
    interval = max(1, steps // _CHECKS)
    best_score, best_step, best_state, waited = -math.inf, steps, None, 0
    with _requires_grad(frozen, False):
        for step in range(1, steps + 1):
            batch = stage.draw_batch(model, training, rng)
            optimiser.zero_grad()
            loss = stage.backward(model, guide, batch)
            norm = nn.utils.clip_grad_norm_(parameters, 5.0)
            if not (math.isfinite(loss) and torch.isfinite(norm)):
                raise FloatingPointError(_non_finite(stage, step, loss, norm, training, batch))
            optimiser.step()
            schedule.step()
            score = None
            if watch and (step % interval == 0 or step == steps):
                score = _validation_score(stage, model, guide, held_out, fitter.seed)
            fitter.record(stage.name + suffix, step, loss, score)
            progress.update(stage.name + suffix, loss)
            if score is not None:
                waited += 1
                if score > best_score:
                    best_score, best_step, waited = score, step, 0
                    best_state = fitter.state()
                if waited > _PATIENCE:
                    break
    progress.skip(steps - step)
    if best_state is not None:
        fitter.restore(best_state)
    return best_step


def _maximise(
    fitter: _Fitter,
    stage: Objective,
    training: Preferences,
    held_out: Preferences | None,
    steps: int,
    rng: np.random.Generator,
    progress: _Progress,
    suffix: str,
) -> int:
    """Runs L-BFGS in double precision; with held-out people, ends at the best iteration."""
    model = fitter.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    dtype = parameters[0].dtype
    model.double()
    batches = [_double(batch.to(model.device)) for batch in training.batches(16_384)]
    unseen = [_double(b.to(model.device)) for b in held_out.batches(16_384)] if held_out else []
    best_score, best_step, best_vector, step = -math.inf, 0, None, 0

    def set_parameters(vector: np.ndarray) -> None:
        vector_to_parameters(torch.as_tensor(vector, device=model.device), parameters)

    def loss_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        set_parameters(vector)
        model.zero_grad()
        total = 0.0
        for batch in batches:
            loss = stage.loss(model, None, batch) * (batch.num_users / len(training))
            loss.backward()
            total += loss.item()
        return total, parameters_to_vector([_gradient(p) for p in parameters]).cpu().numpy()

    def after_iteration(intermediate_result: optimize.OptimizeResult) -> None:
        nonlocal best_score, best_step, best_vector, step
        step += 1
        loss, score = float(intermediate_result.fun), None
        if unseen:
            set_parameters(intermediate_result.x)
            with torch.no_grad():
                losses = [stage.loss(model, None, b).item() * b.num_users for b in unseen]
            score = -sum(losses) / len(held_out)
            if score > best_score + _LEAST_GAIN:
                best_score, best_step, best_vector = score, step, intermediate_result.x.copy()
        fitter.record(stage.name + suffix, step, loss, score)
        progress.update(stage.name + suffix, loss)
        if unseen and step - best_step > 2 * _PATIENCE:
            raise StopIteration

    start = parameters_to_vector(parameters).detach().cpu().numpy()
    try:
        result = optimize.minimize(
            loss_and_gradient,
            start,
            jac=True,
            method="L-BFGS-B",
            callback=after_iteration,
            # A concave likelihood is maximised to the last digit, a network's to six.
            options={
                "maxiter": steps,
                "maxfun": 4 * steps,
                "ftol": 1e-15 if isinstance(model.utility, LinearUtility) else 1e-7,
                "gtol": 1e-9,
            },
        )
        if not math.isfinite(result.fun):
            set_parameters(start)
            raise FloatingPointError(f"the loss is {result.fun} at iteration {step} of L-BFGS")
        set_parameters(result.x if best_vector is None else best_vector)
        if not unseen and suffix == "":
            _check_maximum(model, result)
    finally:
        model.to(dtype)
    progress.skip(steps - step)
    return max(best_step, 1)


def _check_maximum(model: HeterogeneousBTL, result: optimize.OptimizeResult) -> None:
    slope = float(np.abs(result.jac).max(initial=0.0))
    if slope > 1e-2 or (slope > 1e-5 and isinstance(model.utility, LinearUtility)):
        warnings.warn(
            f"maximum likelihood did not converge in {result.nit} iterations: the largest "
            f"gradient is {slope:.1e} nats per person",
            stacklevel=5,
        )
    if isinstance(model.utility, LinearUtility):
        largest = model.utility.mean.abs().max().item()
        if largest > 15:
            warnings.warn(
                f"a coefficient of {largest:.0f} nats per standard deviation suggests that "
                "choices are separated (an item that never lost, say): the maximum of the "
                "likelihood may lie at infinity",
                stacklevel=5,
            )


# ---------------------------------------------------------------------- pieces of a stage


def _groups(
    model: HeterogeneousBTL, parameters: list[nn.Parameter], rates: tuple[float, float]
) -> list[dict]:
    """Gives the parameters that describe the population a learning rate of their own."""
    population = getattr(model.utility, "population_parameters", list)()
    special = {id(p) for p in population}
    groups = [
        {"params": [p for p in parameters if id(p) not in special], "lr": rates[0]},
        {"params": [p for p in parameters if id(p) in special], "lr": rates[1]},
    ]
    return [group for group in groups if group["params"]]


def _schedule(steps: int):
    """Returns warm-up followed by cosine decay to 0, as a factor of the learning rate."""
    warm_up = max(1, round(_WARM_UP * steps))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return factor


def _non_finite(
    stage: Objective, step: int, loss: float, norm: Tensor, data: Preferences, batch: Batch
) -> str:
    if batch.people is None:
        people = "people simulated from the model"
    else:
        names = [repr(name) for name in data.user_names[batch.people[:8]]]
        more = f" and {batch.num_users - 8} more" if batch.num_users > 8 else ""
        people = f"users {', '.join(names)}{more}"
    return (
        f"loss must be finite, got loss {loss} and gradient norm {norm.item()} at step {step} of "
        f"{stage.name}, in a batch of {people}; parameters are those before the step. "
        "A lower learning_rate may help"
    )


def _validation_score(
    stage: Objective,
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    held_out: Preferences,
    seed: int,
) -> float:
    """Scores the first held-out people by the stage's objective, with the same draws each time."""
    batch = held_out.batch(range(min(len(held_out), _MAX_HELD_OUT))).to(model.device)
    with seeded(seed), torch.no_grad():
        return -stage.loss(model, guide, batch).item()


def _held_out_scores(
    model: HeterogeneousBTL, guide: NeuralProcessGuide | None, held_out: Preferences, stage: str
) -> pd.DataFrame:
    """Scores unseen choices of held-out people, for the raw guide and the corrected posterior."""
    batch = held_out.batch(range(min(len(held_out), _MAX_HELD_OUT))).to(model.device)
    with seeded(0), torch.no_grad():
        context_mask, target_mask = split_mask(batch.mask)
        draws = propose(model, guide, batch.replace(mask=context_mask), 512)
        margin = model.choice(batch.replace(mask=target_mask), draws.z).margin
        from_guide = len(draws.log_ratio)
        versions = {
            "raw": (margin[:from_guide], torch.zeros_like(draws.log_ratio).log_softmax(0)),
            "corrected": (margin, draws.log_weights.log_softmax(0)),
        }
        rows = []
        for version, (version_margin, log_weights) in versions.items():
            score = log_predictive(version_margin, log_weights, batch.choice)
            person = -(score * target_mask).sum(-1) / target_mask.sum(-1)
            error = person.std().item() / math.sqrt(len(person))
            rows.append((stage, version, person.mean().item(), error))
    return pd.DataFrame(rows, columns=["stage", "posterior", "log_loss", "standard_error"])


def _compare_with_sleep(scores: list[pd.DataFrame]) -> None:
    before, after = (table.set_index("posterior").loc["corrected"] for table in scores[-2:])
    cost = after["log_loss"] - before["log_loss"]
    if cost > after["standard_error"]:
        warnings.warn(
            f"Sleep raised the held-out log-loss of the corrected posterior by {cost:.4f} nats "
            f"a comparison, more than its standard error {after['standard_error']:.4f}: the model "
            "is misspecified for these people",
            stacklevel=5,
        )


def _double(batch: Batch) -> Batch:
    items = batch.items if batch.items.dtype == torch.int64 else batch.items.double()
    return batch.replace(items=items, choice=batch.choice.double())


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@contextlib.contextmanager
def _requires_grad(parameters: list[nn.Parameter], value: bool) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(value)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(not value)


@contextlib.contextmanager
def _trainable(model: nn.Module, guide: nn.Module | None) -> Iterator[None]:
    """Trains in train mode, and leaves no gradients and the evaluation mode behind."""
    modules = [module for module in (model, guide) if module is not None]
    try:
        for module in modules:
            module.train()
        yield
    finally:
        for module in modules:
            module.eval()
            module.zero_grad(set_to_none=True)


class _Progress:
    """A progress bar that never takes the fit down with it."""

    def __init__(self, total: int, enabled: bool) -> None:
        self._bar = None
        if enabled:
            with contextlib.suppress(Exception):
                self._bar = tqdm(total=total, mininterval=0.5)

    def update(self, stage: str, loss: float) -> None:
        if self._bar is not None:
            self._guard(
                lambda bar: (bar.set_postfix_str(f"{stage} {loss:.4f}", False), bar.update())
            )

    def skip(self, steps: int) -> None:
        if self._bar is not None and steps:
            self._guard(lambda bar: bar.update(steps))

    def _guard(self, action) -> None:
        try:
            action(self._bar)
        except Exception as error:  # A closed terminal must not end a fit of an hour.
            self._bar = None
            warnings.warn(f"the progress bar failed and is switched off: {error}", stacklevel=2)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(Exception):
                self._bar.close()
