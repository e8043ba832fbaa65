"""The stages of a fit in order, with checkpoints from which a fit goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor, nn

from fssa_bayes._random import seeded
from fssa_bayes.data import Preferences
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference.descent import Descent
from fssa_bayes.inference.marginal import maximise_marginal
from fssa_bayes.inference.maximum import maximise
from fssa_bayes.inference.objectives import MaximumLikelihood, Objective
from fssa_bayes.inference.processes import Processes
from fssa_bayes.inference.progress import Progress
from fssa_bayes.inference.scores import held_out_scores, warn_if_costly
from fssa_bayes.inference.state import FitState, prefixed, random_state
from fssa_bayes.io import Checkpoints, flatten, unflatten
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population import Separation

__all__ = ["Fitter", "Leg", "plan", "train_mode"]


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
        legs: Stages with their people, in order.
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
        separation: What the choices put at infinity; None where it was not looked for.
        processes: The processes that the fit is divided among. The first alone has `checkpoints`.
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
    separation: Separation | None = None
    processes: Processes = field(default_factory=Processes)

    def run(self) -> None:
        """Runs what is left to do, from the latest checkpoint if there is one."""
        self.start = self.parameters()
        saved = self.resume()
        total = sum(self.steps_of(leg) for leg in self.legs)
        with (
            seeded(self.seed),
            pyro.validation_enabled(False),
            train_mode(self.model, self.guide),
            Progress(total, len(self.history), self.progress_bar) as progress,
        ):
            for leg in self.legs[self.finished :]:
                self.run_leg(leg, saved, progress)
                saved = None
            last = self.legs[-1]
            if self.guide is not None:
                self.guide.largest_context.fill_(last.stage.largest_context(last.training))
                self.guide.objectives = [leg.stage.name for leg in self.legs if not leg.refit]
            if len(self.best_steps) > 1 and not last.stage.learns_model:
                warn_if_costly(self.held_out())
            self.checkpoint(last, {}, {"step": len(self.history)})

    def run_leg(self, leg: Leg, saved: FitState | None, progress: Progress) -> None:
        """Runs one leg, from the state of a checkpoint within the leg if there is one."""
        if leg.refit and leg.index == 0 and saved is None:
            self.restore(self.start)
        seed = int(np.random.default_rng([self.seed, leg.index]).integers(2**31))
        torch.manual_seed(seed)
        if isinstance(leg.stage, MaximumLikelihood):
            self.checkpoint(leg, {}, {"step": 0})
            search = maximise_marginal if self.model.latent_dim else maximise
            best = search(self, leg, self.steps_of(leg), progress)
        else:
            descent = Descent(self, leg, self.steps_of(leg), np.random.default_rng(seed))
            if saved is not None:
                descent.restore(saved)
            best = descent.run(progress)
        if leg.held_out is not None:
            self.best_steps.append(best)
            self.scores += held_out_scores(self.model, self.guide, leg.held_out, leg.stage.name)
        self.finished += 1

    def steps_of(self, leg: Leg) -> int:
        """Returns the largest number of steps of a leg: a refit takes the best number found."""
        if leg.refit and leg.index < len(self.best_steps):
            return self.best_steps[leg.index]
        return leg.stage.steps

    def held_out(self) -> pd.DataFrame | None:
        """Tabulates the held-out scores, None if nobody was held out."""
        return pd.DataFrame(self.scores) if self.scores else None

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
        now = flatten(self.model, self.guide)  # Copied when it is written.
        everything = prefixed("now", now) | prefixed("start", self.start) | tensors
        everything |= random_state(self.model.device)
        progress = {
            "finished": self.finished,
            "history": self.history,
            "best_steps": self.best_steps,
            "scores": self.scores,
        }
        self.checkpoints.write(everything, {"leg": leg.name, **progress, **values})

    def resume(self) -> FitState | None:
        """Takes parameters and progress from the latest checkpoint, which it returns, if any."""
        found = None if self.checkpoints is None else self.checkpoints.found
        tensors, values = found or ({}, None)
        values = json.loads(self.processes.agree_on_text(json.dumps(values)))
        if values is None:
            return None
        state = FitState(self.processes.agree(tensors), values)
        self.restore(state.part("now"))
        self.start = state.part("start")
        for name in ("finished", "history", "best_steps", "scores"):
            setattr(self, name, state.values[name])
        return state


@contextlib.contextmanager
def train_mode(model: nn.Module, guide: nn.Module | None) -> Iterator[None]:
    """Puts model and guide in train mode; afterwards in evaluation mode, without gradients."""
    modules = [module for module in (model, guide) if module is not None]
    try:
        for module in modules:
            module.train()
        yield
    finally:
        for module in modules:
            module.eval()
            module.zero_grad(set_to_none=True)
