"""The command `ask`: what is wrong is said before the page opens; a killed server loses nothing."""

from __future__ import annotations

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

import uvicorn  # After the check that the extra is there.
from starlette.testclient import TestClient

from fssa_bayes import HeterogeneousBTL, save
from fssa_bayes.serve import Store

WITHOUT = """
import sys
sys.modules.update(transformers=None, peft=None)  # Not importable.
from fssa_bayes.cli import main
main(sys.argv[1:])
"""
NAMES = ["tea", "cola", "milk", "water"]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Arguments of a command that opens a page."""
    save(tmp_path / "model", HeterogeneousBTL(4, 1, "linear", feature_names=NAMES))
    (tmp_path / "items.csv").write_text("item\n" + "\n".join(NAMES) + "\n")
    paths = {"--items": "items.csv", "--db": "answers.sqlite"}
    options = [part for name, path in paths.items() for part in (name, str(tmp_path / path))]
    return ["ask", str(tmp_path), *options, "--links", "2", "--port", "0", "--questions", "3"]


def test_what_is_wrong_is_said(command: Callable, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "short").write_text("secret\n")
    (tmp_path / "other.csv").write_text("item\ntea\nwine\n")
    (tmp_path / "twice.csv").write_text("item\ntea\ntea\n")
    with Store(str(tmp_path / "other.sqlite")) as store:
        store.claim({"model": "another"})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for change, message in (
            (["--port", port], f"--port {port} of 127.0.0.1 cannot be used"),
            (["--token-file", "nowhere"], "--token-file must be an existing file"),
            (["--token-file", tmp_path / "short"], "token must have at least 16 characters"),
            (["--db", tmp_path / "other.sqlite"], "of a study with other model"),
            (["--db", "nothing://x"], "the researcher's token must be given"),
            (["--items", tmp_path / "other.csv"], "they do not fit the model"),
            (["--items", tmp_path / "twice.csv"], "got 'tea' in column 'item'"),
            (["--text", "about"], "text must be a column of the items, got 'about'"),
            (["--images", "nowhere"], "--images must be an existing folder"),
            (["--image", "about"], "--image and --images go together"),
            (["--db", tmp_path / "no" / "a.sqlite"], "--db must lie in an existing folder"),
            (["--links-file", tmp_path / "items.csv"], "--links-file must be a new file"),
            (["--host", "0.0.0.0"], "--url must tell the address"),
            (["--url", "study"], "--url must read like"),
            (["--control", "random", "--best", "0.9"], "leave --best out"),
        ):
            ended = command(*arguments, *change)
            assert (ended.code, message in ended.err) == (2, True), (change, ended.err)
    made = {path.name.partition("-")[0] for path in tmp_path.iterdir()}  # SQLite has a log, maybe.
    assert made == {"model", "items.csv", "short", "other.csv", "twice.csv", "other.sqlite"}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[uvicorn.Config]:
    """Collects what would be served, in place of serving it."""
    configs: list[uvicorn.Config] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: configs.append(self.config))
    return configs


def test_links_are_kept(
    command: Callable, arguments: list[str], tmp_path: Path, served: list[uvicorn.Config]
) -> None:
    def read(name: str) -> list[str]:
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        rows = list(csv.DictReader((tmp_path / name).read_text().splitlines()))
        return [row["link"].rpartition("/")[2] for row in rows]

    assert "2 new personal links of 2" in command(*arguments).out
    first = read("links.csv")
    assert "0 new personal links of 2" in command(*arguments).out
    assert "1 new personal links of 3" in command(*arguments, "--links", "3").out
    assert read("links.csv")[:2] == first
    every = read("links.csv")
    trial = ["--pilot", "--links"]
    assert "4 new personal links of 4" in command(*arguments, *trial, "4").out
    assert read("links.csv") == every
    command(*arguments, *trial, "5", "--links-file", tmp_path / "links.csv")  # Of both kinds.
    assert read("links.csv")[:3] == every
    with Store(str(tmp_path / "answers.sqlite")) as store:
        pilot = [store.find(token).pilot for token in read("links.csv")]
        assert pilot == [False] * 3 + [True]
        assert all(store.find(token).pilot for token in read("links-pilot.csv"))
        assert len(store.list_interviews()) == 8
    assert len(served) == 5
    assert not any(config.access_log or config.server_header for config in served)


def test_links_begin_with_the_address_of_now(
    command: Callable, arguments: list[str], tmp_path: Path, served: list[uvicorn.Config]
) -> None:
    def read() -> list[str]:
        return [row["link"] for row in csv.DictReader(file.read_text().splitlines())]

    file, address = tmp_path / "links.csv", "https://study.example.org/sub"
    command(*arguments)
    before = [link.rpartition("/")[2] for link in read()]
    ended = command(*arguments, "--links", "3", "--url", address)
    assert "1 new personal links of 3" in ended.out
    assert f"The 2 links that {file} held before now begin with {address}" in ended.out
    assert read()[:2] == [f"{address}/i/{token}" for token in before]
    assert [link.rpartition("/")[0] for link in read()] == [f"{address}/i"] * 3
    assert "held before" not in command(*arguments, "--links", "3", "--url", address).out
    command(*arguments[:-6], "--url", "https://other.example.org", *arguments[-4:])  # No --links.
    assert read()[0] == f"https://other.example.org/i/{before[0]}"
    assert len(served) == 4


def test_links_that_are_lost_are_said_to_be(
    command: Callable, arguments: list[str], tmp_path: Path, served: list[uvicorn.Config]
) -> None:
    file = tmp_path / "links.csv"
    command(*arguments)
    file.rename(tmp_path / "moved.csv")
    ended = command(*arguments)
    assert "new personal links" not in ended.out
    assert f"2 of the 2 personal links of earlier starts are in no file: there is no {file}" in (
        ended.out
    )
    assert not file.exists()
    ended = command(*arguments, "--links", "3")
    assert "1 new personal links of 3" in ended.out
    assert f"2 of the 2 personal links of earlier starts are not in {file}" in ended.out
    assert len(file.read_text().splitlines()) == 2
    assert len(served) == 3


def test_what_belongs_to_something_else_is_not_written_over(
    command: Callable, arguments: list[str], tmp_path: Path, served: list[uvicorn.Config]
) -> None:
    (tmp_path / "other.csv").write_text("item\ntea\n")
    ended = command(*arguments, "--links-file", tmp_path / "other.csv")
    assert (ended.code, "--links-file must be a new file" in ended.err) == (2, True)
    assert (tmp_path / "other.csv").read_text() == "item\ntea\n"
    assert command(*arguments).code == 0
    for change, message in (
        (["--seed", "1"], "of a study with other seed (0 there, 1 here)"),
        (["--questions", "4"], "=3) there"),
        (["--held-out", "1"], "held_out (0 there, 1 here)"),
        (["--control", "random"], "control (False there, True here)"),
        (["--goal", "best"], "of a study with other goal"),
    ):
        ended = command(*arguments, *change)
        assert (ended.code, message in ended.err) == (2, True), (change, ended.err)
    assert len(served) == 1


@pytest.mark.slow
def test_a_killed_server_loses_nothing(
    command: Callable, arguments: list[str], tmp_path: Path, served: list[uvicorn.Config]
) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", WITHOUT, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        lines = iter(server.stdout.readline, "")
        address = next(line for line in lines if line.startswith("Researcher: ")).split()[1]
        address = address.removesuffix("/researcher")
        rows = csv.DictReader((tmp_path / "links.csv").read_text().splitlines())
        link = urllib.parse.urlsplit(next(rows)["link"]).path
        version = re.search(r'name="version" value="(\w+)"', ask(address + link))[1]
        page = ask(f"{address}{link}/consent", agree="yes", version=version)
        number = re.search(r'name="number" value="(\d+)"', page)[1]
        page = ask(f"{address}{link}/answer", number=number, choice="1")
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        server.stdout.close()
    with Store(str(tmp_path / "answers.sqlite")) as store:
        assert [row.side for row in store.list_questions(1)] == ["left", None]
    assert "0 new personal links of 2" in command(*arguments).out
    client = TestClient(served[0].app, base_url="http://127.0.0.1")
    assert client.get(link).text == page  # The question that was open when the server was killed.
    for number in (2, 3):
        page = client.post(f"{link}/answer", data={"number": number, "choice": "2"}).text
    assert "Your answers are stored" in page
    with Store(str(tmp_path / "answers.sqlite")) as store:
        assert [row.side for row in store.list_questions(1)] == ["left", "right", "right"]
        assert all(row.prob is not None for row in store.list_questions(1))


def ask(address: str, **form: str) -> str:
    """Requests a page; the server may need a moment until it listens."""
    data = urllib.parse.urlencode(form).encode() if form else None
    for _ in range(50):
        try:
            with urllib.request.urlopen(address, data, timeout=30) as page:
                return page.read().decode()
        except ConnectionError:
            time.sleep(0.1)
    raise AssertionError(address)
