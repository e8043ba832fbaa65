"""The stages of a fit: Adam or L-BFGS, early stopping, held-out scores, checkpoints."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm.auto import tqdm

from fssa_bayes._random import seeded
from fssa_bayes.data import Batch, Preferences, user_batches
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference.objectives import MaximumLikelihood, Objective, Sleep, split_batch
from fssa_bayes.io import Checkpoints, flatten, unflatten
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling import propose

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["Fitter", "Leg", "plan"]

_CHECKS = 25  # Evaluations on the held-out people during a stage.
_PATIENCE = 6  # Evaluations without an improvement before a stage ends.
_LEAST_GAIN = 1e-4  # Nats a person by which an L-BFGS iteration must improve on the best one.
_WARM_UP = 0.05  # Share of the steps in which the learning rate rises.
_MAX_HELD_OUT = 512  # Held-out people scored.
_HELD_OUT_DRAWS = 512


@dataclass(frozen=True)
class Leg:
    """Describes one stage on one set of people.

    Attributes:
        index: Number of the stage; it seeds the leg.
        stage: What is maximised.
        training: The people it is maximised on.
        held_out: The people who stop it early, or None.
        refit: Whether it repeats, on everybody, a stage whose length `held_out` has found.
    """

    index: int
    stage: Objective
    training: Preferences
    held_out: Preferences | None
    refit: bool = False

    @property
    def name(self) -> str:
        """Name of the stage in the history."""
        return self.stage.name + (" (refit)" if self.refit else "")


def plan(
    stages: list[Objective], data: Preferences, validation: float | None, refit: bool, seed: int
) -> list[Leg]:
    """Lists the legs of a fit: the stages, and once more on everybody with `refit`."""
    training, held_out = data, None
    if validation is not None:
        training, held_out = data.split_users(validation, seed=seed)
    legs = [Leg(index, stage, training, held_out) for index, stage in enumerate(stages)]
    if held_out is not None and refit:
        legs += [Leg(index, stage, data, None, True) for index, stage in enumerate(stages)]
    return legs


@dataclass
class Fitter:
    """Runs the legs of a fit in order, keeps what they report, and can be stopped anywhere.

    Attributes:
        model: The model, changed in place.
        guide: Its guide, changed in place, or None.
        legs: What is to be done.
        rates: Learning rate of the networks, and of the population's parameters.
        seed: Seed of draws and batches.
        progress_bar: Whether to show progress.
        checkpoints: Where states are kept, or None.
        interval: Steps from one checkpoint to the next.
        finished: Number of legs that are done.
        history: One row a step.
        best_steps: Best number of steps of every stage, as far as held-out people were scored.
        scores: Held-out scores after every stage.
        start: Parameters before the first step.
    """

    model: HeterogeneousBTL
    guide: NeuralProcessGuide | None
    legs: list[Leg]
    rates: tuple[float, float]
    seed: int
    progress_bar: bool = False
    checkpoints: Checkpoints | None = None
    interval: int = 100
    finished: int = 0
    history: list[dict] = field(default_factory=list)
    best_steps: list[int] = field(default_factory=list)
    scores: list[dict] = field(default_factory=list)
    start: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> None:
        """Runs what is left to do, from the latest checkpoint if there is one."""
        self.start = self.parameters()
        saved = self._resume()
        total = sum(self._limit(leg) for leg in self.legs)
        with (
            seeded(self.seed),
            pyro.validation_enabled(False),
            _trainable(self.model, self.guide),
            _Progress(total, len(self.history), self.progress_bar) as progress,
        ):
            for leg in self.legs[self.finished :]:
                self._run_leg(leg, saved, progress)
                saved = None
            self._finish()

    def _run_leg(self, leg: Leg, saved: _State | None, progress: _Progress) -> None:
        if leg.refit and leg.index == 0 and saved is None:
            self.restore(self.start)
        seed = int(np.random.default_rng([self.seed, leg.index]).integers(2**31))
        torch.manual_seed(seed)
        if isinstance(leg.stage, MaximumLikelihood):
            self.checkpoint(leg, {}, {"step": 0})
            best = _maximise(self, leg, self._limit(leg), progress)
        else:
            descent = _Descent(self, leg, self._limit(leg), np.random.default_rng(seed))
            if saved is not None:
                descent.restore(saved)
            best = descent.run(progress)
        if leg.held_out is not None:
            self.best_steps.append(best)
            self.scores += _held_out_scores(self.model, self.guide, leg.held_out, leg.stage.name)
        self.finished += 1

    def _limit(self, leg: Leg) -> int:
        if leg.refit and leg.index < len(self.best_steps):
            return self.best_steps[leg.index]
        return leg.stage.steps

    def _finish(self) -> None:
        last = self.legs[-1]
        if self.guide is not None:
            reach = 2 if isinstance(last.stage, Sleep) else 1
            self.guide.largest_context.fill_(reach * int(last.training.counts.max()))
            self.guide.objectives = [leg.stage.name for leg in self.legs if not leg.refit]
        if len(self.best_steps) > 1 and isinstance(last.stage, Sleep):
            _compare_with_sleep(self.held_out())
        self.checkpoint(last, {}, {"step": len(self.history)})

    def held_out(self) -> pd.DataFrame | None:
        """Tabulates the held-out scores, None if nobody was held out."""
        return pd.DataFrame(self.scores) if self.scores else None

    # ------------------------------------------------------------------ state

    def parameters(self) -> dict[str, Tensor]:
        """Copies parameters and buffers of model and guide."""
        return {name: value.clone() for name, value in flatten(self.model, self.guide).items()}

    def restore(self, parameters: dict[str, Tensor]) -> None:
        """Puts parameters and buffers back."""
        unflatten(parameters, self.model, self.guide)

    def record(self, leg: Leg, step: int, loss: float, validation: float | None) -> None:
        """Adds a row to the history."""
        self.history.append(
            {"stage": leg.name, "step": step, "loss": loss, "validation_log_score": validation}
        )

    def checkpoint(self, leg: Leg, tensors: dict[str, Tensor], values: dict) -> None:
        """Writes a checkpoint of the fit, to which a leg adds tensors and values of its own."""
        if self.checkpoints is None:
            return
        device = self.model.device
        now = flatten(self.model, self.guide)  # Copied when it is written.
        everything = _prefixed("now", now) | _prefixed("start", self.start) | tensors
        everything["rng.torch"] = torch.get_rng_state()
        if device.type == "cuda":
            everything["rng.cuda"] = torch.cuda.get_rng_state(device)
        progress = {
            "finished": self.finished,
            "history": self.history,
            "best_steps": self.best_steps,
            "scores": self.scores,
        }
        self.checkpoints.write(everything, {"leg": leg.name, **progress, **values})

    def _resume(self) -> _State | None:
        if self.checkpoints is None or self.checkpoints.found is None:
            return None
        state = _State(*self.checkpoints.found)
        self.restore(state.part("now"))
        self.start = state.part("start")
        for name in ("finished", "history", "best_steps", "scores"):
            setattr(self, name, state.values[name])
        return state


@dataclass(frozen=True)
class _State:
    """Holds what a checkpoint held."""

    tensors: dict[str, Tensor]
    values: dict

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors whose names begin with a prefix, without it."""
        start = prefix + "."
        return {
            name.removeprefix(start): value
            for name, value in self.tensors.items()
            if name.startswith(start)
        }

    def set_random_state(self, device: torch.device) -> None:
        """Puts PyTorch's generators where they were."""
        torch.set_rng_state(self.tensors["rng.torch"])
        if device.type == "cuda" and "rng.cuda" in self.tensors:
            torch.cuda.set_rng_state(self.tensors["rng.cuda"], device)


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


