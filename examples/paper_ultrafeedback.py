"""Do a few choices tell which objective a person has? The published study on UltraFeedback, rerun.

Simulated people prefer the more helpful or the more honest response (HH), or also the more truthful
one (HHT), in pairs on which the objectives disagree (`fssa_bayes.datasets.ultrafeedback`). A
heterogeneous model on embeddings of prompt and response sees 0 to 10 choices of a person it was not
fitted to, about prompts it was not fitted to, and predicts other choices of that person. Beside it
stand homogeneous BTL, which gives everybody the same utility, and one model per objective, which is
told whose objective it is.

    python examples/paper_ultrafeedback.py --data FOLDER --embedder FOLDER_OR_NAME

`--data` takes the files of openbmb/UltraFeedback (.jsonl or .parquet) or its name, `--embedder` any
Hugging Face encoder or causal model. Embeddings are kept in `--cache` and computed once.

Two things differ from the published code: training and test pairs are split by prompt, and what is
predicted is never in the context. How long a model is fitted is chosen by prompts held out of the
training prompts. Standard errors are clustered by person and by prompt, since
people share prompts.

What to see: without context nobody can beat chance where every pair divides the objectives; with
context the heterogeneous model should approach the models that know the objective. Where it does
not, look at theirs first: embeddings that say nothing about honesty bound everything else.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from arguments import Parser, device, run, share, whole
from torch import Tensor

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences, fit
from fssa_bayes.data.texts import embed_texts, load_encoder
from fssa_bayes.datasets import ultrafeedback
from fssa_bayes.diagnostics import clustered_mean

SETS = {"HH": ultrafeedback.HH, "HHT": ultrafeedback.HHT}
MODELS = ("homogeneous BTL", "heterogeneous BTL", "one BTL per objective")
TARGETS = 10

# Takes context, target and everybody's objective; gives probabilities and log-probabilities.
Predict = Callable[[Preferences, Preferences, np.ndarray], tuple[np.ndarray, np.ndarray]]


def main(args: argparse.Namespace) -> None:
    objectives = dict.fromkeys(objective for name in args.sets for objective in SETS[name])
    source = ultrafeedback.read(args.data, objectives=tuple(objectives))
    print(f"{source}; {source.dropped}")
    sets = {
        name: source.pairs(SETS[name], conflict=args.conflict, seed=args.seed) for name in args.sets
    }
    for pairs in sets.values():  # What cannot be drawn shows before hours of embedding.
        draw_people(pairs, torch.zeros(len(pairs.items), 1), args)
    model, tokenizer = load_encoder(args.embedder, device=args.device)
    tokenizer.truncation_side = "left"  # Of a long text the end, the response, is kept.
    tables = []
    for name, pairs in sets.items():
        print(f"\n{name}: {pairs.summary()}")
        features = embed_texts(
            pairs.texts(),
            model,
            tokenizer,
            pooling=args.pooling,
            batch_size=args.batch_size,
            max_length=args.max_length,
            cache=args.cache,
        )
        table = run_set(pairs, features, args).assign(set=name)
        print_table(table)
        tables.append(table)
    result = pd.concat(tables, ignore_index=True)
    result.to_csv(args.out / "paper_ultrafeedback.csv", index=False)
    draw_figure(result, args)
    print(f"\n± is the standard error, clustered by person and by prompt. In {args.out}: "
          "paper_ultrafeedback.csv and .png")  # fmt: skip


class People(NamedTuple):
    """Holds people to fit, people of other prompts to judge that fit by, and people of both."""

    train: ultrafeedback.Users
    validation: ultrafeedback.Users
    everybody: ultrafeedback.Users

    def only(self, objective: str) -> list[Preferences]:
        """Selects people with one objective."""
        return [users.data.subset(users.objective == objective) for users in self]


def run_set(
    pairs: ultrafeedback.ResponsePairs, features: Tensor, args: argparse.Namespace
) -> pd.DataFrame:
    """Fits the models to people of the training prompts and scores them on the others."""
    train, _ = pairs.split_prompts(0.2, seed=args.seed)
    people, fresh = draw_people(pairs, compress(features, train, args.components), args)
    start = time.perf_counter()
    predictors = fit_models(people, args)
    print(f"fitted in {time.perf_counter() - start:.0f} s")
    rows = []
    for count in args.contexts:
        context, target = fresh.data.split_context(count, seed=args.seed)
        for model_name, predict in predictors.items():
            prob, log_prob = predict(context, target, fresh.objective)
            rows += summarise(model_name, count, prob, log_prob, target, fresh.objective, pairs)
    return pd.DataFrame(rows)


def draw_people(
    pairs: ultrafeedback.ResponsePairs, features: Tensor, args: argparse.Namespace
) -> tuple[People, ultrafeedback.Users]:
    """Draws people of the training prompts to fit, and people of the others to predict."""
    train, test = pairs.split_prompts(0.2, seed=args.seed)
    number = max(args.contexts) + TARGETS
    fresh = test.users(features, args.test_users, number, seed=args.seed + 1_000_000)
    return simulate_people(train, features, args), fresh


def simulate_people(
    pairs: ultrafeedback.ResponsePairs, features: Tensor, args: argparse.Namespace
) -> People:
    """Splits prompts once more: people held out tell of overfitting only on prompts held out."""
    train, validation = pairs.split_prompts(0.1, seed=args.seed + 1)
    number = min(5 + TARGETS, len(np.unique(validation.prompt)))
    return People(
        train.users(features, args.users, args.comparisons, seed=args.seed),
        validation.users(features, args.test_users, number, seed=args.seed + 1),
        pairs.users(features, args.users, args.comparisons, seed=args.seed + 2),
    )


def compress(features: Tensor, train: ultrafeedback.ResponsePairs, number: int) -> Tensor:
    """Projects embeddings on the leading principal components of the training items."""
    if number == 0 or number >= features.shape[1]:
        return features
    used = torch.from_numpy(np.unique([train.left, train.right]))
    mean = features[used].mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, directions = torch.pca_lowrank(features[used] - mean, number, center=False)
    return (features - mean) @ directions


def fit_models(people: People, args: argparse.Namespace) -> dict[str, Predict]:
    """Fits all models; each predicts from context, target and, if it may, the objectives."""
    everybody = [users.data for users in people]
    ours = fit_best(args.latent_dim, *everybody, args.steps, args)
    pooled = fit_best(0, *everybody, args.iterations, args)
    alone = {
        objective: fit_best(0, *people.only(objective), args.iterations, args)
        for objective in np.unique(people.everybody.objective)
    }

    def predict_alone(context: Preferences, target: Preferences, objective: np.ndarray) -> tuple:
        prob = np.empty((len(target), target.counts[0]))
        log_prob = np.empty_like(prob)
        for name, fitted in alone.items():
            own = objective == name
            if own.any():
                parts = predict(*fitted, context.subset(own), target.subset(own), args)
                prob[own], log_prob[own] = parts
        return prob, log_prob

    return {
        MODELS[0]: lambda context, target, _: predict(*pooled, context, target, args),
        MODELS[1]: lambda context, target, _: predict(*ours, context, target, args),
        MODELS[2]: predict_alone,
    }


def fit_best(
    latent_dim: int,
    train: Preferences,
    validation: Preferences,
    everybody: Preferences,
    candidates: list[int],
    args: argparse.Namespace,
) -> tuple[HeterogeneousBTL, NeuralProcessGuide | None]:
    """Fits everybody for the number of steps that predicts people of other prompts best."""
    best = candidates[0]
    if len(candidates) > 1:
        context, target = validation.split_context(validation.counts[0] // 3, seed=args.seed)
        scores = {
            steps: predict(*fit_once(latent_dim, train, steps, args), context, target, args)[1]
            for steps in candidates
        }
        best = max(scores, key=lambda steps: scores[steps].mean())
    print(f"{latent_dim} latent dimensions, {len(everybody):,} people: {best} steps")
    return fit_once(latent_dim, everybody, best, args)


def fit_once(
    latent_dim: int, data: Preferences, steps: int, args: argparse.Namespace
) -> tuple[HeterogeneousBTL, NeuralProcessGuide | None]:
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(data.num_features, latent_dim=latent_dim)
    guide = NeuralProcessGuide(model) if latent_dim else None
    with warnings.catch_warnings():
        # L-BFGS is stopped early on purpose.
        warnings.filterwarnings("ignore", message="maximum likelihood did not converge")
        fit(
            model,
            guide,
            data,
            steps=steps,
            validation=None,
            seed=args.seed,
            device=args.device,
            progress_bar=latent_dim > 0,
        )
    return model, guide


def predict(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    context: Preferences,
    target: Preferences,
    args: argparse.Namespace,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities that left is preferred and log-probabilities of choices, (U, N)."""
    posterior = Posterior(model, guide, context, num_samples=args.draws, seed=args.seed)
    prob = posterior.choice_prob(target).mean.double().numpy()
    chosen = np.where(target.choice.reshape(prob.shape) > 0.5, prob, 1 - prob)
    return prob, np.log(np.maximum(chosen, np.finfo(np.float32).tiny))


