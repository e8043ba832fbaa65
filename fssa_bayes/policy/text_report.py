"""What a policy writes for people of whom a few choices are known, and what that costs.

Text comes first: its traits, whether people would choose it, its distance from the reference and
its fluency. Accuracy of the implicit reward comes last: it can be right for every pair while what
is written does not change.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fssa_bayes.policy.contexts import Contexts
from fssa_bayes.policy.evaluation import (
    accuracy_by_context,
    by_group,
    draw_given,
    trait_rates,
    win_rate,
)
from fssa_bayes.policy.fluency import text_batch, text_cost
from fssa_bayes.policy.tokens import TokenisedPairs

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fssa_bayes.data import Batch
    from fssa_bayes.policy.conversations import Conversation
    from fssa_bayes.policy.model import SteerablePolicy

__all__ = ["TextReport", "text_report"]

Reward = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class TextReport:
    """Holds what was written, and measurements of it.

    Attributes:
        table: One row for each measurement, group and number of choices known: `metric`, `group`,
            `contexts` (−1 for the reference policy), and the columns of :func:`by_group`. Metrics
            are `trait NAME`, `win rate, true utility`, `win rate, posterior reward`, `kl` and `nats
            under the reference` (both a token), and `implicit accuracy`.
        samples: One row a text: `user`, `group`, `contexts`, `prompt`, `text`.
    """

    table: pd.DataFrame
    samples: pd.DataFrame

    def wide(self, digits: int = 2) -> pd.DataFrame:
        """Returns value ± standard error with a column for each number of choices known."""
        cells = [
            f"{value:.{digits}f} ± {error:.{digits}f}"
            for value, error in zip(self.table["value"], self.table["standard_error"], strict=True)
        ]
        table = self.table.assign(cell=cells)
        order = table[["metric", "group"]].drop_duplicates()
        wide = table.pivot(index=["metric", "group"], columns="contexts", values="cell")
        return wide.loc[list(order.itertuples(index=False, name=None))].fillna("")

    def side_by_side(self, contexts: int, num_prompts: int = 3, width: int = 36) -> str:
        """Lays out what is written for the first person of each group, one prompt after another.

        Args:
            contexts: Number of choices known.
            num_prompts: Number of prompts shown.
            width: Characters of a column.
        """
        shown = self.samples[self.samples["contexts"] == contexts]
        groups = list(pd.unique(shown["group"]))
        lines = []
        answered = shown.groupby("prompt", sort=False)["group"].nunique()  # By most groups first.
        order = answered.sort_values(ascending=False, kind="stable").index
        for prompt in order[:num_prompts]:
            own = shown[shown["prompt"] == prompt].drop_duplicates("group").set_index("group")
            columns = [textwrap.wrap(own["text"].get(group, ""), width) or [""] for group in groups]
            lines += [f"> {prompt}", " | ".join(f"{group:<{width}}" for group in groups)]
            for row in range(max(map(len, columns))):
                cells = [column[row] if row < len(column) else "" for column in columns]
                lines.append(" | ".join(f"{cell:<{width}}" for cell in cells))
            lines.append("")
        return "\n".join(line.rstrip() for line in lines)


def text_report(
    policy: SteerablePolicy,
    prompts: Sequence[Conversation],
    rows: ArrayLike,
    contexts: Contexts,
    posterior: Callable[[Batch], torch.distributions.Distribution],
    traits: Mapping[str, Callable[[str], float]],
    *,
    group: ArrayLike | None = None,
    utility: Reward | None = None,
    reward: Reward | None = None,
    pairs: TokenisedPairs | None = None,
    num_contexts: Sequence[int] = (0, 1, 3, 5, 10),
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
) -> TextReport:
    """Writes answers for people after 0, 1, … of their choices, and measures them.

    Each answer is written under one draw of z. Prompts should be such that neither training nor the
    people's choices have seen them; people should be held out too.

    Args:
        policy: The policy.
        prompts: R prompts.
        rows: A row of `contexts.rows` for each prompt, whose person is answered, with shape (R,).
        contexts: Where people's choices come from.
        posterior: q(z | context), the one that the policy was trained with.
        traits: Functions from a text to a number, such as 1 where the text has the trait, else 0.
        group: What to tabulate by, such as the person's type, with shape (R,).
        utility: Function from R texts to the utility of each to its person, in nats with shape
            (R,), where it is known because people are simulated; None where it is not.
        reward: Function from R texts to draws of the posterior's reward, (R,) or (S, R); or None.
        pairs: Pairs of `contexts.rows` for the implicit reward's accuracy, or None.
        num_contexts: Numbers of choices known.
        max_new_tokens: Largest length of an answer, in tokens.
        temperature: Of the answers.
        batch_size: Answers written or scored at a time.
        seed: Seed of z and of the answers, which share their random numbers.

    Returns:
        The measurements, with standard errors by person, and the texts.

    Raises:
        ValueError: If lengths differ, or a person has fewer choices than a number asks for.
    """
    rows = np.asarray(rows)
    if rows.shape != (len(prompts),):
        raise ValueError(f"rows must have shape ({len(prompts)},), got {rows.shape}")
    group = np.full(len(rows), "all") if group is None else np.asarray(group)
    user = contexts.rows.user[rows]
    write = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "batch_size": batch_size,
        "seed": seed,
    }
    with policy.reference():
        base = policy.generate(prompts, **write)
    names = [p if isinstance(p, str) else p[-1]["content"] for p in prompts]
    tables, samples = [], []
    for size in (-1, *num_contexts):
        texts, z = base, None
        if size >= 0:
            z = draw_given(posterior, contexts, rows, num_context=size, seed=seed)[0]
            texts = policy.generate(prompts, z, **write)
        samples.append(
            pd.DataFrame(
                {"user": user, "group": group, "contexts": size, "prompt": names, "text": texts}
            )
        )
        parts = [_traits(texts, traits, user, group)]
        for name, score in (("true utility", utility), ("posterior reward", reward)):
            if score is not None and size >= 0:
                won = win_rate(texts, base, score, user, group)
                parts.append(won.assign(metric=f"win rate, {name}"))
        parts += _costs(policy, prompts, texts, z, user, group, batch_size)
        tables += [part.assign(contexts=size) for part in parts]
    if pairs is not None:
        options = {"num_contexts": num_contexts, "num_draws": 1, "batch_size": batch_size}
        found = accuracy_by_context(policy, pairs, contexts, posterior, seed=seed, **options)
        tables.append(found.assign(metric="implicit accuracy"))
    table = pd.concat(tables, ignore_index=True)
    columns = ["metric", "group", "contexts", "value", "standard_error", "users"]
    order = pd.unique(table["metric"])
    table["metric"] = pd.Categorical(table["metric"], order)
    table = table.sort_values(["metric", "contexts"], kind="stable", ignore_index=True)
    return TextReport(table.astype({"metric": str})[columns], pd.concat(samples, ignore_index=True))


def _traits(
    texts: list[str], traits: Mapping[str, Callable], user: np.ndarray, group: np.ndarray
) -> pd.DataFrame:
    table = trait_rates(texts, traits, user, group)
    return table.assign(metric="trait " + table["trait"]).drop(columns="trait")


def _costs(
    policy: SteerablePolicy,
    prompts: Sequence[Conversation],
    texts: list[str],
    z: Tensor | None,
    user: np.ndarray,
    group: np.ndarray,
    batch_size: int,
) -> list[pd.DataFrame]:
    """Measures fluency under the reference and, for the policy's own texts, the divergence."""
    batch = text_batch(policy, prompts, texts)
    if z is None:
        with policy.reference():
            cost = text_cost(policy, batch, batch_size=batch_size)
    else:
        cost = text_cost(policy, batch, z, batch_size=batch_size)
    nats = by_group(cost.reference_nats, user, group).assign(metric="nats under the reference")
    kl = by_group(cost.kl, user, group).assign(metric="kl")
    return [nats] if z is None else [kl, nats]
