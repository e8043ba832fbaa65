"""The report of what a policy writes: numbers are those of its parts, people side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_policy import ColourGuide, make_contexts, make_policy, make_rows, make_tokenizer
from torch import Tensor

from fssa_bayes.policy import TextReport, text_batch, text_cost, text_report
from fssa_bayes.policy.evaluation import accuracy_by_context, by_group, draw_given

TRAITS = {"red": lambda text: text.count("red"), "empty": lambda text: not text}


@pytest.fixture(scope="module")
def setting() -> dict:
    rows = make_rows(6)
    policy = make_policy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    people = np.flatnonzero(np.r_[True, np.diff(rows.user) != 0]).repeat(2)
    return {
        "policy": policy,
        "prompts": ["say p1 now", "say p2 now"] * 6,
        "rows": people,
        "contexts": make_contexts(rows, max_context=5),
        "group": np.array(["red", "blue"], dtype=object)[rows.user[people] % 2],
    }


def red(texts: list[str]) -> Tensor:
    return torch.tensor([float(text.count("red")) for text in texts])


def test_numbers_are_those_of_the_parts(setting: dict) -> None:
    guide, write = ColourGuide(), {"max_new_tokens": 4, "batch_size": 5, "seed": 3}
    pairs = setting["contexts"].rows.tokenise(make_tokenizer())
    report = text_report(
        **setting, posterior=guide.posterior, traits=TRAITS, utility=red,
        reward=lambda texts: torch.stack([red(texts), -red(texts)]), pairs=pairs,
        num_contexts=(0, 3), **write,
    )  # fmt: skip
    policy, prompts, group = (setting[name] for name in ("policy", "prompts", "group"))
    user = setting["contexts"].rows.user[setting["rows"]]
    with policy.reference():
        base = policy.generate(prompts, **write)
    z = draw_given(guide.posterior, setting["contexts"], setting["rows"], num_context=3, seed=3)[0]
    texts = policy.generate(prompts, z, **write)
    assert texts != base
    cost = text_cost(policy, text_batch(policy, prompts, texts), z)
    won = (red(texts) - red(base)).sigmoid().double()
    expected = {
        "trait red": [text.count("red") for text in texts],
        "win rate, true utility": won,
        "win rate, posterior reward": 0.5 * (won + 1 - won),
        "kl": cost.kl,
        "nats under the reference": cost.reference_nats,
    }
    table = report.table
    for metric, values in expected.items():
        found = table[(table["metric"] == metric) & (table["contexts"] == 3)]
        wanted = by_group(values, user, group)
        assert list(found["group"]) == list(wanted["group"])
        for name in ("value", "standard_error"):
            assert np.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6), metric
    options = {"num_contexts": (0, 3), "num_draws": 1, "seed": 3}
    accuracy = accuracy_by_context(policy, pairs, setting["contexts"], guide.posterior, **options)
    last = table[table["metric"] == "implicit accuracy"]
    assert np.allclose(last["value"], accuracy["value"])
    assert list(pd.unique(table["metric"]))[-1] == "implicit accuracy"
    written = report.samples[report.samples["contexts"] == -1]
    assert list(written["text"]) == base
    assert set(table[table["contexts"] == -1]["metric"]) == {
        "trait red", "trait empty", "nats under the reference",
    }  # fmt: skip


def test_a_report_is_laid_out(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "metric": ["kl", "kl", "trait x"], "group": ["a", "a", "a"], "contexts": [0, 10, -1],
            "value": [0.5, 0.25, 1.0], "standard_error": [0.1, 0.05, 0.0], "users": [3, 3, 3],
        }
    )  # fmt: skip
    samples = pd.DataFrame(
        {
            "user": [0, 0, 0, 1, 1], "group": ["a", "a", "a", "b", "b"], "contexts": [10] * 5,
            "prompt": ["o", "p", "q", "p", "q"], "text": ["z", "one two three", "x", "four", "y"],
        }
    )  # fmt: skip
    report = TextReport(table, samples)
    wide = report.wide()
    assert wide.loc[("kl", "a"), 10] == "0.25 ± 0.05"
    assert wide.loc[("trait x", "a"), 0] == ""
    assert list(wide.index.get_level_values(0)) == ["kl", "trait x"]
    page = report.side_by_side(10, num_prompts=1, width=8).splitlines()
    assert page == ["> p", "a        | b", "one two  | four", "three    |"]


def test_rows_of_another_number_are_refused(setting: dict) -> None:
    setting = setting | {"rows": setting["rows"][:3]}
    with pytest.raises(ValueError, match=r"rows must have shape \(12,\), got \(3,\)"):
        text_report(**setting, posterior=ColourGuide().posterior, traits=TRAITS)
