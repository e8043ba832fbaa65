"""What does it gain to choose the next question?

People are asked one question after another: a random one; the one whose answer tells most about the
person (`InformationGain`); or one chosen for what it is to serve. Three problems:

1. linear: coefficients of three features are normal over people, and the model is the truth;
2. two modes (`fssa_bayes.datasets.two_mode`): two types of people, and a model fitted to others;
3. electricity (`fssa_bayes.datasets.electricity`): 348 real people chose twelve times among four
   suppliers. Four choices of each are predicted; the other eight are revealed in an order that the
   model chooses. The model is fitted to other people.

In the first two the truth is known, and answers are drawn from it. After every answer all pairs of
the items are predicted, and the item of the highest mean utility is recommended. Loss is the
Kullback–Leibler divergence, in nats, of the predicted probability of a choice from the true one:
the log-loss where choices have no noise. Regret is the utility, in nats or in the units of the
two-mode problem, by which the item recommended is worse than the best; a question of value
(`ValueOfInformation`) is the one whose answer raises the recommended utility most. Of real people
the loss is the log-loss of the choices that are predicted, and the third order is by what an answer
tells about all situations of the study (`PredictiveInformation`).

What to see: in the linear problem six chosen questions are worth more than twelve random ones for
prediction, and three questions of value leave a fifth of the regret of three random ones, though
they predict worse. With two modes the first chosen question divides the types, as every other
random one does: after it predictions are as good as after ten random questions. Two chosen answers
of real people lower the log-loss by .076 ± .020 more than two in random order, and four by as much
as five or six; in the end all eight are known, in whatever order.

    python examples/next_question.py

Four minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import torch
from arguments import Parser, run, whole
from scipy import special

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    MaximumLikelihood,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.datasets import electricity, linear_factors, two_mode
from fssa_bayes.questions import (
    Goal,
    InformationGain,
    PredictiveInformation,
    ValueOfInformation,
    next_questions,
    score_questions,
)

GOALS = {"random": None, "information": InformationGain(), "value": ValueOfInformation()}
METRICS = {"loss": "loss of predictions, nats", "regret": "regret of the recommendation"}
REAL = {"loss": "log-loss, nats", "difference": "log-loss less that of random order"}
LINES = {"random": ":", "information": "-", "value": "--", "prediction": "-."}
HIDDEN = 4  # Choices of a real person that are predicted.


class Problem(NamedTuple):
    """Holds a model and people whose utilities are known.

    Attributes:
        model: The model.
        guide: Its guide, or None.
        items: Features of the M items.
        utility: Utilities of the items to U people, (U, M).
        prob: Probability that the first of two items is chosen, (U, M, M).
    """

    model: HeterogeneousBTL
    guide: NeuralProcessGuide | None
    items: pd.DataFrame
    utility: np.ndarray
    prob: np.ndarray


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    matplotlib.use("Agg")
    problems = {"linear": linear_problem(args), "two modes": two_mode_problem(args)}
    rows = [
        row
        for name, problem in problems.items()
        for label, goal in GOALS.items()
        for row in summarise(name, label, learn(problem, goal, args))
    ]
    rows += real_people(args)
    table = pd.DataFrame(rows)
    for name, part in table.groupby("problem", sort=False):
        number = args.real_people if name == "electricity" else args.people
        print(f"\n## {name}: means over {number} people ± standard error\n")
        print(show(part))
    path = args.out / "next_question.png"
    draw_figure(table, path)
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.0f} s, seed {args.seed}; figure in {path}")


def linear_problem(args: argparse.Namespace) -> Problem:
    """Draws people of a linear model, which is the model itself."""
    population = linear_factors.draw_population(3, 3, seed=args.seed)
    model = HeterogeneousBTL(3, 3, "linear").eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.from_numpy(population.mean))
        model.utility.loading.copy_(torch.from_numpy(population.loadings))
    rng = np.random.default_rng(args.seed)
    items = rng.normal(size=(args.items, 3))
    z = rng.normal(size=(args.people, 3))
    utility = (population.mean + z @ population.loadings.T) @ items.T
    prob = special.expit(utility[:, :, None] - utility[:, None, :])
    return Problem(model, None, pd.DataFrame(items, columns=list("abc")), utility, prob)


def two_mode_problem(args: argparse.Namespace) -> Problem:
    """Fits a model to people of two types, and draws others, who choose without noise."""
    train = two_mode.simulate(args.users, 20, seed=args.seed).data
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(train.num_features, latent_dim=2)
    guide = NeuralProcessGuide(model)
    objective = [ImportanceWeightedELBO(steps=args.steps), Sleep(steps=max(1, args.steps // 2))]
    options = {"learning_rate": 5e-3, "validation": None, "progress_bar": False}
    fit(model, guide, train, objective=objective, seed=args.seed, **options)
    rng = np.random.default_rng(args.seed)
    x = rng.random(args.items)
    kind = rng.integers(2, size=args.people)
    utility = two_mode.utility(x, kind[:, None])
    prob = (utility[:, :, None] > utility[:, None, :]).astype(float)
    return Problem(model, guide, pd.DataFrame({"x": x}), utility, prob)


def learn(problem: Problem, goal: Goal | None, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Asks everybody one question after another, at random where `goal` is None.

    Returns:
        Loss and regret after 0, 1, … questions, each with shape (T + 1, U).
    """
    users = np.arange(args.people)
    rng = np.random.default_rng(args.seed)
    pairs = np.array(list(itertools.combinations(range(len(problem.items)), 2)))
    order = rng.random((len(users), len(pairs))).argsort(1)
    luck = rng.random((args.questions, len(users)))  # The same for every goal.
    context, scores = Preferences.empty(users, problem.items), []
    for number in range(args.questions + 1):
        posterior = Posterior(
            problem.model, problem.guide, context, args.draws, seed=args.seed + number
        )
        scores.append(score(problem, posterior, pairs))
        if number == args.questions:
            break
        if goal is None:
            left, right = pairs[order[:, number]].T
        else:
            chosen = next_questions(posterior, None, goal)["question"]
            left, right = np.array(chosen.tolist()).T
        is_left = luck[number] < problem.prob[users, left, right]
        answer = np.where(is_left, "left", "right").tolist()
        context = context.append(users.tolist(), left.tolist(), right.tolist(), answer)
    loss, regret = (np.stack(part) for part in zip(*scores, strict=True))
    return {"loss": loss, "regret": regret}


