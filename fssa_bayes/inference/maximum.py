"""Maximum likelihood of a homogeneous model, by Newton's method or L-BFGS in double precision.

Newton's method takes a linear utility whose likelihood is concave (:func:`find_answers` has the
rule), L-BFGS the others. Both find the same maximum.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fssa_bayes.data import Batch, Preferences, total_weight
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.population import Answers, climb, list_answers, pooled_likelihood, solve_well_posed

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

    from fssa_bayes.inference.progress import Progress
    from fssa_bayes.inference.training import Fitter, Leg

__all__ = ["check_maximum", "find_answers", "maximise", "pooled_batches"]

_MOST_ITEMS = 2000  # Items without features: a step takes time in the cube of their number.
_MOST_FEATURES = 64  # Features: every comparison adds a matrix of their squares to a step.
_NEWTON_STEPS = 30  # A maximum takes about six steps, and many where it is nearly at infinity.
_TERMS = 10  # Comparisons of a person from which a gradient is judged by their number.
_PATIENCE = 12  # Iterations without an improvement on held-out people before L-BFGS ends.
_LEAST_GAIN = 1e-4  # Nats a person by which an iteration must improve on the best one.


def maximise(fitter: Fitter, leg: Leg, steps: int, progress: Progress) -> int:
    """Maximises the likelihood; with held-out people, ends at the best iteration.

    Args:
        fitter: The fit that the leg is part of; its model is changed in place.
        leg: The stage and its people.
        steps: Largest number of iterations.
        progress: Where iterations are counted.

    Returns:
        Number of the best iteration.

    Raises:
        FloatingPointError: If the loss is not finite; the parameters are those before.

    Warns:
        UserWarning: If the search did not converge.
    """
    answers = find_answers(fitter, leg)
    best = None if answers is None else _climb(fitter, leg, answers, steps, progress)
    return _descend(fitter, leg, steps, progress) if best is None else best


def find_answers(fitter: Fitter, leg: Leg) -> Answers | None:
    """Lists the answers where Newton's method is to find the maximum; None where L-BFGS is.

    Newton's method takes a linear utility without lapses, which make the likelihood no longer
    concave; at most 2,000 items without features, or 64 features; everybody, without held-out
    people who end the search early; and choices that are not separated, as it would go on to
    infinity in few steps.
    """
    model = fitter.model
    utility = model.utility
    if not utility.is_linear or not utility.map.is_identity or model.lapse_logit is not None:
        return None
    if not all(value.requires_grad for value in _linear_parameters(model)):
        return None
    most = _MOST_ITEMS if leg.training.items is None else _MOST_FEATURES
    if model.num_features > most or leg.held_out is not None or leg.refit:
        return None
    if fitter.separation is None:  # Not looked for, as a prior keeps estimates finite.
        return list_answers(model, leg.training)
    return None if fitter.separation else fitter.separation.answers


def _linear_parameters(model: HeterogeneousBTL) -> list[torch.nn.Parameter]:
    """Lists the parameters of a homogeneous model with linear utility in the order of answers."""
    return [model.utility.mean, *model.answer_parameters().values()]


def _climb(
    fitter: Fitter, leg: Leg, answers: Answers, steps: int, progress: Progress
) -> int | None:
    """Maximises by Newton's method; returns None, the model as it was, where there is no maximum.

    Arguments are those of :func:`maximise`, and the answers of the leg's people.
    """
    model, people = fitter.model, total_weight(leg.training)
    likelihood = pooled_likelihood(answers, model.penalty)
    parameters = _linear_parameters(model)
    start = torch.cat([value.detach().reshape(-1) for value in parameters]).double().cpu().numpy()
    losses: list[float] = []
    options = {"max_steps": min(steps, _NEWTON_STEPS), "after_step": losses.append}
    try:
        end = climb(likelihood, start, solve_well_posed, **options)
    except (np.linalg.LinAlgError, ValueError):  # A singular matrix, or one that is not finite.
        return None
    if not end.is_maximum and (end.num_steps < steps or not np.isfinite(losses).all()):
        return None
    with torch.no_grad():
        sizes = [value.numel() for value in parameters]
        for value, part in zip(parameters, np.split(end.point, np.cumsum(sizes)[:-1]), strict=True):
            value.copy_(torch.from_numpy(part).reshape(value.shape))
    # A fit that starts at the maximum has a history too.
    losses = losses or [likelihood.log_prob(end.point)]
    for step, value in enumerate(losses, 1):
        fitter.record(leg, step, -value / people, None)
        progress.update(leg.name, -value / people)
    check_maximum(model, -end.gradient / people, len(losses), leg.training)
    progress.skip(leg.stage.steps - len(losses))
    return len(losses)


def _descend(fitter: Fitter, leg: Leg, steps: int, progress: Progress) -> int:
    """Minimises the loss by L-BFGS; arguments and result are those of :func:`maximise`."""
    from scipy.optimize import minimize  # A tenth of the time to import the package.

    model, stage, people = fitter.model, leg.stage, total_weight(leg.training)
    parameters = [p for p in model.parameters() if p.requires_grad]
    dtype = parameters[0].dtype
    model.double()
    processes = fitter.processes
    batches = pooled_batches(leg.training, model)[processes.rank :: processes.size]
    unseen = pooled_batches(leg.held_out, model) if leg.held_out else []
    best_score, best_step, best_vector, step = -math.inf, 0, None, 0

    def set_parameters(vector: np.ndarray) -> None:
        vector_to_parameters(torch.as_tensor(vector, device=model.device), parameters)

    def loss_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        set_parameters(vector)
        model.zero_grad()
        total = 0.0
        for batch in batches:
            # The loss is a mean over the people of the batch, among whom choices are pooled.
            loss = stage.loss(model, None, batch) * (batch.num_users / people)
            loss.backward()
            total += loss.item()
        total = processes.add_up(torch.tensor(total, dtype=torch.float64)).item()
        processes.add_up_gradients(parameters)
        if model.penalty:
            loss = -model.log_prior() / people
            loss.backward()
            total += loss.item()
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        return total, parameters_to_vector(gradient).cpu().numpy()

    def after_iteration(intermediate_result: OptimizeResult) -> None:
        nonlocal best_score, best_step, best_vector, step
        step += 1
        loss, score = float(intermediate_result.fun), None
        if unseen:
            set_parameters(intermediate_result.x)
            with torch.no_grad():
                losses = [stage.loss(model, None, b).item() * b.num_users for b in unseen]
            score = -sum(losses) / total_weight(leg.held_out)
            if score > best_score + _LEAST_GAIN:
                best_score, best_step, best_vector = score, step, intermediate_result.x.copy()
        fitter.record(leg, step, loss, score)
        progress.update(leg.name, loss)
        if unseen and step - best_step > _PATIENCE:
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
            check_maximum(model, result.jac, result.nit, leg.training)
    finally:
        model.to(dtype)
    progress.skip(leg.stage.steps - step)
    return max(best_step, 1)


def check_maximum(
    model: HeterogeneousBTL, gradient: np.ndarray, iterations: int, data: Preferences
) -> None:
    """Warns if a search did not converge: by a gradient of 1e-5 nats a person with ten comparisons.

    Where people have more comparisons, or a prior weighs more, so does a gradient of rounding.

    Args:
        model: The model.
        gradient: Derivatives of the loss per person by the parameters, (P,).
        iterations: Number of iterations.
        data: The comparisons of the fit.
    """
    slope = float(np.abs(gradient).max(initial=0.0))
    counts = data.num_comparisons if data.weights is None else data.weights @ data.counts
    terms = (counts + 2 * model.penalty) / total_weight(data)
    allowed = (1e-5 if model.utility.is_linear else 1e-2) * max(1.0, terms / _TERMS)
    if slope > allowed:
        warnings.warn(
            f"maximum likelihood did not converge in {iterations} iterations: the largest "
            f"gradient is {slope:.1e} nats per person",
            stacklevel=6,
        )


def pooled_batches(data: Preferences, model: HeterogeneousBTL) -> list[Batch]:
    """Lists the comparisons without their people, in double precision, on the model's device.

    Where many are equal, each of these stands there once, with its number; weights of people are
    numbers of their comparisons.
    """
    batches, start = [], 0
    data, count = data.merged()
    for batch in data.batches(16_384):
        if count is not None:
            table, stop = (
                batch.choice.new_zeros(batch.mask.shape).double(),
                start + batch.mask.sum(),
            )
            table[batch.mask] = torch.from_numpy(count[start:stop]).double()
            batch, start = batch.replace(count=table), stop
        batches.append(batch.to(model.device).double())
    return batches
