"""A small study, its page, and people who answer it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from httpx2 import Response
from starlette.testclient import TestClient

from fssa_bayes import HeterogeneousBTL
from fssa_bayes.questions import Stop
from fssa_bayes.serve import Items, Page, Store, Study, create_app

NAMES = ["tea", "cola", "<script>alert(1)</script>", "=1+1", "juice", "ü | ß"]
TOKEN = "the researcher's secret"


def drinkers(**options: object) -> HeterogeneousBTL:
    model = HeterogeneousBTL(6, 2, "linear", feature_names=NAMES, **options).eval()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        model.utility.mean.copy_(torch.from_numpy(rng.normal(0, 0.3, 6)))
        model.utility.loading.copy_(torch.from_numpy(rng.normal(0, 1.2, (6, 2))))
    return model


@pytest.fixture(scope="session")
def model() -> HeterogeneousBTL:
    return drinkers()


@pytest.fixture(scope="session")
def tied_model() -> HeterogeneousBTL:
    return drinkers(ties="davidson")


@pytest.fixture(scope="session")
def table() -> pd.DataFrame:
    about = "*Cold*, <b>bold</b>, [x](javascript:alert(1)) [y](https://example.org) ![z](http://e.org/z.png)"
    columns = {"about": [about, *[""] * 5], "litres": [0.3, 0.5, 1, 1, 0.2, 2]}
    return pd.DataFrame(columns, index=pd.Index(NAMES, name="item"))


@pytest.fixture
def make_study(model: HeterogeneousBTL, table: pd.DataFrame) -> Callable[..., Study]:
    """Returns a factory of studies with three questions."""

    def make(fitted: HeterogeneousBTL = model, **options: object) -> Study:
        items = Items(table, fitted, text="about", features=["litres"])
        stop = Stop(best=None, max_questions=3)
        return Study(fitted, None, items, **({"stop": stop, "num_samples": 100} | options))

    return make


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "answers.sqlite")) as opened:
        yield opened


class Person:
    """A browser with one person's link."""

    def __init__(self, client: TestClient, link: str) -> None:
        self.client, self.link = client, link

    def look(self) -> str:
        return self.client.get(self.link).text

    def agree(self) -> str:
        version = re.search(r'name="version" value="(\w+)"', self.look())[1]
        return self.client.post(
            f"{self.link}/consent", data={"agree": "yes", "version": version}
        ).text

    def number(self) -> int | None:
        form = self.look().partition('id="answer"')[2]
        found = re.search(r'name="number" value="(\d+)"', form)
        return None if found is None else int(found[1])

    def answer(self, choice: str = "1", number: int | None = None) -> int:
        number = self.number() if number is None else number
        data = {"number": number, "choice": choice}
        return self.client.post(f"{self.link}/answer", data=data).status_code

    def finish(self) -> None:
        while self.number() is not None:
            assert self.answer() == 200


@pytest.fixture
def open_page(
    make_study: Callable[..., Study], store: Store
) -> Iterator[Callable[..., tuple[TestClient, list[Person]]]]:
    """Returns a function that opens the page and gives a browser, and people with links."""

    def start(
        study: Study | None = None, people: int = 1, page: Page | None = None
    ) -> tuple[TestClient, list[Person]]:
        study = make_study() if study is None else study
        app = create_app(study, store, TOKEN, page, ("testserver",))
        client = TestClient(app)
        have = store.count("link", pilot=False)
        tokens = [f"token-of-person-{n}" for n in range(people)]
        store.enrol(tokens[have:], study.arm, pilot=False)
        return client, [Person(client, f"/i/{token}") for token in tokens]

    return start


@pytest.fixture
def join() -> Callable[..., Response]:
    """Returns a function that sends a form of the open link."""

    def begin(client: TestClient, path: str = "", ticket: str | None = None) -> Response:
        ticket = ticket or re.search(r'name="ticket" value="(.+?)"', client.get(f"{path}/").text)[1]
        return client.post(f"{path}/join", data={"ticket": ticket})

    return begin


@pytest.fixture
def log_in() -> Callable[[TestClient], None]:
    """Returns a function that lets a browser in as the researcher."""

    def enter(client: TestClient) -> None:
        assert client.post("/researcher/login", data={"token": TOKEN}).url.path == "/researcher"

    return enter
