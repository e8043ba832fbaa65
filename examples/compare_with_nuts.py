"""Can the fast posterior be believed? Ten people with eight latent dimensions, beside NUTS.

A bilinear model with K = 8 is known here, and its guide is taught by `Sleep`, on simulated people
only. Then ten new people are inferred from ten choices each in three ways: by the guide alone
(amortised), by the guide with importance correction (corrected), and by four long chains of Pyro's
NUTS a person (the gold standard). All three predict the same new pairs. The chains run one after
another and are there to be right: what is fast is the question of `python -m benchmarks inference`.

What to see: the corrected posterior's choice probabilities differ from NUTS's by .02 at most in
root mean square, about what the Monte-Carlo error of both allows, and its standard deviations of
utility differences are the same within a few per cent; the guide alone is off, more so for people
whose k-hat is large. In the figure every person is a panel and every new pair a row: the intervals
of the first two lie on top of each other.

    python examples/compare_with_nuts.py --cache nuts_draws

Minutes on two idle cores, nearly all of it NUTS; with `--cache` the chains are kept, also those of
a run that was broken off, and the next run takes less than a minute.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from arguments import Parser, run, whole

from fssa_bayes import (
    HeterogeneousBTL,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.sampling import nuts

NUM_FEATURES = 5
LATENT_DIM = 8
NUM_ITEMS = 200
SPREAD = 2.0  # Standard deviation across people of an item's centred utility, in nats.
NEW_PAIRS = 10
STYLES = {  # Colours that differ in lightness, and marks that differ without colour.
    "NUTS": {"color": "black", "fmt": "o", "markersize": 4},
    "corrected": {"color": "tab:blue", "fmt": "s", "markersize": 4},
    "amortised": {"color": "tab:orange", "fmt": "^", "markersize": 5, "markerfacecolor": "white"},
}


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    model = make_model(args.seed)
    people = simulate(model, args.users, args.contexts, args.seed)
    guide = NeuralProcessGuide(model, hidden_dim=args.hidden_dim)
    fit(
        model,
        guide,
        people,
        objective=[Sleep(steps=args.steps)],
        validation=None,
        seed=args.seed,
        progress_bar=False,
    )
    print(f"guide taught in {time.perf_counter() - start:.0f} s")

    both = simulate(model, args.people, args.contexts + NEW_PAIRS, args.seed + 1)
    context, target = both.split_context(args.contexts, seed=args.seed)
    posteriors, seconds = infer(model, guide, context, args)
    show(model, target, posteriors, seconds, args)
    draw_figure(target, posteriors, args)
    print(f"figure and tables in {args.out}    total {time.perf_counter() - start:.0f} s")


def make_model(seed: int) -> HeterogeneousBTL:
    """Builds a bilinear model whose people differ by `SPREAD` nats in a bent way."""
    torch.manual_seed(seed)
    model = HeterogeneousBTL(NUM_FEATURES, LATENT_DIM).eval()
    with torch.no_grad():
        for layer in model.utility.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(2.0)
        utility = model.item_utility(torch.randn(500, NUM_FEATURES), torch.randn(2000, LATENT_DIM))
        centred = utility - utility.mean(-1, keepdim=True)
        last = model.utility.item_tower[-1][-1]
        scale = SPREAD / centred.std(0).mean()
        last.weight.mul_(scale)
        last.bias.mul_(scale)
    return model


def simulate(model: HeterogeneousBTL, users: int, width: int, seed: int) -> Preferences:
    """Draws people of the model and their choices between random pairs of common items."""
    rng = np.random.default_rng(seed)
    items = np.random.default_rng(0).normal(size=(NUM_ITEMS, NUM_FEATURES))
    left = rng.integers(NUM_ITEMS, size=users * width)
    right = (left + rng.integers(1, NUM_ITEMS, size=users * width)) % NUM_ITEMS
    offsets = np.arange(0, users * width + 1, width)
    shown = Preferences(left, right, np.zeros(users * width), offsets, items=items)
    return model.simulate(shown, seed=seed)[0]


def infer(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    context: Preferences,
    args: argparse.Namespace,
) -> tuple[dict[str, Posterior], dict[str, np.ndarray]]:
    """Infers everybody in three ways; returns the posteriors and the seconds a person."""
    posteriors, seconds = {}, {}
    Posterior(
        model, guide, context, num_samples=100
    )  # What is imported on first use costs a second.
    for name, correct in (("amortised", None), ("corrected", "psis")):
        begin = time.perf_counter()
        posterior = Posterior(model, guide, context, args.draws, seed=args.seed, correct=correct)
        took = (time.perf_counter() - begin) / len(context)
        posteriors[name], seconds[name] = posterior, np.full(len(context), took)
    chains = nuts(
        model,
        context,
        num_samples=args.samples,
        warmup_steps=args.warmup,
        num_chains=args.chains,
        seed=args.seed,
        processes=args.processes,
        cache=args.cache,
    )
    print(f"\nNUTS, {args.chains} chains of {args.warmup} + {args.samples} a person")
    print(chains.summary().round(3).to_string())
    posteriors["NUTS"] = Posterior.from_draws(model, context, chains)
    seconds["NUTS"] = chains.seconds.numpy()
    return posteriors, seconds


def show(
    model: HeterogeneousBTL,
    target: Preferences,
    posteriors: dict[str, Posterior],
    seconds: dict[str, np.ndarray],
    args: argparse.Namespace,
) -> None:
    """Prints and writes the comparison, a row a person and one for all."""
    prob, spread = {}, {}
    for name, posterior in posteriors.items():
        prob[name] = posterior.choice_prob(target).mean.numpy()
        with torch.no_grad():
            spread[name] = model.choice(target.batch(), posterior.z).margin.std(0).numpy()
    table = pd.DataFrame(index=target.user_names.rename("user"))
    for name in ("amortised", "corrected"):
        table[name, "rms Δprob"] = np.sqrt(np.square(prob[name] - prob["NUTS"]).mean(-1))
        table[name, "sd ratio"] = np.median(spread[name] / spread["NUTS"], -1)
        table[name, "ms"] = 1000 * seconds[name]
    table["NUTS", "s"] = seconds["NUTS"]
    table["guide", "k-hat"] = posteriors["corrected"].guide_pareto_k.numpy()
    table["guide", "ESS share"] = posteriors["corrected"].guide_relative_ess.numpy()
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    everybody = table.median()
    for name in ("amortised", "corrected"):
        everybody[name, "rms Δprob"] = np.sqrt(np.square(prob[name] - prob["NUTS"]).mean())
        everybody[name, "sd ratio"] = np.median(spread[name] / spread["NUTS"])
    table.loc["all"] = everybody
    table.to_csv(args.out / "compare_with_nuts.csv")
    print(
        f"\n{NEW_PAIRS} new pairs a person: root mean square difference of choice probabilities "
        "from NUTS, and\nmedian ratio of standard deviations of utility differences; 'all' pools "
        "people and pairs"
    )
    print(table.round(3).to_string())


def draw_figure(
    target: Preferences, posteriors: dict[str, Posterior], args: argparse.Namespace
) -> None:
    """Draws the choice probabilities of new pairs, a panel a person."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    people, columns, rows = len(target), min(5, len(target)), 6
    height = -(-people // columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(1.6 * columns + 0.5, 2.5 * height + 0.6), squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    summaries = {name: posteriors[name].choice_prob(target) for name in STYLES}
    place = np.arange(rows)
    for user, ax in enumerate(axes.flat):
        if user >= people:
            ax.axis("off")
            continue
        for offset, (name, style) in zip((-0.25, 0.0, 0.25), STYLES.items(), strict=True):
            choice = summaries[name]
            mean = choice.mean[user, :rows].numpy()
            ends = [
                mean - choice.lower[user, :rows].numpy(),
                choice.upper[user, :rows].numpy() - mean,
            ]
            ax.errorbar(
                mean,
                place + offset,
                xerr=np.clip(ends, 0, None),
                linewidth=1.2,
                label=name,
                **style,
            )
        ax.set_title(f"person {target.user_names[user]}", fontsize=10)
        ax.set_xlim(-0.03, 1.03)
        ax.set_xticks([0, 0.5, 1])
        ax.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(place, [str(number) for number in place + 1])
    axes[0, 0].invert_yaxis()
    figure.supxlabel("probability that left is preferred: mean and 90 % interval", fontsize=10)
    figure.supylabel("new pair", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(args.out / "compare_with_nuts.png", dpi=100)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--people", type=whole(), default=10, help="new people to be inferred")
    parser.add_argument("--contexts", type=whole(), default=10, help="known choices of each")
    parser.add_argument(
        "--draws", type=whole(25), default=2_000, help="draws of the fast posteriors"
    )
    parser.add_argument(
        "--users", type=whole(2), default=1_000, help="people whose pairs are resampled"
    )
    parser.add_argument("--steps", type=whole(), default=1_200, help="steps of Sleep")
    parser.add_argument("--hidden-dim", type=whole(), default=64, help="width of the guide")
    parser.add_argument("--chains", type=whole(2), default=4)
    parser.add_argument(
        "--samples", type=whole(4), default=400, help="NUTS draws kept of each chain"
    )
    parser.add_argument("--warmup", type=whole(), default=300, help="NUTS steps before them")
    parser.add_argument(
        "--processes", type=whole(), default=2, help="processes that share the chains"
    )
    parser.add_argument("--cache", type=Path, default=None, help="folder that keeps NUTS draws")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
