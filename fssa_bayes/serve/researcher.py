"""The researcher's pages: progress, what people prefer, exports, deletion."""

import threading
from collections.abc import Callable
from typing import Annotated

import pandas as pd
from fastapi import Depends, FastAPI, Form, Path, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from fssa_bayes.posterior import Posterior
from fssa_bayes.serve import exports
from fssa_bayes.serve.page import Pages, client_of, path_of, redirect
from fssa_bayes.serve.security import Limiter, Sessions
from fssa_bayes.serve.store import Invited, Question, Store
from fssa_bayes.serve.study import Study

__all__ = ["Findings", "add_researcher"]

_COOKIE = "fssa_bayes_researcher"

People = list[tuple[Invited, list[Question]]]


class Findings:
    """Says what the answers in a database tell, computed again when an answer has come.

    Args:
        study: The study.
        store: The database.
        settle: Brings the probabilities of a person's answers up to date.
        pilot: Whether trials are looked at, in place of all other interviews.
    """

    def __init__(
        self, study: Study, store: Store, settle: Callable[[Invited], object], *, pilot: bool
    ) -> None:
        self.study, self.store, self.settle, self.pilot = study, store, settle, pilot
        self._lock = threading.Lock()
        self._last: tuple[object, Posterior | None] = (None, None)
        self._shown: tuple[Posterior | None, tuple[pd.DataFrame, pd.DataFrame]] | None = None

    def people(self, *, undone: bool = False) -> People:
        """Lists interviews with their questions."""
        invited = self.store.list_interviews(pilot=self.pilot)
        asked: dict[int, list[Question]] = {who.id: [] for who in invited}
        for question in self.store.list_questions(undone=undone):
            if question.interview in asked:
                asked[question.interview].append(question)
        return [(who, asked[who.id]) for who in invited]

    def settled(self) -> People:
        """Lists the same, after what an interruption left undone was computed."""
        people = self.people()
        late = [who for who, asked in people if any(_lacks_prob(q) for q in asked)]
        for who in late:
            self.settle(who)
        return self.people() if late else people

    def posterior(self, people: People) -> Posterior | None:
        """Returns the posterior of all people; None if nobody has answered."""
        answers = {who.code: asked for who, asked in people}
        key = [(q.interview, q.number) for asked in answers.values() for q in asked if q.side]
        with self._lock:
            if self._last[0] != key:
                self._last = (key, self.study.posterior(answers))
            return self._last[1]

    def tables(self, people: People) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """Returns the average ranking, and each person's favourite; None if nobody has answered."""
        posterior = self.posterior(people)
        if posterior is None:
            return None
        with self._lock:
            if self._shown is None or self._shown[0] is not posterior:
                both = self.study.describe_all(posterior), self.study.find_favourites(posterior)
                self._shown = posterior, both
            return self._shown[1]


def _lacks_prob(question: Question) -> bool:
    return question.answered_at is not None and question.prob is None and question.side != "skip"


def add_researcher(
    app: FastAPI,
    study: Study,
    store: Store,
    settle: Callable[[Invited], object],
    sessions: Sessions,
    pages: Pages,
) -> None:
    """Adds the researcher's pages to an application.

    Args:
        app: The application.
        study: The study.
        store: The database.
        settle: As for :class:`Findings`.
        sessions: Lets the researcher in.
        pages: Renders pages.
    """
    findings = Findings(study, store, settle, pilot=pages.page.pilot)

    def session(request: Request) -> str:
        """Returns the researcher's session; sends everybody else to the login."""
        found = request.cookies.get(_COOKIE)
        if not sessions.holds(found) or store.has_ended(found):
            login = {"Location": path_of(request, "login")}
            raise HTTPException(303, "Please log in.", login)
        return found

    def form_session(
        request: Request, form_token: Annotated[str, Form(max_length=200)] = ""
    ) -> str:
        """Returns the researcher's session, of a form that one of its own pages sent."""
        found = session(request)
        if not sessions.sent(found, form_token):
            raise HTTPException(403, "The form was not sent by this page.")
        return found

    _add_login(app, store, sessions, form_session, pages)
    _add_overview(app, study, store, findings, sessions, session, form_session, pages)
    _add_exports(app, findings, session)


