"""An endpoint of chat completions in which `user` names the person who is answered.

Requests and answers are those of OpenAI's API, as far as they have a meaning here; what has none is
refused and not passed over. People's choices are kept in the database of the interview page, behind
the same guard. What is believed of a person follows from the choices alone.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from fssa_bayes.serve.page import client_of
from fssa_bayes.serve.people import KeyTakenError, People
from fssa_bayes.serve.security import LOOPBACK, Guard, Limiter, Sessions, is_loopback
from fssa_bayes.serve.store import Store

if TYPE_CHECKING:
    from fssa_bayes.steering import Bundle, Person

__all__ = ["ChatRequest", "SteeredPeople", "create_chat_app"]

_MOST_BYTES = 2 * 2**20  # Of a request.
_MOST_PEOPLE = 300  # Whose posteriors are kept in memory.
_SHOWN = 100  # Choices of a person that are shown.
_TOKENS = 512  # Of a response that asks for no number.

Name = Annotated[str, Path(min_length=1, max_length=200)]
# Fields of the API that change no text, or that say what holds anyway.
_IDLE = {"metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
_NEUTRAL = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": ({}, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "response_format": ({"type": "text"}, None),
    "tool_choice": ("auto", None),
    "parallel_tool_calls": (True, None),
    "modalities": (["text"], None),
    "reasoning_effort": ("none", None),
}


class ChatRequest(BaseModel):
    """A request for a completion, with the fields of OpenAI's API that have a meaning here."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    messages: list[dict[str, Any]] = Field(min_length=1)
    user: str | None = Field(None, min_length=1, max_length=200)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int | None = Field(None, ge=1, le=16)
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def refuse_foreign(self) -> None:
        """Raises a ValueError for fields that would be passed over."""
        for name, value in (self.model_extra or {}).items():
            if name in _IDLE or (name in _NEUTRAL and value in _NEUTRAL[name]):
                continue
            raise ValueError(f"{name} is not supported, got {value!r}")
        if self.stream and (self.n or 1) > 1:
            raise ValueError(f"n must be 1 with stream, got {self.n}")


