"""The page in headless Chromium: by mouse, by keys, on a phone, with undo and reload."""

from __future__ import annotations

import csv
import io
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import arviz  # noqa: E402
import uvicorn  # noqa: E402

from fssa_bayes.serve import Page, Store, Study, create_app  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "the researcher's secret"
NAMES = ["tea", "cola", "<script>alert(1)</script>", "=1+1", "juice", "ü | ß"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]


@pytest.fixture
def address(make_study: Callable[..., Study], store: Store) -> Iterator[str]:
    """Serves the page with two people's links, ann and bob."""
    study = make_study()
    app = create_app(study, store, TOKEN, Page(shows_result=True))
    store.enrol(["ann", "bob"], study.arm, pilot=False)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        print(f"\n{CHROMIUM}: {opened.version}")
        yield opened
        opened.close()


def start(browser, address: str, person: str, **options: object):
    """Opens a person's page, agrees, and notes what the browser complains of."""
    page = browser.new_context(**options).new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{address}/i/{person}")
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Begin").click()
    return page, complaints


def test_mouse_undo_and_reload(browser, address: str, store: Store, tmp_path) -> None:
    page, complaints = start(browser, address, "ann")
    page.get_by_role("button", name="Choose this").first.click()
    page.get_by_text("Question 2 of at most 3").wait_for()
    page.reload()
    page.get_by_role("button", name="Undo the last answer").click()
    page.get_by_text("Question 1 of at most 3").wait_for()
    for place in (1, 2, 3):
        page.get_by_text(f"Question {place} of").wait_for()
        page.get_by_role("button", name="Choose this").last.click()
    page.get_by_text("What we believe you prefer").wait_for()
    page.screenshot(path=tmp_path / "done.png")
    assert [row.side for row in store.list_questions(1)] == ["right"] * 3
    page.go_back()
    page.get_by_text("What we believe you prefer").wait_for()
    page.goto(f"{address}/researcher")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.get_by_text("1 finished").wait_for()
    files = {}
    for name in ("answers.csv", "answers.json", "posterior.nc"):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        assert download.value.suggested_filename == name
        files[name] = tmp_path / name
        download.value.save_as(files[name])
    rows = list(csv.DictReader(io.StringIO(files["answers.csv"].read_text())))
    assert [row["side"] for row in rows] == ["right"] * 3
    (ann, bob) = json.loads(files["answers.json"].read_text())["people"]
    assert [row["undone_at"] is not None for row in ann["questions"]] == [True] * 2 + [False] * 3
    assert (bob["person"], bob["questions"]) == ("P0002", [])
    utility = arviz.from_netcdf(str(files["posterior.nc"])).posterior["utility"]
    assert utility.sizes["user"] == 1
    assert sorted(utility["item"].values.tolist()) == sorted(NAMES)
    assert complaints == []


def test_keys_alone(browser, address: str, store: Store) -> None:
    page, complaints = start(browser, address, "ann")
    for place, key in enumerate(["ArrowRight", "u", "ArrowLeft", "2", "s", "ArrowLeft"]):
        page.get_by_text(f"Question {(1, 2, 1, 2, 3, 3)[place]} of").wait_for()
        page.wait_for_load_state()  # The script listens by then.
        page.keyboard.press(key)
    page.get_by_text("Your answers are stored").wait_for()
    assert [row.side for row in store.list_questions(1)] == ["left", "right", "skip", "left"]
    assert complaints == []


def test_a_phone_without_scripts(browser, address: str, store: Store) -> None:
    size = {"width": 360, "height": 640}
    phone = {"viewport": size, "is_mobile": True, "has_touch": True, "java_script_enabled": False}
    page, _ = start(browser, address, "bob", **phone)
    for place in (1, 2, 3):
        page.get_by_text(f"Question {place} of").wait_for()
        for button in page.get_by_role("button", name="Choose this").all():
            box = button.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
            assert box["height"] >= 40
        page.get_by_role("button", name="Choose this").first.tap()
    page.get_by_text("Your answers are stored").wait_for()
    assert [row.side for row in store.list_questions(2)] == ["left"] * 3


def test_double_clicks_tabs_and_lost_connections(browser, address: str, store: Store) -> None:
    page, complaints = start(browser, address, "ann")
    other = page.context.new_page()
    other.goto(f"{address}/i/ann")
    page.get_by_role("button", name="Choose this").first.dblclick()
    page.get_by_text("Question 2 of").wait_for()
    other.get_by_role("button", name="Choose this").last.click()  # The question of before.
    other.get_by_text("Question 2 of").wait_for()
    other.get_by_text("Your last click was not counted").wait_for()
    assert [row.side for row in store.list_questions(1)] == ["left", None]
    page.go_back()
    page.get_by_text("Question 2 of").wait_for()
    assert complaints == []
    page.context.set_offline(True)
    page.get_by_role("button", name="Choose this").last.click()
    page.wait_for_url("chrome-error://**")
    page.context.set_offline(False)
    page.goto(f"{address}/i/ann")
    page.get_by_role("button", name="Choose this").last.click()
    page.get_by_text("Question 3 of").wait_for()
    assert [row.side for row in store.list_questions(1)] == ["left", "right", None]


def test_items_stand_side_by_side_where_there_is_room(browser, address: str) -> None:
    page, _ = start(browser, address, "ann", viewport={"width": 1200, "height": 800})
    for width, beside in ((1200, True), (360, False)):
        page.set_viewport_size({"width": width, "height": 800})
        first, second = (item.bounding_box() for item in page.locator("section.item").all())
        assert (first["y"] == second["y"]) == beside
        assert (first["x"] == second["x"]) != beside
        tables = page.get_by_role("row", name="litres").all()
        assert [row.is_visible() for row in tables] == [True, True]
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_researchers_page_is_no_wider_than_a_phone(browser, address: str) -> None:
    size = {"width": 360, "height": 640}
    page, _ = start(browser, address, "ann", viewport=size, is_mobile=True, has_touch=True)
    assert not page.get_by_text("Keys:").is_visible()
    for place in (1, 2, 3):
        page.get_by_text(f"Question {place} of").wait_for()
        page.get_by_role("button", name="Choose this").first.click()
    page.goto(f"{address}/researcher")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    for path in ("", "/people/1"):
        page.goto(f"{address}/researcher{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        for table in page.locator("table").all():
            assert table.evaluate("t => t.parentElement.clientWidth") <= 360


def test_two_people_at_once(browser, address: str, store: Store) -> None:
    ann, _ = start(browser, address, "ann")
    bob, _ = start(browser, address, "bob")
    for place in (1, 2, 3):
        for page, which in ((ann, 0), (bob, 1)):
            page.get_by_text(f"Question {place} of").wait_for()
            page.get_by_role("button", name="Choose this").nth(which).click()
    for page in (ann, bob):
        page.get_by_text("Your answers are stored").wait_for()
    sides = [[row.side for row in store.list_questions(person)] for person in (1, 2)]
    assert sides == [["left"] * 3, ["right"] * 3]
