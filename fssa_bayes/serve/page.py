"""What all pages have in common: settings, templates, paths, errors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from fssa_bayes.serve.security import render_markdown

__all__ = ["Page", "Pages", "client_of", "path_of", "redirect"]

_CONSENT = """\
You will be shown a few questions, one after another. Each asks which of several things you
prefer. There are no right or wrong answers.

Your answers are stored with the time that you take, under a number and not under your name. You
can stop at any time, and you can have your answers deleted.
"""


@dataclass(frozen=True)
class Page:
    """Says what people read, and how they come.

    Args:
        title: Title of the pages.
        question: The question above the items.
        consent: Markdown that a person agrees to before the first question. Who agreed to another
            text is asked again.
        thanks: Markdown at the end.
        shows_result: Whether a person sees at the end what the model believes they prefer.
        places: How many people may agree who come by the open link; 0 for no open link.
        pilot: Whether interviews made now are trials, which exports leave out otherwise.
        secure: Whether browsers reach the server by https, so that cookies travel by it alone.

    Raises:
        ValueError: If the text of the consent is empty or `places` is negative.
    """

    title: str = "Which do you prefer?"
    question: str = "Which do you prefer?"
    consent: str = _CONSENT
    thanks: str = "Thank you. Your answers are stored."
    shows_result: bool = False
    places: int = 0
    pilot: bool = False
    secure: bool = False

    def __post_init__(self) -> None:
        if not self.consent.strip():
            raise ValueError("consent must be a text that people agree to, got an empty one")
        if self.places < 0:
            raise ValueError(f"places must be at least 0, got {self.places}")

    @property
    def consent_version(self) -> str:
        """Digest of the text that people agree to."""
        return hashlib.sha256(self.consent.encode()).hexdigest()[:12]


class Pages:
    """Renders templates, which escape whatever they are given.

    Args:
        page: What people read.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self._templates = Environment(
            loader=PackageLoader("fssa_bayes.serve"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["markdown"] = render_markdown
        self._templates.filters["percent"] = _percent
        self._templates.filters["signed"] = _signed

    def render(self, request: Request, name: str, status: int = 200, **values: object) -> Response:
        """Returns a page."""
        values |= {"page": self.page, "path": lambda name, **parts: path_of(request, name, **parts)}
        text = self._templates.get_template(f"{name}.html").render(values)
        return HTMLResponse(text, status)

    def tell(
        self, request: Request, message: str | Markup, status: int = 200, **headers: str
    ) -> Response:
        """Returns a page with a sentence."""
        response = self.render(request, "message", status, message=message)
        response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
        return response

    def install(self, app: FastAPI) -> None:
        """Gives an application style, script and pages for errors."""
        app.mount("/static", _Static(directory=Path(__file__).parent / "static"), "static")

        def tell_error(request: Request, error: HTTPException) -> Response:
            response = self.tell(request, str(error.detail), error.status_code)
            response.headers.update(error.headers or {})
            return response

        def tell_invalid(request: Request, error: RequestValidationError) -> Response:
            return self.tell(request, "The form is incomplete or damaged.", 422)

        app.add_exception_handler(HTTPException, tell_error)
        app.add_exception_handler(RequestValidationError, tell_invalid)


class _Static(StaticFiles):
    """Serves style and script, which a browser need not ask for at every click."""

    def file_response(self, *args: object, **options: object) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "private, max-age=300"
        return response


def path_of(request: Request, name: str, **parts: object) -> str:
    """Returns the path of a page, wherever the application is mounted."""
    if name == "static":
        own = request.app.url_path_for(name, path=f"/{parts['file']}")
    else:
        own = request.app.url_path_for(name, **parts)
    return request.scope.get("root_path", "").rstrip("/") + own


def client_of(request: Request) -> str:
    """Returns the address that a request came from."""
    return "" if request.client is None else request.client.host


def redirect(
    request: Request, name: str, *, notice: str | None = None, **parts: object
) -> Response:
    """Sends the browser to a page, by GET; `notice` names what the page is to tell, if anything."""
    query = "" if notice is None else f"?notice={notice}"
    return RedirectResponse(path_of(request, name, **parts) + query, 303)


def _signed(number: float | None, digits: int) -> str:
    """Writes a number with a minus sign, and a dash for none."""
    if number is None or number != number:
        return "–"
    return f"{number:.{digits}f}".replace("-", "−")


def _percent(share: float) -> str:
    """Writes a probability as a whole number of per cent, never as certainty."""
    if share < 0.01:
        return "under 1 %"
    return "over 99 %" if share > 0.99 else f"{100 * share:.0f} %"
