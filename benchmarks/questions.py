"""Which question next: what it costs, what it tells, and whether the rule to stop is right.

Times are processor times of one question to one person by 1,000 draws, and of an answer and the
next question of an interview. People of two models and of the two-mode problem are asked at random,
by information and by value: the loss is the Kullback–Leibler divergence of the predicted choices of
all pairs from the true ones, the regret that of the item recommended. Interviews of people of a
model end by a rule; the probability stated at the end is compared with how often it came true.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import special, stats

from benchmarks.harness import Row, seeded, spread
from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.checks import ask, draw_model
from fssa_bayes.datasets import two_mode
from fssa_bayes.questions import (
    BestItemInformation,
    Goal,
    InformationGain,
    Interview,
    PredictiveInformation,
    Stop,
    ValueOfInformation,
    next_questions,
)

NAME = "questions"
INFORMATION, VALUE = InformationGain(), ValueOfInformation()
ITEMS, RANDOM, CHOSEN, EARLY = 20, 12, 6, 3  # Items, random and chosen questions, those for regret.


def run(args: argparse.Namespace) -> Iterator[Row]:
    yield from times(args)
    yield from learning(args)
    yield from stopping(args)


def times(args: argparse.Namespace) -> Iterator[Row]:
    """Times a question by every goal, and the steps of an interview."""
    sizes, repeats = ((10,), 2) if args.quick else ((64, 200), 7)
    for num_items in sizes:
        items = torch.from_numpy(np.random.default_rng(0).normal(size=(num_items, 6))).float()
        model = draw_model(items, 3, "linear")
        table = pd.DataFrame(items.numpy())
        context = Preferences.empty(["ann"], table).append("ann", [0, 2, 4], [1, 3, 5], "left")
        posterior = Posterior(model, None, context, 1000)
        targets = [(left, left + 1) for left in range(0, num_items - 1, 2)]
        goals = {
            "InformationGain": INFORMATION,
            "PredictiveInformation": PredictiveInformation(targets[:20]),
            "BestItemInformation": BestItemInformation(),
            "ValueOfInformation": VALUE,
            "EUBO": ValueOfInformation(kind="eubo"),
        }
        case = f"{math.comb(num_items, 2):,} pairs"
        for name, goal in goals.items():
            ms = [cpu(next_questions, posterior, None, goal) for _ in range(repeats)]
            yield spread(NAME, case, name, "next_questions", "ms CPU", ms)
        rules = {"Stop()": (INFORMATION, None), "Stop(value=.001)": (VALUE, 0.001)}
        for name, (goal, value) in rules.items():
            stop = Stop(best=None, value=value, max_questions=None)
            options = {"context": table, "goal": goal, "stop": stop}
            yield from time_interview(Interview(model, None, **options), case, name, repeats)


def time_interview(interview: Interview, case: str, name: str, repeats: int) -> Iterator[Row]:
    """Times the first question, and the wait from an answer to the next question."""
    yield spread(NAME, case, name, "interview: first ask", "ms CPU", [cpu(interview.ask)])
    ms = []
    for number in range(repeats):
        answered = cpu(interview.answer, ("left", "right")[number % 2])
        ms.append(answered + cpu(interview.ask))
    yield spread(NAME, case, name, "interview: answer and ask", "ms CPU", ms)


def cpu(work: Callable, *arguments: object) -> float:
    """Returns the processor time of a call, in ms."""
    start = time.process_time()
    work(*arguments)
    return 1e3 * (time.process_time() - start)


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


def learning(args: argparse.Namespace) -> Iterator[Row]:
    """Compares what chosen questions tell with what random ones do, a world a seed."""
    people = 10 if args.quick else args.people or 200
    plans = {"random": (None, RANDOM), "information": (INFORMATION, CHOSEN)}
    plans["value"] = VALUE, CHOSEN
    for name, make in {"linear, K = 3": linear, "bilinear, K = 4": bilinear}.items():
        loss, regret = defaultdict(list), defaultdict(list)
        for seed in args.seeds:
            problem = make(people, seed, args.quick)
            for label, (goal, most) in plans.items():
                found = learn(problem, goal, sorted({EARLY, CHOSEN, most}), seed)
                for asked, (own_loss, own_regret) in found.items():
                    if asked >= CHOSEN:
                        loss[label, asked].append(own_loss)
                    if asked <= CHOSEN:
                        regret[label, asked].append(own_regret)
        yield from compare(name, "loss", loss, RANDOM)
        yield from compare(name, "regret", regret, EARLY)
    loss = defaultdict(list)
    for seed in args.seeds:
        problem = two_types(people, seed, args.quick)
        for label, goal, count in (("random", None, 10), ("information", INFORMATION, 1)):
            loss[label, count].append(learn(problem, goal, [count], seed)[count][0])
    yield from compare("two modes", "loss", loss, 10)


def compare(case: str, metric: str, values: dict, asked: int) -> Iterator[Row]:
    """Yields a row for each order and number of questions, and ratios of means to random ones."""
    base = values["random", asked]
    for (label, count), figures in values.items():
        ratio = None
        if (label, count) != ("random", asked):
            ratio = sum(figures) / max(sum(base), 1e-12)
        to = None if ratio is None else f"{asked} random"
        what = f"{metric} after {count}, mean of people"
        yield spread(NAME, case, label, what, "nats", figures, to, ratio)


def linear(people: int, seed: int, quick: bool) -> Problem:
    """Draws a linear model and people of it."""
    items = torch.from_numpy(np.random.default_rng(seed).normal(size=(ITEMS, 3))).float()
    return people_of(draw_model(items, 3, "linear", seed=seed), None, items, people, seed)


def bilinear(people: int, seed: int, quick: bool) -> Problem:
    """Draws a bilinear model and people of it, and teaches a guide the model's posteriors."""
    rng = np.random.default_rng(seed)
    items = torch.from_numpy(rng.normal(size=(ITEMS, 5))).float()
    model = draw_model(items, 4, "bilinear", seed=seed)
    with seeded(seed):
        guide = NeuralProcessGuide(model, "multivariate_normal")
    others = model.simulate(ask(items, 100 if quick else 3000, 12, rng), seed=seed)[0]
    train(model, guide, others, [Sleep(steps=10 if quick else 400)], seed)
    return people_of(model, guide, items, people, seed)


