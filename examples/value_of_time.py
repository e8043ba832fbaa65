"""What is an hour of travel worth, and to how many people?

Fits a homogeneous and a heterogeneous linear model (the correlated-normal mixed logit) to stated
choices between train trips and sets every figure beside the published one. Then, person by
person: how much would they pay for an hour saved, or for a change avoided?

What to see: people differ far more than a single set of coefficients admits (375 nats); and a
willingness to pay is a ratio, β_time / β_price, without a mean: medians and quantiles are printed,
and no interval at all for a person whose price coefficient may well be positive. Coefficients that
are log-normal, and so have one sign, fit better with fewer parameters, and predict people better
who took no part in the fit.

    python examples/value_of_time.py --data train_choice.csv.gz

The file has columns id, choice and price1, time1, change1, comfort1, price2, …; see
`fssa_bayes.datasets.train_choice`. About a minute on two cores.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from arguments import Parser, run, whole

from fssa_bayes import (
    HeterogeneousBTL,
    MaximumLikelihood,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.comparison import compare, leave_users_out
from fssa_bayes.datasets import train_choice
from fssa_bayes.inference import FitResult
from fssa_bayes.plots import forest

GUILDER = 1 / train_choice.PRICE_FACTOR  # Price is in guilders times 2.20371.
TICKS = (-100, -10, 0, 10, 100, 1000)


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)
    data = train_choice.read(args.data)
    print(data.summary())

    homogeneous = fit_homogeneous(data)
    result = fit_heterogeneous(data, args)
    print_likelihoods(homogeneous, result, args)
    print_population(result)
    print_distributions(data, result, args)
    table = willingness_to_pay(result, args)
    print_willingness_to_pay(table)
    draw_forest(table, args.out / "value_of_time.png")
    table.to_csv(args.out / "willingness_to_pay.csv")
    print(f"\nfigure and table in {args.out}    total {time.perf_counter() - start:.0f} s")


def fit_homogeneous(data: Preferences) -> FitResult:
    return fit(HeterogeneousBTL(4, 0, utility="linear"), None, data, progress_bar=False)


def fit_heterogeneous(data: Preferences, args: argparse.Namespace) -> FitResult:
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(data.num_features, latent_dim=4, utility="linear")
    guide = NeuralProcessGuide(model, "multivariate_normal")
    stages = [MaximumLikelihood(), Sleep(steps=1000)]
    return fit(model, guide, data, objective=stages, steps=args.steps, seed=args.seed)


def print_likelihoods(homogeneous: FitResult, result: FitResult, args: argparse.Namespace) -> None:
    published = train_choice.LOG_LIKELIHOOD
    exact = homogeneous.log_marginal_likelihood()
    estimate = result.log_marginal_likelihood(num_samples=args.draws, target_error=0.2)
    print(f"\n{'log-likelihood (nats)':<28}{'here':>20}{'published':>12}")
    print(f"{'homogeneous':<28}{exact.value:>20.3f}{published['homogeneous']:>12.3f}")
    print(f"{'heterogeneous':<28}{estimate!s:>20}{published['heterogeneous']:>12.1f}")
    print(
        f"± is the Monte-Carlo standard error; estimated bias {estimate.bias:.2f}, smallest "
        f"effective sample size of a person {estimate.min_ess:.0f}"
    )
    table = homogeneous.population().round(4)
    table["published"] = list(train_choice.COEFFICIENTS["homogeneous"].values())
    print("\nHomogeneous model, nats per unit (price x 2.20371 guilders, hour, change, class)")
    print(table.to_string())


def print_distributions(data: Preferences, result: FitResult, args: argparse.Namespace) -> None:
    """Compares normal with negative log-normal coefficients, on people held out too."""
    negative = {name: "-lognormal" for name in data.feature_names}
    stages = {"objective": MaximumLikelihood(), "steps": args.steps}

    def build(**options: object) -> tuple[HeterogeneousBTL, None]:
        return HeterogeneousBTL.for_data(data, None, utility="linear", **options), None

    models = {
        "normal, correlated": {},
        "log-normal": {"coefficients": negative, "correlation": "none"},
        "log-normal, correlated": {"coefficients": negative},
    }
    print("\nCoefficients that are always negative, beside normal ones")
    scores = {}
    for name, options in models.items():
        fitted = result
        if options:
            fitted = fit(*build(**options), data, seed=args.seed, progress_bar=False, **stages)
        value = fitted.log_marginal_likelihood(num_samples=args.draws)
        print(f"  {name:<28}{value!s:>20}")
        if name != "log-normal, correlated":
            scores[name] = leave_users_out(
                partial(build, **options), data, 3, seed=args.seed, fit_options=stages
            )
    print("People held out, three folds (nats; the difference with its standard error):")
    print(compare(scores)[["elpd", "se", "elpd_diff", "dse"]].round(1).to_string())


def print_population(result: FitResult) -> None:
    """Prints the population beside the published one, differences in its standard errors."""
    table = result.population(num_samples=4000).drop(columns="se_hessian")
    published = train_choice.COEFFICIENTS
    value = list(published["mean"].values()) + list(published["sd"].values())
    error = list(published["se of mean"].values()) + list(published["se of sd"].values())
    table["published"] = pd.Series(value, index=table.index[: len(value)])
    table["its se"] = pd.Series(error, index=table.index[: len(value)])
    table["difference / se"] = (table["estimate"] - table["published"]) / table["its se"]
    print("\nHeterogeneous model: the coefficients of the population")
    print(table.round(3).to_string(na_rep=""))


def willingness_to_pay(result: FitResult, args: argparse.Namespace) -> pd.DataFrame:
    """Computes each person's willingness to pay for an hour and for a change, in guilders."""
    model, data = result.model, result.data
    posterior = Posterior(model, result.guide, data, num_samples=args.draws, seed=args.seed)
    table = posterior.willingness_to_pay("price")
    columns = {}
    for name, feature in (("hour", "time"), ("change", "change")):
        of_more = table.xs(feature, level="feature") * GUILDER  # What is saved has the other sign.
        columns["P(price coefficient > 0)"] = of_more["price_positive"] / GUILDER
        for level, column in (("5 %", "upper"), ("median", "median"), ("95 %", "lower")):
            columns[f"{name} {level}"] = -of_more[column]
    columns["pareto k"] = posterior.pareto_k.numpy()
    return pd.DataFrame(columns).rename_axis("person")


