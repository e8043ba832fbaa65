"""What keeps answers safe: who may come, what a request may hold, what a page may do.

Nothing here knows of interviews. :class:`Guard` stands before an application and looks at every
request; :class:`Sessions` are the researcher's; the rest makes foreign text harmless.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "LOOPBACK",
    "Guard",
    "Images",
    "Limiter",
    "Sessions",
    "check_token",
    "guard_cell",
    "is_loopback",
    "render_markdown",
]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine to itself."""

_LEAST_TOKEN = 16  # Characters of the researcher's token.
_MOST_BYTES = 64 * 1024  # Of a request: forms are small.
_MOST_SECONDS = 30.0  # Until the whole of a request is here.
_MOST_KEYS = 10_000  # Clients whose rate is remembered.
_MOST_IMAGE = 10 * 2**20  # Bytes.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


def check_token(token: str) -> str:
    """Returns the researcher's token without blanks around it.

    Raises:
        ValueError: If the token is missing, too short to be secret, or not of printable ASCII.
    """
    token = token.strip()
    if not token:
        raise ValueError("token must be the researcher's secret, got none")
    if len(token) < _LEAST_TOKEN:
        raise ValueError(
            f"token must have at least {_LEAST_TOKEN} characters, to be no guess, got {len(token)}"
        )
    if not (token.isascii() and token.isprintable()):
        raise ValueError("token must consist of printable ASCII characters")
    return token


def is_loopback(host: str) -> bool:
    """Says whether an address is that of this machine to itself."""
    return host in LOOPBACK or host.startswith("127.")


class Limiter:
    """Limits how often something happens: a bucket for each key, refilled at a steady rate.

    Args:
        number: How often at once.
        seconds: Time in which an empty bucket is full again.
        clock: Returns seconds.
    """

    def __init__(
        self, number: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.number, self.rate, self.clock = number, number / seconds, clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, key: Hashable, cost: float = 1.0) -> bool:
        """Says whether it may happen once more, and counts it if so.

        Args:
            key: Whom to count.
            cost: How much to count; 0 only asks.
        """
        now = self.clock()
        with self._lock:
            level, since = self._buckets.pop(key, (float(self.number), now))
            level = min(self.number, level + (now - since) * self.rate)
            allowed = level >= max(cost, 1.0)
            self._buckets[key] = (level - cost if allowed else level, now)
            if len(self._buckets) > _MOST_KEYS:  # The one that was quiet for the longest time.
                self._buckets.popitem(last=False)
        return allowed


class Guard:
    """Refuses requests of other hosts and origins, of too many bytes and at too high a rate.

    A form that another site sends is recognised by `Sec-Fetch-Site`, which a page cannot set, and
    by `Origin`. Every answer tells the browser to load nothing from elsewhere and to tell no other
    site where the person came from.

    Args:
        app: The application behind.
        hosts: Names that a request may call the server by; None where a server before this one
            checks them.
        number: Requests that one address may make at once.
        seconds: Time after which it may make as many again.
        most_bytes: Bytes that a request may hold.
        refuse: Makes the answer to a request that goes no further, of a text, a status and headers.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Sequence[str] | None = LOOPBACK,
        number: int = 600,
        seconds: float = 20.0,
        most_bytes: int = _MOST_BYTES,
        refuse: Callable[..., Response] = PlainTextResponse,
    ) -> None:
        self.refuse = refuse
        self.app, self.limiter, self.most_bytes = app, Limiter(number, seconds), most_bytes
        self.hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refuse(scope)
        if scope["method"] == "HEAD":  # The server that calls this sends the head alone.
            scope = scope | {"method": "GET"}
        if refusal is None:
            try:
                with anyio.fail_after(_MOST_SECONDS):
                    body = await _read_body(receive, self.most_bytes)
            except TimeoutError:
                refusal = self.refuse("The request takes too long.", 408)
            except ConnectionError:  # Half a form is no form.
                return
            else:
                if body is not None:
                    await self.app(scope, _replay(body, receive), send_with_headers)
                    return
                refusal = self.refuse("The request is too large.", 413)
        await refusal(scope, receive, send_with_headers)

    def _refuse(self, scope: Scope) -> Response | None:
        """Returns the answer to a request that goes no further; None for one that does."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _name_of(host) not in self.hosts:
            return self.refuse("This server has another name.", 400)
        client = scope.get("client")
        if not self.limiter.allows(client[0] if client else None):
            return self.refuse(
                "Too many requests: wait a moment.", 429, headers={"Retry-After": "5"}
            )
        if scope["method"] not in ("GET", "HEAD") and not _is_own(headers, host):
            return self.refuse("The form was sent by another site.", 403)
        return None


def _name_of(host: str) -> str | None:
    """Returns the name in a header `Host`, without the port; None if it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_own(headers: Headers, host: str) -> bool:
    """Says whether a form was sent by one of the server's own pages."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin", "null")
    # A page under "no-referrer" sends the origin "null"; Sec-Fetch-Site then decides.
    return origin == "null" or origin.lower().partition("://")[2] == host.lower()


