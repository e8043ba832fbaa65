from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fssa_bayes.data import Preferences
from fssa_bayes.datasets import llmfao, styles, train_choice, two_mode, ukp_convarg


def within_4_standard_errors(per_user: np.ndarray, truth: float) -> bool:
    return abs(per_user.mean() - truth) < 4 * per_user.std(ddof=1) / np.sqrt(len(per_user))


# Two modes.


def first_n(data: Preferences, n: int) -> Preferences:
    columns = (
        column.reshape(len(data), -1)[:, :n].ravel()
        for column in (data.left, data.right, data.choice)
    )
    return Preferences(*columns, np.arange(len(data) + 1) * n, items=data.items)


def plain_utility(x: float, person_type: int) -> float:
    if x < 0.5:
        return x
    return 2 * x if person_type == 0 else 1 - x


def first_informative(data: Preferences) -> list[int]:
    """Finds, person by person, the first pair on which the types disagree."""
    first = []
    for user in range(len(data)):
        first.append(data.counts[user])
        for n, row in enumerate(range(data.offsets[user], data.offsets[user + 1])):
            a, b = (data.items[side[row], 0].item() for side in (data.left, data.right))
            wins = [plain_utility(a, t) > plain_utility(b, t) for t in (0, 1)]
            if wins[0] != wins[1]:
                first[-1] = n
                break
    return first


def test_choices_maximise_the_utility_of_the_type() -> None:
    data, person_type = two_mode.simulate(50, 4, seed=1)
    for row, t in enumerate(np.repeat(person_type, 4)):
        a, b = (data.items[side[row], 0].item() for side in (data.left, data.right))
        assert data.choice[row] == (plain_utility(a, t) > plain_utility(b, t))


def test_types_are_equally_likely_and_disagree_on_half_of_the_pairs() -> None:
    data, person_type = two_mode.simulate(10_000, 1, seed=2)
    x = data.items[:, 0].numpy()
    wins = [two_mode.utility(x[data.left], t) > two_mode.utility(x[data.right], t) for t in (0, 1)]
    assert within_4_standard_errors(wins[0] != wins[1], 0.5)
    assert within_4_standard_errors(person_type, 0.5)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_type_is_unknown_until_the_first_informative_pair(n: int) -> None:
    data, person_type = two_mode.simulate(300, 5, seed=3)
    known = np.array(first_informative(data)) < n
    expected = np.where(known, person_type, 0.5)
    assert two_mode.bayes_type_prob(first_n(data, n)).tolist() == expected.tolist()


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_bayes_predictor_reaches_its_limits(n: int) -> None:
    data, _ = two_mode.simulate(4000, n + 4, seed=4)
    context, target = data.split_context(n, seed=5)
    prob = two_mode.bayes_choice_prob(context, target).reshape(-1, 4)
    choice = target.choice.reshape(-1, 4)
    prob_of_choice = np.where(choice == 1, prob, 1 - prob)
    accuracy = (np.sign(prob_of_choice - 0.5) + 1) / 2  # a guess is right half of the time
    assert within_4_standard_errors(accuracy.mean(1), 1 - 2.0**-n / 4)
    assert within_4_standard_errors(-np.log(prob_of_choice).mean(1), 2.0**-n * np.log(2) / 2)


@pytest.mark.parametrize(
    ("n", "accuracy", "log_loss"), [(0, 0.75, 0.347), (1, 0.875, 0.173), (10, 0.9998, 0.0003)]
)
def test_published_limits(n: int, accuracy: float, log_loss: float) -> None:
    assert two_mode.bayes_accuracy(n) == pytest.approx(accuracy, abs=5e-5)
    assert two_mode.bayes_log_loss(n) == pytest.approx(log_loss, abs=5e-4)


def test_choices_of_neither_type_are_refused() -> None:
    # Both types prefer .4 to .2; type 0 alone prefers .9 to .6 and type 1 alone .6 to .9.
    wrong = Preferences([0, 2], [1, 3], [1, 1], [0, 1, 2], items=[[0.2], [0.4], [0.6], [0.9]])
    with pytest.raises(ValueError, match=r"choices of type 0 or 1, user 0 is of neither"):
        two_mode.bayes_type_prob(wrong)


@pytest.mark.parametrize("argument", ["num_users", "num_comparisons"])
def test_empty_simulation_is_refused(argument: str) -> None:
    sizes = {"num_users": 2, "num_comparisons": 2} | {argument: 0}
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        two_mode.simulate(**sizes)


def test_simulation_depends_on_its_seed_alone() -> None:
    first, again, other = (two_mode.simulate(20, 3, seed=seed).data for seed in (1, 1, 2))
    assert first.items.equal(again.items)
    assert first.choice.tolist() == again.choice.tolist()
    assert not first.items.equal(other.items)


# Train trips.

TRIPS = pd.DataFrame(
    {
        "comfort2": [0, 1, 1, 0],
        "id": [7, 3, 7, 7],
        "choice": ["choice1", "choice2", "choice2", "choice1"],
        "price1": [2400, 1000, 4000, 2400],
        "time1": [150, 120, 90, 150],
        "change1": [0, 1, 2, 0],
        "comfort1": [1, 0, 1, 1],
        "price2": [4000, 2400, 2400, 4000],
        "time2": [150, 150, 150, 150],
        "change2": [0, 0, 0, 0],
        "route": ["a", "b", "c", "a"],
    }
)  # the last row repeats the first: the same person chose twice