def summarise(
    model: str,
    count: int,
    prob: np.ndarray,
    log_prob: np.ndarray,
    target: Preferences,
    objective: np.ndarray,
    pairs: ultrafeedback.ResponsePairs,
) -> list[dict[str, object]]:
    """Averages accuracy and log-loss by objective and over all, with two-way clustered errors."""
    choice = target.choice.reshape(prob.shape)
    prompt = pairs.item_prompt[target.left].reshape(prob.shape)
    right = np.where(prob == 0.5, 0.5, (prob > 0.5) == (choice > 0.5))
    rows = []
    for label in (*np.unique(objective), "all"):
        own = np.ones(len(target), dtype=bool) if label == "all" else objective == label
        row = {"model": model, "contexts": count, "objective": label}
        for metric, values in (("accuracy", right), ("log_loss", -log_prob)):
            score = clustered_mean(values[own], second=prompt[own])
            row |= {metric: score.value, f"{metric}_se": score.standard_error}
        rows.append(row)
    return rows


def print_table(table: pd.DataFrame) -> None:
    for label, part in table.groupby("objective", sort=False):
        print(f"\n{label}")
        print(f"{'contexts':>9}" + "".join(f"{model:>32}" for model in MODELS))
        for count, rows in part.groupby("contexts"):
            by_model = rows.set_index("model").loc[list(MODELS)]
            cells = (
                f"{100 * r.accuracy:.1f} ± {100 * r.accuracy_se:.1f} %, "
                f"{r.log_loss:.3f} ± {r.log_loss_se:.3f}"
                for r in by_model.itertuples()
            )
            print(f"{count:>9}" + "".join(f"{cell:>32}" for cell in cells))
    print("accuracy and log-loss in nats")


