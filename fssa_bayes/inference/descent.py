"""Stochastic gradient descent on an objective, by Adam."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fssa_bayes.data import Batch, first_names
from fssa_bayes.inference.flat import FlatParameters
from fssa_bayes.inference.scores import validation_score
from fssa_bayes.inference.state import FitState, prefixed
from fssa_bayes.model import HeterogeneousBTL

if TYPE_CHECKING:
    from fssa_bayes.inference.objectives import Objective
    from fssa_bayes.inference.progress import Progress
    from fssa_bayes.inference.training import Fitter, Leg

__all__ = [
    "Descent",
    "check_bound",
    "describe_people",
    "learning_rate_factor",
    "parameter_groups",
    "without_gradients",
]

_CHECKS = 25  # Evaluations on the held-out people during a stage.
_PATIENCE = 6  # Evaluations without an improvement before a stage ends.
_WARM_UP = 0.05  # Share of the steps in which the learning rate rises.
_LONGEST_GRADIENT = 5.0  # Norm above which gradients are scaled down.
_MOMENTS = ("exp_avg", "exp_avg_sq")  # What Adam keeps of a parameter beside the number of steps.
_MOST_LUCK = 30.0  # Nats above 0 that draws give a bound with a probability below e^−30, or 1e-13.


class Descent:
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
        self.flat, groups = [], parameter_groups(model, self.parameters, fitter.rates)
        for group in groups:
            flat = FlatParameters.of(group["params"])
            group["params"] = [each.values for each in flat]
            self.flat += flat
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
        self.frozen = (
            [] if stage.learns_model else [p for p in model.parameters() if p.requires_grad]
        )
        # A simulated stage cannot overfit the people, so it is not stopped early.
        self.watches = leg.held_out is not None and stage.learns_model
        self.step = 0
        self.best_score, self.best_step, self.waited = -math.inf, steps, 0
        self.best: dict[str, Tensor] = {}

    def run(self, progress: Progress) -> int:
        """Runs to the end and returns the number of the best step."""
        fitter, leg = self.fitter, self.leg
        interval = max(1, self.steps // _CHECKS)
        with contextlib.ExitStack() as block:
            block.enter_context(without_gradients(self.frozen))
            for flat in self.flat:
                block.enter_context(flat.shared())
            while self.step < self.steps and self.waited <= _PATIENCE:
                if self.step % fitter.interval == 0:
                    fitter.checkpoint(leg, *self.state())
                self.step += 1
                loss = self.take_step()
                score = None
                if self.watches and (self.step % interval == 0 or self.step == self.steps):
                    score = validation_score(
                        leg.stage, fitter.model, fitter.guide, leg.held_out, fitter.seed
                    )
                    score = fitter.processes.agree_on(score)
                    self.waited += 1
                    if score > self.best_score:
                        self.best_score, self.best_step, self.waited = score, self.step, 0
                        self.best = fitter.parameters()
                fitter.record(leg, self.step, loss, score)
                progress.update(leg.name, loss)
        progress.skip(leg.stage.steps - self.step)
        if self.best:
            fitter.restore(self.best)
        return self.best_step

    def take_step(self) -> float:
        """Takes one step and returns the loss before it.

        Raises:
            FloatingPointError: If the loss or its gradient is not finite, or the loss is none that
                the objective can have.
        """
        fitter, stage = self.fitter, self.leg.stage
        batch = stage.draw_batch(fitter.model, self.leg.training, self.rng)
        for flat in self.flat:
            flat.clear()
        loss = self.evaluate(batch)
        norm = math.hypot(*(flat.norm() for flat in self.flat))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"loss must be finite, got loss {loss} and gradient norm {norm} at step "
                f"{self.step} of {stage.name}, in a batch of {describe_people(self.leg, batch)}; "
                "parameters are those before the step. A lower learning_rate may help"
            )
        check_bound(stage, loss, batch.num_users, self.step)
        if norm > _LONGEST_GRADIENT:
            for flat in self.flat:
                flat.values.grad.mul_(_LONGEST_GRADIENT / norm)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(self.step - 1, self.steps)
        self.optimiser.step()
        return loss

    def evaluate(self, batch: Batch) -> float:
        """Puts the gradient of the loss per person in place, and returns the loss, in nats.

        Processes evaluate a part of the people each.
        """
        fitter, processes = self.fitter, self.fitter.processes
        own, share = batch, 1.0
        if processes.size > 1:
            own = batch.take(processes.share(batch.num_users))
            share = own.num_users / batch.num_users
        loss = self.leg.stage.backward(fitter.model, fitter.guide, own) if share else 0.0
        for flat in self.flat:
            flat.collect()
        if processes.size == 1:
            return loss
        for flat in self.flat:
            processes.add_up(flat.values.grad.mul_(share))
        return processes.add_up(torch.tensor(share * loss, dtype=torch.float64)).item()

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Returns what, beside the fit's own state, a checkpoint must hold."""
        tensors = prefixed("best", self.best)
        for index, moments in enumerate(self.moments()):
            tensors |= prefixed(f"optimiser.{index}", moments)
        values = {
            "step": self.step,
            "rng": self.rng.bit_generator.state,
            "best_score": self.best_score if self.best else None,
            "best_step": self.best_step,
            "waited": self.waited,
        }
        return tensors, values

    def restore(self, saved: FitState) -> None:
        """Goes on from a checkpoint."""
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in saved.part("optimiser").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
        self.set_moments([moments[index] for index in sorted(moments)])
        device = self.fitter.model.device
        self.best = {name: value.to(device) for name, value in saved.part("best").items()}
        values = saved.values
        self.step, self.best_step, self.waited = (
            values[name] for name in ("step", "best_step", "waited")
        )
        self.best_score = values["best_score"] if self.best else -math.inf
        self.rng.bit_generator.state = values["rng"]
        saved.set_random_state(device)

    def moments(self) -> list[dict[str, Tensor]]:
        """Lists the optimiser's state of every parameter; none before the first step."""
        every: list[dict[str, Tensor]] = []
        for flat in self.flat:
            state = self.optimiser.state[flat.values]
            if state:
                parts = [flat.split(state[name]) for name in _MOMENTS]
                every += [
                    {"step": state["step"], **dict(zip(_MOMENTS, each, strict=True))}
                    for each in zip(*parts, strict=True)
                ]
        return every

    def set_moments(self, every: list[dict[str, Tensor]]) -> None:
        """Puts back what :meth:`moments` listed."""
        state, rest = {}, iter(every)
        for index, flat in enumerate(self.flat):
            mine = [moments for _, moments in zip(flat.parameters, rest, strict=False)]
            if mine:
                state[index] = {"step": mine[0]["step"]} | {
                    name: torch.cat([moments[name].flatten() for moments in mine])
                    for name in _MOMENTS
                }
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})