class ChoiceRequest(BaseModel):
    """A choice of a person between two responses, in the formats of TRL."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | list[dict[str, Any]] | None = None
    chosen: str | list[dict[str, Any]]
    rejected: str | list[dict[str, Any]]
    tools: str | list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    key: str | None = Field(None, min_length=1, max_length=200)

    def record(self) -> dict[str, Any]:
        """Returns the choice as it is kept."""
        return self.model_dump(exclude={"key"}, exclude_none=True)


class ChoicesRequest(BaseModel):
    """Several choices of a person, taken all or none."""

    model_config = ConfigDict(extra="forbid")

    choices: list[ChoiceRequest] = Field(min_length=1, max_length=1000)


def _read_choices(body: dict[str, Any]) -> list[ChoiceRequest]:
    """Reads one choice or several; whether there is `choices` decides which is expected.

    Raises:
        RequestValidationError: If the body is neither.
    """
    try:
        if "choices" in body:
            return ChoicesRequest.model_validate(body).choices
        return [ChoiceRequest.model_validate(body)]
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(found) from error


class SteeredPeople:
    """Finds what is believed of people, and remembers it as long as their choices stay.

    Args:
        bundle: The bundle.
        people: The database.
    """

    def __init__(self, bundle: Bundle, people: People) -> None:
        self.bundle, self.people = bundle, people
        self._known: OrderedDict[str | None, tuple[Any, Person]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: str | None) -> Person:
        """Returns a person; None is somebody of whom nothing is known.

        Raises:
            HTTPException: If there is no such person.
        """
        with self._lock:
            version = () if name is None else self.people.version(name)
            if version is None:
                raise HTTPException(
                    404, f"there is no person {name!r}: POST /people/{name}/choices makes one"
                )
            found = self._known.pop(name, None)
            if found is None or found[0] != version:
                records = [] if name is None else self.people.records(name)
                found = (version, self.bundle.person(records))
            self._known[name] = found
            if len(self._known) > _MOST_PEOPLE:  # The one who was quiet for the longest time.
                self._known.popitem(last=False)
        return found[1]

    def add(self, name: str, choices: list[ChoiceRequest]) -> int:
        """Adds choices, after each of them was read; returns how many are new."""
        for number, choice in enumerate(choices):
            try:
                self.bundle.read([choice.record()])
            except (ValueError, TypeError) as error:
                raise ValueError(f"choice {number} cannot be read: {error}") from error
        with self._lock:  # What breaks the posterior must not be kept.
            self.bundle.person([*self.people.records(name), *(c.record() for c in choices)])
        return self.people.add(name, [(choice.key, choice.record()) for choice in choices])


def create_chat_app(
    bundle: Bundle,
    store: Store,
    token: str | None,
    *,
    hosts: tuple[str, ...] | None = LOOPBACK,
    at_once: int = 2,
    most_tokens: int = 2048,
    name: str = "steered",
) -> FastAPI:
    """Makes the application.

    Args:
        bundle: What steers the answers.
        store: Keeps the choices; the bundle claims it.
        token: What requests must bear; None lets in requests of this machine, and no others.
        hosts: Names that requests may call the server by; None where a server before this one
            checks them.
        at_once: Number of responses that are computed at a time.
        most_tokens: Largest number of tokens of a response.
        name: Name of the model in answers.

    Raises:
        ValueError: If the token is too short, the store belongs to another bundle, or a number is
            not positive.
    """
    for what, value in {"at_once": at_once, "most_tokens": most_tokens}.items():
        if value < 1:
            raise ValueError(f"{what} must be at least 1, got {value}")
    people = People(store)
    people.claim(bundle.digest())
    allow = _make_guard(token)
    app = FastAPI(
        title="Steered chat", docs_url=None, redoc_url=None, openapi_url=None,
        dependencies=[Depends(allow)],
    )  # fmt: skip
    steered = SteeredPeople(bundle, people)
    writer = _Writer(steered, threading.BoundedSemaphore(at_once), most_tokens, name)
    _add_errors(app)
    _add_chat(app, writer)
    _add_people(app, steered)
    app.add_middleware(Guard, hosts=hosts, most_bytes=_MOST_BYTES, refuse=_refuse)
    return app


def _make_guard(token: str | None) -> Any:
    sessions = None if token is None else Sessions(token)
    wrong = Limiter(30, 60.0)

    def allow(request: Request) -> None:
        client = client_of(request)
        if sessions is None:
            if not is_loopback(client):
                raise HTTPException(
                    403, "without a token this server answers its own machine alone"
                )
            return
        if not wrong.allows(client, cost=0):
            raise HTTPException(429, "too many wrong tokens: wait a moment")
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not sessions.accepts(given):
            wrong.allows(client)
            raise HTTPException(
                401, "the token is wrong or missing", {"WWW-Authenticate": "Bearer"}
            )

    return allow


class _Writer:
    """Writes completions.

    Args:
        people: Who is answered.
        slots: What limits the number of responses that are computed at a time.
        most_tokens: Largest number of tokens of a response.
        name: Name of the model in answers.
    """

    def __init__(
        self,
        people: SteeredPeople,
        slots: threading.BoundedSemaphore,
        most_tokens: int,
        name: str,
    ) -> None:
        self.people, self.slots, self.most_tokens, self.name = people, slots, most_tokens, name

    def answer(self, asked: ChatRequest) -> Response:
        """Returns a completion, or a stream of its pieces."""
        asked.refuse_foreign()
        person = self.people.find(None if asked.user is None else _check_name(asked.user))
        policy = self.people.bundle.policy
        template = {"tools": asked.tools, "chat_template_kwargs": asked.chat_template_kwargs}
        size = len(policy.encode([asked.messages], **template)[0])
        stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        options = {
            "max_new_tokens": self._room(asked, size),
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "top_p": asked.top_p or 1.0,
            "stop": stop,
            "within": self.slots,
            **template,
        }
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.name,
        }
        streams = [
            person.stream(asked.messages, seed=seed + number, **options)
            for number in range(asked.n or 1)
        ]
        if asked.stream:
            wants_usage = bool((asked.stream_options or {}).get("include_usage"))
            events = _events(streams[0], head, size, wants_usage)
            return StreamingResponse(events, media_type="text/event-stream")
        texts = ["".join(stream) for stream in streams]
        written = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": stream.finish_reason,
            }
            for number, (text, stream) in enumerate(zip(texts, streams, strict=True))
        ]
        usage = _usage(size, sum(stream.tokens for stream in streams))
        return JSONResponse(
            {**head, "object": "chat.completion", "choices": written, "usage": usage}
        )

    def _room(self, asked: ChatRequest, size: int) -> int:
        """Returns the largest number of tokens of a response."""
        wanted = asked.max_completion_tokens or asked.max_tokens
        if wanted is not None and wanted > self.most_tokens:
            raise ValueError(f"max_tokens must be at most {self.most_tokens}, got {wanted}")
        reach = self.people.bundle.policy.reach
        room = self.most_tokens if reach is None else reach - size
        if room < (wanted or 1):
            raise ValueError(
                f"messages must leave room for max_tokens={wanted or 1} in the model's {reach} "
                f"positions, got {size} tokens"
            )
        return wanted or min(room, _TOKENS, self.most_tokens)


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _events(stream: Any, head: Mapping, size: int, wants_usage: bool) -> Iterator[str]:
    """Yields the events of a streamed completion."""

    def event(delta: Mapping, reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**head, "object": "chat.completion.chunk", "choices": [choice]})

    with stream:
        yield event({"role": "assistant", "content": ""})
        try:
            for piece in stream:
                yield event({"content": piece})
        except Exception as error:  # The answer has begun: no status can tell any more.
            yield _event(_describe_error(str(error), 500))
            return
        yield event({}, stream.finish_reason)
        if wants_usage:
            usage = _usage(size, stream.tokens)
            last = {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
            yield _event(last)
        yield "data: [DONE]\n\n"


def _event(content: Mapping) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _add_chat(app: FastAPI, writer: _Writer) -> None:
    """Adds what clients of OpenAI's API call."""

    @app.post("/v1/chat/completions")
    def complete(asked: ChatRequest) -> Response:
        """Answers a conversation as the person named by `user` would have it."""
        return writer.answer(asked)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        """Lists the one model that there is."""
        return {"object": "list", "data": [_describe_model(writer.name)]}

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        """Describes the one model that there is."""
        if name != writer.name:
            raise HTTPException(404, f"there is no model {name!r}, only {writer.name!r}")
        return _describe_model(name)


