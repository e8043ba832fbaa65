"""What a stranger, another site, a hostile name and a flood can do: nothing."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import anyio
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from fssa_bayes.serve import Page, Store, check_token, security
from fssa_bayes.serve.security import Guard, Images, Limiter, Sessions, guard_cell, render_markdown

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
SECRET = "the researcher's secret"


def test_pages_load_nothing_from_elsewhere_and_tell_nobody(open_page) -> None:
    client, (ann,) = open_page()
    for path in ("/", ann.link, "/researcher/login", "/static/page.css", "/nowhere"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'; script-src 'self'" in policy
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
    assert client.get(ann.link).headers["cache-control"] == "no-store"


def test_the_head_of_a_page_can_be_asked_for(open_page) -> None:
    client, (ann,) = open_page()
    assert [client.head(path).status_code for path in ("/", ann.link, "/nowhere")] == [
        200,
        200,
        404,
    ]
    assert client.head(f"{ann.link}/answer").status_code == 405  # A form.


def test_names_and_texts_are_escaped(open_page, log_in) -> None:
    client, (ann,) = open_page(page=Page(title="<img src=x>", shows_result=True))
    ann.agree()
    pages = [ann.look()]
    while ann.number() is not None:
        ann.answer()
        pages.append(ann.look())
    log_in(client)
    pages += [client.get("/researcher").text, client.get("/researcher/people/1").text]
    for page in pages:
        assert "<script>alert" not in page
        assert "<img src=x>" not in page
        assert 'href="javascript' not in page
        assert not re.search(r'\son\w+="|style="', page)
    assert any("&lt;script&gt;" in page for page in pages)


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("<script>x</script>", "<script"),
        ("a <b onclick=x>b</b>", "<b"),
        ("[x](javascript:alert(1))", "href"),
        ("[x](JaVaScRiPt:alert(1))", "href"),
        ("[x](&#106;avascript:alert(1))", "href"),
        ("[x](data:text/html,x)", "href"),
        ("[x](/researcher)", "href"),
        ("![x](https://example.org/x.png)", "<img"),
        ('![x"><script>](https://example.org/x.png)', "<script"),
        ("<https://example.org>", "<https"),
    ],
)
def test_markdown_is_harmless(text: str, forbidden: str) -> None:
    assert forbidden not in render_markdown(text)


def test_markdown_is_rendered() -> None:
    page = render_markdown("*a* [b](https://example.org)")
    assert "<em>a</em>" in page
    assert 'href="https://example.org" rel="noopener noreferrer nofollow"' in page


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://testserver.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "null"},
        {"Origin": "http://[::"},
        {"Origin": ""},
    ],
)
def test_forms_of_other_sites_change_nothing(open_page, store: Store, headers: dict) -> None:
    client, (ann,) = open_page()
    ann.agree()
    data = {"number": ann.number(), "choice": "1"}
    assert client.post(f"{ann.link}/answer", data=data, headers=headers).status_code == 403
    login = client.post("/researcher/login", data={"token": SECRET}, headers=headers)
    assert login.status_code == 403
    assert store.list_questions(1)[0].side is None


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::"])
def test_other_hosts_are_refused(open_page, host: str) -> None:
    client, _ = open_page()
    assert client.get("/", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize(
    "path", ["", "/people/1", "/answers.csv", "/answers.json", "/posterior.nc"]
)
def test_results_need_the_token(open_page, path: str) -> None:
    client, _ = open_page()
    for cookie in (None, "", "a.b.c", "9999999999.x." + "0" * 64):
        if cookie is not None:
            client.headers["Cookie"] = f"fssa_bayes_researcher={cookie}"
        answer = client.get(f"/researcher{path}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/researcher/login")


def test_the_login_gives_a_cookie_that_scripts_and_other_sites_lack(open_page) -> None:
    client, _ = open_page(page=Page(secure=True))
    entered = client.post("/researcher/login", data={"token": SECRET}, follow_redirects=False)
    cookie = entered.headers["set-cookie"]
    assert SECRET not in cookie
    assert {"HttpOnly", "Secure", "SameSite=strict", "Path=/researcher"} <= set(cookie.split("; "))
    assert entered.headers["location"] == "/researcher"
    assert client.post("/researcher/login", data={"token": "another"}).status_code == 403


def test_researchers_forms_need_their_own_token(open_page, store: Store, log_in) -> None:
    client, (ann,) = open_page()
    ann.agree()
    ann.answer()
    log_in(client)
    for data in ({}, {"form_token": "0" * 64}):
        assert client.post("/researcher/people/1/delete", data=data).status_code == 403
    assert len(store.list_questions(1)) == 2


def test_who_logs_out_is_out(open_page, make_study) -> None:
    client, _ = open_page()
    cookies = []
    for _ in range(2):
        entered = client.post("/researcher/login", data={"token": SECRET}, follow_redirects=False)
        cookies.append(entered.headers["set-cookie"].split(";")[0])
    copy, other = ({"Cookie": cookie} for cookie in cookies)
    client.cookies.clear()
    page = client.get("/researcher", headers=copy).text
    form = {"form_token": re.search(r'name="form_token" value="(\w+)"', page)[1]}
    client.post("/researcher/logout", data=form, headers=copy)
    client.cookies.clear()
    again, _ = open_page(make_study())  # Nor does a restart bring the session back.
    for browser in (client, again):
        for path in ("", "/answers.csv", "/answers.json", "/posterior.nc", "/people/1"):
            answer = browser.get(f"/researcher{path}", headers=copy, follow_redirects=False)
            assert (answer.status_code, answer.headers["location"]) == (303, "/researcher/login")
        assert browser.get("/researcher/answers.csv", headers=other).status_code == 200


def test_sessions_expire_and_end_with_the_token() -> None:
    now = [1e9]
    sessions = Sessions("a" * 20, hours=1, clock=lambda: now[0])
    session = sessions.open()
    assert sessions.holds(session)
    assert not Sessions("b" * 20, clock=lambda: now[0]).holds(session)
    late = session.replace("1000003600", "1000009999")
    assert late != session
    assert not sessions.holds(late)
    now[0] += 3600
    assert not sessions.holds(session)
    assert sessions.accepts("a" * 20)
    assert not sessions.accepts("a" * 19)


@pytest.mark.parametrize("token", ["", "  ", "short", "ü" * 20, "a b\n" * 10])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="^token must"):
        check_token(token)


def test_another_persons_link_leads_nowhere_else(open_page, store: Store) -> None:
    client, (ann, bob) = open_page(people=2)
    ann.agree()
    bob.agree()
    ann.answer("1", ann.number())
    assert store.list_questions(1)[0].side == "left"
    assert [row.side for row in store.list_questions(2)] == [None]
    for link in ("/i/unknown", f"{ann.link}x", "/i/..%2Fresearcher", "/i/" + "a" * 99):
        assert client.get(link).status_code == 404
        data = {"number": 1, "choice": "1"}
        assert client.post(f"{link}/answer", data=data).status_code == 404


def test_links_are_not_in_the_database(open_page, tmp_path: Path, store: Store) -> None:
    open_page()
    store.close()
    files = b"".join(path.read_bytes() for path in tmp_path.glob("answers.sqlite*"))
    assert b"token-of-person" not in files


@pytest.mark.parametrize(
    "path",
    [
        "/images/..%2F..%2Fetc%2Fpasswd",
        "/images/%2Fetc%2Fpasswd",
        "/images/a.png",
        "/static/..%2Fstore.py",
        "/static/%2e%2e/store.py",
        "/static//etc/passwd",
    ],
)
def test_no_path_reads_a_file(open_page, path: str) -> None:
    client, _ = open_page()
    assert client.get(path).status_code == 404


def test_images_have_ids_and_are_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.svg").write_text("<svg onload='x'/>")
    (tmp_path / "c.png").write_text("<svg onload='x'/>")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "d.png").write_bytes(PNG)
    images = Images(tmp_path, ["a.png"])
    assert images.get(images.ids["a.png"]) == ("image/png", PNG)
    assert images.get("a.png") is None
    for name in ("b.svg", "c.png", "link.png", "folder/d.png", "../x.png", "no.png", ".."):
        with pytest.raises(ValueError, match="^images must be"):
            Images(tmp_path, [name])


def test_a_flood_is_stopped(open_page) -> None:
    client, (ann,) = open_page()
    codes = [client.post("/researcher/login", data={"token": "x"}).status_code for _ in range(12)]
    assert codes == [403] * 10 + [429] * 2
    entered = client.post("/researcher/login", data={"token": SECRET})
    assert (entered.status_code, entered.url.path) == (200, "/researcher")
    codes = [client.get(f"/i/guess-{n}").status_code for n in range(32)]
    assert codes[:30] == [404] * 30
    assert codes[-1] == 429
    assert client.get("/").status_code == 200
    assert client.get(ann.link).status_code == 200  # Of the same address, a link that exists.


def test_a_flood_of_clicks_is_stopped(open_page, store: Store) -> None:
    client, (ann, bob) = open_page(people=2)
    for person in (ann, bob):
        person.agree()
    data = {"number": 99, "choice": "1"}
    post = functools.partial(client.post, follow_redirects=False)
    codes = [post(f"{ann.link}/answer", data=data).status_code for _ in range(62)]
    assert codes[:60] == [303] * 60
    assert codes[-1] == 429
    assert bob.answer("1") == 200


def test_requests_of_an_address_are_limited() -> None:
    guard = Guard(PlainTextResponse("Here."), ("testserver",), number=3, seconds=1e9)
    client = TestClient(guard)
    assert [client.get("/").status_code for _ in range(5)] == [200] * 3 + [429] * 2


def test_large_requests_are_refused(open_page) -> None:
    client, (ann,) = open_page()
    data = {"number": "1", "choice": "1" * 100_000}
    assert client.post(f"{ann.link}/answer", data=data).status_code == 413
    chunks = (b"a" * 1000 for _ in range(100))
    assert client.post(f"{ann.link}/answer", content=chunks).status_code == 413


@pytest.mark.parametrize("ending", ["lost", "slow"])
def test_half_a_form_is_no_form(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "_MOST_SECONDS", 0.05)
    reached, sent = [], []

    async def app(scope, receive, send) -> None:
        reached.append(await receive())

    parts = iter([{"type": "http.request", "body": b"choice=1", "more_body": True}])

    async def receive() -> dict:
        if ending == "slow":
            await anyio.sleep(60)
        return next(parts, {"type": "http.disconnect"})

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "headers": [(b"host", b"localhost")]}
    anyio.run(Guard(app), scope, receive, send)
    assert not reached
    assert [part["status"] for part in sent[:1]] == ([408] if ending == "slow" else [])


def test_limits_are_those_of_a_leaky_bucket() -> None:
    now = [0.0]
    limiter = Limiter(2, 10.0, clock=lambda: now[0])
    assert [limiter.allows("a") for _ in range(3)] == [True, True, False]
    assert limiter.allows("b")
    now[0] = 5.0
    assert [limiter.allows("a") for _ in range(2)] == [True, False]


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", "\tx", " =1", "\rx"])
def test_formulas_are_text(cell: str) -> None:
    assert guard_cell(cell) == f"'{cell}"
    assert guard_cell(-1.5) == -1.5
    assert guard_cell("1-1") == "1-1"


def test_headers_and_forms_of_any_kind_break_nothing(open_page) -> None:
    client, (ann,) = open_page()
    quiet = TestClient(client.app, raise_server_exceptions=False)
    for number in ("", "0", "-1", "1e9", "9" * 30, "\0", "²"):
        for choice in ("", "1", "\0", "é" * 20):
            data = {"number": number, "choice": choice}
            assert quiet.post(f"{ann.link}/answer", data=data).status_code in (200, 422)
    for number in ("0", "-1", "x", "9" * 30):
        assert quiet.get(f"/researcher/people/{number}").status_code in (200, 404, 422)
