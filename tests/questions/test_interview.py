"""An interview follows from seed and answers alone, whatever happened on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, Preferences
from fssa_bayes.posterior import PopulationDraws
from fssa_bayes.questions import (
    BestItemInformation,
    InformationGain,
    Interview,
    Stop,
    ValueOfInformation,
    next_questions,
    score_questions,
)

NAMES = ["tea", "cola", "milk", "water", "juice"]
NEVER = Stop(best=None, max_questions=None)
PLAIN, TIES = {}, {"ties": "davidson"}
# Name of a case: options of the model, of the interview, and the answers given.
CASES = {
    "pairs": (PLAIN, {}, ["left", "right", "left"]),
    "ties": (TIES, {}, ["tie", "left", "tie"]),
    "bias and lapses": ({"position_bias": True, "lapses": True}, {}, ["right", "right", "left"]),
    "value goal": (PLAIN, {"goal": ValueOfInformation()}, ["left", "right", "left"]),
    "some items": (PLAIN, {"items": NAMES[:3]}, ["left", "right", "left"]),
    "best of three": (
        PLAIN,
        {"pool": [NAMES[:3], NAMES[1:4], NAMES[2:], ["tea", "water", "juice"]]},
        ["milk", "milk", "juice"],
    ),
    "rankings": (
        PLAIN,
        {"pool": [NAMES[:3], NAMES[1:4], NAMES[2:]], "kind": "ranking"},
        [["milk", "tea", "cola"], ["milk", "water", "cola"]],
    ),
    "repeats": (PLAIN, {"allow_repeat": True, "pool": [("tea", "cola")]}, ["left", "left"]),
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
    return Interview(model, None, **({"stop": NEVER, "num_samples": 200} | options))


def fitting(question: tuple, answer: str | Sequence) -> str | Sequence:
    """Returns the answer, or one that the question allows in its place."""
    if answer in ("left", "right", "tie"):
        return answer
    if isinstance(answer, str):
        return answer if answer in question else question[0]
    return answer if set(answer) == set(question) else list(question)


def reply(interview: Interview, answers: Sequence) -> list[tuple]:
    """Answers as many questions, and returns them."""
    asked = []
    for answer in answers:
        asked.append(interview.ask())
        interview.answer(fitting(asked[-1], answer))
    return asked


def state(interview: Interview, path: Path) -> bytes:
    interview.save(path)
    return path.read_bytes()


@EACH
def test_question_follows_from_seed_and_answers_alone(
    model_options: dict, options: dict, answers: list, tmp_path: Path
) -> None:
    """Straight; with an answer that is taken back, and asking often; saved and resumed."""
    model = drinkers(**model_options)
    straight = start(model, **options)
    questions = [*reply(straight, answers), straight.ask()]
    bent = start(model, **options)
    for number, answer in enumerate(answers):
        bent.ask()
        torch.rand(3)
        other = list(bent.ask()) if isinstance(answer, list) else bent.ask()[-1]
        bent.answer(other)
        bent.ask()
        bent.undo()
        assert bent.ask() == questions[number]
        bent.answer(fitting(questions[number], answer))
    assert bent.ask() == questions[-1]
    assert state(bent, tmp_path / "a.json") == state(straight, tmp_path / "b.json")
    given = {name: value for name, value in options.items() if name not in ("kind", "allow_repeat")}
    resumed = Interview.resume(tmp_path / "a.json", model, None, **given)
    assert state(resumed, tmp_path / "c.json") == (tmp_path / "a.json").read_bytes()
    assert resumed.ask() == questions[-1]
    pd.testing.assert_frame_equal(resumed.to_frame(), straight.to_frame())
    resumed.undo()
    assert resumed.ask() == questions[-2]
    assert torch.equal(resumed.posterior.z, _undone(straight).posterior.z)


def _undone(interview: Interview) -> Interview:
    interview.undo()
    return interview


@EACH
def test_posterior_is_that_of_the_same_answers_given_at_once(
    model_options: dict, options: dict, answers: list
) -> None:
    model = drinkers(**model_options)
    interview = start(model, seed=3, user="ann", **options)
    asked = reply(interview, answers)
    data = Preferences.empty(["ann"], NAMES, ties="keep" if model.has_ties else "half")
    said = [fitting(question, answer) for question, answer in zip(asked, answers, strict=True)]
    if len(asked[0]) == 2:
        data = data.append(["ann"] * len(asked), *map(list, zip(*asked, strict=True)), said)
    else:
        for question, answer in zip(asked, said, strict=True):
            order = [answer] if isinstance(answer, str) else answer
            data = data.append_ranking("ann", order, choice_set=list(question))
    at_once = Posterior(model, None, data, 200, seed=3)
    assert interview.posterior.context.digest() == data.digest()
    for one, other in zip(interview.posterior.proposals, at_once.proposals, strict=True):
        assert torch.equal(one, other)


@EACH
def test_table_tells_what_was_predicted(model_options: dict, options: dict, answers: list) -> None:
    """Probability and score are those of the posterior before, as `score_questions` has them."""
    model = drinkers(**model_options)
    interview = start(model, **options)
    goal, kind = options.get("goal"), options.get("kind", "choice")
    expected = []
    for answer in answers:
        question, posterior = interview.ask(), interview.posterior
        row = score_questions(posterior, [question], goal, kind=kind).iloc[0]
        said = fitting(question, answer)
        named = {"left": question[0], "right": question[1]}.get(str(said), said)
        is_likely = said == row["answer"] or tuple(said) == row["answer"]
        interview.answer(said)
        named = tuple(named) if isinstance(named, list) else named
        expected.append((question, named, row["score"], row["prob"] if is_likely else None))
        expected[-1] += (interview.verdict.prob,)
    table = interview.to_frame()
    assert table.columns.tolist() == ["question", "answer", "prob", "score", "prob_best"]
    assert table["question"].tolist() == [row[0] for row in expected]
    assert table["answer"].tolist() == [row[1] for row in expected]
    assert table["score"].tolist() == pytest.approx([row[2] for row in expected], rel=1e-4)
    assert table["prob_best"].tolist() == [row[4] for row in expected]
    for prob, row in zip(table["prob"], expected, strict=True):
        assert 0 < prob < 1
        if row[3] is not None:
            assert prob == pytest.approx(row[3], abs=1e-5)


def test_the_question_is_the_best_by_the_goal_and_never_a_known_one() -> None:
    model = drinkers()
    context = Preferences.empty(["ann"], NAMES).append("ann", "milk", "tea", "left")
    interview = start(model, context=context)
    assert interview.user == "ann"
    for _ in range(9):
        question = interview.ask()
        best = next_questions(interview.posterior).iloc[0]
        assert question == best["question"]
        interview.answer("left")
    assert interview.ask() is None
    assert interview.verdict.reason == "no question is left"
    asked = {frozenset(question) for question in interview.to_frame()["question"]}
    assert len(asked) == 9
    assert frozenset(["milk", "tea"]) not in asked


@pytest.mark.parametrize("repeat", [False, True])
def test_a_skipped_question_is_not_asked_again(repeat: bool) -> None:
    pool = [("tea", "cola"), ("cola", "tea"), ("tea", "milk"), ("milk", "cola")]
    interview = start(drinkers(), pool=pool, allow_repeat=repeat)
    skipped = []
    while question := interview.ask():
        skipped.append(frozenset(question))
        interview.skip()
    assert sorted(map(sorted, skipped)) == [["cola", "milk"], ["cola", "tea"], ["milk", "tea"]]
    assert interview.verdict.reason == "no question is left"
    assert interview.num_answered == 0
    assert len(interview.to_frame()) == 0
    interview.undo()
    assert frozenset(interview.ask()) == skipped[-1]


def test_a_skip_survives_saving(tmp_path: Path) -> None:
    model = drinkers()
    interview = start(model)
    first = interview.ask()
    interview.skip()
    second = interview.ask()
    before = state(interview, tmp_path / "a.json")
    resumed = Interview.resume(tmp_path / "a.json", model, None)
    assert resumed.ask() == second
    assert state(resumed, tmp_path / "b.json") == before
    resumed.undo()
    assert resumed.ask() == first


@pytest.mark.parametrize("latent_dim", [2, 3])  # Shared draws of the prior, and draws of the guide.
def test_a_network_is_asked_through_its_guide(latent_dim: int, tmp_path: Path) -> None:
    """A bilinear model, of which nobody knows a mode: proposals come from its guide."""
    torch.manual_seed(0)
    model = HeterogeneousBTL(2, latent_dim, feature_names=["x", "y"]).eval()
    guide, other = (NeuralProcessGuide(model).eval() for _ in range(2))
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(6, 2)), index=list("abcdef"), columns=["x", "y"])
    options = {"num_samples": 300, "seed": 2}
    interview = Interview(model, guide, context=table, stop=NEVER, **options)
    data = Preferences.empty(["person"], table)
    for answer in ("left", "right", "left"):
        expected = next_questions(Posterior(model, guide, data, **options)).iloc[0]
        question = interview.ask()
        assert question == expected["question"]
        interview.answer(answer)
        data = data.append("person", *question, answer)
    at_once = Posterior(model, guide, data, **options)
    assert torch.equal(interview.posterior.proposals[1], at_once.proposals[1])
    assert not interview.verdict.stop
    before = state(interview, tmp_path / "a.json")
    resumed = Interview.resume(tmp_path / "a.json", model, guide, context=table)
    assert resumed.ask() == interview.ask()
    assert state(resumed, tmp_path / "b.json") == before
    with pytest.raises(ValueError, match="^model must be as in the interview"):
        Interview.resume(tmp_path / "a.json", model, other, context=table)
    with pytest.raises((TypeError, ValueError), match="guide must be"):
        Interview(model, None, context=table)


def test_draws_of_the_population_are_resumed_with_it(tmp_path: Path) -> None:
    model, others = drinkers(), [drinkers() for _ in range(3)]
    with torch.no_grad():
        for number, other in enumerate(others):
            other.utility.mean.add_(0.5 * number)
            other.utility.loading.mul_(1 + number)
    population = PopulationDraws(tuple((other, None) for other in others), "by hand")
    some = PopulationDraws(population.members[:2], "by hand")
    interview = start(model, population=population)
    reply(interview, ["left", "right"])
    before = state(interview, tmp_path / "a.json")
    resumed = Interview.resume(tmp_path / "a.json", model, None, population=population)
    assert resumed.ask() == interview.ask()
    assert resumed.posterior.population is population
    assert torch.equal(resumed.posterior.z, interview.posterior.z)
    assert state(resumed, tmp_path / "b.json") == before
    for changed in ("fixed", some):
        with pytest.raises(ValueError, match="^population must be as in the interview"):
            Interview.resume(tmp_path / "a.json", model, None, population=changed)


def test_undo_restores_the_state_before(tmp_path: Path) -> None:
    interview = start(drinkers())
    states = [state(interview, tmp_path / "a.json")]
    tables = [interview.ranking()]
    for answer in ("left", None, "right"):
        interview.ask()
        interview.skip() if answer is None else interview.answer(answer)
        states.append(state(interview, tmp_path / "a.json"))
        tables.append(interview.ranking())
    while len(states) > 1:
        assert state(interview, tmp_path / "a.json") == states.pop()
        pd.testing.assert_frame_equal(interview.ranking(), tables.pop())
        interview.undo()
    assert state(interview, tmp_path / "a.json") == states.pop()
    with pytest.raises(ValueError, match="undo.. must follow an answer or a skip, got neither"):
        interview.undo()


def test_ranking_is_of_the_posterior() -> None:
    interview = start(drinkers(), items=NAMES[1:], num_samples=2000)
    reply(interview, ["left", "right"])
    table, utility = interview.ranking(), interview.posterior.utility(NAMES[1:])[:, 0]
    assert table.columns.tolist() == ["mean", "lower", "upper", "prob_best"]
    assert table.index.name == "item"
    assert table["mean"].is_monotonic_decreasing
    assert table["mean"].sum() == pytest.approx(0, abs=1e-4)
    assert table["prob_best"].sum() == pytest.approx(1, abs=1e-5)
    own = table.loc[NAMES[1:]]
    assert own["mean"].tolist() == pytest.approx(utility.mean(0).tolist(), abs=1e-5)
    for name, level in (("lower", 0.05), ("upper", 0.95)):
        assert own[name].tolist() == pytest.approx(utility.quantile(level, 0).tolist(), abs=1e-5)
    assert table.index[0] == interview.verdict.item


@pytest.mark.parametrize(
    "choice", [lambda pair: pair[1], lambda pair: "right"], ids=["name", "word"]
)
def test_an_item_or_its_place_is_an_answer(choice: Callable[[tuple], str]) -> None:
    interview = start(drinkers())
    question = interview.ask()
    interview.answer(choice(question))
    context = interview.posterior.context
    assert context.choice.tolist() == [0.0]
    assert interview.to_frame()["answer"].tolist() == [question[1]]


def test_items_may_be_numbers_and_words_of_places() -> None:
    """1 is the item of that name, and True is not; "left" may name an item."""
    model = HeterogeneousBTL(3, 1, "linear", feature_names=[1, 0, "left"]).eval()
    interview = start(model, pool=[(0, 1)])
    interview.ask()
    with pytest.raises(ValueError, match="choice must be one of the items .0, 1. .* got True"):
        interview.answer(True)
    interview.answer(1)
    assert interview.posterior.context.choice.tolist() == [0.0]
    interview = start(model, pool=[(0, "left")])
    interview.ask()
    with pytest.raises(ValueError, match="choice is ambiguous: 'left' is an item and a place"):
        interview.answer("left")
    interview.answer("right")
    assert interview.posterior.context.choice.tolist() == [0.0]


def test_max_questions_is_respected() -> None:
    interview = start(drinkers(), stop=Stop(best=None, max_questions=2))
    assert len(reply(interview, ["left", "left"])) == 2
    assert interview.ask() is None
    assert interview.verdict.reason == "max_questions=2 are answered"
    with pytest.raises(
        ValueError, match="ask.. must come before answer.., no question is open: ma"
    ):
        interview.answer("left")


def test_a_person_who_is_known_well_enough_is_asked_nothing() -> None:
    model = HeterogeneousBTL(2, 1, "linear", feature_names=["tea", "cola"]).eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([5.0, 0.0]))
        model.utility.loading.copy_(torch.tensor([[0.5], [0.0]]))
    interview = Interview(model, None, num_samples=200)
    assert interview.ask() is None
    assert interview.num_answered == 0
    assert (interview.verdict.stop, interview.verdict.item) == (True, "tea")
    assert interview.verdict.prob == 1


def test_a_question_that_is_worth_too_little_is_not_asked() -> None:
    """A question of no more than `value` ends it; the value lies below that of certainty."""
    worth = next_questions(start(drinkers()).posterior, None, ValueOfInformation())["score"][0]
    for value, is_over in ((0.5 * worth, False), (1.5 * worth, True)):
        interview = start(drinkers(), stop=Stop(best=None, value=value))
        assert interview.verdict.stop == is_over
        assert interview.verdict.reason.startswith("no question is worth") == is_over


def test_items_features_and_covariates_come_with_the_context() -> None:
    """Data of other people tell the items; a person's own answers are known."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(6, 2)), index=list("abcdef"), columns=["x", "y"])
    model = HeterogeneousBTL(2, 2, "linear", feature_names=["x", "y"]).eval()
    data = Preferences.empty(["p", "q"], table).append("q", "a", "b", "left")
    for context, user, known in ((table, None, 0), (data, "new", 0), (data, "q", 1)):
        interview = start(model, context=context, user=user)
        assert interview.items == list("abcdef")
        assert interview.posterior.context.num_comparisons == known
        assert interview.user == ("person" if user is None else user)
        torch.testing.assert_close(interview.posterior.context.items, data.items)
        assert set(interview.ask()) != {"a", "b"} or known == 0
    with pytest.raises(ValueError, match="user must name the person to ask where context has sev"):
        start(model, context=data)