def _add_login(
    app: FastAPI,
    store: Store,
    sessions: Sessions,
    form_session: Callable[..., str],
    pages: Pages,
) -> None:
    attempts = Limiter(10, 60.0)

    @app.get("/researcher/login", name="login")
    def login(request: Request) -> Response:
        """Asks for the token."""
        return pages.render(request, "login", wrong=False)

    @app.post("/researcher/login")
    def enter(request: Request, token: Annotated[str, Form(max_length=500)]) -> Response:
        """Opens a session."""
        if not sessions.accepts(token):  # Others behind the same address keep nobody out.
            if not attempts.allows(client_of(request)):
                raise HTTPException(429, "Too many attempts: wait a minute.", {"Retry-After": "60"})
            return pages.render(request, "login", 403, wrong=True)
        response = redirect(request, "overview")
        response.set_cookie(
            _COOKIE,
            sessions.open(),
            max_age=sessions.seconds,
            path=path_of(request, "overview"),
            secure=pages.page.secure or request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    @app.post("/researcher/logout", name="logout")
    def leave(request: Request, own: Annotated[str, Depends(form_session)]) -> Response:
        """Ends the session, also for a copy of the cookie."""
        store.end_session(own, sessions.seconds)
        response = redirect(request, "login")
        response.delete_cookie(_COOKIE, path_of(request, "overview"))
        return response


def _add_overview(
    app: FastAPI,
    study: Study,
    store: Store,
    findings: Findings,
    sessions: Sessions,
    session: Callable[..., str],
    form_session: Callable[..., str],
    pages: Pages,
) -> None:
    Id = Annotated[int, Path(ge=1, le=2**31 - 1)]  # noqa: N806  A type.

    def title(name: object) -> str:
        return study.items.show(name).title

    @app.get("/researcher", name="overview")
    def overview(request: Request, own: Annotated[str, Depends(session)]) -> Response:
        """Everybody's progress, and what people prefer on average."""
        people = findings.settled()
        tables, ranking, favourites = findings.tables(people), [], {}
        if tables is not None:
            ranking = [(title(name), row) for name, row in tables[0].iterrows()]
            favourites = {user: (title(row["item"]), row) for user, row in tables[1].iterrows()}
        return pages.render(
            request,
            "overview",
            people=[_describe_progress(who, asked) for who, asked in people],
            favourites=favourites,
            ranking=ranking,
            arms=study.compare_arms(people) if study.control else None,
            form_token=sessions.form_token(own),
        )

    @app.get("/researcher/people/{number}", name="someone")
    def someone(request: Request, number: Id, own: Annotated[str, Depends(session)]) -> Response:
        """The posterior and the answers of one person."""
        who = store.get(number)
        if who is None:
            raise HTTPException(404, "There is no such person.")
        asked = store.list_questions(number, undone=True)
        counted = [question for question in asked if question.undone_at is None]
        posterior = study.posterior({who.code: counted})
        table = None if posterior is None else study.describe(posterior, who.code)
        return pages.render(
            request,
            "someone",
            who=who,
            questions=asked,
            bands=[] if table is None else [(title(name), row) for name, row in table.iterrows()],
            form_token=sessions.form_token(own),
        )

    @app.post("/researcher/people/{number}/delete", name="delete_answers")
    def delete_answers(
        request: Request, number: Id, _: Annotated[str, Depends(form_session)]
    ) -> Response:
        """Deletes the answers of a person, who asked for it by letter, say."""
        if store.get(number) is None:
            raise HTTPException(404, "There is no such person.")
        store.withdraw(number)
        study.forget(number)
        return redirect(request, "overview")


def _add_exports(app: FastAPI, findings: Findings, session: Callable[..., str]) -> None:
    def attach(content: str | bytes, kind: str, name: str) -> Response:
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=kind, headers=headers)

    @app.get("/researcher/answers.csv", name="csv")
    def csv(_: Annotated[str, Depends(session)]) -> Response:
        """The answers that count, for a spreadsheet."""
        return attach(exports.to_csv(findings.settled()), "text/csv", "answers.csv")

    @app.get("/researcher/answers.json", name="json")
    def everything(_: Annotated[str, Depends(session)]) -> Response:
        """All of it."""
        findings.settled()
        text = exports.to_json(findings.people(undone=True))
        return attach(text, "application/json", "answers.json")

    @app.get("/researcher/posterior.nc", name="netcdf")
    def netcdf(_: Annotated[str, Depends(session)]) -> Response:
        """The posteriors of all people, for ArviZ."""
        posterior = findings.posterior(findings.people())
        if posterior is None:
            raise HTTPException(404, "Nobody has answered a question yet.")
        return attach(exports.to_netcdf(posterior), "application/x-netcdf", "posterior.nc")


def _describe_progress(who: Invited, asked: list[Question]) -> dict[str, object]:
    """Describes how far a person has come."""
    done = [question for question in asked if question.answered_at is not None]
    states = (
        ("withdrawn", who.withdrawn_at is not None),
        ("finished", who.finished_at is not None),
        ("answering", bool(done)),
        ("agreed", who.consented_at is not None),
    )
    return {
        "who": who,
        "state": next((state for state, holds in states if holds), "invited"),
        "answers": sum(question.side != "skip" for question in done),
        "skips": sum(question.side == "skip" for question in done),
        "seconds": sum(question.seconds or 0.0 for question in done),
    }
