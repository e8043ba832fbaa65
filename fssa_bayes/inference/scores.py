"""Scores of held-out people during a fit."""

from __future__ import annotations

import math
import warnings

import pandas as pd
import torch
from torch import Tensor

from fssa_bayes._random import Streams, seeded
from fssa_bayes.data import Preferences, total_weight, user_batches
from fssa_bayes.guide import NeuralProcessGuide
from fssa_bayes.inference.objectives import Objective, split_batch
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling import draw_guide, propose

__all__ = ["held_out_scores", "validation_score", "warn_if_costly"]

_MAX_HELD_OUT = 512  # Held-out people scored.
_HELD_OUT_DRAWS = 512


def validation_score(
    stage: Objective,
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    held_out: Preferences,
    seed: int,
) -> float:
    """Scores the first held-out people by the stage's objective, with the same draws each time.

    Returns:
        Minus the loss, in nats per person, weighted where people have weights.
    """
    shown = held_out.subset(range(min(len(held_out), _MAX_HELD_OUT)))
    with seeded(seed), torch.no_grad():
        losses = [
            batch.num_users * stage.loss(model, guide, batch).item()
            for _, batch in user_batches(shown, stage.num_particles, model.device)
        ]
    return -sum(losses) / total_weight(shown)


def held_out_scores(
    model: HeterogeneousBTL, guide: NeuralProcessGuide | None, held_out: Preferences, stage: str
) -> list[dict]:
    """Scores unseen choices of held-out people, for the raw guide and the corrected posterior.

    Args:
        model: The model.
        guide: Its guide; None if `latent_dim` is 0.
        held_out: The people, of whom the first are scored.
        stage: Name of the stage after which they are scored.

    Returns:
        Two rows of :attr:`FitResult.held_out`.
    """
    shown = held_out.subset(range(min(len(held_out), _MAX_HELD_OUT)))
    losses: dict[str, list[Tensor]] = {"raw": [], "corrected": []}
    streams = Streams(0, "held out")
    with torch.no_grad():
        for _, batch in user_batches(shown, _HELD_OUT_DRAWS, model.device):
            context_mask, target_mask = split_batch(batch)
            known = batch.replace(mask=context_mask)
            draws = propose(model, guide, known, _HELD_OUT_DRAWS, streams=streams)
            raw = draws
            if model.latent_dim:
                raw = draw_guide(model, guide, known, _HELD_OUT_DRAWS, streams=streams)
            target = batch.replace(mask=target_mask)
            scored = target.judgement_mask
            for name, z, log_weights in (
                ("raw", raw.z, torch.zeros_like(raw.log_weights)),
                ("corrected", draws.z, draws.log_weights),
            ):
                likelihood = model.choice(target, z)
                score = likelihood.log_predictive(log_weights.log_softmax(0), batch.choice)
                losses[name].append(-(score * scored).sum(-1) / scored.sum(-1))
    rows = []
    for name, parts in losses.items():
        loss = torch.cat(parts)
        mean, error = loss.mean().item(), loss.std().item() / math.sqrt(len(loss))
        row = {"stage": stage, "posterior": name, "log_loss": mean, "standard_error": error}
        rows.append(row)
    return rows


def warn_if_costly(scores: pd.DataFrame) -> None:
    """Warns where the last stage raised the log-loss of the corrected posterior.

    Args:
        scores: Rows of :func:`held_out_scores`, stage after stage.
    """
    before, after = scores[scores["posterior"] == "corrected"].to_dict("records")[-2:]
    cost = after["log_loss"] - before["log_loss"]
    if cost > after["standard_error"]:
        warnings.warn(
            f"{after['stage']} raised the held-out log-loss of the corrected posterior by "
            f"{cost:.4f} nats a comparison, more than its standard error "
            f"{after['standard_error']:.4f}: the model is misspecified for these people",
            stacklevel=4,
        )
