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
RIGHT = {
    "token": ["token-of-person-1"],
    "number": ["1", "2", "3", "4"],
    "choice": ["1", "2", "skip"],
    "agree": ["yes"],
    "sure": ["yes", "no", "no"],
    "ticket": ["t" * 32, "u" * 32],
}
"""Values that fields take, where a request is not drawn to be wrong."""


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

    @hypothesis.settings(max_examples=6, derandomize=True, deadline=None, database=None)
    @hypothesis.given(draw_requests(client.app.openapi()))
    def send(requests: list[tuple[str, str, str, dict, dict]]) -> None:
        for method, path, address, form, headers in requests:
            answer = quiet.request(
                method, address, data=form or None, headers=headers, follow_redirects=False
            )
            seen.setdefault((method, path), set()).add(answer.status_code)
            assert answer.status_code < 500, (method, address, form, headers)
            if comes_as == "stranger":
                told = answer.text + json.dumps(dict(answer.headers))
                assert not [line for line in LINES if line in told], (method, address, form)
                assert "P0001" not in told

    send()
    assert (store.get(1), store.list_questions(1, undone=True)) == before
    assert len(seen) > 15
    accepted = {method: set() for method in ("GET", "POST")}
    for (method, path), codes in seen.items():
        if codes & {200, 303}:
            accepted[method].add(path)
    assert {"/", "/i/{token}", "/i/{token}/withdraw"} <= accepted["GET"]
    assert {"/join", "/i/{token}/answer", "/i/{token}/undo"} <= accepted["POST"]


def draw_requests(schema: dict) -> st.SearchStrategy:
    """Draws a request of each operation, in any order: values of its path, most of its form."""
    operations = [
        (method, path, sorted(_fields(schema, operation)))
        for path, methods in sorted(schema["paths"].items())
        for method, operation in sorted(methods.items())
    ]
    hostile = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30))
    right = {name: st.sampled_from(values) for name, values in RIGHT.items()}
    headers = st.sampled_from(
        [
            *({}, {}, {"Content-Type": "application/json"}),
            {"Content-Type": "multipart/form-data"},
            {"Cookie": "fssa_bayes_researcher=9999999999.x.é".encode("latin-1")},
            *({"X-Forwarded-For": "\x7f,"}, {"Range": "bytes=0-"}, {"Accept": "x" * 5000}),
        ]
    )

    @st.composite
    def draw(drawn: st.DrawFn) -> list[tuple[str, str, str, dict, dict]]:
        def value(name: str) -> str:
            is_right = name in right and drawn(st.integers(0, 3))
            return drawn(right[name] if is_right else hostile)

        requests = []
        for method, path, fields in drawn(st.permutations(operations)):
            address = re.sub(r"\{(\w+)\}", lambda part: quote(value(part[1]) or "x", ""), path)
            form = {name: value(name) for name in fields if drawn(st.integers(0, 9))}
            requests.append((method.upper(), path, address, form, drawn(headers)))
        return requests

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