def _check_name(name: str) -> str:
    """Returns a name that an address can hold.

    Raises:
        ValueError: If it cannot.
    """
    if "/" in name:
        raise ValueError(f"the name of a person must hold no '/', got {name!r}")
    return name


def _add_people(app: FastAPI, people: SteeredPeople) -> None:
    """Adds what tells and asks of people."""

    @app.post("/people/{name:path}/choices")
    def choose(name: Name, asked: dict[str, Any]) -> dict[str, Any]:
        """Adds choices of a person, and says what is believed then."""
        added = people.add(_check_name(name), _read_choices(asked))
        return {"added": added, **_describe(name, people.find(name))}

    @app.get("/people/{name:path}")
    def person(name: Name) -> dict[str, Any]:
        """Says what is believed of a person."""
        return _describe(name, people.find(_check_name(name)))

    @app.delete("/people/{name:path}")
    def remove(name: Name) -> dict[str, Any]:
        """Deletes a person and their choices."""
        if not people.people.remove(_check_name(name)):
            raise HTTPException(404, f"there is no person {name!r}")
        return {"id": name, "object": "person", "deleted": True}


def _describe(name: str, person: Person) -> dict[str, Any]:
    """Describes what is believed of a person: how probable their choices are, and z."""
    believed = []
    if person.rows is not None:
        rows = person.rows
        last = rows.subset(list(range(max(0, len(rows) - _SHOWN), len(rows))))
        probs = person.choice_prob(last).round(4).to_dict("records")
        believed = [
            {"prompt": p, "chosen": c, "rejected": r, "prob_chosen": prob}
            for p, c, r, prob in zip(last.prompts, last.chosen, last.rejected, probs, strict=True)
        ]
    posterior = person.posterior
    return {
        "id": name,
        "object": "person",
        "choices": person.num_choices,
        "reliable": bool(posterior.reliable[0]),
        "z": {"mean": person.z.tolist(), "sd": person.z_sd.tolist()},
        "believed": believed,
    }


def _describe_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "fssa_bayes"}


def _refuse(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Returns the answer to a request that the guard refuses."""
    return JSONResponse(_describe_error(message, status), status, headers)


def _describe_error(message: str, status: int) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
    message = message.encode("utf-8", "backslashreplace").decode()  # Half a pair of surrogates.
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _add_errors(app: FastAPI) -> None:
    """Makes errors what clients of OpenAI's API read."""

    def tell(request: Request, error: HTTPException) -> Response:
        content = _describe_error(str(error.detail), error.status_code)
        return JSONResponse(content, error.status_code, error.headers)

    def tell_invalid(request: Request, error: RequestValidationError) -> Response:
        found = [
            f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}"
            for one in error.errors()
        ]
        return JSONResponse(_describe_error("; ".join(found[:5]), 400), 400)

    def tell_wrong(request: Request, error: Exception) -> Response:
        return JSONResponse(_describe_error(str(error), 400), 400)

    def tell_taken(request: Request, error: Exception) -> Response:
        return JSONResponse(_describe_error(str(error), 409), 409)

    app.add_exception_handler(HTTPException, tell)
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_exception_handler(KeyTakenError, tell_taken)
    app.add_exception_handler(ValueError, tell_wrong)
    app.add_exception_handler(TypeError, tell_wrong)
