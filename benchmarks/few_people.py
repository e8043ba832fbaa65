"""Few people: held-out cross-entropy with the population held fixed, drawn, or chosen by the rule.

People choose between pairs of items with four features, each person by coefficients of their own.
A model of everybody alike and one of individuals are fitted to 5 choices of each of few people.
Other people of the same population are then predicted from 5 choices that are known of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.harness import Row, seeded
from fssa_bayes import (
    FitResult,
    HeterogeneousBTL,
    MaximumLikelihood,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
)

COMPARISONS, KNOWN, UNSEEN, ITEMS = 5, 5, 20, 200
MEAN = torch.tensor([0.8, -0.4, 0.2, 0.6])


def simulate(people: int, comparisons: int, latent_dim: int, spread: float, seed: int):
    rng = np.random.default_rng(seed)
    left = rng.integers(ITEMS, size=people * comparisons)
    right = (left + rng.integers(1, ITEMS, size=len(left))) % ITEMS
    offsets = np.arange(0, len(left) + 1, comparisons)
    features = np.random.default_rng(0).normal(size=(ITEMS, len(MEAN)))
    data = Preferences(left, right, np.zeros(len(left)), offsets, items=features)
    truth = HeterogeneousBTL(len(MEAN), latent_dim, utility="linear")
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        truth.utility.mean.copy_(MEAN)
        L = torch.randn(len(MEAN), latent_dim, generator=g) if latent_dim < 4 else torch.eye(4)
        truth.utility.loading.copy_(spread * L)
    return truth.simulate(data, seed=seed)[0]


def scores(people, true_dim, latent_dim, spread, seed, sleep=100):
    import time, warnings
    t=time.time()
    train = simulate(people, COMPARISONS, true_dim, spread, seed)
    test = simulate(200, KNOWN + UNSEEN, true_dim, spread, seed + 50_000)
    context, target = test.split_context(KNOWN, seed=seed)
    out = {}
    with seeded(seed):
        alike = HeterogeneousBTL(len(MEAN), 0, utility="linear")
        model = HeterogeneousBTL(len(MEAN), latent_dim, utility="linear")
        guide = NeuralProcessGuide(model, posterior="multivariate_normal")
    fit(alike, None, train, seed=seed, progress_bar=False)
    out["alike"] = -Posterior(alike, None, context, 1).log_score(target).mean().item()
    result = fit(model, guide, train, objective=[MaximumLikelihood(), Sleep(steps=sleep)], seed=seed, progress_bar=False)
    t1=time.time()-t
    p=Posterior(model, guide, context, seed=seed)
    out["fixed"] = -p.log_score(target).mean().item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = result.population_draws(seed=seed)
    out["drawn"] = -Posterior(model, guide, context, seed=seed, population=draws).log_score(target).mean().item()
    L = model.utility.loading.detach()
    out["trace"] = (L@L.T).trace().item()
    out["t"]=time.time()-t; out['t1']=t1
    return out

if __name__ == "__main__":
    import sys, pandas as pd
    people, td, K, spread, reps, s0 = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])
    torch.set_num_threads(1)
    rows=[scores(people, td, K, spread, s0+r) for r in range(reps)]
    f=pd.DataFrame(rows); f['fixed-alike']=f.fixed-f.alike; f['drawn-fixed']=f.drawn-f.fixed; f['drawn-alike']=f.drawn-f.alike
    print(people, td, K, spread); print(pd.DataFrame({'mean':f.mean(),'se':f.std()/math.sqrt(reps),'min':f.min(),'max':f.max()}).round(4).to_string())
