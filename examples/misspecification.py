"""Which diagnostics notice which kind of wrong model?

Fits a model to people who behave as it assumes, and sets it before people held out who do not:

- `none`: they do, and a check that rings here rings falsely;
- `lapses`: one answer in eight is given at random;
- `position bias`: left has an advantage of .4 nats;
- `shrunken model`: the model says people differ by .8 of what they do;
- `unseen types`: one person in ten goes by something that leaves the people of the fit cold;
- `informative contexts`: which of two pairs a person answers depends on what they would answer,
  the one that they feel more strongly about.

What to see: calibration on the model's own simulations sees nothing, in any row. The score test of
the right direction finds lapses, bias and shrinkage, each also by tests of other directions, so
that a failed check says that the model is wrong and only suggests where. Informative contexts look
like people who differ more: no check of choices can tell these two apart. The last column is no
p-value: the share of people whose choices have a tail probability below .05 under the model, one
in twenty of its own people at most; among people of unseen types it is larger.

    python examples/misspecification.py
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from arguments import Parser, run, whole

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    Sleep,
    diagnostics,
    fit,
)
from fssa_bayes.checks import ask as random_pairs
from fssa_bayes.checks import (
    calibrate,
    draw_model,
    predict_held_out,
    predictive_checks,
    score_tests,
)

NUM_ITEMS, NUM_FEATURES, LATENT_DIM = 60, 5, 2
KNOWN = 4  # Choices known in the calibration on the model's own simulations.
LEVEL = 0.05 / 6  # Six checks a row; one false alarm in twenty rows.


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    pairs = ask(args.users, args, seed=args.seed)
    truth = draw_model(pairs.items, LATENT_DIM, "linear", spread=2.0, seed=args.seed)
    train, _ = truth.simulate(pairs, seed=args.seed)
    torch.manual_seed(args.seed)
    model = HeterogeneousBTL(NUM_FEATURES, LATENT_DIM, "linear")
    guide = NeuralProcessGuide(model)
    stages = [ImportanceWeightedELBO(steps=args.steps), Sleep(steps=args.steps)]
    fit(model, guide, train, objective=stages, validation=None, seed=args.seed)
    print(f"fitted in {time.perf_counter() - start:.0f} s")
    table = {}
    for name, misbehave in PEOPLE.items():
        people = misbehave(truth, args)
        judged = shrunk(model, guide) if name == "shrunken model" else (model, guide)
        table[name] = ring(*judged, people, args)
    table = pd.DataFrame(table).T.rename_axis("people")
    with pd.option_context("display.width", 200):
        print(f"\np-values, and the share of people who surprise; {args.test_users} people a row")
        print(table.map("{:.2g}".format).to_string())
    print(f"noticed: below {LEVEL:.3f}")
    print(
        f"\n{draw(table, args.out / 'misspecification.png')}; {time.perf_counter() - start:.0f} s"
    )


# People.


def lapses(truth: HeterogeneousBTL, args: argparse.Namespace) -> Preferences:
    rng = np.random.default_rng(args.seed + 2)
    people = behave(truth, args)
    random = rng.integers(2, size=people.num_comparisons)
    slipped = rng.random(people.num_comparisons) < 1 / 8
    return people.with_choices(np.where(slipped, random, people.choice))


def position_bias(truth: HeterogeneousBTL, args: argparse.Namespace) -> Preferences:
    return choose(truth, ask(args.test_users, args, seed=args.seed + 1), args, bias=0.4)


def unseen_types(truth: HeterogeneousBTL, args: argparse.Namespace) -> Preferences:
    """Gives some people coefficients that no z of the model stands for."""
    pairs = ask(args.test_users, args, seed=args.seed + 1)
    direction = torch.linalg.qr(truth.utility.loading.detach(), mode="complete")[0][:, -1]
    strange, batch = pairs.items.to(direction) @ direction, pairs.batch()
    margin = 4 * (strange[batch.left] - strange[batch.right])
    return choose(truth, pairs, args, strange=margin)


def informative_contexts(truth: HeterogeneousBTL, args: argparse.Namespace) -> Preferences:
    """Lets everybody answer one of two questions: the one that they feel more strongly about."""
    double = argparse.Namespace(**vars(args) | {"comparisons": 2 * args.comparisons})
    pairs = ask(args.test_users, double, seed=args.seed + 1)
    z = factors(truth, len(pairs), args)
    margin = truth.choice(pairs.batch(), z[None]).margin[0].abs()
    first = margin[:, ::2] >= margin[:, 1::2]
    number = torch.arange(pairs.num_comparisons).view(len(pairs), -1)
    answered = torch.where(first, number[:, ::2], number[:, 1::2])
    return choose(truth, pairs.imagine(answered.numpy()), args)


def behave(truth: HeterogeneousBTL, args: argparse.Namespace) -> Preferences:
    return choose(truth, ask(args.test_users, args, seed=args.seed + 1), args)


PEOPLE: dict[str, Callable[[HeterogeneousBTL, argparse.Namespace], Preferences]] = {
    "none": behave,
    "lapses": lapses,
    "position bias": position_bias,
    "shrunken model": behave,
    "unseen types": unseen_types,
    "informative contexts": informative_contexts,
}


def ask(users: int, args: argparse.Namespace, *, seed: int) -> Preferences:
    """Asks people about random pairs of the items, the same items for all."""
    items = np.random.default_rng(0).normal(size=(NUM_ITEMS, NUM_FEATURES))
    return random_pairs(items, users, args.comparisons, np.random.default_rng(seed))


def factors(truth: HeterogeneousBTL, users: int, args: argparse.Namespace) -> torch.Tensor:
    generator = torch.Generator().manual_seed(args.seed + 3)
    return torch.randn(users, truth.latent_dim, generator=generator)


@torch.no_grad()
def choose(
    truth: HeterogeneousBTL,
    pairs: Preferences,
    args: argparse.Namespace,
    *,
    bias: float = 0.0,
    strange: torch.Tensor | None = None,
) -> Preferences:
    """Draws choices; one person in ten may have margins of their own, with shape (U, N)."""
    batch = pairs.batch()
    margin = truth.choice(batch, factors(truth, len(pairs), args)[None]).margin[0] + bias
    if strange is not None:
        count = len(pairs) // 10
        margin[:count] = strange[:count]
    generator = torch.Generator().manual_seed(args.seed + 4)
    choice = torch.bernoulli(torch.sigmoid(margin), generator=generator)
    return pairs.with_choices(choice[batch.mask].numpy())


def shrunk(
    model: HeterogeneousBTL, guide: NeuralProcessGuide
) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    """Makes a model whose people differ by .8 of what they do in this one."""
    smaller, its_guide = copy.deepcopy((model, guide))
    with torch.no_grad():
        smaller.utility.loading.mul_(0.8)
    return smaller, its_guide


# Checks.


def ring(
    model: HeterogeneousBTL,
    guide: NeuralProcessGuide,
    people: Preferences,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Runs the checks and returns their p-values."""
    options = {"num_samples": args.draws, "seed": args.seed}
    own = calibrate(model, guide, people, sizes=(KNOWN,), num_users=args.test_users, **options)
    first = predict_held_out(model, guide, people, sizes=(0,), **options)[0]
    directions = score_tests(model, guide, people, **options)["p"]
    behaviour = predictive_checks(model, people, num_replicates=400, seed=args.seed)
    posterior = Posterior(model, guide, people, args.draws, seed=args.seed)
    surprise = posterior.context_surprise(seed=args.seed)
    return {
        "own simulations": own.test("corrected").p_value,
        "coverage": diagnostics.sbc_test(first.pit.unsqueeze(-1)).p_value,
        "behaviour": behaviour["adjusted"].min(),
        "differences": directions["difference between people"],
        "left": directions["left over right"],
        "lapses": directions["lapses"],
        "surprising people": (surprise["tail_probability"] < 0.05).mean(),
    }