def test_a_model_without_latent_dimensions_has_nothing_to_learn() -> None:
    model = HeterogeneousBTL(5, 0, "linear", feature_names=NAMES).eval()
    with torch.no_grad():
        model.utility.mean.copy_(torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0]))
    assert Interview(model, None).verdict.item == "cola"
    assert Interview(model, None).ask() is None


def test_resuming_needs_the_same_interview(tmp_path: Path) -> None:
    model, path = drinkers(), tmp_path / "interview.json"
    interview = start(model, items=NAMES[:3], goal=BestItemInformation(NAMES[:3]))
    reply(interview, ["left"])
    interview.save(path)
    same = {"items": NAMES[:3], "goal": BestItemInformation(NAMES[:3])}
    assert Interview.resume(path, model, None, **same).num_answered == 1
    other = drinkers()
    with torch.no_grad():
        other.utility.mean[0] += 1e-6
    some = Preferences.empty(["person"], NAMES).append("person", "tea", "milk", "left")
    for name, changed in {
        "model": {"model": other},
        "pool": {"pool": [("tea", "cola")]},
        "items": {"items": None},
        "goal": {"goal": InformationGain()},
        "context": {"context": some},
    }.items():
        given = {"model": model, "guide": None} | same | changed
        with pytest.raises(ValueError, match=f"^{name} must be as in the interview that '.*' hol"):
            Interview.resume(path, **given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tea, cola", "path must be a saved interview, got '.*': "),
        ("[1, 2]", "path must be a saved interview, got '.*', which is none"),
        ('{"format": "something"}', "path must be a saved interview, got '.*', which is none"),
        (
            '{"format": "fssa_bayes interview", "version": 99}',
            "path must be an interview of version 1, got '.*' of version 99",
        ),
        (
            '{"format": "fssa_bayes interview", "version": 1}',
            "path must be a saved interview, got '.*', which is damaged: it has no 'settings'",
        ),
    ],
)
def test_a_file_that_is_no_interview_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "interview.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        Interview.resume(path, drinkers(), None)


