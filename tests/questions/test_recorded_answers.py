"""An interview that a caller leads: questions of another source, answers from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import HeterogeneousBTL
from fssa_bayes.questions import Interview, Stop, ValueOfInformation

NAMES = ["tea", "cola", "milk", "water", "juice"]
POOL = [NAMES[:3], NAMES[1:4], NAMES[2:]]
# Name of a case: options of the model, of the interview, and the answers given.
CASES = {
    "pairs": ({}, {}, ["left", "right", "left"]),
    "ties": ({"ties": "davidson"}, {}, ["tie", "left", "tie"]),
    "best of three": ({}, {"pool": POOL}, ["milk", "milk"]),
    "rankings": (
        {},
        {"pool": POOL, "kind": "ranking"},
        [["milk", "tea", "cola"], ["milk", "water", "cola"]],
    ),
}
EACH = pytest.mark.parametrize(("model_options", "options", "answers"), CASES.values(), ids=CASES)


def drinkers(**options: object) -> HeterogeneousBTL:
    model = HeterogeneousBTL(5, 2, "linear", feature_names=NAMES, **options).eval()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        model.utility.mean.copy_(torch.from_numpy(rng.normal(0, 0.3, 5)))
        model.utility.loading.copy_(torch.from_numpy(rng.normal(0, 1.2, (5, 2))))
    return model


def start(model: HeterogeneousBTL, **options: object) -> Interview:
    stop = Stop(best=None, max_questions=None)
    return Interview(model, None, **({"stop": stop, "num_samples": 200} | options))


def fitting(question: tuple, answer: str | Sequence) -> str | Sequence:
    """Returns the answer, or one that the question allows in its place."""
    if answer in ("left", "right", "tie"):
        return answer
    if isinstance(answer, str):
        return answer if answer in question else question[0]
    return answer if set(answer) == set(question) else list(question)


@EACH
def test_recorded_answers_are_those_of_asked_questions(
    model_options: dict, options: dict, answers: list, tmp_path: Path
) -> None:
    """A caller who asks what is proposed, and records the answers, has the same interview."""
    model = drinkers(**model_options)
    asking, recording = start(model, **options), start(model, **options)
    for answer in answers:
        question, score = recording.propose()
        assert question == asking.ask()
        answer = fitting(question, answer)
        prob = recording.predict(question, answer)
        recording.record(question, answer)
        asking.answer(answer)
        assert recording.events()[-1]["prob"] == prob
        assert recording.events()[-1]["score"] == score
    assert recording.events() == asking.events()
    table = recording.to_frame()
    assert table["prob_best"].isna().tolist() == [*[True] * (len(answers) - 1), False]
    pd.testing.assert_frame_equal(
        table.drop(columns="prob_best"), asking.to_frame().drop(columns="prob_best")
    )
    recording.save(tmp_path / "interview.json")
    given = {name: value for name, value in options.items() if name != "kind"}
    resumed = Interview.resume(tmp_path / "interview.json", model, None, **given)
    assert resumed.events() == recording.events()


@EACH
def test_replayed_events_are_the_interview(model_options, options, answers) -> None:
    model = drinkers(**model_options)
    first, again = start(model, **options), start(model, **options)
    for number, answer in enumerate(answers):
        question = first.ask()
        first.answer(fitting(question, answer))
        if number == 0:
            first.ask()
            first.skip()
        if first.ask() is None:
            break
    again.replay(json.loads(json.dumps(first.events())))
    assert again.events() == first.events()
    assert again.candidates == first.candidates
    assert again.propose() == (first.propose() if first.candidates else None)
    torch.testing.assert_close(again.posterior.z, first.posterior.z, rtol=0, atol=0)


def test_a_restarted_interview_knows_no_answer() -> None:
    first = start(drinkers())
    question = first.ask()
    other = first.restart()
    first.answer("left")
    assert (other.num_answered, other.events()) == (0, [])
    assert other.propose()[0] == question
    with pytest.raises(ValueError, match=r"^ask\(\) must come before answer\(\)"):
        other.answer("left")
    other.record(question, "right")
    assert first.to_frame()["answer"].tolist() == [question[0]]
    assert other.to_frame()["answer"].tolist() == [question[1]]


def test_what_was_recorded_or_skipped_is_no_candidate() -> None:
    interview = start(drinkers())
    every = interview.candidates
    assert len(every) == 10
    interview.record(("juice", "tea"), "juice")  # In another order than the pool's.
    interview.record(("cola", "milk"), None)
    left = {frozenset(question) for question in interview.candidates}
    gone = {frozenset(("juice", "tea")), frozenset(("cola", "milk"))}
    assert left == {frozenset(question) for question in every} - gone
    assert interview.num_answered == 1
    for question in interview.candidates:
        interview.record(question, None)
    assert interview.propose() is None


def test_predictions_are_probabilities_of_all_answers() -> None:
    interview = start(drinkers(ties="davidson"))
    interview.record(("tea", "cola"), "left")
    before = interview.events()
    probs = [interview.predict(("milk", "water"), answer) for answer in ("left", "right", "tie")]
    assert sum(probs) == pytest.approx(1, abs=1e-5)
    assert interview.predict(("milk", "water"), "milk") == probs[0]
    assert interview.predict(("water", "milk"), "left") == pytest.approx(probs[1], rel=1e-5)
    assert interview.events() == before


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (lambda interview: interview.record(("tea", "wine"), "left"), "wine"),
        (lambda interview: interview.record(("tea", "cola"), "milk"), "milk"),
        (lambda interview: interview.predict(("tea", "cola"), "tie"), "tie"),
        (lambda interview: interview.replay([{"question": ["tea", "cola"]}]), "event 0: 'answer'"),
    ],
)
def test_what_is_no_answer_is_not_recorded(take: Callable, message: str) -> None:
    interview = start(drinkers())
    with pytest.raises(ValueError, match=message):
        take(interview)
    assert interview.events() == []


def test_digests_tell_interviews_apart() -> None:
    model = drinkers()
    plain = start(model).digests()
    assert plain == start(model, seed=5).digests()
    for changed, options in (
        ("items", {"items": NAMES[:3]}),
        ("goal", {"goal": ValueOfInformation()}),
        ("pool", {"pool": [("tea", "cola"), ("tea", "milk")]}),
    ):
        other = start(model, **options).digests()
        assert {name for name in plain if plain[name] != other[name]} == {changed}
    with torch.no_grad():
        model.utility.mean += 1
    other = start(model).digests()
    assert {name for name in plain if plain[name] != other[name]} == {"model"}