def draw(table: pd.DataFrame, path: Path) -> Path:
    """Draws which check (columns) notices what (rows): the darker, the smaller the p-value."""
    import matplotlib.pyplot as plt

    values = table.drop(columns="surprising people")
    strength = (-np.log10(values.clip(lower=1e-6))).to_numpy()
    figure, ax = plt.subplots(figsize=(8.4, 4), layout="constrained")
    image = ax.imshow(strength, cmap="Greys", vmin=0, vmax=9, aspect="auto")
    for row, column in np.ndindex(*strength.shape):
        p = values.iat[row, column]
        text = "< 1e-6" if p < 1e-6 else f"{p:.2g}"
        weight = "bold" if p < LEVEL else "normal"
        ax.text(column, row, text, ha="center", va="center", fontweight=weight)
    ax.set_xticks(range(values.shape[1]), values.columns.str.replace(" ", "\n"))
    ax.set_yticks(range(len(values)), values.index)
    ax.set_xlabel("check")
    ax.set_ylabel("people")
    figure.colorbar(image, ax=ax, label="−log10 p")
    ax.set_title(f"p-values; bold: noticed, below {LEVEL:.3f}")
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--users", type=whole(10), default=1500, help="people of the fit")
    parser.add_argument(
        "--test-users", type=whole(100), default=600, help="people held out, each time"
    )
    parser.add_argument("--comparisons", type=whole(), default=12, help="choices of each person")
    parser.add_argument("--steps", type=whole(), default=600, help="steps of each objective")
    parser.add_argument("--draws", type=whole(100), default=500, help="posterior draws a person")
    return parser


if __name__ == "__main__":
    run(main, make_parser())
