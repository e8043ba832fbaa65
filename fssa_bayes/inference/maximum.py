"""Maximum likelihood of a homogeneous model, by L-BFGS in double precision."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fssa_bayes.data import Batch, Preferences
from fssa_bayes.model import HeterogeneousBTL

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

    from fssa_bayes.inference.progress import Progress
    from fssa_bayes.inference.training import Fitter, Leg

__all__ = ["check_maximum", "maximise", "pooled_batches"]

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
        UserWarning: If L-BFGS did not converge.
    """
    from scipy.optimize import minimize  # A tenth of the time to import the package.

    model, stage = fitter.model, leg.stage
    parameters = [p for p in model.parameters() if p.requires_grad]
    dtype = parameters[0].dtype
    model.double()
    batches = pooled_batches(leg.training, model)
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
            loss = stage.loss(model, None, batch) * (batch.num_users / len(leg.training))
            loss.backward()
            total += loss.item()
        if model.penalty:
            loss = -model.log_prior() / len(leg.training)
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
            score = -sum(losses) / len(leg.held_out)
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
            check_maximum(model, result, leg.training)
    finally:
        model.to(dtype)
    progress.skip(leg.stage.steps - step)
    return max(best_step, 1)


def check_maximum(model: HeterogeneousBTL, result: OptimizeResult, data: Preferences) -> None:
    """Warns if L-BFGS did not converge: by a gradient of 1e-5 nats a person with ten comparisons.

    Where people have more comparisons, or a prior weighs more, so does a gradient of rounding.
    """
    slope = float(np.abs(result.jac).max(initial=0.0))
    terms = (data.num_comparisons + 2 * model.penalty) / len(data)
    allowed = (1e-5 if model.utility.is_linear else 1e-2) * max(1.0, terms / _TERMS)
    if slope > allowed:
        warnings.warn(
            f"maximum likelihood did not converge in {result.nit} iterations: the largest "
            f"gradient is {slope:.1e} nats per person",
            stacklevel=5,
        )


def pooled_batches(data: Preferences, model: HeterogeneousBTL) -> list[Batch]:
    """Lists the comparisons without their people, in double precision, on the model's device.

    Where many are equal, each of these stands there once, with its number.
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
