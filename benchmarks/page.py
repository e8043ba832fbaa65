"""How long does a click take? People who answer the interview page at once, over HTTP.

The command `ask` serves a page in a process of its own, with answers in SQLite and everything
synchronised to the disk. As many people as `--people`, each with a connection and a link, agree and
answer six questions, after some seconds of thought each, drawn from an exponential distribution. A
click is what a browser does: the form is sent, the answer stored, the next question chosen among
all pairs of items and its page sent; what the page needs besides is cached. Every ten seconds the
researcher looks at everybody's results.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np
import torch

from benchmarks.harness import Row, seeded, spread
from fssa_bayes import HeterogeneousBTL, save

QUESTIONS = 6
LOOK = 10.0  # Seconds between two looks of the researcher.
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def run(args: argparse.Namespace) -> Iterator[Row]:
    people = args.people or (3 if args.quick else 50)
    questions = 2 if args.quick else QUESTIONS
    for items, think in ((8, 0.0),) if args.quick else ((40, 10.0), (100, 10.0)):
        case = f"{people} people, {items} items"
        name = f"{think:g} s of thought"
        clicks, looks, used = measure(people, items, questions, think, args)
        for share in (50, 95, 99):
            value = 1000 * np.percentile(clicks, share)
            yield spread("page", case, name, f"a click, percentile {share}", "ms", [value])
        yield spread("page", case, name, "the researcher's page", "ms", 1000 * looks)
        yield spread("page", case, name, "clicks a second", "1/s", [len(clicks) / used[1]])
        value = 1000 * used[0] / len(clicks)
        yield spread("page", case, name, "CPU time of the server a click", "ms", [value])


def measure(
    people: int, items: int, questions: int, think: float, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Lets people answer.

    Args:
        people: Number of people.
        items: Number of items.
        questions: Number of questions of a person.
        think: Mean seconds before a click, drawn from an exponential distribution.
        args: The arguments of the program.

    Returns:
        Seconds of each click; seconds of each look of the researcher; and the server's CPU seconds,
        and all seconds, while people answered.
    """
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as name:
        folder = Path(name)
        write_study(folder, items, args.seeds[0])
        command = [sys.executable, "-m", "fssa_bayes", "ask", str(folder / "model")]
        command += ["--items", str(folder / "items.csv"), "--db", str(folder / "answers.sqlite")]
        command += ["--links", str(people), "--questions", str(questions), "--port", "0"]
        surroundings = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=surroundings)
        try:
            lines = iter(server.stdout.readline, "")
            address = next(line for line in lines if line.startswith("Researcher: ")).split()[1]
            with (folder / "links.csv").open() as file:
                links = [urlsplit(row["link"]).path for row in csv.DictReader(file)]
            token = (folder / "answers.sqlite.token").read_text().strip()
            return answer(urlsplit(address).netloc, links, token, server.pid, questions, think)
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()


def answer(
    address: str, links: list[str], token: str, pid: int, questions: int, think: float
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Lets one person a link answer, all at once; returns what :func:`measure` does."""
    researcher = Browser(address)
    researcher.send("/researcher/login", token=token)
    before, start = cpu_seconds(pid), time.perf_counter()
    over = threading.Event()

    def look() -> list[float]:
        seconds = []
        while not over.wait(LOOK):
            clock = time.perf_counter()
            researcher.get("/researcher")
            seconds.append(time.perf_counter() - clock)
        return seconds

    with ThreadPoolExecutor(len(links) + 1) as pool:
        looking = pool.submit(look)
        person = [
            pool.submit(interview, Browser(address), link, questions, think, seed)
            for seed, link in enumerate(links)
        ]
        try:
            clicks = np.array([second for one in person for second in one.result()])
            used = cpu_seconds(pid) - before, time.perf_counter() - start
        finally:
            over.set()
        looks = np.array(looking.result() or [np.nan])
    return clicks, looks, used


def interview(browser: Browser, link: str, questions: int, think: float, seed: int) -> list[float]:
    """Answers the questions of one person; returns the seconds of each click."""
    rng = np.random.default_rng(seed)
    time.sleep(rng.exponential(think))
    version = re.search(r'name="version" value="(\w+)"', browser.get(link))[1]
    page, seconds = browser.send(f"{link}/consent", agree="yes", version=version), []
    for _ in range(questions):
        time.sleep(rng.exponential(think))
        number = re.search(r'name="number" value="(\d+)"', page)[1]
        clock = time.perf_counter()
        page = browser.send(f"{link}/answer", number=number, choice=str(rng.integers(1, 3)))
        seconds.append(time.perf_counter() - clock)
    assert "Your answers are stored" in page, page
    return seconds


class Browser:
    """Keeps a connection and the researcher's cookie, and follows where a form leads."""

    def __init__(self, address: str) -> None:
        self.connection = HTTPConnection(address, timeout=120)
        self.headers, self.last = {"Host": address}, time.perf_counter()

    def get(self, path: str) -> str:
        """Asks for a page."""
        self.reconnect()
        self.connection.request("GET", path, headers=self.headers)
        with self.connection.getresponse() as answer:
            page = answer.read().decode()
        assert answer.status == 200, page
        return page

    def reconnect(self) -> None:
        """Closes a connection that was quiet, as the server does after some seconds."""
        if time.perf_counter() - self.last > 3:
            self.connection.close()
        self.last = time.perf_counter()

    def send(self, path: str, **form: str) -> str:
        """Sends a form, and asks for the page to which it leads."""
        self.reconnect()
        self.connection.request("POST", path, urlencode(form), self.headers | FORM)
        with self.connection.getresponse() as answer:
            page = answer.read().decode()
        assert answer.status == 303, page
        if cookie := answer.headers["set-cookie"]:
            self.headers["Cookie"] = cookie.split(";")[0]
        return self.get(answer.headers["location"])


def write_study(folder: Path, items: int, seed: int) -> None:
    """Writes a model of two latent dimensions and its items."""
    names = [f"item {number}" for number in range(items)]
    model = HeterogeneousBTL(items, 2, "linear", feature_names=names)
    with torch.no_grad(), seeded(seed):
        model.utility.mean.copy_(torch.randn(items))
        model.utility.loading.copy_(torch.randn(items, 2))
    save(folder / "model", model)
    (folder / "items.csv").write_text("\n".join(["item", *names]) + "\n")


def cpu_seconds(pid: int) -> float:
    """Reads the CPU seconds of a process; NaN where the system has no /proc."""
    file = Path(f"/proc/{pid}/stat")
    if not file.exists():
        return float("nan")
    fields = file.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
