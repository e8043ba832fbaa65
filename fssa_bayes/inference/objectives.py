r"""What a fit maximises: each objective a small class.

An objective draws its own batches. A step of a stage draws a batch, accumulates the gradient and
updates the parameters. Losses are in nats per person.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fssa_bayes.data import Batch, Preferences, total_weight
from fssa_bayes.guide import NeuralProcessGuide, NoiseDensity, standard_normal_log_prob
from fssa_bayes.inference.direct import (
    draw,
    draw_numbers,
    importance_log_weights,
    to_latents,
)
from fssa_bayes.model import HeterogeneousBTL
from fssa_bayes.sampling import GUIDE_SHARE

__all__ = [
    "ELBO",
    "ImportanceWeightedELBO",
    "MaximumLikelihood",
    "NeuralProcessELBO",
    "Objective",
    "PredictiveLikelihood",
    "Sleep",
    "split_batch",
    "split_mask",
]


_MOST_CONTEXT = 2**19  # Comparisons of a step of Sleep with their padding: about half a gigabyte.
_LEAST_DRAWS = 16  # Of maximum likelihood: a few for each part of its proposals.


class Objective(ABC):
    """Defines one stage of a fit.

    Args:
        steps: Number of optimisation steps; None for the objective's default.
        batch_size: Number of people in a batch; None for the objective's default.

    Attributes:
        learns_model: Whether the stage updates the model beside the guide.
        bounds_choices: Whether e to the power of minus the loss of a person is, on average over
            draws, the probability of some of that person's choices, or less. A fit stops where
            losses contradict it.
        weighs_people: Whether weights of people count in the loss, or the stage needs none.
        num_particles: Number of draws of each person's z in the loss.
    """

    learns_model: ClassVar[bool] = True
    bounds_choices: ClassVar[bool] = False
    weighs_people: ClassVar[bool] = False
    num_particles: int = 1
    default_steps: ClassVar[int] = 2500
    default_batch_size: ClassVar[int] = 64

    def __init__(self, *, steps: int | None = None, batch_size: int | None = None) -> None:
        for argument, value in (("steps", steps), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{argument} must be at least 1, got {value}")
        self.steps = self.default_steps if steps is None else steps
        self.batch_size = self.default_batch_size if batch_size is None else batch_size

    def draw_batch(
        self, model: HeterogeneousBTL, data: Preferences, rng: np.random.Generator
    ) -> Batch:
        """Draws the people of one step, on the model's device; their weights have mean 1 in all."""
        size = min(self.batch_size, len(data))
        batch = data.batch(rng.choice(len(data), size, replace=False)).to(model.device)
        if batch.weights is None:
            return batch
        return batch.replace(weights=batch.weights * (len(data) / total_weight(data)))

    def backward(self, model: HeterogeneousBTL, guide: NeuralProcessGuide, batch: Batch) -> float:
        """Accumulates the gradient of the loss per person and returns the loss, in nats."""
        loss = self.loss(model, guide, batch)
        loss.backward()
        return loss.item()

    def largest_context(self, data: Preferences) -> int:
        """Returns the largest number of comparisons in a context that the guide learns from."""
        return int(data.counts.max())

    @abstractmethod
    def loss(self, model: HeterogeneousBTL, guide: NeuralProcessGuide, batch: Batch) -> Tensor:
        """Returns an estimate of the loss per person, in nats."""

    def trained(self, model: HeterogeneousBTL, guide: NeuralProcessGuide) -> list[nn.Parameter]:
        """Lists the parameters that the stage updates."""
        return [*(model.parameters() if self.learns_model else ()), *guide.parameters()]

    @property
    def config(self) -> dict[str, object]:
        """The objective's name and options."""
        options = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return {"name": self.name, **options}

    @property
    def name(self) -> str:
        """The name that stands in the history."""
        return type(self).__name__


