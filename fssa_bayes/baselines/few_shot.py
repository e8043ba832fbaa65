"""What a few answers of a person are worth: the predictors that a few-shot study compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from fssa_bayes.baselines.base import Predictions
from fssa_bayes.baselines.mixture import MixtureBTL
from fssa_bayes.data import Preferences
from fssa_bayes.inference import FitResult, fit
from fssa_bayes.model import HeterogeneousBTL, align
from fssa_bayes.posterior import Posterior, Predictor
from fssa_bayes.sampling import find_all_modes

__all__ = ["few_shot_fitters", "predict_at_modes"]

Fitter = Callable[[Preferences], Callable[[Preferences], Predictor]]


def predict_at_modes(model: HeterogeneousBTL, context: Preferences) -> Predictions:
    """Predicts by the mode of each person's posterior: the personal maximum a posteriori.

    Args:
        model: A fitted model with linear utility and normal prior.
        context: The people and their known choices; empty contexts are allowed.

    Raises:
        ValueError: If the utility is not linear or the prior not normal.
    """
    if not model.is_mixed_logit:
        raise ValueError(
            "model must have utility='linear', prior='normal' and a latent factor, whose modes "
            f"Newton's method finds, got utility={model.config['utility']!r}, "
            f"prior={model.config['prior']!r} and latent_dim={model.latent_dim}"
        )
    modes = find_all_modes(model, align(model, context)).z.to(model.dtype)
    log_weights = torch.zeros(1, len(context), device=model.device)
    return Predictions(model, context, modes.unsqueeze(0), log_weights)


def few_shot_fitters(
    options: Mapping[str, object] | None = None,
    *,
    latent_dim: int | None = None,
    num_classes: int = 3,
    num_restarts: int = 16,
    num_samples: int = 400,
    num_populations: int = 0,
    personal: tuple[str, ...] = (),
    seed: int = 0,
) -> dict[str, Fitter]:
    """Lists what a few-shot study compares, for :func:`fssa_bayes.checks.score_folds`.

    All are fitted to the training people by maximum likelihood, without covariates. Each fit is
    made once, when its first predictor is asked for.

    Args:
        options: Arguments of all models with linear utility, such as `position_bias` and, for the
            mixture too, no more than `ties`, `position_bias` and `lapses`.
        latent_dim: Number of latent dimensions of tastes; None for all coefficients.
        num_classes: Number of classes of the mixture; 0 for no mixture.
        num_restarts: Number of starts of the mixture.
        num_samples: Number of posterior draws of each person.
        num_populations: Number of populations drawn; 0 for the estimate alone.
        personal: What differs between people beside tastes; adds "personal answers".
        seed: Seed of fits and draws.

    Returns:
        By name: "homogeneous"; "mixture"; "posterior", with the population held at its estimate;
        "posterior, drawn", over draws of the population; "mode", the personal maximum a posteriori;
        and "personal answers", the posterior of a model with `personal`.
    """
    options = dict(options or {})

    def build(train: Preferences, width: int | None, **own: object) -> FitResult:
        own = {"num_covariates": 0} | options | own
        model = HeterogeneousBTL.for_data(train, width, seed=seed, utility="linear", **own)
        return fit(model, None, train, seed=seed, progress_bar=False)

    tastes = _Once(lambda train: build(train, latent_dim))

    def posterior_of(find: Callable[[Preferences], FitResult]) -> Fitter:
        def fitter(train: Preferences) -> Callable[[Preferences], Posterior]:
            model = find(train).model
            return lambda context: Posterior(model, None, context, num_samples, seed=seed)

        return fitter

    def drawn(train: Preferences) -> Callable[[Preferences], Posterior]:
        result = tastes(train)
        population = result.population_draws(num_populations, seed=seed)
        return lambda context: result.posterior(
            context, num_samples, population=population, seed=seed
        )

    def mode(train: Preferences) -> Callable[[Preferences], Predictions]:
        model = tastes(train).model
        return lambda context: predict_at_modes(model, context)

    def mixture(train: Preferences) -> Callable[[Preferences], Predictor]:
        has_ties = train.ties == "keep" and bool(train.half_wins.any())
        own = {"ties": "davidson" if has_ties else None, "num_restarts": num_restarts} | options
        return MixtureBTL(num_classes, **own).fit(train, seed=seed, progress_bar=False).predict

    fitters: dict[str, Fitter] = {"homogeneous": posterior_of(lambda train: build(train, 0))}
    if num_classes:
        fitters["mixture"] = mixture
    fitters["posterior"] = posterior_of(tastes)
    if num_populations:
        fitters["posterior, drawn"] = drawn
    fitters["mode"] = mode
    if personal:
        fitters["personal answers"] = posterior_of(
            lambda train: build(train, latent_dim, personal=personal)
        )
    return fitters


class _Once:
    """Fits to people once, as long as the same people are asked for."""

    def __init__(self, function: Callable[[Preferences], FitResult]) -> None:
        self.function = function
        self.last: tuple[Preferences, FitResult] | None = None

    def __call__(self, train: Preferences) -> FitResult:
        if self.last is None or self.last[0] is not train:
            self.last = train, self.function(train)
        return self.last[1]