def parameter_groups(
    model: HeterogeneousBTL, parameters: list[nn.Parameter], rates: tuple[float, float]
) -> list[dict]:
    """Gives the parameters that describe the population a learning rate of their own.

    Args:
        model: The model.
        parameters: All parameters that a stage trains.
        rates: Peak learning rate of the networks, and of the population's parameters.

    Returns:
        Groups of parameters as an optimiser takes them, each with its `peak`.
    """
    special = {id(p) for p in model.population_parameters()}
    groups = [
        {"params": [p for p in parameters if id(p) not in special], "peak": rates[0]},
        {"params": [p for p in parameters if id(p) in special], "peak": rates[1]},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(step: int, steps: int) -> float:
    """Returns warm-up followed by cosine decay to 0, as a factor of the peak learning rate."""
    warm_up = max(1, round(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def check_bound(stage: Objective, loss: float, num_users: int, step: int) -> None:
    """Raises a FloatingPointError where losses say that choices have probabilities above 1.

    The loss of a person is −log of an estimate whose mean is at most a probability. The product of
    the estimates of independent people has a mean of at most 1 too, so that by Markov's inequality
    it exceeds e^t with a probability of at most e^−t.

    Args:
        stage: The objective.
        loss: Its loss per person, in nats.
        num_users: Number of people in the batch.
        step: Number of the step.
    """
    if stage.bounds_choices and loss * num_users < -_MOST_LUCK:
        raise FloatingPointError(
            f"the loss of {stage.name} bounds −log of the probability of choices from above, so "
            f"it cannot be negative beyond chance, got {loss:.6g} nats a person for {num_users} "
            f"people at step {step}: densities of model and guide are wrong; parameters are those "
            "before the step"
        )


def describe_people(leg: Leg, batch: Batch) -> str:
    """Names the people of a batch for a message."""
    if batch.people is None:
        return "people simulated from the model"
    return f"users {first_names(leg.training.user_names[batch.people])}"


@contextlib.contextmanager
def without_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Lets trainable parameters require no gradient within a block."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
