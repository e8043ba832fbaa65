"""The chat endpoint: OpenAI's own client, people who do not mix, choices that survive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("openai", reason="the client of OpenAI's API is not installed")

import httpx
import openai
from starlette.testclient import TestClient
from tiny_bundle import ASKS, FAST, choice, write_files
from tiny_texts import user

from fssa_bayes.cli import main
from fssa_bayes.serve import Store
from fssa_bayes.serve.chat import create_chat_app
from fssa_bayes.steering import Bundle

TOKEN = "a token of some length"
ASK = [user("say word")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_files(tmp_path_factory.mktemp("chat"))
    train = ["--data", made / "prefs.jsonl", "--model", made / "base", "--out", made / "bundle"]
    with pytest.raises(SystemExit) as ended:
        main(["steer", "train", *map(str, train), "--encoder", str(made / "encoder"), *FAST])
    assert not ended.value.code
    return made


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.load(folder / "bundle")


@pytest.fixture
def client(bundle: Bundle, tmp_path: Path) -> Iterator[TestClient]:
    """A client on this machine of a server without a token."""
    with Store(str(tmp_path / "people.sqlite")) as store:
        app = create_chat_app(bundle, store, None, most_tokens=40)
        yield TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 50000))


def of_taste(colour: str, number: int = 5) -> dict:
    return {"choices": [choice(ask, colour) for ask in ASKS[:number]]}


def ask(client: TestClient, **more: object) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"messages": ASK, **more})


class Server:
    """The command `steer serve` in a process of its own.

    Args:
        folder: Where the bundle is.
        db: The database.
        arguments: More arguments of the command.
    """

    def __init__(self, folder: Path, db: Path, *arguments: str) -> None:
        command = ["-m", "fssa_bayes", "steer", "serve", str(folder / "bundle"), "--db", str(db)]
        self.process = subprocess.Popen(
            [sys.executable, *command, "--port", "0", *arguments],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        line = next(line for line in self.process.stdout if line.startswith("Base URL"))
        self.url = line.split()[-1]
        self.root = self.url.removesuffix("/v1")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.mark.slow
def test_the_client_of_openai_and_a_kill(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    options = ("--token-file", str(token), "--name", "mine")
    opened, bearer = ExitStack(), {"Authorization": f"Bearer {TOKEN}"}
    server = Server(folder, tmp_path / "people.sqlite", *options)
    try:
        client = opened.enter_context(openai.OpenAI(base_url=server.url, api_key=TOKEN))
        web = opened.enter_context(httpx.Client(base_url=server.root, headers=bearer))
        expected = {}
        for name, colour in (("ann", "red"), ("bob", "green")):
            web.post(f"/people/{name}/choices", json=of_taste(colour)).raise_for_status()
            person = bundle.person(of_taste(colour)["choices"])
            expected[name] = [
                "".join(person.stream(ASK, seed=seed, max_new_tokens=12)) for seed in range(6)
            ]
        assert expected["ann"] != expected["bob"]

        def complete(name: str, seed: int) -> str:
            found = client.chat.completions.create(
                model="mine", messages=ASK, user=name, seed=seed, max_tokens=12
            )
            assert found.choices[0].finish_reason in ("stop", "length")
            assert found.usage.completion_tokens <= 12
            return found.choices[0].message.content

        def stream(name: str, seed: int) -> str:
            pieces = client.chat.completions.create(
                model="mine", messages=ASK, user=name, seed=seed, max_completion_tokens=12,
                stream=True, stream_options={"include_usage": True},
            )  # fmt: skip
            chunks = list(pieces)
            assert chunks[-1].usage.prompt_tokens == 5
            assert [c.choices[0].finish_reason for c in chunks[:-1]].count(None) == len(chunks) - 2
            return "".join(c.choices[0].delta.content or "" for c in chunks[:-1])

        with ThreadPoolExecutor(8) as pool:  # Everybody at once, streamed and not.
            asked = [(f, n, s) for s in range(6) for n in expected for f in (complete, stream)]
            answers = list(pool.map(lambda one: one[0](*one[1:]), asked))
        for (_, name, seed), text in zip(asked, answers, strict=True):
            assert text == expected[name][seed]
        assert client.models.list().data[0].id == "mine"

        with pytest.raises(openai.AuthenticationError, match="wrong or missing"):
            client.with_options(api_key="x").models.list()
        with pytest.raises(openai.NotFoundError, match="no person 'eve': POST /people/eve"):
            client.chat.completions.create(model="mine", messages=ASK, user="eve")
        with pytest.raises(openai.BadRequestError, match="leave room for max_tokens=60 in the"):
            client.chat.completions.create(model="mine", messages=ASK, max_tokens=60)
        long = [user("say " * 100)]
        with pytest.raises(openai.BadRequestError, match="64 positions, got 10. tokens"):
            client.chat.completions.create(model="mine", messages=long)

        before = web.get("/people/ann").json()
        server.kill()
        server = Server(folder, tmp_path / "people.sqlite", *options)
        client = opened.enter_context(openai.OpenAI(base_url=server.url, api_key=TOKEN))
        web = opened.enter_context(httpx.Client(base_url=server.root, headers=bearer))
        assert web.get("/people/ann").json() == before
        assert complete("ann", 3) == expected["ann"][3]
    finally:
        opened.close()
        server.kill()


def test_a_choice_between_two_requests_changes_what_is_believed(client: TestClient) -> None:
    start = client.post("/people/ann/choices", json=choice("now", "red")).json()
    assert (start["added"], start["choices"], start["id"]) == (1, 1, "ann")
    texts = [ask(client, user="ann", seed=n).json()["choices"][0] for n in range(8)]
    for colour, number in (("green", 7), ("green", 6)):
        added = client.post("/people/ann/choices", json=of_taste(colour, number)).json()
    assert added["choices"] == 14
    assert client.get("/people/ann").json() == {k: v for k, v in added.items() if k != "added"}
    shown = added["believed"]
    assert shown[0]["chosen"] == choice("now", "red")["chosen"]
    assert shown[0]["prob_chosen"]["mean"] < start["believed"][0]["prob_chosen"]["mean"] - 0.1
    assert shown[5]["prob_chosen"]["mean"] > 0.8
    assert added["z"]["mean"] != start["z"]["mean"]
    assert [ask(client, user="ann", seed=n).json()["choices"][0] for n in range(8)] != texts


def test_a_choice_sent_twice_counts_once(client: TestClient) -> None:
    sent = choice("now", "red") | {"key": "k1"}
    assert client.post("/people/ann/choices", json=sent).json()["added"] == 1
    assert client.post("/people/ann/choices", json=sent).json()["added"] == 0
    assert client.post("/people/bob/choices", json=sent).json()["added"] == 1
    assert client.get("/people/ann").json()["choices"] == 1
    assert client.delete("/people/ann").json()["deleted"]
    assert client.get("/people/ann").status_code == 404
    assert client.delete("/people/ann").status_code == 404
    assert client.get("/people/bob").json()["choices"] == 1
    assert client.post("/people/ann/choices", json=sent).json()["choices"] == 1


def test_a_key_stands_for_one_choice(client: TestClient) -> None:
    one, other = (choice("now", colour) | {"key": "k1"} for colour in ("red", "green"))
    fresh = choice("say", "red")

    def send(*choices: dict) -> httpx.Response:
        return client.post("/people/ann/choices", json={"choices": list(choices)})

    assert send(one, other).status_code == 409
    assert client.get("/people/ann").status_code == 404
    assert send(one, one).json()["added"] == 1
    found = send(fresh, other)
    assert found.status_code == 409
    told = "key must stand for one choice, got 'k1', by which 'ann' chose otherwise before"
    assert found.json()["error"]["message"] == told
    assert client.get("/people/ann").json()["choices"] == 1
    assert send(fresh, one).json()["added"] == 1
    assert client.post("/people/bob/choices", json=other).json()["added"] == 1


def test_tools_of_a_choice_may_be_text(client: TestClient, bundle: Bundle) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    sent = choice("now", "red") | {"tools": json.dumps(tools), "key": "k1"}
    assert client.post("/people/ann/choices", json=sent).json()["added"] == 1
    assert client.post("/people/ann/choices", json=sent).json()["added"] == 0
    sent = choice("now", "red") | {"tools": tools}
    assert client.post("/people/bob/choices", json=sent).json()["added"] == 1
    found = [client.get(f"/people/{name}").json()["z"] for name in ("ann", "bob")]
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:the largest context has:UserWarning")
def test_choices_of_many_at_once_are_all_kept(client: TestClient) -> None:
    def choose(number: int) -> int:
        return client.post("/people/ann/choices", json=choice(ASKS[number % 8], "red")).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(choose, range(24))) == {200}
    assert client.get("/people/ann").json()["choices"] == 24


def test_somebody_unnamed_is_answered_by_the_prior(client: TestClient, bundle: Bundle) -> None:
    found = ask(client, seed=5, max_tokens=6, n=2, temperature=0.9, top_p=0.9).json()
    expected = [
        "".join(bundle.person().stream(ASK, seed=s, max_new_tokens=6, temperature=0.9, top_p=0.9))
        for s in (5, 6)
    ]
    assert [c["message"]["content"] for c in found["choices"]] == expected
    assert found["usage"]["total_tokens"] == 5 + found["usage"]["completion_tokens"]
    whole = ask(client, seed=5, temperature=1, max_tokens=30).json()["choices"][0]["message"]
    word = whole["content"].split()[2]
    cut = ask(client, seed=5, temperature=1, max_tokens=30, stop=word).json()["choices"][0]
    assert cut["message"]["content"] == whole["content"].split(word)[0]
    assert cut["finish_reason"] == "stop"


BAD = {
    "messages: Field required": {"messages": None},
    "'role' and a 'content'": {"messages": [{"text": "a"}]},
    "must be text, got a part of type 'image_url'": {
        "messages": [{"role": "user", "content": [{"type": "image_url"}]}]
    },
    "logprobs is not supported, got True": {"logprobs": True},
    "frequency_penalty is not supported, got 0.5": {"frequency_penalty": 0.5},
    "response_format is not supported": {"response_format": {"type": "json_object"}},
    "temperature: Input should be less than or equal to 2": {"temperature": 3},
    "top_p: Input should be greater than 0": {"top_p": 0},
    "max_tokens must be at most 40, got 41": {"max_tokens": 41},
    "n must be 1 with stream, got 2": {"n": 2, "stream": True},
    "stop must be texts that are not empty": {"stop": ""},
    "there is no person 'eve'": {"user": "eve"},
    "user: String should have at most 200": {"user": "x" * 201},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_requests_are_told_what_is_wrong(client: TestClient, message: str) -> None:
    body = {"messages": ASK, "seed": 0} | BAD[message]
    found = client.post(
        "/v1/chat/completions", json={k: v for k, v in body.items() if v is not None}
    )
    assert found.status_code in (400, 404)
    assert message in found.json()["error"]["message"]
    ok = {"frequency_penalty": 0, "logprobs": False, "store": True, "max_tokens": 2}
    assert ask(client, **ok).status_code == 200


BAD_CHOICES = {
    "choice 0 cannot be read: rows must hold choices between two answers": (
        choice("now", "red") | {"rejected": choice("now", "red")["chosen"]}
    ),
    "choice 1 cannot be read: prompt and responses must be all strings": {
        "choices": [choice("now", "red"), choice("now", "red") | {"prompt": "now"}]
    },
    "rejected: Field required": {"prompt": "a", "chosen": "b"},
    "better: Extra inputs are not permitted": choice("now", "red") | {"better": "b"},
    "choices.1.rejected: Field required": {
        "choices": [choice("now", "red"), {"prompt": "a", "chosen": "b"}]
    },
    "choices: List should have at least 1 item": {"choices": []},
    "prompt: Extra inputs are not permitted": {"choices": [choice("now", "red")], "prompt": "a"},
    "choice 0 cannot be read: tools must be JSON where they are text": (
        choice("now", "red") | {"tools": "add"}
    ),
    "key: String should have at least 1 character": choice("now", "red") | {"key": ""},
}


@pytest.mark.parametrize("message", BAD_CHOICES)
def test_bad_choices_change_nothing(client: TestClient, message: str) -> None:
    client.post("/people/ann/choices", json=choice("now", "red"))
    found = client.post("/people/ann/choices", json=BAD_CHOICES[message])
    assert found.status_code == 400
    told = found.json()["error"]["message"]
    assert message in told
    assert ";" not in told  # Nothing but the fault.
    assert client.get("/people/ann").json()["choices"] == 1
    assert client.post("/people/new/choices", json=BAD_CHOICES[message]).status_code == 400
    assert client.get("/people/new").status_code == 404


def test_requests_that_are_not_json_or_too_large(client: TestClient) -> None:
    found = client.post("/v1/chat/completions", content=b"{", headers={"content-type": "text"})
    assert found.status_code == 400
    large = [user("say " * 2**20)]
    found = client.post("/v1/chat/completions", json={"messages": large})
    assert found.status_code == 413
    assert found.json()["error"]["message"] == "The request is too large."
    assert found.json()["error"]["type"] == "invalid_request_error"


def test_the_model_is_described_by_its_name(bundle: Bundle, tmp_path: Path) -> None:
    with Store(str(tmp_path / "db.sqlite")) as store:
        app = create_chat_app(bundle, store, None, name="our/own")
        client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
        listed = client.get("/v1/models").json()["data"]
        assert listed == [client.get("/v1/models/our/own").json()]
        assert listed[0]["id"] == "our/own"
        found = client.get("/v1/models/gpt")
        assert found.status_code == 404
        assert "there is no model 'gpt', only 'our/own'" in found.json()["error"]["message"]


def test_names_that_no_address_can_hold_are_refused(client: TestClient) -> None:
    told = "the name of a person must hold no '/', got 'a/b'"
    for path in ("/people/a/b", "/people/a%2Fb"):
        for found in (
            client.post(f"{path}/choices", json=choice("now", "red")),
            client.get(path),
            client.delete(path),
            ask(client, user="a/b"),
        ):
            assert found.status_code == 400
            assert found.json()["error"]["message"] == told
    assert client.post("/people//choices", json=choice("now", "red")).status_code == 400


def test_half_a_pair_of_surrogates_is_refused(client: TestClient) -> None:
    def post(path: str, body: dict) -> str:
        kind = {"content-type": "application/json"}  # httpx itself takes no such text.
        found = client.post(path, content=json.dumps(body), headers=kind)
        assert found.status_code == 400
        return found.json()["error"]["message"]

    half = choice("now", "red") | {"prompt": [user("\ud800")]}
    told = "prompt must be text that UTF-8 can hold, got '\\ud800' at row 0"
    assert told in post("/people/ann/choices", half)
    assert "unicode" in post("/people/ann/choices", choice("now", "red") | {"\ud800": 1})
    post("/v1/chat/completions", {"messages": ASK, "\ud800": 1})
    told = "prompts must be text that UTF-8 can hold"
    assert told in post("/v1/chat/completions", {"messages": [user("\ud800")]})
    post("/v1/chat/completions", {"messages": ASK, "user": "\ud800"})
    assert client.get("/people/ann").status_code == 404


def test_who_may_come(bundle: Bundle, tmp_path: Path) -> None:
    with Store(str(tmp_path / "db.sqlite")) as store:
        app = create_chat_app(bundle, store, None)
        far = TestClient(app, base_url="http://127.0.0.1", client=("10.0.0.7", 1))
        assert far.get("/v1/models").status_code == 403
        near = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
        assert near.get("/v1/models").status_code == 200
        assert near.get("/v1/models", headers={"host": "evil.org"}).status_code == 400
        origin = {"origin": "http://evil.org", "sec-fetch-site": "cross-site"}
        body = choice("now", "red")
        assert near.post("/people/a/choices", json=body, headers=origin).status_code == 403
        app = create_chat_app(bundle, store, TOKEN)
        far = TestClient(app, base_url="http://127.0.0.1", client=("10.0.0.7", 1))
        for given in ({}, {"authorization": TOKEN}, {"authorization": "Bearer no"}):
            assert far.get("/people/a", headers=given).status_code == 401
        good = {"authorization": f"Bearer {TOKEN}"}
        assert far.get("/v1/models", headers=good).status_code == 200
        for _ in range(30):
            far.get("/v1/models")
        assert far.get("/v1/models", headers=good).status_code == 429
        with pytest.raises(ValueError, match="at least 16 characters"):
            create_chat_app(bundle, store, "short")


def test_a_database_of_another_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with Store(str(tmp_path / "db.sqlite")) as store:
        create_chat_app(bundle, store, None)
        other = Bundle(bundle.policy, bundle.model, bundle.guide, bundle.features, seed=1)
        with pytest.raises(ValueError, match="that of this bundle, got one of another bundle"):
            create_chat_app(other, store, None)


def test_people_steer_beside_interviews(client: TestClient, tmp_path: Path) -> None:
    client.post("/people/ann/choices", json=choice("now", "red"))
    with Store(str(tmp_path / "people.sqlite")) as store:  # The tables of both.
        assert store.list_interviews() == []
        store.claim({"model": "m"})
    assert client.get("/people/ann").json()["choices"] == 1


def test_a_command_finds_people_of_the_database(
    client: TestClient, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    client.post("/people/ann/choices", json=of_taste("green"))
    db, bundle = str(tmp_path / "people.sqlite"), str(folder / "bundle")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["steer", *arguments])
        return (ended.value.code or 0, *capsys.readouterr())

    found = run("generate", bundle, "--db", db, "--user", "ann", "--prompt", "say word")
    assert found[0] == 0, found[2]
    row = json.loads(found[1].strip().split("\n")[-1])
    assert (row["user"], row["prompt"]) == ("ann", ASK)
    adapter = tmp_path / "adapter"
    found = run("export", bundle, "--db", db, "--user", "ann", "--out", str(adapter))
    assert found[0] == 0
    assert (adapter / "adapter_model.safetensors").is_file()
    found = run("export", bundle, "--db", db, "--user", "eve", "--out", str(adapter))
    assert (found[0], "--user must be a person of --db, got 'eve'" in found[2]) == (2, True)
    prefs = str(folder / "prefs.jsonl")
    found = run("export", bundle, "--data", prefs, "--user", "u3", "--out", str(adapter))
    assert "the adapter of 'u3', by 8 choices" in found[1]
    found = run("generate", bundle, "--data", prefs, "--prompt", "say")
    assert "--user must name one of the people of --data, such as ['u0', 'u1'" in found[2]


def test_a_slow_reader_holds_nobody_up(bundle: Bundle, tmp_path: Path) -> None:
    with Store(str(tmp_path / "db.sqlite")) as store:
        app = create_chat_app(bundle, store, None, at_once=1)
        client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
        slots = threading.BoundedSemaphore(1)
        slow = bundle.person().stream(ASK, within=slots, max_new_tokens=20)
        next(slow)
        with slots:  # Written to the end though nobody reads.
            pass
        assert ask(client).status_code == 200
        slow.close()


def test_what_breaks_the_posterior_is_not_kept(
    client: TestClient, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/people/ann/choices", json=choice("now", "red"))

    def fail(texts: list[str]) -> None:
        raise ValueError("an embedding is not finite")

    with monkeypatch.context() as patch:
        patch.setattr(type(bundle.features), "__call__", lambda self, texts: fail(texts))
        found = client.post("/people/ann/choices", json=choice("say now", "red"))
    assert (found.status_code, found.json()["error"]["message"]) == (
        400, "an embedding is not finite",
    )  # fmt: skip
    assert client.get("/people/ann").json()["choices"] == 1
