"""A whole interview by requests: what is stored, and what happens twice, late or in two tabs."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastapi import FastAPI
from starlette.testclient import TestClient

from fssa_bayes import Posterior, Preferences, save
from fssa_bayes.questions import BestItemInformation, Interview, Stop
from fssa_bayes.serve import Page, Store, create_app

OPEN = Page(places=2)


def test_an_interview_is_stored_whole(open_page, store: Store, make_study) -> None:
    study = make_study()
    _, (ann,) = open_page(study)
    assert "I have read this" in ann.look()
    assert ann.number() is None
    ann.agree()
    ann.answer("1")
    ann.answer("2")
    ann.answer("1")
    assert "Your answers are stored" in ann.look()
    rows = store.list_questions(1)
    assert [row.number for row in rows] == [1, 2, 3]
    assert [row.side for row in rows] == ["left", "right", "left"]
    for row in rows:
        assert row.answer == row.items[row.side == "right"]
        assert row.model == study.digests["model"]
        assert (row.goal, row.arm, row.purpose) == ("InformationGain()", "adaptive", "choose")
        assert row.consent_version == Page().consent_version
        assert 0 <= row.seconds == pytest.approx(row.answered_at - row.asked_at, abs=1e-3)
    assert store.get(1).finished_at >= rows[-1].answered_at


def test_questions_are_those_of_an_interview(open_page, store: Store, make_study, model) -> None:
    """The page asks what Interview asks a person with the same answers, and stores its numbers."""
    _, (ann,) = open_page(make_study())
    ann.agree()
    ann.finish()
    rows = store.list_questions(1)
    stop = Stop(best=None, max_questions=3)
    interview = Interview(model, None, stop=stop, num_samples=100)
    for row in rows:
        question = interview.ask()
        assert set(question) == set(row.items)
        interview.answer(row.answer)
    table = interview.to_frame()
    np.testing.assert_allclose([row.prob for row in rows], table["prob"], rtol=1e-5)
    np.testing.assert_allclose([row.score for row in rows], table["score"], rtol=1e-4)


def test_what_is_sent_twice_counts_once(open_page, store: Store) -> None:
    _, (ann,) = open_page()
    ann.agree()
    first = ann.number()
    assert ann.answer("1", first) == 200
    assert ann.answer("2", first) == 200  # A double click, a second tab, the back button.
    assert store.list_questions(1)[0].side == "left"
    assert ann.number() == 2
    assert ann.answer("1", 17) == 200  # A number of no question.
    assert [row.number for row in store.list_questions(1)] == [1, 2]


def test_a_click_that_is_not_counted_is_told(open_page, store: Store) -> None:
    client, (ann,) = open_page()
    ann.agree()
    post = functools.partial(client.post, f"{ann.link}/answer")
    assert "not counted" not in post(data={"number": 1, "choice": "1"}).text
    assert "not counted" not in post(data={"number": 1, "choice": "1"}).text  # A double click.
    late = post(data={"number": 1, "choice": "2"})  # The same question in another tab.
    assert "Your last click was not counted" in late.text
    assert "Question 2 of" in late.text
    assert "not counted" not in post(data={"number": 2, "choice": "1"}).text
    undo = functools.partial(client.post, f"{ann.link}/undo")
    assert "not counted" in undo(data={"number": 1}).text  # There is a later answer.
    assert "not counted" not in undo(data={"number": 2}).text
    assert "not counted" not in undo(data={"number": 2}).text
    assert "not counted" in post(data={"number": 2, "choice": "1"}).text  # Was taken back.
    assert [row.side for row in store.list_questions(1)] == ["left", None]
    assert "not counted" not in client.get(f"{ann.link}?notice=<b>").text


def test_clicks_at_once_count_once(open_page, store: Store) -> None:
    _, (ann, bob) = open_page(people=2)
    ann.agree()
    bob.agree()
    numbers = {ann: ann.number(), bob: bob.number()}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda who: who.answer("1", numbers[who]), [ann, bob] * 8))
    for person in (1, 2):
        rows = store.list_questions(person)
        assert [row.side for row in rows] == ["left", None]


def test_an_answer_is_taken_back(open_page, store: Store) -> None:
    client, (ann,) = open_page()
    ann.agree()
    ann.answer("1")
    before = store.list_questions(1)
    for _ in range(2):  # Twice is once.
        client.post(f"{ann.link}/undo", data={"number": 1})
    again = store.list_questions(1)
    assert [row.number for row in again] == [3]
    assert set(again[0].items) == set(before[0].items)
    assert [row.number for row in store.list_questions(1, undone=True)] == [1, 2, 3]
    ann.answer("2")
    ann.answer("skip")
    ann.finish()
    rows = store.list_questions(1)
    assert [row.side for row in rows] == ["right", "skip", "left", "left"]
    undo = functools.partial(client.post, f"{ann.link}/undo", data={"number": rows[-1].number})
    assert f'name="number" value="{rows[-1].number}"' in ann.look()
    assert "Question 3 of" in undo().text  # At the end too.
    assert store.get(1).finished_at is None
    assert "not counted" not in undo().text
    assert [row.side for row in store.list_questions(1)] == [*(r.side for r in rows[:-1]), None]
    assert set(store.list_questions(1)[-1].items) == set(rows[-1].items)
    assert ann.answer("2") == 200
    assert "Your answers are stored" in ann.look()
    assert store.list_questions(1)[-1].side == "right"
    assert store.get(1).finished_at is not None


@pytest.mark.parametrize("num_held_out", [0, 2])
def test_the_end_is_taken_back(open_page, make_study, store: Store, num_held_out: int) -> None:
    """After the last answer, and after a person stopped."""
    client, (ann,) = open_page(make_study(num_held_out=num_held_out))
    ann.agree()
    ann.answer("1")
    client.post(f"{ann.link}/stop", data={"sure": "yes"})
    assert "Question 1 of" in client.post(f"{ann.link}/undo", data={"number": 1}).text
    while ann.number() is not None:
        ann.answer("2")
    first = store.list_questions(1)
    client.post(f"{ann.link}/undo", data={"number": first[-1].number})
    ann.answer("2")
    second = store.list_questions(1)
    assert [row.purpose for row in second] == [row.purpose for row in first]
    assert set(second[-1].items) == set(first[-1].items)
    assert all(row.prob is not None for row in second)


def test_who_has_seen_results_changes_no_answer(open_page, store: Store) -> None:
    client, (ann,) = open_page(page=Page(shows_result=True))
    ann.agree()
    ann.finish()
    rows, finished = store.list_questions(1), store.get(1).finished_at
    assert "Undo" not in ann.look()
    assert "not counted" in client.post(f"{ann.link}/undo", data={"number": 3}).text
    assert (store.list_questions(1), store.get(1).finished_at) == (rows, finished)


@pytest.mark.parametrize("control", [False, True])
def test_who_skips_is_not_asked_for_ever(open_page, store: Store, make_study, control) -> None:
    study = make_study(num_held_out=2, control=control)
    _, people = open_page(study, people=4)
    for number, person in enumerate(people, 1):
        person.agree()
        shown = []
        while person.number() is not None:
            shown.append(re.search(r"Question (\d+) of at most (\d+)", person.look()).groups())
            person.answer("skip")
        assert shown == [("1", "5")] * 4 + [("2", "5")]
        rows = store.list_questions(number)
        assert [row.purpose for row in rows] == ["choose"] * 3 + ["held-out"] * 2
        assert store.get(number).finished_at is not None


def test_skips_do_not_count_as_answers(open_page) -> None:
    _, (ann,) = open_page()
    ann.agree()
    for choice, told in (("1", "1 of"), ("skip", "2 of"), ("1", "2 of at most 3 (1 skipped)")):
        assert f"Question {told}" in ann.look()
        ann.answer(choice)
    assert "Question 3 of at most 3 (1 skipped)" in ann.look()
    ann.answer()
    assert ann.number() is None


def test_a_person_stops_early(open_page, make_study, store: Store, log_in) -> None:
    client, (ann, bob) = open_page(make_study(num_held_out=1), people=2)
    ann.agree()
    ann.answer("1")
    second = ann.number()
    assert "Do you want to stop here?" in client.get(f"{ann.link}/stop").text
    assert client.post(f"{ann.link}/stop", data={"sure": "no"}).status_code == 422
    assert ann.number() == second
    for _ in range(2):
        ended = client.post(f"{ann.link}/stop", data={"sure": "yes"})
        assert "Your answers are stored" in ended.text
    ann.answer("1", second)  # In another tab.
    assert [row.side for row in store.list_questions(1)] == ["left"]
    assert store.list_questions(1)[0].prob is not None
    assert store.get(1).finished_at is not None
    client.post(f"{bob.link}/stop", data={"sure": "yes"})  # Who has not agreed has not begun.
    assert store.get(2).finished_at is None
    log_in(client)
    assert "1 finished" in client.get("/researcher").text
    assert len(client.get("/researcher/answers.csv").text.splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": 1}, r"other seed \(0 there, 1 here\)"),
        ({"num_held_out": 2}, r"other held_out \(0 there, 2 here\)"),
        ({"stop": Stop(best=None, max_questions=4)}, r"other stop \(.*=3\) there, .*=4\) here\)"),
        ({"control": True, "num_held_out": 2}, r"held_out .*, control \(False there, True here\)"),
        ({"num_samples": 50}, r"other samples \(100 there, 50 here\)"),
        ({"goal": BestItemInformation()}, "of a study with other goal$"),
    ],
)
def test_other_settings_are_another_study(open_page, make_study, options, told: str) -> None:
    open_page()
    with pytest.raises(ValueError, match=f"^db must be a new database .*{told}"):
        open_page(make_study(**options))


def test_a_restart_loses_nothing(open_page, make_study, store: Store) -> None:
    """Another application on the same database goes on, with the same questions."""
    _, (ann, bob) = open_page(people=2)
    for person in (ann, bob):
        person.agree()
        person.answer("1")
    ann.answer("2")
    other, (again, _) = open_page(make_study(), people=2)
    assert other is not ann.client
    assert again.look() == ann.look()
    again.finish()
    ann.finish()
    bob.finish()
    sets = [[sorted(row.items) for row in store.list_questions(n)] for n in (1, 2)]
    assert len(sets[0]) == len(sets[1]) == 3
    assert all(row.prob is not None for row in store.list_questions())


def test_open_link_has_a_cap(open_page, store: Store, join) -> None:
    client, _ = open_page(people=0, page=OPEN)
    links = [join(client).url.path for _ in range(4)]  # Who only looks takes no place.
    assert len(set(links)) == 4
    form = {"agree": "yes", "version": OPEN.consent_version}
    with ThreadPoolExecutor(8) as pool:
        post = functools.partial(client.post, data=form)
        codes = list(pool.map(lambda link: post(f"{link}/consent").status_code, links[:3] * 4))
    assert codes.count(410) == 4
    for late in (join(client), post(f"{links[3]}/consent")):
        assert (late.status_code, "All places" in late.text) == (410, True)
    asked = [who.consent_version for who in store.list_interviews()]
    assert asked.count(OPEN.consent_version) == 2
    again, _ = open_page(people=0, page=Page(places=2, consent="Another text."))
    form["version"] = Page(consent="Another text.").consent_version
    codes = [again.post(f"{link}/consent", data=form).status_code for link in links]
    assert sorted(codes) == [200, 200, 410, 410]  # Who has a place keeps it.
    client, _ = open_page(people=0)
    assert join(client, ticket="t" * 32).status_code == 404


def test_two_clicks_on_the_open_link_make_one_interview(open_page, store: Store, join) -> None:
    client, _ = open_page(people=0, page=OPEN)
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(lambda _: join(client, ticket="t" * 32), range(4)))
    assert len({str(page.url) for page in pages}) == 1
    assert "t" * 32 not in str(pages[0].url)  # Who knows the form does not know the link.
    assert store.count("open", pilot=False) == 1
    assert client.post("/join", data={"ticket": "short"}).status_code == 422


def test_withdrawal_deletes(
    open_page, make_study, store: Store, tmp_path: Path, log_in, monkeypatch
) -> None:
    study, forgotten = make_study(), []
    monkeypatch.setattr(study, "forget", forgotten.append)
    client, (ann, bob) = open_page(study, people=2)
    for person in (ann, bob):
        person.agree()
        person.finish()
    assert client.post(f"{ann.link}/withdraw", data={"sure": "no"}).status_code == 422
    client.post(f"{ann.link}/withdraw", data={"sure": "yes"})
    assert "Your answers were deleted" in ann.look()
    assert ann.answer("1", 1) == 200
    assert not store.list_questions(1, undone=True)
    assert len(store.list_questions(2)) == 3
    log_in(client)
    form = re.search(r'name="form_token" value="(\w+)"', client.get("/researcher/people/2").text)[1]
    client.post("/researcher/people/2/delete", data={"form_token": form})
    assert not store.list_questions(undone=True)
    files = b"".join(path.read_bytes() for path in tmp_path.glob("answers.sqlite*"))
    assert b"InformationGain" not in files
    assert forgotten == [1, 2]


def test_who_is_forgotten_is_not_in_memory(
    open_page, make_study, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart, begun = Interview.restart, []
    monkeypatch.setattr(Interview, "restart", lambda self: begun.append(1) or restart(self))
    study = make_study()
    _, (ann,) = open_page(study)
    ann.agree()
    ann.answer("1")
    assert len(begun) == 1
    study.forget(1)
    ann.answer("1")
    assert len(begun) == 2
    assert all(row.prob is not None for row in store.list_questions(1) if row.side)


def test_withdrawal_in_another_tab_asks_nothing_more(open_page, make_study, store: Store) -> None:
    """A person withdraws while the next question is being chosen."""
    study = make_study()
    _, (ann,) = open_page(study)
    ann.agree()
    ann.answer("1")
    assert ann.number() == 2
    choose = study.advance

    def withdraw_meanwhile(*arguments):
        chosen = choose(*arguments)
        ann.client.post(f"{ann.link}/withdraw", data={"sure": "yes"})
        return chosen

    study.advance = withdraw_meanwhile
    assert ann.answer("1", 2) == 200
    assert "You have withdrawn" in ann.look()
    assert not store.list_questions(undone=True)


def test_the_researcher_waits_for_nobody(open_page, make_study, store: Store, log_in) -> None:
    study, busy, seen = make_study(), threading.Event(), threading.Event()
    client, (ann,) = open_page(study)
    ann.agree()
    first = ann.number()
    choose, waited = study.advance, []

    def choose_slowly(*arguments):
        busy.set()
        waited.append(seen.wait(30))  # False if the researcher's page waits for this click.
        return choose(*arguments)

    study.advance = choose_slowly
    with ThreadPoolExecutor(1) as pool:
        click = pool.submit(ann.answer, "1", first)
        assert busy.wait(30)
        other = TestClient(client.app)
        log_in(other)
        assert "<td>answering</td>" in other.get("/researcher").text
        seen.set()
        assert click.result() == 200
    assert all(waited)


def test_favourites_are_the_first_of_each_ranking(make_study, open_page, store: Store) -> None:
    study = make_study()
    _, people = open_page(study, people=3)
    for person in people[:2]:
        person.agree()
        person.finish()
    answers = {f"P{number}": store.list_questions(number) for number in (1, 2, 3)}
    posterior = study.posterior(answers)
    found = study.find_favourites(posterior)
    assert found.index.tolist() == ["P1", "P2"]
    with ThreadPoolExecutor(4) as pool:  # While people are asked, results are looked at.
        beside = [pool.submit(study.posterior, answers) for _ in range(4)]
        assert all(torch.equal(one.result().z, posterior.z) for one in beside)
    for user, row in found.iterrows():
        expected = study.describe(posterior, user).iloc[0]
        assert row["item"] == expected.name
        np.testing.assert_allclose(row.drop("item").astype(float), expected, rtol=1e-6)


def test_another_text_is_agreed_to_again(open_page, store: Store) -> None:
    _, (ann,) = open_page()
    ann.agree()
    ann.answer("1")
    changed = Page(consent="Another text.")
    _, (again,) = open_page(page=changed)
    assert "Another text." in again.look()
    late = again.client.post(f"{again.link}/answer", data={"number": 2, "choice": "1"})
    assert "not counted: the text below has changed" in late.text
    assert [row.side for row in store.list_questions(1)] == ["left", None]
    old = {"agree": "yes", "version": Page().consent_version}
    late = again.client.post(f"{again.link}/consent", data=old)
    assert "not counted: the text below has changed" in late.text
    again.agree()
    again.answer("1")
    again.answer("1")
    versions = [row.consent_version for row in store.list_questions(1)]
    assert versions[0] == Page().consent_version
    assert versions[-1] == changed.consent_version


def test_ties_are_answers_where_the_model_has_them(
    open_page, make_study, tied_model, store
) -> None:
    _, (ann,) = open_page(make_study(tied_model), page=Page(shows_result=True))
    ann.agree()
    assert "I like them equally" in ann.look()
    ann.answer("tie")
    ann.finish()
    assert [row.side for row in store.list_questions(1)] == ["tie", "left", "left"]
    assert "What we believe you prefer" in ann.look()


def test_no_tie_without_one(open_page) -> None:
    _, (ann,) = open_page()
    ann.agree()
    assert ann.answer("tie") == 422
    assert ann.answer("3") == 422
    assert ann.number() == 1


def test_exports_are_what_was_answered(open_page, store: Store, log_in) -> None:
    client, (ann, bob) = open_page(people=2)
    for person in (ann, bob):
        person.agree()
        person.finish()
    log_in(client)
    text = client.get("/researcher/answers.csv").text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["person"] for row in rows] == ["P0001"] * 3 + ["P0002"] * 3
    assert not any(cell.startswith("=") for row in rows for cell in row.values())
    saved = json.loads(client.get("/researcher/answers.json").content)
    assert [len(person["questions"]) for person in saved["people"]] == [3, 3]
    table = pd.DataFrame(rows).replace("'=1+1", "=1+1")
    roles = {"user": "person", "left": "left", "right": "right", "choice": "choice"}
    with pytest.warns(UserWarning, match="connected components"):  # Of three answers each.
        data = Preferences.from_dataframe(table, **roles)
    assert len(data) == 2
    expected = [float(row.side == "left") for row in store.list_questions()]
    assert data.choice.tolist() == expected
    overview = client.get("/researcher").text
    assert "2 finished" in overview
    assert "<script>alert" not in overview


def test_exported_posterior_is_that_of_the_answers(
    open_page, make_study, store, log_in, model, tmp_path: Path
) -> None:
    import arviz

    client, (ann,) = open_page(make_study())
    log_in(client)
    assert client.get("/researcher/posterior.nc").status_code == 404
    ann.agree()
    ann.finish()
    (tmp_path / "posterior.nc").write_bytes(client.get("/researcher/posterior.nc").content)
    exported = arviz.from_netcdf(str(tmp_path / "posterior.nc"))
    data = Preferences.empty(["P0001"], model.feature_names)
    for row in store.list_questions(1):
        data = data.append("P0001", *row.items, row.side)
    expected = Posterior(model, None, data, 100)
    found = exported.posterior["utility"].to_numpy().reshape(100, 6)
    np.testing.assert_allclose(found, expected.utility()[:, 0].numpy(), atol=1e-5)


def test_arms_answer_as_many_questions_and_held_out_ones(open_page, make_study, store, log_in):
    study = make_study(num_held_out=2, control=True)
    client, people = open_page(study, people=8)
    for person in people:
        person.agree()
        person.finish()
    arms = [who.arm for who in store.list_interviews()]
    assert sorted(arms) == ["adaptive"] * 4 + ["random"] * 4
    scores: dict[str, list[float]] = {"adaptive": [], "random": []}
    for number, arm in enumerate(arms, 1):
        rows = store.list_questions(number)
        assert [row.purpose for row in rows] == ["choose"] * 3 + ["held-out"] * 2
        assert len({frozenset(row.items) for row in rows}) == 5
        assert all((row.score is None) == (arm == "random") for row in rows[:3])
        scores[arm].append(np.log([row.prob for row in rows[3:]]).mean())
    log_in(client)
    shown = client.get("/researcher").text
    gap = np.mean(scores["adaptive"]) - np.mean(scores["random"])
    error = np.sqrt(sum(np.var(own, ddof=1) / 4 for own in scores.values()))
    assert "too few people to tell" in shown
    assert f"<td>{gap:.3f}</td>\n<td>{error:.3f}</td>".replace("-", "−") in shown


def test_trials_are_apart(open_page, store: Store, log_in, join) -> None:
    client, _ = open_page(people=0, page=Page(places=2, pilot=True))
    joined = join(client)
    assert "This is a trial" in joined.text
    client, _ = open_page(people=0, page=OPEN)
    log_in(client)
    assert "0 invited" in client.get("/researcher").text


def test_the_page_is_mounted_in_another_service(make_study, store: Store, join) -> None:
    service = FastAPI()
    study = make_study()
    service.mount("/study", create_app(study, store, "x" * 20, OPEN, ("testserver",)))
    client = TestClient(service)
    page = join(client, "/study")
    assert page.url.path.startswith("/study/i/")
    links = re.findall(r'(?:href|action|src)="([^"]*)"', page.text)
    assert links
    assert all(link.startswith("/study/") for link in links)
    assert client.get("/study/static/page.css").status_code == 200
    entered = client.post("/study/researcher/login", data={"token": "x" * 20})
    assert entered.url.path == "/study/researcher"


def test_the_documentation_shows_how_to_mount_it(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, join
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "interviews.md").read_text(encoding="utf-8")
    (code,) = (part for part in re.findall(r"```python\n(.*?)```", page, re.S) if "mount" in part)
    save(tmp_path / "results" / "model", model)
    pd.DataFrame({"item": model.feature_names}).to_csv(tmp_path / "items.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSSA_BAYES_TOKEN", "x" * 20)
    names: dict[str, object] = {}
    exec(code, names)
    client = TestClient(names["service"], base_url="https://study.example.org")
    assert "I have read this" in join(client, "/study").text
    entered = client.post("/study/researcher/login", data={"token": "x" * 20})
    assert "1 invited" in entered.text
    cookie = entered.history[0].headers["set-cookie"]
    assert {"Secure", "HttpOnly", "Path=/study/researcher"} <= set(cookie.split("; "))
    names["store"].close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_held_out": -1}, "num_held_out must be at least 0, got -1"),
        ({"num_held_out": 15}, "num_held_out must leave questions to choose from, got 15 of 15"),
        ({"control": True}, "control needs questions that compare the arms"),
        ({"control": True, "num_held_out": 2, "stop": Stop()}, "control compares people after"),
    ],
)
def test_a_wrong_study_is_refused(make_study: Callable, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make_study(**options)