def print_willingness_to_pay(table: pd.DataFrame) -> None:
    shown = table.dropna()
    print(
        f"\nWillingness to pay, guilders: {len(shown)} of {len(table)} people have a price "
        f"coefficient that is negative\nwith posterior probability of at least "
        "95 %; the others get that probability instead of an interval.\n"
        "Intervals are empirical-Bayes: the population is fixed at its estimate."
    )
    for name, what in (("hour", "an hour saved"), ("change", "a change avoided")):
        low, middle, high = shown[f"{name} median"].quantile([0.1, 0.5, 0.9])
        print(
            f"  for {what}: half of these people above {middle:.1f}, a tenth below {low:.1f}, "
            f"a tenth above {high:.1f} (posterior medians)"
        )
    print("\nThe first people:")
    print(table.head(8).round(2).to_string(na_rep="–"))


def draw_forest(table: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = table.dropna()
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 6))
    for ax, name, what in zip(
        axes, ("hour", "change"), ("an hour saved", "a change avoided"), strict=True
    ):
        forest(
            shown[f"{name} median"],
            shown[f"{name} 5 %"],
            shown[f"{name} 95 %"],
            label=f"willingness to pay for {what} (guilders)",
            reference=shown[f"{name} median"].median(),
            ax=ax,
        )
        ax.set_xscale("symlog", linthresh=10)
        low, high = ax.get_xlim()
        ticks = [tick for tick in TICKS if low < tick < high]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
    axes[1].set_ylabel("")
    figure.suptitle(
        f"{len(shown)} of {len(table)} people: posterior median and 90 % interval; "
        "dashed: median person; axes logarithmic beyond ±10",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the train-choice csv file")
    parser.add_argument("--steps", type=whole(), default=None, help="steps of every stage")
    parser.add_argument("--draws", type=whole(25), default=2_000, help="posterior draws a person")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