def trip(price: int, time: int, change: int, comfort: int) -> list[float]:
    return [price / 100 * 2.20371, time / 60, change, comfort]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_train_choices_are_read_in_guilders_and_hours(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"trips.{suffix}"
    TRIPS.to_csv(path, index=False)
    data = train_choice.read(path)
    assert list(data.feature_names) == ["price", "time", "change", "comfort"]
    assert list(data.user_names) == [7, 3]
    assert data.counts.tolist() == [3, 1]
    assert data.choice.tolist() == [1, 0, 1, 0]
    left = [
        trip(2400, 150, 0, 1),
        trip(4000, 90, 2, 1),
        trip(2400, 150, 0, 1),
        trip(1000, 120, 1, 0),
    ]
    right = [
        trip(4000, 150, 0, 0),
        trip(2400, 150, 0, 1),
        trip(4000, 150, 0, 0),
        trip(2400, 150, 0, 1),
    ]
    np.testing.assert_allclose(data.items[data.left], left, rtol=1e-6)
    np.testing.assert_allclose(data.items[data.right], right, rtol=1e-6)
    assert data.num_items == 4  # equal trips are one item


def test_table_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trips.csv"
    TRIPS.drop(columns="time2").to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"path must be .*trips.csv has no column 'time2'"):
        train_choice.read(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        train_choice.read(tmp_path / "none.csv")


# Crowds.


def test_votes_are_read_with_ties(tmp_path: Path) -> None:
    path = tmp_path / llmfao.FILE
    rows = "id,worker,winner,left,right\n0,7,tie,A,B\n1,7,left,B,C\n2,9,right,A,C\n3,9,tie,A,B\n"
    path.write_text(rows)
    data = llmfao.read(path)
    assert list(data.item_names[data.left]) == ["A", "B", "A", "A"]
    assert list(data.choice) == [0.5, 1.0, 0.0, 0.5]
    assert data.ties == "keep"
    assert list(data.user_names) == ["7", "9"]
    assert llmfao.read(path, ties="drop").num_comparisons == 2


def test_arguments_are_read_with_embeddings(tmp_path: Path) -> None:
    path, embeddings = tmp_path / "judgements.csv", tmp_path / ukp_convarg.EMBEDDINGS
    path.write_text("topic,arg1,arg2,worker,label\nt,b,a,0,a2\nt,a,c,1,equal\nt,a,c,0,a1\n")
    np.savez(embeddings, arg=np.array(["a", "b", "c"]), embedding=np.eye(3, dtype=np.float16))
    data = ukp_convarg.read(path, embeddings)
    person = dict(zip(data.user_names, np.split(data.choice, data.offsets[1:-1]), strict=True))
    assert list(person["0"]) == [0.0, 1.0]
    assert list(person["1"]) == [0.5]
    features = data.items[data.left].numpy()
    np.testing.assert_array_equal(features[0], [0, 1, 0])
    assert ukp_convarg.read(path, None).items is None
    with pytest.raises(ValueError, match="is not a column of"):
        llmfao.read(path)


# Styles.


def test_answers_have_the_style_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    for style in range(len(styles.TYPES)):
        texts = [styles.write(prompt, style, rng) for prompt in styles.prompts()[:300]]
        assert {styles.style_of(text) for text in texts} == {style}
        assert {styles.formality(text) for text in texts} == {1.0 - style % 2}
        assert {styles.is_long(text) for text in texts} == {float(style // 2)}


def test_answers_are_about_the_prompt() -> None:
    rng = np.random.default_rng(0)
    for prompt in styles.prompts()[:100]:
        thing = prompt.rstrip("?").split()[-1]
        assert all(thing in styles.write(prompt, style, rng) for style in range(4))


def test_every_pair_of_styles_divides_the_types_two_against_two() -> None:
    for style in range(4):
        for other in set(range(4)) - {style}:
            margins = styles.margin(np.arange(4), style, other)
            assert (margins > 0).sum() == 2
            assert (margins < 0).sum() == 2
            np.testing.assert_array_equal(margins, -styles.margin(np.arange(4), other, style))
    assert styles.margin(0, 0, 3) == 13.0  # Terse formal: both traits, 8 + 5 nats.
    assert styles.margin(1, 0, 3) == 3.0  # Terse casual: length outweighs register.


@pytest.mark.slow
@pytest.mark.parametrize("noise", [True, False])
def test_styled_choices_follow_the_margin(noise: bool) -> None:
    choices = styles.simulate(400, 30, prompts=styles.prompts()[:60], noise=noise, seed=1)
    assert np.bincount(choices.type).tolist() == [100] * 4
    chosen, rejected = (choices.table[side].map(styles.style_of) for side in ("chosen", "rejected"))
    types = np.repeat(choices.type, 30)
    margin = styles.margin(types, chosen.to_numpy(), rejected.to_numpy())
    right = (margin > 0).reshape(400, 30)
    if noise:
        surprise = right - 1 / (1 + np.exp(-np.abs(margin))).reshape(400, 30)
        assert within_4_standard_errors(surprise.mean(1), 0.0)
    assert right.all() == (not noise)
    again = styles.simulate(400, 30, prompts=styles.prompts()[:60], noise=noise, seed=1)
    pd.testing.assert_frame_equal(choices.table, again.table)
    # No person is asked about one prompt twice.
    assert not choices.table.duplicated(["user", "prompt"]).any()


def test_styled_choices_need_people_and_prompts() -> None:
    with pytest.raises(ValueError, match="num_users must be at least 1, got 0"):
        styles.simulate(0, 3, prompts=styles.prompts())
    with pytest.raises(ValueError, match="at least num_comparisons=3, got 2"):
        styles.simulate(4, 3, prompts=styles.prompts()[:2])