def draw_figure(result: pd.DataFrame, args: argparse.Namespace) -> None:
    """Draws accuracy against the number of contexts, a row for each set, an axis an objective."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {name: list(dict.fromkeys(part["objective"])) for name, part in result.groupby("set")}
    shape = len(panels), max(map(len, panels.values()))
    figure, axes = plt.subplots(
        *shape, figsize=(2.1 * shape[1], 2.5 * shape[0] + 0.3), sharey=True, squeeze=False
    )
    styles = list(zip(MODELS, ("C7", "C0", "C1"), ("s", "o", "^"), ("--", "-", ":"), strict=True))
    for line, (name, objectives) in zip(axes, panels.items(), strict=True):
        for ax in line[len(objectives) :]:
            ax.set_visible(False)
        line[0].set_ylabel("accuracy, %")
        for ax, objective in zip(line, objectives, strict=False):
            part = result[(result["set"] == name) & (result["objective"] == objective)]
            for shift, (model, colour, marker, dashes) in zip((-0.1, 0, 0.1), styles, strict=True):
                rows = part[part["model"] == model]
                ax.errorbar(
                    rows["contexts"] + shift,
                    100 * rows["accuracy"],
                    196 * rows["accuracy_se"],
                    fmt=marker + dashes,
                    color=colour,
                    markersize=4,
                    capsize=2,
                    label=model,
                    clip_on=False,
                )
            ax.axhline(50, color="0.8", linewidth=0.8, zorder=0)
            ax.set_title(f"{name}, {objective}", fontsize=10, pad=9)
            ax.set_xlabel("known choices")
            ax.set_xticks(args.contexts)
            ax.set_ylim(0, 100)
            ax.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.32 / figure.get_figheight()))
    figure.legend(handles, labels, loc="upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(args.out / "paper_ultrafeedback.png", dpi=100)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--data", default=ultrafeedback.HUB_NAME, help="file, folder or hub name")
    parser.add_argument("--embedder", required=True, help="folder or hub name of a model")
    parser.add_argument("--pooling", default="last", choices=("mean", "last", "cls"))
    parser.add_argument("--max-length", type=whole(), default=1024, help="tokens kept of a text")
    parser.add_argument("--batch-size", type=whole(), default=8, help="texts embedded at a time")
    parser.add_argument("--cache", type=Path, default=Path("output/embeddings"))
    parser.add_argument("--device", type=device, help="cuda or cpu; a GPU if there is one")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--conflict", type=share, default=1.0, help="share of dividing pairs")
    parser.add_argument(
        "--components", type=whole(0), default=256, help="principal components kept; 0 for all"
    )
    parser.add_argument("--users", type=whole(10), default=2_000, help="simulated training people")
    parser.add_argument("--comparisons", type=whole(2), default=30, help="choices of each of them")
    parser.add_argument("--test-users", type=whole(2), default=600, help="people to predict")
    parser.add_argument("--contexts", type=whole(0), nargs="+", default=[0, 1, 3, 5, 10])
    parser.add_argument("--latent-dim", type=whole(), default=4)
    parser.add_argument(
        "--steps",
        type=whole(),
        nargs="+",
        default=[250, 500, 1000, 2000],
        help="steps of every stage to choose from, by people of prompts held out",
    )
    parser.add_argument(
        "--iterations",
        type=whole(),
        nargs="+",
        default=[10, 30, 100, 300],
        help="the same for the homogeneous models, which L-BFGS fits",
    )
    parser.add_argument("--draws", type=whole(25), default=500, help="posterior draws a person")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