class _Descent:
    """Runs Adam on a leg; with held-out people it ends at the best step.

    Args:
        fitter: The fit it is part of.
        leg: The stage and its people.
        steps: Largest number of steps.
        rng: Generator that chooses batches.
    """

    def __init__(self, fitter: Fitter, leg: Leg, steps: int, rng: np.random.Generator) -> None:
        self.fitter, self.leg, self.steps, self.rng = fitter, leg, steps, rng
        model, stage = fitter.model, leg.stage
        self.parameters = [p for p in stage.trained(model, fitter.guide) if p.requires_grad]
        groups = _groups(model, self.parameters, fitter.rates)
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
        self.frozen = (
            [] if stage.learns_model else [p for p in model.parameters() if p.requires_grad]
        )
        # A simulated stage cannot overfit the people, so it is not stopped early.
        self.watches = leg.held_out is not None and stage.learns_model
        self.step = 0
        self.best_score, self.best_step, self.waited = -math.inf, steps, 0
        self.best: dict[str, Tensor] = {}

    def run(self, progress: _Progress) -> int:
        """Runs to the end and returns the number of the best step."""
        fitter, leg = self.fitter, self.leg
        interval = max(1, self.steps // _CHECKS)
        with _requires_grad(self.frozen, False):
            while self.step < self.steps and self.waited <= _PATIENCE:
                if self.step % fitter.interval == 0:
                    fitter.checkpoint(leg, *self.state())
                self.step += 1
                loss = self._descend()
                score = None
                if self.watches and (self.step % interval == 0 or self.step == self.steps):
                    score = _validation_score(
                        leg.stage, fitter.model, fitter.guide, leg.held_out, fitter.seed
                    )
                    self._compare(score)
                fitter.record(leg, self.step, loss, score)
                progress.update(leg.name, loss)
        progress.skip(leg.stage.steps - self.step)
        if self.best:
            fitter.restore(self.best)
        return self.best_step

    def _descend(self) -> float:
        """Takes one step and returns the loss before it."""
        fitter, stage = self.fitter, self.leg.stage
        batch = stage.draw_batch(fitter.model, self.leg.training, self.rng)
        self.optimiser.zero_grad()
        loss = stage.backward(fitter.model, fitter.guide, batch)
        norm = nn.utils.clip_grad_norm_(self.parameters, 5.0)
        if not (math.isfinite(loss) and torch.isfinite(norm)):
            raise FloatingPointError(_non_finite(self.leg, self.step, loss, norm, batch))
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * _schedule(self.step - 1, self.steps)
        self.optimiser.step()
        return loss

    def _compare(self, score: float) -> None:
        self.waited += 1
        if score > self.best_score:
            self.best_score, self.best_step, self.waited = score, self.step, 0
            self.best = self.fitter.parameters()

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Returns what, beside the fit's own state, a checkpoint must hold."""
        tensors = _prefixed("best", self.best)
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= _prefixed(f"optimiser.{index}", moments)
        values = {
            "step": self.step,
            "rng": self.rng.bit_generator.state,
            "best_score": self.best_score if self.best else None,
            "best_step": self.best_step,
            "waited": self.waited,
        }
        return tensors, values

    def restore(self, saved: _State) -> None:
        """Goes on from a checkpoint."""
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in saved.part("optimiser").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        device = self.fitter.model.device
        self.best = {name: value.to(device) for name, value in saved.part("best").items()}
        values = saved.values
        self.step, self.best_step, self.waited = (
            values[name] for name in ("step", "best_step", "waited")
        )
        self.best_score = values["best_score"] if self.best else -math.inf
        self.rng.bit_generator.state = values["rng"]
        saved.set_random_state(device)


def _maximise(fitter: Fitter, leg: Leg, steps: int, progress: _Progress) -> int:
    """Runs L-BFGS in double precision; with held-out people, ends at the best iteration."""
    from scipy.optimize import minimize  # A tenth of the package's import time.

    model, stage = fitter.model, leg.stage
    parameters = [p for p in model.parameters() if p.requires_grad]
    dtype = parameters[0].dtype
    model.double()
    batches = _pooled_batches(leg.training, model)
    unseen = _pooled_batches(leg.held_out, model) if leg.held_out else []
    best_score, best_step, best_vector, step = -math.inf, 0, None, 0

    def set_parameters(vector: np.ndarray) -> None:
        vector_to_parameters(torch.as_tensor(vector, device=model.device), parameters)

    def loss_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        set_parameters(vector)
        model.zero_grad()
        total = 0.0
        for batch in batches:
            # The loss is a mean over the batch's imaginary people.
            loss = stage.loss(model, None, batch) * (batch.num_users / len(leg.training))
            loss.backward()
            total += loss.item()
        return total, parameters_to_vector([_gradient(p) for p in parameters]).cpu().numpy()

    def after_iteration(intermediate_result: OptimizeResult) -> None:
        nonlocal best_score, best_step, best_vector, step
        step += 1
        loss, score = float(intermediate_result.fun), None
        if unseen:
            set_parameters(intermediate_result.x)
            with torch.no_grad():
                losses = [stage.loss(model, None, b).item() * b.num_users for b in unseen]
            score = -sum(losses) / len(leg.held_out)
            if score > best_score + _LEAST_GAIN:
                best_score, best_step, best_vector = score, step, intermediate_result.x.copy()
        fitter.record(leg, step, loss, score)
        progress.update(leg.name, loss)
        if unseen and step - best_step > 2 * _PATIENCE:
            raise StopIteration

    start = parameters_to_vector(parameters).detach().cpu().numpy()
    try:
        result = minimize(
            loss_and_gradient,
            start,
            jac=True,
            method="L-BFGS-B",
            callback=after_iteration,
            # A concave likelihood is maximised to the last digit, a network's to six.
            options={
                "maxiter": steps,
                "maxfun": 4 * steps,
                "ftol": 1e-15 if model.utility.is_linear else 1e-7,
                "gtol": 1e-9,
            },
        )
        if not math.isfinite(result.fun):
            set_parameters(start)
            raise FloatingPointError(f"the loss is {result.fun} at iteration {step} of L-BFGS")
        set_parameters(result.x if best_vector is None else best_vector)
        if not unseen and not leg.refit:
            _check_maximum(model, result)
    finally:
        model.to(dtype)
    progress.skip(leg.stage.steps - step)
    return max(best_step, 1)


def _check_maximum(model: HeterogeneousBTL, result: OptimizeResult) -> None:
    slope = float(np.abs(result.jac).max(initial=0.0))
    if slope > 1e-2 or (slope > 1e-5 and model.utility.is_linear):
        warnings.warn(
            f"maximum likelihood did not converge in {result.nit} iterations: the largest "
            f"gradient is {slope:.1e} nats per person",
            stacklevel=5,
        )
    if model.utility.is_linear:
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
    special = {id(p) for p in model.population_parameters()}
    groups = [
        {"params": [p for p in parameters if id(p) not in special], "peak": rates[0]},
        {"params": [p for p in parameters if id(p) in special], "peak": rates[1]},
    ]
    return [group for group in groups if group["params"]]


def _schedule(step: int, steps: int) -> float:
    """Returns warm-up followed by cosine decay to 0, as a factor of the learning rate."""
    warm_up = max(1, round(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _non_finite(leg: Leg, step: int, loss: float, norm: Tensor, batch: Batch) -> str:
    if batch.people is None:
        people = "people simulated from the model"
    else:
        names = [repr(name) for name in leg.training.user_names[batch.people[:8]]]
        more = f" and {batch.num_users - 8} more" if batch.num_users > 8 else ""
        people = f"users {', '.join(names)}{more}"
    return (
        f"loss must be finite, got loss {loss} and gradient norm {norm.item()} at step {step} of "
        f"{leg.stage.name}, in a batch of {people}; parameters are those before the step. "
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
    particles = getattr(stage, "num_particles", 1)
    shown = held_out.subset(range(min(len(held_out), _MAX_HELD_OUT)))
    with seeded(seed), torch.no_grad():
        losses = [
            batch.num_users * stage.loss(model, guide, batch).item()
            for _, batch in user_batches(shown, particles, model.device)
        ]
    return -sum(losses) / len(shown)


def _held_out_scores(
    model: HeterogeneousBTL, guide: NeuralProcessGuide | None, held_out: Preferences, stage: str
) -> list[dict]:
    """Scores unseen choices of held-out people, for the raw guide and the corrected posterior."""
    shown = held_out.subset(range(min(len(held_out), _MAX_HELD_OUT)))
    losses: dict[str, list[Tensor]] = {"raw": [], "corrected": []}
    with seeded(0), torch.no_grad():
        for _, batch in user_batches(shown, _HELD_OUT_DRAWS, model.device):
            context_mask, target_mask = split_batch(batch)
            draws = propose(model, guide, batch.replace(mask=context_mask), _HELD_OUT_DRAWS)
            target = batch.replace(mask=target_mask)
            likelihood, scored = model.choice(target, draws.z), target.judgement_mask
            for name, log_weights in (
                ("raw", torch.zeros_like(draws.log_ratio).log_softmax(0)),  # The guide's own draws.
                ("corrected", draws.log_weights.log_softmax(0)),
            ):
                score = likelihood.log_predictive(log_weights, batch.choice)
                losses[name].append(-(score * scored).sum(-1) / scored.sum(-1))
    rows = []
    for name, parts in losses.items():
        loss = torch.cat(parts)
        mean, error = loss.mean().item(), loss.std().item() / math.sqrt(len(loss))
        row = {"stage": stage, "posterior": name, "log_loss": mean, "standard_error": error}
        rows.append(row)
    return rows


def _compare_with_sleep(scores: pd.DataFrame) -> None:
    """Warns where Sleep, the last stage, cost the corrected posterior accuracy."""
    before, after = scores[scores["posterior"] == "corrected"].to_dict("records")[-2:]
    cost = after["log_loss"] - before["log_loss"]
    if cost > after["standard_error"]:
        warnings.warn(
            f"Sleep raised the held-out log-loss of the corrected posterior by {cost:.4f} nats "
            f"a comparison, more than its standard error {after['standard_error']:.4f}: the model "
            "is misspecified for these people",
            stacklevel=5,
        )


def _pooled_batches(data: Preferences, model: HeterogeneousBTL) -> list[Batch]:
    """Lists the comparisons, which need no people, in double precision."""
    return [_double(batch.to(model.device)) for batch in data.pooled().batches(16_384)]


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

    def __init__(self, total: int, initial: int, enabled: bool) -> None:
        self._bar = None
        if enabled:
            with contextlib.suppress(Exception):
                self._bar = tqdm(total=total, initial=initial, mininterval=0.5)

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