class MaximumLikelihood(Objective):
    r"""Maximises the likelihood; `fit` does so to convergence, on everybody at once.

    Without latent factor the likelihood is exact. Under a linear utility and a normal prior it is
    the marginal one, :math:`\sum_u \log \int p(C_u \mid z)\, p(z)\, dz`, by adaptive importance
    sampling, and the guide is left as it is: :class:`Sleep` teaches it afterwards.

    Args:
        num_draws: Number of draws of each person's z.
        steps: Largest number of iterations.

    References:
        McFadden & Train (2000), Mixed MNL models for discrete response.
    """

    bounds_choices = True
    weighs_people = True
    default_steps = 1000

    def __init__(self, num_draws: int = 512, *, steps: int | None = None) -> None:
        super().__init__(steps=steps)
        if not isinstance(num_draws, int) or num_draws < _LEAST_DRAWS:
            raise ValueError(
                f"num_draws must be an integer of at least {_LEAST_DRAWS}, got {num_draws!r}"
            )
        self.num_draws = num_draws

    def loss(
        self, model: HeterogeneousBTL, guide: NeuralProcessGuide | None, batch: Batch
    ) -> Tensor:
        """Returns the loss per person, in nats, of a model without latent factor."""
        z = batch.choice.new_zeros(batch.num_users, 0)
        likelihood = model.choice(batch, z)
        if batch.count is None:
            return -likelihood.log_prob(batch.choice).mean()
        return -(batch.count * likelihood.log_prob_each(batch.choice)).sum(-1).mean()


