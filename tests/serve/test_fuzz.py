"""Requests drawn from the application's own schema, as a stranger sends them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import strategies as st  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from fssa_bayes.serve import Page, Store  # noqa: E402
from fssa_bayes.serve.security import Limiter  # noqa: E402

SECRET = "token-of-person-0"  # The link of ann; the stranger has bob's.
LINES = ("root:", "import sqlalchemy", SECRET)  # Of files, and of ann.
HOSTILE = [
    *("", "0", "1", "2", "-1", "9" * 25, "1e9", "yes", "skip", "tie", "\0", "²", "é" * 50),
    *("../store.py", "/etc/passwd", "..\\..\\x", "a.png", "'; DROP TABLE question; --"),
    *("<script>", "{{ 7 * 7 }}", "a" * 5000, "token-of-person-1"),
]


@pytest.mark.parametrize("comes_as", ["stranger", "researcher"])
def test_no_request_breaks_the_page_or_reads_of_others(
    open_page, store: Store, log_in, monkeypatch: pytest.MonkeyPatch, comes_as: str
) -> None:
    client, (ann, bob) = open_page(people=2, page=Page(places=1000, shows_result=True))
    for person in (ann, bob):
        person.agree()
        person.answer("1")
    before = (store.get(1), store.list_questions(1, undone=True))
    monkeypatch.setattr(Limiter, "allows", lambda *_: True)  # A flood would end at once.
    quiet = TestClient(client.app, raise_server_exceptions=False)
    if comes_as == "researcher":
        log_in(quiet)
    seen: dict[tuple[str, str], set[int]] = {}

    @hypothesis.settings(max_examples=80, derandomize=True, deadline=None, database=None)
    @hypothesis.given(draw_request(client.app.openapi()))
    def send(request: tuple[str, str, str, dict, dict]) -> None:
        method, path, address, form, headers = request
        answer = quiet.request(
            method, address, data=form or None, headers=headers, follow_redirects=False
        )
        seen.setdefault((method, path), set()).add(answer.status_code)
        assert answer.status_code < 500, request
        if comes_as == "stranger":
            told = answer.text + json.dumps(dict(answer.headers))
            assert not [line for line in LINES if line in told], request
            assert "P0001" not in told

    send()
    assert (store.get(1), store.list_questions(1, undone=True)) == before
    reached = {status for codes in seen.values() for status in codes}
    assert {200, 303, 404, 422} <= reached
    operations = {(m.upper(), p) for p, ms in client.app.openapi()["paths"].items() for m in ms}
    assert len(operations & seen.keys()) >= 0.9 * len(operations)


def draw_request(schema: dict) -> st.SearchStrategy:
    """Draws requests: an operation, values of its path, and most of the fields of its form."""
    operations = [
        (method, path, sorted(_fields(schema, operation)))
        for path, methods in sorted(schema["paths"].items())
        for method, operation in sorted(methods.items())
    ]
    values = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30))
    headers = st.sampled_from(
        [
            *({}, {}, {"Content-Type": "application/json"}),
            {"Content-Type": "multipart/form-data"},
            {"Cookie": "fssa_bayes_researcher=9999999999.x.é".encode("latin-1")},
            *({"X-Forwarded-For": "\x7f,"}, {"Range": "bytes=0-"}, {"Accept": "x" * 5000}),
        ]
    )

    @st.composite
    def draw(drawn: st.DrawFn) -> tuple[str, str, str, dict, dict]:
        method, path, fields = drawn(st.sampled_from(operations))
        address = re.sub(r"\{\w+\}", lambda _: quote(drawn(values) or "x", safe=""), path)
        form = {name: drawn(values) for name in fields if drawn(st.integers(0, 9))}
        return method.upper(), path, address, form, drawn(headers)

    return draw()


def _fields(schema: dict, operation: dict) -> list[str]:
    """Lists the fields of an operation's form."""
    content = operation.get("requestBody", {}).get("content", {})
    names: list[str] = []
    for form in content.values():
        name = form["schema"].get("$ref", "").rpartition("/")[2]
        names += schema["components"]["schemas"].get(name, form["schema"]).get("properties", {})
    return names


def test_what_a_file_holds_would_be_seen() -> None:
    """The lines that the requests are searched for are those of files."""
    assert LINES[1] in (Path(__file__).parents[2] / "fssa_bayes/serve/store.py").read_text()