async def _read_body(receive: Receive, most_bytes: int) -> bytes | None:
    """Reads the body of a request; None if it is too large.

    Raises:
        ConnectionError: If the connection is lost before the end of the body.
    """
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError("the connection was lost")
        body += message.get("body", b"")
        if len(body) > most_bytes:
            return None
        more = message.get("more_body", False)
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a function that hands a body on, and then what comes after it."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return unread.pop() if unread else await receive()

    return next_message


class Sessions:
    """Lets the researcher in, by a token that the browser then holds no copy of.

    A session is its time of expiry and random bits, signed by a key that follows from the token:
    sessions survive a restart, and another token ends all of them. Nothing is stored here: who
    logs out before must be remembered elsewhere, see :meth:`Store.end_session`.

    Args:
        token: The researcher's token, see :func:`check_token`.
        hours: How long a session lasts.
        clock: Returns Unix time in seconds.
    """

    def __init__(
        self, token: str, hours: float = 12.0, clock: Callable[[], float] = time.time
    ) -> None:
        token = check_token(token)
        self._token = hashlib.sha256(token.encode()).digest()
        self._key = hmac.digest(token.encode(), b"fssa_bayes session", "sha256")
        self.seconds, self.clock = int(3600 * hours), clock

    def accepts(self, token: str) -> bool:
        """Says, in constant time, whether a token is the researcher's."""
        given = hashlib.sha256(token.strip().encode(errors="replace")).digest()
        return hmac.compare_digest(given, self._token)

    def open(self) -> str:
        """Returns a new session."""
        text = f"{int(self.clock()) + self.seconds}.{secrets.token_urlsafe(16)}"
        return f"{text}.{self._sign(text)}"

    def holds(self, session: str | None) -> bool:
        """Says whether a session was opened here and has not expired."""
        text, _, signature = (session or "").rpartition(".")
        if not hmac.compare_digest(self._sign(text).encode(), signature.encode()):
            return False
        return int(text.partition(".")[0]) > self.clock()

    def link_of(self, ticket: str) -> str:
        """Returns the token of the link that a ticket is worth: always the same, not to be guessed.

        A ticket is random text in a form, so that a form that is sent twice makes one link.
        """
        return self._sign(f"link of {ticket}")

    def form_token(self, session: str) -> str:
        """Returns what a form of the session must hold, against forms of other sites."""
        return self._sign(f"form of {session}")

    def sent(self, session: str, form_token: str) -> bool:
        """Says whether a form came from a page of the session."""
        return hmac.compare_digest(self.form_token(session).encode(), form_token.encode())

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(errors="replace"), "sha256").hexdigest()


def render_markdown(text: str) -> Markup:
    """Renders Markdown without HTML of its own, without images, with links to web pages alone."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.validateLink = _is_web_link
    parser.add_render_rule("image", _render_alternative_text)
    parser.add_render_rule("link_open", _render_link)
    return Markup(parser.render(text))


def _is_web_link(address: str) -> bool:
    return address.strip().lower().startswith(("https://", "http://", "mailto:"))


def _render_alternative_text(renderer, tokens, index, options, env) -> str:
    return str(escape(tokens[index].content))


def _render_link(renderer, tokens, index, options, env) -> str:
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    tokens[index].attrSet("target", "_blank")
    return renderer.renderToken(tokens, index, options, env)


def guard_cell(value: object) -> object:
    """Returns a cell of a CSV file that no spreadsheet takes for a formula: text gets a quote."""
    if isinstance(value, str) and value.lstrip(" ").startswith(
        ("=", "+", "-", "@", "\t", "\r", "\n")
    ):
        return f"'{value}"
    return value


class Images:
    """Holds the images of a folder under names that are no paths.

    A request names an image by a digest of its bytes, which are read when the server starts: no
    request reaches the file system.

    Args:
        folder: The folder.
        names: Names of files in the folder, without folders.

    Raises:
        ValueError: If a file is missing, lies elsewhere, is a link, too large, or no image: PNG,
            JPEG, GIF or WebP; SVG can hold scripts.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._content: dict[str, tuple[str, bytes]] = {}
        self.ids: dict[str, str] = {}
        for name in dict.fromkeys(names):
            kind, content = _read_image(folder, name)
            self.ids[name] = hashlib.sha256(content).hexdigest()[:24]
            self._content[self.ids[name]] = (kind, content)

    def get(self, image: str) -> tuple[str, bytes] | None:
        """Returns media type and bytes of an image; None if there is none of that id."""
        return self._content.get(image)


def _read_image(folder: Path, name: str) -> tuple[str, bytes]:
    path = folder / name
    if Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise ValueError(f"images must be names of files in {str(folder)!r}, got {name!r}")
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"images must be files in {str(folder)!r}, no links, got {name!r}")
    if path.stat().st_size > _MOST_IMAGE:
        raise ValueError(
            f"images must have at most {_MOST_IMAGE >> 20} MiB, got {name!r} of "
            f"{path.stat().st_size / 2**20:.0f} MiB"
        )
    content = path.read_bytes()
    kinds = [kind for start, kind in _SIGNATURES.items() if content.startswith(start)]
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kinds = ["image/webp"]
    if not kinds:
        raise ValueError(f"images must be PNG, JPEG, GIF or WebP, got {name!r}, which is none")
    return kinds[0], content