DAMAGE = {
    "setting": (lambda c: c["settings"].pop("seed"), "'seed' is missing in 'settings' or foreign"),
    "foreign": (lambda c: c["settings"].update(x=1), "'x' is missing in 'settings' or foreign"),
    "digest": (lambda c: c["digests"].pop("pool"), "'pool' is missing in 'digests' or foreign"),
    "events": (lambda c: c.update(events=3), "it has no 'events'"),
    "event": (lambda c: c["events"][0].pop("score"), "event 0: 'score'"),
    "answer": (lambda c: c["events"][0].update(answer="up"), "event 0: choice must be"),
    "question": (lambda c: c["events"][0].update(question=["x", "y"]), "event 0: items must be"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused(damage: Callable, message: str, tmp_path: Path) -> None:
    model, path = drinkers(), tmp_path / "interview.json"
    interview = start(model)
    reply(interview, ["left"])
    interview.save(path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"^path must be .* which is damaged: {message}"):
        Interview.resume(path, model, None)


def test_a_file_is_readable_and_is_replaced_as_a_whole(tmp_path: Path) -> None:
    interview = start(drinkers())
    reply(interview, ["left"])
    path = tmp_path / "interview.json"
    path.write_text("something else")
    interview.save(path)
    content = json.loads(path.read_text())
    assert content["events"][0]["answer"] == "left"
    assert [file.name for file in tmp_path.iterdir()] == ["interview.json"]
    with pytest.raises(FileNotFoundError):
        Interview.resume(tmp_path / "other.json", drinkers(), None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"goal": "information"}, TypeError, "goal must be a Goal, got 'information'"),
        ({"stop": 0.9}, TypeError, "stop must be a Stop, got 0.9"),
        ({"items": ["tea", "beer"]}, ValueError, "items must be known names, got 'beer'"),
        ({"pool": [("tea", "beer")]}, ValueError, "pool must be known names, got 'beer'"),
        ({"pool": [("tea", "tea")]}, ValueError, "pool must not repeat an item, got"),
        ({"items": ["tea", "tea"]}, ValueError, "items must be distinct, got 'tea' twice"),
        ({"context": ["tea", "beer"]}, ValueError, "items of context must be known .* got 'beer'"),
        ({"pool": 3}, TypeError, "pool must be a sequence of questions, got 3"),
        ({"pool": []}, ValueError, "pool must have at least one question, got none"),
        ({"kind": "best"}, ValueError, "kind must be one of"),
        ({"num_samples": 0}, ValueError, "num_samples must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_options_are_refused_at_once(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        start(drinkers(), **options)


def test_a_model_without_numbers_is_refused() -> None:
    model = drinkers()
    with torch.no_grad():
        model.utility.mean[0] = torch.nan
    with pytest.raises(FloatingPointError, match="utilities must be finite, got others of"):
        start(model)


def test_a_model_that_knows_no_items_by_name_needs_a_context() -> None:
    with pytest.raises(ValueError, match="context must tell the items and their features, .* None"):
        start(HeterogeneousBTL(3, 1).eval())


@pytest.mark.parametrize(
    ("model_options", "options", "choice", "message"),
    [
        (PLAIN, {}, "beer", r"choice must be one of the items \(.*\) or of the words 'left', 'rig"),
        (PLAIN, {}, "tie", "got 'tie': the model has no ties"),
        (PLAIN, {}, 0.5, "got 0.5"),
        (PLAIN, {}, ["tea"], r"got \['tea'\]"),
        (TIES, {}, None, "or of the words 'left', 'right', 'tie', got None"),
        (PLAIN, CASES["best of three"][1], "left", r"must be one of the items \(.*\), got 'left'"),
        (PLAIN, CASES["rankings"][1], ["milk"], "must rank the items .*, each once, the best fir"),
        (PLAIN, CASES["rankings"][1], "milk", "must rank the items .* got 'milk'"),
    ],
)
def test_an_answer_that_is_none_changes_nothing(
    model_options: dict, options: dict, choice: object, message: str
) -> None:
    interview = start(drinkers(**model_options), **options)
    question = interview.ask()
    with pytest.raises(ValueError, match=message):
        interview.answer(choice)
    assert interview.ask() == question
    assert interview.num_answered == 0


@pytest.mark.parametrize("what", ["answer", "skip"])
def test_a_question_must_be_asked_first(what: str) -> None:
    interview = start(drinkers())
    arguments = ["left"] if what == "answer" else []
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"ask\(\) must come before {what}\(\), no question"):
            getattr(interview, what)(*arguments)
        interview.ask()
        getattr(interview, what)(*arguments)