def score(
    problem: Problem, posterior: Posterior, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the loss of predictions of all pairs, and the regret, each (U,)."""
    users = np.arange(len(problem.utility))
    left, right = np.tile(pairs, (len(users), 1)).T
    target = Preferences(
        left,
        right,
        np.ones(len(left)),
        np.arange(len(users) + 1) * len(pairs),
        items=problem.items.to_numpy(),
        feature_names=problem.items.columns,
        user_names=posterior.context.user_names,
    )
    prob = posterior.choice_prob(target).mean.double().numpy().clip(1e-9, 1 - 1e-9)
    truth = problem.prob[:, pairs[:, 0], pairs[:, 1]]
    loss = special.rel_entr(truth, prob) + special.rel_entr(1 - truth, 1 - prob)
    recommended = posterior.utility(problem.items.index).mean(0).argmax(-1).numpy()
    return loss.mean(1), problem.utility.max(1) - problem.utility[users, recommended]


def real_people(args: argparse.Namespace) -> list[dict[str, object]]:
    """Reveals recorded choices in three orders to models that were fitted to other people."""
    everybody = electricity.read()
    whole = np.flatnonzero(everybody.judgement_counts == 12)  # 348 of 361 people.
    data = everybody.subset(whole)
    base = data.right[data.judgement_heads, None]  # The last item beside each of the others.
    sets = np.sort(np.concatenate([data.left.reshape(len(base), -1), base], 1), 1)
    every, number = np.unique(sets, axis=0, return_inverse=True)
    situations = [tuple(data.item_names[items]) for items in every]
    goals = {
        "random": None,
        "information": InformationGain(),
        "prediction": PredictiveInformation(situations),
    }
    rng = np.random.default_rng(args.seed)
    chosen = np.sort(rng.permutation(len(data))[: args.real_people])
    order = rng.random((len(data), len(base) // len(data))).argsort(1)
    losses = {label: [] for label in goals}
    for fold in np.array_split(rng.permutation(chosen), args.folds):
        train = everybody.subset(np.setdiff1d(np.arange(len(everybody)), whole[fold]))
        model = HeterogeneousBTL.for_data(train, latent_dim=None, utility="linear", seed=args.seed)
        stage = MaximumLikelihood(num_draws=args.fit_draws)
        fit(model, None, train, objective=stage, seed=args.seed, progress_bar=False)
        numbers = number.reshape(len(data), -1)[fold]
        for label, goal in goals.items():
            found = reveal(model, data.subset(fold), order[fold], numbers, situations, goal, args)
            losses[label].append(found)
    loss = {label: np.concatenate(parts, 1) for label, parts in losses.items()}
    return [
        row
        for label, own in loss.items()
        for row in summarise(
            "electricity", label, {"loss": own, "difference": own - loss["random"]}
        )
    ]


def reveal(
    model: HeterogeneousBTL,
    people: Preferences,
    order: np.ndarray,
    numbers: np.ndarray,
    situations: list[tuple],
    goal: Goal | None,
    args: argparse.Namespace,
) -> np.ndarray:
    """Reveals choices one by one, in a random order where `goal` is None.

    Args:
        people: The people and all of their choices.
        order: Random order of the choices of each person, (U, 12), of which the first are hidden.
        numbers: Number of the situation of each choice, (U, 12).
        situations: The situations: names of the items on offer.

    Returns:
        Log-loss of the hidden choices after 0, 1, … others, with shape (T + 1, U).
    """
    user = np.arange(len(people))
    hidden, known = np.zeros(order.shape, dtype=bool), np.zeros(order.shape, dtype=bool)
    np.put_along_axis(hidden, order[:, :HIDDEN], True, 1)
    losses = []
    for count in range(order.shape[1] - HIDDEN + 1):
        context = take(people, known)
        posterior = Posterior(model, None, context, args.draws, seed=args.seed + count)
        losses.append(-posterior.log_score(take(people, hidden)).double().numpy())
        if known.sum(1).max() == order.shape[1] - HIDDEN:
            break
        if goal is None:
            best = order[:, HIDDEN + count]
        else:
            score = score_questions(posterior, situations, goal)["score"].to_numpy()
            own = np.take_along_axis(score.reshape(len(user), -1), numbers, 1)
            best = np.where(hidden | known, -np.inf, own).argmax(1)
        known[user, best] = True
    return np.stack(losses)


def take(people: Preferences, which: np.ndarray) -> Preferences:
    """Returns some of the choices of people, given as a mask (U, 12)."""
    size = people.num_comparisons // which.size  # Rows of a choice.
    rows = np.repeat(which.flatten(), size)
    return Preferences(
        people.left[rows],
        people.right[rows],
        people.choice[rows],
        np.append(0, size * which.sum(1).cumsum()),
        items=people.items,
        item_names=people.item_names,
        feature_names=people.feature_names,
        user_names=people.user_names,
        ranking=people.ranking[rows],
    )


def summarise(problem: str, label: str, curves: dict[str, np.ndarray]) -> list[dict[str, object]]:
    """Averages over people, with standard errors."""
    return [
        {
            "problem": problem,
            "questions": label,
            "metric": metric,
            "asked": asked,
            "mean": values.mean(),
            "error": values.std(ddof=1) / len(values) ** 0.5,
        }
        for metric, curve in curves.items()
        for asked, values in enumerate(curve)
    ]


def show(table: pd.DataFrame) -> str:
    """Lays out a row for each number of questions, and a column for each metric and goal."""
    cell = table["mean"].map("{:.4f}".format) + " ± " + table["error"].map("{:.4f}".format)
    wide = table.assign(cell=cell).pivot(
        index="asked", columns=["metric", "questions"], values="cell"
    )
    metrics, labels = table["metric"].unique(), table["questions"].unique()
    return wide[list(itertools.product(metrics, labels))].to_string()


def draw_figure(table: pd.DataFrame, path: Path) -> None:
    """Draws the curves of all problems, with bands of two standard errors."""
    import matplotlib.pyplot as plt

    names = table["problem"].unique()
    colours = dict(zip(LINES, ("C0", "C1", "C2", "C3"), strict=True))
    figure, axes = plt.subplots(len(names), 2, figsize=(8.4, 8.4), layout="constrained")
    for name, row in zip(names, axes, strict=True):
        titles = REAL if name == "electricity" else METRICS
        for (metric, title), ax in zip(titles.items(), row, strict=True):
            part = table[(table["problem"] == name) & (table["metric"] == metric)]
            for label, curve in part.groupby("questions", sort=False):
                style = {"color": colours[label], "label": label}
                ax.plot(curve["asked"], curve["mean"], LINES[label], **style)
                low, high = (curve["mean"] + sign * 2 * curve["error"] for sign in (-1, 1))
                if name != "electricity":
                    low = low.clip(lower=0)
                if metric != "loss" or name != "electricity":  # People differ more than orders do.
                    ax.fill_between(
                        curve["asked"], low, high, color=colours[label], alpha=0.2, lw=0
                    )
            if name != "electricity":
                ax.set_ylim(bottom=0)
            ax.set_title(name, fontsize=10)
            ax.set_ylabel(title)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].legend(frameon=False, title="questions, mean ± 2 SE", fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel("questions answered")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--people", type=whole(2), default=200, help="people who are asked")
    parser.add_argument("--questions", type=whole(), default=12, help="questions for each person")
    parser.add_argument("--items", type=whole(3), default=20, help="items that are compared")
    parser.add_argument("--draws", type=whole(25), default=500, help="posterior draws a person")
    parser.add_argument(
        "--users", type=whole(10), default=10_000, help="training people of the two-mode problem"
    )
    parser.add_argument("--steps", type=whole(), default=2500, help="steps of its first stage")
    parser.add_argument(
        "--real-people", type=whole(8, 348), default=348, help="real people who are asked"
    )
    parser.add_argument("--folds", type=whole(2, 8), default=4, help="fits to other real people")
    parser.add_argument("--fit-draws", type=whole(16), default=256, help="draws of these fits")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
