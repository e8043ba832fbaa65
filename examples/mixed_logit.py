"""How much do people differ in what they want of an electricity supplier?

Fits mixed logits to 4,308 choices among four suppliers by 361 people, which come with the package,
by maximum likelihood, and sets each log-likelihood beside the figures that other software printed.
Then: what do people pay for each feature, in the population and person by person?

What to see: independent normal coefficients are worth a thousand nats, their correlations two
hundred more. Published log-likelihoods with few draws are lower than the maximum. A log-normal
price has one sign for everybody, so that every willingness to pay has an interval; with it the
correlated model fits worse here (about 50 nats): some people seem not to mind the price.

    python examples/mixed_logit.py
    torchrun --nproc-per-node 2 examples/mixed_logit.py

A few minutes on two cores, most of them for standard errors. `torchrun` divides the people of the
fits among processes, which end with the same estimates; everything after the fits, such as standard
errors, each process does for itself.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from arguments import Parser, run, whole

from fssa_bayes import HeterogeneousBTL, MaximumLikelihood, Posterior, Preferences, fit
from fssa_bayes.datasets import electricity
from fssa_bayes.inference import FitResult
from fssa_bayes.plots import forest

PRICE = "pf"
LINEAR = 5.0  # Cents a kWh: axes are logarithmic beyond.
TICKS = (-100, -20, -5, 0, 5, 20, 100)
MODELS: dict[str, dict[str, object]] = {
    "the same for everybody": {"latent_dim": 0},
    "normal": {"correlation": "none"},
    "normal, correlated": {},
    "price fixed, correlated": {"coefficients": {PRICE: "fixed"}},
    "price log-normal": {"coefficients": {PRICE: "-lognormal"}, "correlation": "none"},
    "price log-normal, correlated": {"coefficients": {PRICE: "-lognormal"}},
}
"""Options of the models, by the distribution of their coefficients."""

PUBLISHED = {
    "the same for everybody": "-4958.649 (xlogit, torch-choice)",
    "normal": "-3888.5 (xlogit, 600 draws), -3886.2 (1,500)",
    "price fixed, correlated": "-3851.4 (mlogit, 100 draws)",
}
"""Log-likelihoods that other software printed."""


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    data = electricity.read()
    if args.people is not None:
        data = data.subset(range(min(args.people, len(data))))
    print(data.summary())
    print(f"\n{'coefficients':<30}{'log-likelihood':>20}{'CPU s':>8}  published")
    results = {name: fit_model(name, data, args) for name in MODELS}
    print_population(results["normal, correlated"], args)
    result = results["price log-normal, correlated"]
    print_payments(result, args)
    posterior = Posterior(result.model, None, data, num_samples=args.draws, seed=args.seed)
    table = posterior.willingness_to_pay(PRICE)
    print(f"\nWillingness to pay of the first people (cents a kWh), {args.draws} draws each")
    print(table.head(10).drop(columns="price_positive").round(2).to_string())
    table.to_csv(args.out / "willingness_to_pay.csv")
    draw_forest(table, args.out / "mixed_logit.png")
    print(f"\nfigure and table in {args.out}")


def fit_model(name: str, data: Preferences, args: argparse.Namespace) -> FitResult:
    """Fits a model, and prints its log-likelihood beside the published ones."""
    options = {"latent_dim": None} | MODELS[name]
    model = HeterogeneousBTL.for_data(data, utility="linear", seed=args.seed, **options)
    start = time.process_time()
    # A homogeneous model has nothing to integrate over.
    stage = MaximumLikelihood(num_draws=args.fit_draws) if model.latent_dim else None
    result = fit(model, None, data, objective=stage, seed=args.seed, progress_bar=False)
    seconds = time.process_time() - start
    value = result.log_marginal_likelihood(seed=args.seed + 1)
    print(f"{name:<30}{value!s:>20}{seconds:>8.1f}  {PUBLISHED.get(name, '')}")
    return result


def print_population(result: FitResult, args: argparse.Namespace) -> None:
    table = result.population(args.error_draws, seed=args.seed)
    print("\nCorrelated normal coefficients, nats a unit; standard errors clustered by person")
    print(table[["estimate", "se_sandwich", "se_hessian"]].round(3).to_string(na_rep=""))


def print_payments(result: FitResult, args: argparse.Namespace) -> None:
    table = result.willingness_to_pay(
        PRICE,
        num_populations=args.populations,
        num_samples=args.error_draws,
        seed=args.seed,
    )
    print("\nWillingness to pay in the population, cents a kWh for a unit of each feature")
    print(table.round(2).to_string(na_rep=""))


def draw_forest(table: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8.4, 6))
    shown = {"wk": "a well-known company", "cl": "a year of contract more"}
    for ax, (feature, what) in zip(axes, shown.items(), strict=True):
        own = table.xs(feature, level="feature")
        forest(
            own["median"],
            own["lower"],
            own["upper"],
            label=f"willingness to pay for\n{what} (cents a kWh)",
            reference=0.0,
            ax=ax,
        )
        if own[["lower", "upper"]].abs().to_numpy().max() > LINEAR:
            ax.set_xscale("symlog", linthresh=LINEAR)
            low, high = ax.get_xlim()
            ticks = [tick for tick in TICKS if low < tick < high]
            ax.set_xticks(ticks, [str(tick) for tick in ticks])
    axes[1].set_ylabel("")
    caption = f"{len(own)} people: posterior median and 90 % interval"
    figure.suptitle(f"{caption}; axes logarithmic beyond ±{LINEAR:g}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--draws", type=whole(25), default=1_000, help="posterior draws a person")
    parser.add_argument(
        "--fit-draws", type=whole(16), default=512, help="draws a person of the fits"
    )
    parser.add_argument(
        "--error-draws", type=whole(16), default=256, help="draws a person of standard errors"
    )
    parser.add_argument(
        "--populations", type=whole(2), default=100, help="draws of the population, for errors"
    )
    parser.add_argument(
        "--people", type=whole(2), default=None, help="people at most; all if left out"
    )
    return parser


if __name__ == "__main__":
    run(main, make_parser())