class ImportanceWeightedELBO(Objective):
    r"""Maximises :math:`\log \frac{1}{S} \sum_s p(C, z_s) / q(z_s \mid C)`, one weight per person.

    With more particles it approaches the log marginal likelihood, and the fit approaches maximum
    marginal likelihood. It equals Pyro's `RenyiELBO` at α = 0, whose program is not traced here.

    Args:
        num_particles: Number of draws S.
        subset: Whether to use a random part of each person's comparisons instead of all: a
            composite likelihood, consistent, but not its maximum.
        steps: Number of optimisation steps.
        batch_size: Number of people in a batch.

    References:
        Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, arXiv 1509.00519.
        Li & Turner (2016), Rényi divergence variational inference, arXiv 1602.02311.
    """

    bounds_choices = True
    weighs_people = True

    def __init__(
        self,
        num_particles: int = 16,
        subset: bool = False,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(steps=steps, batch_size=batch_size)
        self.num_particles = _checked_particles(num_particles)
        self.subset = subset

    def backward(self, model: HeterogeneousBTL, guide: NeuralProcessGuide, batch: Batch) -> float:
        """Accumulates the gradient of the loss per person and returns the loss, in nats."""
        if self.subset:
            batch = batch.replace(mask=split_batch(batch)[0])
        return super().backward(model, guide, batch)

    def loss(self, model: HeterogeneousBTL, guide: NeuralProcessGuide, batch: Batch) -> Tensor:
        """Returns an estimate of the loss per person, in nats."""
        prepared = model.prepare_items(batch.items)
        proposal = guide.noise_density(batch, prepared)
        log_weights = importance_log_weights(model, batch, prepared, proposal, self.num_particles)
        each = log_weights.logsumexp(0)
        if batch.weights is None:
            return math.log(self.num_particles) - each.mean()
        return (batch.weights.to(each.dtype) * (math.log(self.num_particles) - each)).mean()


class ELBO(ImportanceWeightedELBO):
    """Maximises the evidence lower bound: :class:`ImportanceWeightedELBO` with one particle.

    It is fast, and biased towards people who are alike: the bound is loosest where people differ.
    """

    def __init__(self, *, steps: int | None = None, batch_size: int | None = None) -> None:
        super().__init__(1, steps=steps, batch_size=batch_size)


class NeuralProcessELBO(Objective):
    r"""Maximises :math:`E_{q(z|C∪T)} \log p(T|z) − KL(q(z|C∪T) ‖ q(z|C))`.

    For few-shot prediction only. A non-empty context takes the guide as its own prior, so q(z|C)
    is not p(z|C), and the scale of z is not a population estimate.

    References:
        Garnelo et al. (2018), Neural processes, arXiv 1807.01622.
    """

    bounds_choices = True

    def loss(self, model: HeterogeneousBTL, guide: NeuralProcessGuide, batch: Batch) -> Tensor:
        """Returns an estimate of the loss per person, in nats."""
        context_mask, target_mask = split_batch(batch)
        context, target = batch.replace(mask=context_mask), batch.replace(mask=target_mask)

        prepared = model.prepare_items(batch.items)
        proposal = guide.noise_density(batch, prepared)
        prior = guide.noise_density(context, prepared).log_prob
        return -importance_log_weights(model, target, prepared, proposal, 1, prior).mean()


class PredictiveLikelihood(Objective):
    r"""Maximises :math:`\log \frac{1}{S} \sum_s p(T \mid z_s)` with z from q(z | C).

    This is the published training objective. Its only prior is that of the guide's construction.

    With `deterministic` it is :math:`\log p(T \mid z)` at one point z, the guide's location
    (:meth:`NeuralProcessGuide.location`), without a draw: a conditional neural process. The guide's
    spread is then never trained, so that q(z | C) is no posterior.

    Args:
        num_particles: Number of draws S.
        deterministic: Whether z is the guide's location in place of draws; `num_particles` is 1
            then.
        steps: Number of optimisation steps.
        batch_size: Number of people in a batch.

    References:
        Kobalczyk et al. (2024), Few-shot steerable alignment, arXiv 2412.13998.
        Garnelo et al. (2018), Conditional neural processes, arXiv 1807.01613.
    """

    bounds_choices = True

    def __init__(
        self,
        num_particles: int = 16,
        deterministic: bool = False,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(steps=steps, batch_size=batch_size)
        if not isinstance(deterministic, bool):
            raise TypeError(f"deterministic must be True or False, got {deterministic!r}")
        self.num_particles = 1 if deterministic else _checked_particles(num_particles)
        self.deterministic = deterministic

    def loss(self, model: HeterogeneousBTL, guide: NeuralProcessGuide, batch: Batch) -> Tensor:
        """Returns an estimate of the loss per person, in nats."""
        context_mask, target_mask = split_batch(batch)
        context, target = batch.replace(mask=context_mask), batch.replace(mask=target_mask)
        prepared = model.prepare_items(batch.items)
        if self.deterministic:
            z = guide.location(context, prepared).unsqueeze(0)
        else:
            noise, _ = draw(guide.noise_density(context, prepared), self.num_particles, batch)
            z = to_latents(model, noise, batch)[0].transpose(0, 1)
        likelihood = model.choice(target, z, prepared, validate_args=False)
        log_prob = likelihood.log_prob(batch.choice)
        return math.log(self.num_particles) - log_prob.logsumexp(0).mean()


class Sleep(Objective):
    r"""Maximises :math:`E_{p(z, C)} \log q(z \mid C)` on people simulated from the fitted model.

    A simulated person takes the covariates of a training person drawn at random, and a context of
    0 to twice as many judgements as that person has, resampled from all training data. The stage
    minimises KL(p(z|C) ‖ q(z|C)) on average, so the guide comes to cover the model's posterior.
    Only the guide is updated: p(z) and the utility are left bitwise as they were.

    Padded contexts of a step have at most about 2¹⁹ comparisons, as memory is proportional to them
    (about half a gigabyte with networks of the default width): at most 4,096 a person with a batch
    of 128. A warning names the people who have more than half of that.

    With `num_particles` S > 1 the simulated person's z, an exact draw of p(z|C), is joined by
    S − 1 draws of m = .8 q(z|C) + .2 p(z), all weighted by p(z, C) / m(z). As a choice of one of
    them by weight is again an exact draw of p(z|C), the weighted mean of log q(z|C) estimates the
    same loss without bias, with the less noise the closer the guide is.

    Args:
        num_particles: Number of draws S that the loss of a simulated person is averaged over.
        steps: Number of optimisation steps.
        batch_size: Number of simulated people in a batch.

    References:
        Hinton et al. (1995), The wake-sleep algorithm, Science 268.
        Papamakarios & Murray (2016), Fast ε-free inference of simulation models, arXiv 1605.06376.
        Andrieu, Lee & Vihola (2018), Uniform ergodicity of the iterated conditional SMC and
        geometric ergodicity of particle Gibbs samplers, Bernoulli 24.
        Naesseth, Lindsten & Blei (2020), Markovian score climbing, NeurIPS.
    """

    learns_model = False
    weighs_people = True
    default_batch_size = 128

    def __init__(
        self,
        num_particles: int = 1,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(steps=steps, batch_size=batch_size)
        self.num_particles = _checked_particles(num_particles)

    def draw_batch(
        self, model: HeterogeneousBTL, data: Preferences, rng: np.random.Generator
    ) -> Batch:
        """Draws the contexts of simulated people; :meth:`loss` draws their choices."""
        # Sizes are drawn from each person's own number: one person with thousands of comparisons
        # among many with four must not set the scale of every step. Covariates are the person's.
        people = rng.integers(len(data), size=self.batch_size)
        largest = np.minimum(2 * data.judgement_counts[people], self.most_judgements(data))
        # Half the sizes are uniform, half log-uniform: every person begins with a small context.
        uniform = rng.integers(0, largest + 1)
        log_uniform = np.floor(np.exp(rng.uniform(0, np.log(largest + 2)))) - 1
        sizes = np.where(rng.random(self.batch_size) < 0.5, uniform, log_uniform).astype(np.int64)
        return data.resample_pairs(sizes, rng, people).to(model.device)

    def most_judgements(self, data: Preferences) -> int:
        """Returns the largest number of judgements in a context that memory allows."""
        each = data.num_comparisons / data.num_judgements
        return max(1, int(_MOST_CONTEXT / (each * self.batch_size)))

    def largest_context(self, data: Preferences) -> int:
        """Returns the largest number of comparisons in a context that the guide learns from."""
        each = data.num_comparisons / data.num_judgements
        return min(2 * int(data.counts.max()), int(each * self.most_judgements(data)))

    def loss(self, model: HeterogeneousBTL, guide: NeuralProcessGuide, batch: Batch) -> Tensor:
        """Returns an estimate of −E log q(z | C) per person, in nats."""
        with torch.no_grad():
            prepared = model.prepare_items(batch.items)
            shape, options = (batch.num_users, 1, model.latent_dim), {"device": model.device}
            noise = draw_numbers(torch.randn, shape, batch.part, dtype=model.dtype, **options)
            z, log_det = to_latents(model, noise, batch)
            likelihood = model.choice(batch, z.squeeze(1), prepared, validate_args=False)
            uniform = draw_numbers(torch.rand, batch.mask.shape, batch.part, **options)
            context = batch.replace(choice=likelihood.decide(uniform))
        density = guide.noise_density(context, prepared)
        if self.num_particles == 1:
            return (log_det - density.log_prob(noise)).mean()
        with torch.no_grad():
            others = self.draw_others(density, batch)
            noise = torch.cat([noise, others], 1)
            z, log_det = to_latents(model, noise, batch)
        log_guide = density.log_prob(noise)
        with torch.no_grad():
            log_prior = standard_normal_log_prob(noise)
            log_mixture = torch.logaddexp(
                log_guide + math.log(GUIDE_SHARE), log_prior + math.log1p(-GUIDE_SHARE)
            )
            likelihood = model.choice(context, z.transpose(0, 1), prepared, validate_args=False)
            log_joint = log_prior + likelihood.log_prob(context.choice).T
            weights = (log_joint - log_mixture).softmax(1)
        return (weights * (log_det - log_guide)).sum(1).mean()

    def draw_others(self, density: NoiseDensity, batch: Batch) -> Tensor:
        """Draws ε (U, S − 1, K) from the guide or the prior, which reaches tails better."""
        of_guide, _ = draw(density, self.num_particles - 1, batch)
        options = {"device": of_guide.device}
        uniform = draw_numbers(torch.rand, (*of_guide.shape[:2], 1), batch.part, **options)
        of_prior = draw_numbers(
            torch.randn, of_guide.shape, batch.part, dtype=of_guide.dtype, **options
        )
        return torch.where(uniform < GUIDE_SHARE, of_guide, of_prior)


def _checked_particles(num_particles: int) -> int:
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, got {num_particles}")
    return num_particles


def split_batch(batch: Batch) -> tuple[Tensor, Tensor]:
    """Splits each person's judgements into a context and a target, as :func:`split_mask` does.

    A ranking is one judgement: all of it goes to the context, or all of it to the target.
    """
    context = batch.whole_judgements(split_mask(batch.judgement_mask, batch.part)[0])
    return context, batch.mask & ~context


def split_mask(mask: Tensor, part: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Splits each person's comparisons into a context and a target, of a size drawn per person.

    Args:
        mask: True where there is a comparison, with shape (U, N).
        part: Where these people stand in a whole batch, see :class:`fssa_bayes.data.Batch`.

    Returns:
        Context and target masks with shape (U, N). A context has 0 to n − 1 of n comparisons,
        each size equally likely; the target has the rest.
    """
    count = mask.sum(-1, keepdim=True)
    share, key = (
        draw_numbers(torch.rand, shape, part, device=mask.device)
        for shape in (count.shape, mask.shape)
    )
    size = (share * count).floor()
    rank = key.masked_fill(~mask, 2.0).argsort(-1).argsort(-1)
    context = mask & (rank < size)
    return context, mask & ~context
