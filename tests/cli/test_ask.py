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

from fssa_bayes import HeterogeneousBTL, save
from fssa_bayes.serve import Store

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
            (["--host", "0.0.0.0"], "--url must tell the address"),
            (["--url", "study"], "--url must read like"),
            (["--control", "random", "--best", "0.9"], "leave --best out"),
        ):
            ended = command(*arguments, *change)
            assert (ended.code, message in ended.err) == (2, True), (change, ended.err)


@pytest.mark.slow
def test_a_killed_server_loses_nothing(arguments: list[str], tmp_path: Path) -> None:
    sides = []
    for _ in range(2):
        server = subprocess.Popen(
            [sys.executable, "-m", "fssa_bayes", *arguments], stdout=subprocess.PIPE, text=True
        )
        try:
            lines = iter(server.stdout.readline, "")
            address = next(line for line in lines if line.startswith("Researcher: ")).split()[1]
            address = address.removesuffix("/researcher")
            rows = csv.DictReader((tmp_path / "links.csv").read_text().splitlines())
            link = next(rows)["link"]
            link = address + urllib.parse.urlsplit(link).path
            page = ask(link)
            if version := re.search(r'name="version" value="(\w+)"', page):
                page = ask(f"{link}/consent", agree="yes", version=version[1])
            number = re.search(r'name="number" value="(\d+)"', page)[1]
            ask(f"{link}/answer", number=number, choice="1")
        finally:
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
            server.stdout.close()
        with Store(str(tmp_path / "answers.sqlite")) as store:
            sides.append([row.side for row in store.list_questions(1) if row.side])
            assert store.count("link", pilot=False) == 2
    assert sides == [["left"], ["left"] * 2]


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