def two_types(people: int, seed: int, quick: bool) -> Problem:
    """Fits a model to people of two types, and draws others, who choose without noise."""
    data = two_mode.simulate(200 if quick else 10_000, 20, seed=seed).data
    with seeded(seed):
        model = HeterogeneousBTL(1, latent_dim=2)
        guide = NeuralProcessGuide(model)
    steps = 10 if quick else 2500
    stages = [ImportanceWeightedELBO(steps=steps), Sleep(steps=steps // 2)]
    train(model, guide, data, stages, seed)
    rng = np.random.default_rng(seed)
    x = rng.random(ITEMS)
    utility = two_mode.utility(x, rng.integers(2, size=people)[:, None])
    prob = (utility[:, :, None] > utility[:, None, :]).astype(float)
    return Problem(model, guide, pd.DataFrame({"x": x}), utility, prob)


def train(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    data: Preferences,
    stages: list,
    seed: int,
) -> None:
    """Fits everybody, without a progress bar."""
    options = {"learning_rate": 5e-3, "validation": None, "progress_bar": False, "seed": seed}
    fit(model, guide, data, objective=stages, **options)
    model.feature_names = None  # New people are asked about items by their features alone.


@torch.no_grad()
def people_of(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide | None,
    items: torch.Tensor,
    people: int,
    seed: int,
) -> Problem:
    """Draws people of a model."""
    z = np.random.default_rng([seed, 1]).standard_normal((people, model.latent_dim))
    utility = model.item_utility(items, torch.from_numpy(z).float()).double().numpy()
    prob = special.expit(utility[:, :, None] - utility[:, None, :])
    return Problem(model, guide, pd.DataFrame(items.numpy()), utility, prob)


def learn(
    problem: Problem, goal: Goal | None, counts: list[int], seed: int
) -> dict[int, tuple[float, float]]:
    """Asks everybody one question after another, at random where `goal` is None.

    Returns:
        Loss and regret after the numbers of questions given, means of the people.
    """
    users = np.arange(len(problem.utility))
    rng = np.random.default_rng([seed, 2])
    pairs = np.array(list(itertools.combinations(range(len(problem.items)), 2)))
    order = rng.random((len(users), len(pairs))).argsort(1)
    luck = rng.random((RANDOM, len(users)))  # The same for every goal.
    context, scores = Preferences.empty(users, problem.items), {}
    for number in range(counts[-1] + 1):
        if goal is not None or number in counts:
            posterior = Posterior(problem.model, problem.guide, context, 500, seed=number)
        if number in counts:
            scores[number] = score(problem, posterior, pairs)
        if number == counts[-1]:
            break
        if goal is None:
            left, right = pairs[order[:, number]].T
        else:
            left, right = np.array(next_questions(posterior, None, goal)["question"].tolist()).T
        is_left = luck[number] < problem.prob[users, left, right]
        answer = np.where(is_left, "left", "right").tolist()
        context = context.append(users.tolist(), left.tolist(), right.tolist(), answer)
    return scores


def score(problem: Problem, posterior: Posterior, pairs: np.ndarray) -> tuple[float, float]:
    """Returns the loss of predictions of all pairs, and the regret, means of the people."""
    users = np.arange(len(problem.utility))
    left, right = np.tile(pairs, (len(users), 1)).T
    offsets = np.arange(len(users) + 1) * len(pairs)
    names = {"user_names": posterior.context.user_names, "feature_names": problem.items.columns}
    items = problem.items.to_numpy()
    target = Preferences(left, right, np.ones(len(left)), offsets, items=items, **names)
    prob = posterior.choice_prob(target).mean.double().numpy().clip(1e-9, 1 - 1e-9)
    truth = problem.prob[:, pairs[:, 0], pairs[:, 1]]
    loss = special.rel_entr(truth, prob) + special.rel_entr(1 - truth, 1 - prob)
    recommended = posterior.utility(problem.items.index).mean(0).argmax(-1).numpy()
    regret = problem.utility.max(1) - problem.utility[users, recommended]
    return float(loss.mean()), float(regret.mean())


def stopping(args: argparse.Namespace) -> Iterator[Row]:
    """Compares the probability stated at the end of interviews with how often it came true."""
    people, few = (5, 5) if args.quick else (1000, 200)
    best = Stop(within=None, max_questions=6)
    cases = {
        "best within .5 nats": (Stop(), people, 0.0, None),
        "best": (best, few, 0.0, None),
        "20 % lapses, ignored": (best, few, 0.2, None),
        "20 % lapses, modelled": (best, few, 0.2, 0.2),
    }
    for case, (stop, number, lapse, modelled) in cases.items():
        model = crowd(modelled)
        found = [interview_person(model, stop, i, lapse) for i in range(number)]
        stated, true, asked = map(np.array, zip(*found, strict=True))
        interval = stats.binomtest(int(true.sum()), number).proportion_ci(0.95)
        label = f"Stop, {number} people"
        yield spread(NAME, case, label, "probability stated, mean", "", [stated.mean()])
        rate = true.mean(), interval.low, interval.high
        yield Row(NAME, case, label, "came true, 95 % interval", "", *map(float, rate))
        low, high = np.quantile(asked, [0.05, 0.95])
        yield Row(NAME, case, label, "questions, 5 to 95 %", "", float(asked.mean()), low, high)


def crowd(lapse: float | None) -> HeterogeneousBTL:
    """Builds a model of people who differ in two directions about eight items."""
    names = [f"item {number}" for number in range(8)]
    options = {"feature_names": names, "lapses": lapse is not None}
    model = HeterogeneousBTL(8, 2, "linear", **options).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        model.utility.mean.copy_(torch.from_numpy(rng.normal(0, 0.3, 8)))
        model.utility.loading.copy_(torch.from_numpy(rng.normal(0, 1.2, (8, 2))))
        if lapse is not None:
            model.lapse_logit.fill_(special.logit(lapse))
    return model


def interview_person(
    model: HeterogeneousBTL, stop: Stop, number: int, lapse: float
) -> tuple[float, bool, int]:
    """Interviews a person of the model, who lapses in a share of the answers.

    Returns:
        The probability stated at the end, whether it came true, and the number of answers.
    """
    rng = np.random.default_rng([7, number])
    z = torch.from_numpy(rng.standard_normal((1, 2)).astype(np.float32))
    with torch.no_grad():
        utility = model.item_utility(torch.arange(8), z)[0].tolist()
    worth = dict(zip(model.feature_names, utility, strict=True))
    interview = Interview(model, None, stop=stop, user=number, num_samples=200, seed=number)
    while question := interview.ask():
        prob = special.expit(worth[question[0]] - worth[question[1]])
        is_left = rng.random() < (1 - lapse) * prob + lapse / 2
        interview.answer("left" if is_left else "right")
    good = worth[interview.verdict.item] >= max(utility) - (stop.within or 0)
    return interview.verdict.prob, good, interview.num_answered
