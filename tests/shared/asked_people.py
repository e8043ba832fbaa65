"""Posteriors made by hand, of which the worth of every question is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from fssa_bayes import HeterogeneousBTL, Posterior, Preferences
from fssa_bayes.sampling import Draws, ExactPosterior, log_joint

NAMES = tuple("abcdefgh")


def posterior_of(
    utility: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
    *,
    ties: float | None = None,
    bias: float | None = None,
    lapse: float | None = None,
    context: Sequence[tuple] = (),
) -> Posterior:
    """The posterior of one person whose utilities (S, M) are known for each of S draws.

    Args:
        utility: Utilities of the items a, b, …, in nats.
        weights: Probabilities of the draws; equal if None.
        ties: Davidson's log ν; None for no ties.
        bias: Advantage of the left in nats; None for none.
        lapse: Lapse rate; None for none.
        context: Answers (left, right, choice) that are known.
    """
    z = torch.tensor(np.asarray(utility), dtype=torch.float32)
    num_items = z.shape[1]
    names = NAMES[:num_items] if num_items <= len(NAMES) else range(num_items)
    model = HeterogeneousBTL(
        num_items,
        num_items,
        "linear",
        ties=None if ties is None else "davidson",
        position_bias=bias is not None,
        lapses=lapse is not None,
        feature_names=list(names),
    ).eval()
    with torch.no_grad():  # z is the vector of utilities.
        model.utility.mean.zero_()
        model.utility.loading.copy_(torch.eye(num_items))
        for parameter, value in ((model.log_tie, ties), (model.bias, bias)):
            if value is not None:
                parameter.fill_(value)
        if lapse is not None:
            model.lapse_logit.copy_(torch.logit(torch.tensor(lapse)))
    data = Preferences.empty(["ann"], list(names), ties="half" if ties is None else "keep")
    for answer in context:
        data = data.append("ann", *answer)
    weights = torch.full((len(z),), 1 / len(z)) if weights is None else torch.tensor(weights)
    with torch.no_grad():
        density = log_joint(model, data, z.unsqueeze(1))
    draws = Draws.of_posterior(z.unsqueeze(1), density, weights.log().unsqueeze(-1))
    table = pd.DataFrame({"comparisons": [len(context)], "converged": [True]}, index=["ann"])
    return Posterior.from_draws(model, data, ExactPosterior("grid", data, draws, 1, table))


def random_posterior(num_items: int = 5, num_draws: int = 200, seed: int = 0, **options):
    """A posterior of unequal weights, whose utilities are normal with an sd of 2 nats."""
    rng = np.random.default_rng(seed)
    utility = rng.normal(scale=2, size=(num_draws, num_items))
    weights = rng.dirichlet(np.full(num_draws, 0.5))
    return posterior_of(utility, weights.tolist(), **options), utility, weights
