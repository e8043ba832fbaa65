"""The interview page: an application of FastAPI, to be served alone or mounted in another one.

A person's page says where their interview stands, and each form changes one thing and leads back to
it. What a form does twice, in two tabs or by two clicks, it does once: it names the number of its
question. Pages are forms of plain HTML; the script adds keys and no more.
"""

from __future__ import annotations

import threading
import time
from typing import Annotated

from fastapi import FastAPI, Form, Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from fssa_bayes.data import names_from_json, names_to_json
from fssa_bayes.serve.page import Page, Pages, client_of, redirect
from fssa_bayes.serve.researcher import add_researcher
from fssa_bayes.serve.security import LOOPBACK, Guard, Limiter, Sessions
from fssa_bayes.serve.store import Invited, Question, Store, new_token
from fssa_bayes.serve.study import HELD_OUT, Study

__all__ = ["Interviews", "create_app"]

Token = Annotated[str, Path(max_length=100)]
Number = Annotated[int, Form(ge=1, le=1_000_000)]
Word = Annotated[str, Form(max_length=20)]
Ticket = Annotated[str, Form(min_length=32, max_length=64)]
Notice = Annotated[str, Query(max_length=20)]

_FULL = "All places of this study are taken. Thank you."
_NOTICES = {
    "late": "Your last click was not counted: the question had been answered, or taken back, "
    "before, perhaps in another tab. What counts is what was sent first.",
    "text": "Your last click was not counted: the text below has changed. Please read it.",
}


class Interviews:
    """Leads people through their interviews: what is open, and what follows an answer.

    Args:
        study: Chooses the questions.
        store: Keeps the answers.
    """

    def __init__(self, study: Study, store: Store) -> None:
        self.study, self.store = study, store
        # Of one person a request at a time; the database decides between processes.
        self._locks = [threading.Lock() for _ in range(64)]

    def current(self, who: Invited) -> tuple[Question | None, list[Question]]:
        """Returns the open question of a person, which is chosen if there is none.

        Returns:
            The question, None at the end and after withdrawal, and the questions before it that
            count.
        """
        with self._lock_of(who):
            return self._find_current(who)

    def settle(self, who: Invited) -> None:
        """Computes what an interruption left undone, unless a request of the person is about it."""
        lock = self._lock_of(who)
        if lock.acquire(blocking=False):
            try:
                self._find_current(who)
            finally:
                lock.release()

    def end(self, who: Invited) -> None:
        """Ends the interview of a person who stops early; the answers count."""
        with self._lock_of(who):
            self._find_current(who)  # The probability of the last answer may not be there yet.
            self.store.end(who.id)

    def _lock_of(self, who: Invited) -> threading.Lock:
        return self._locks[who.id % len(self._locks)]

    def _find_current(self, who: Invited) -> tuple[Question | None, list[Question]]:
        asked = self.store.list_questions(who.id)
        open_ = [question for question in asked if question.is_open]
        done = [question for question in asked if not question.is_open]
        if open_ or who.finished_at is not None:
            return (open_ or [None])[-1], done
        proposal, probs = self.study.advance(who, done)
        if proposal is None:
            self.store.note_probs(who.id, probs)
            self.store.finish(who.id)
            return None, done
        question = Question(
            interview=who.id,
            number=0,
            purpose=proposal.purpose,
            items=names_to_json(proposal.items),
            arm=who.arm,
            goal=self.study.goal,
            score=proposal.score,
            prob_best=proposal.prob_best,
            model=self.study.digests["model"],
            consent_version=who.consent_version or "",
            asked_at=time.time(),
        )
        return self.store.pose(question, probs), done

    def reply(self, who: Invited, number: int, choice: str) -> bool:
        """Takes an answer, and chooses the next question.

        Args:
            who: The person's interview.
            number: Number of the question.
            choice: "1" for the item shown first, "2", …; "tie" or "skip".

        Returns:
            Whether this is the answer to the question now: False if another one was given before,
            or if there is no such question.

        Raises:
            ValueError: If the answer is none to the question.
        """
        found = [q for q in self.store.list_questions(who.id) if q.number == number]
        if not found:
            return False
        answer, side = self._read(found[0], choice)
        if not self.store.reply(who.id, number, answer, side):
            asked = self.store.list_questions(who.id)
            return any(q.number == number and q.side == side for q in asked)  # Sent twice.
        self.current(who)
        return True

    def _read(self, question: Question, choice: str) -> tuple[object, str]:
        """Returns :attr:`Question.answer` and :attr:`Question.side`."""
        size = len(question.items)
        words = ["skip", *(["tie"] if self.study.has_ties and size == 2 else [])]
        if choice in words:
            return None, choice
        if choice not in [str(place) for place in range(1, size + 1)]:
            raise ValueError(f"choice must be 1 to {size}, {' or '.join(words)}, got {choice!r}")
        side = ("left", "right")[int(choice) - 1] if size == 2 else choice
        return question.items[int(choice) - 1], side


def create_app(
    study: Study,
    store: Store,
    token: str,
    page: Page | None = None,
    hosts: tuple[str, ...] | None = LOOPBACK,
) -> FastAPI:
    """Makes the application of the interview page.

    Args:
        study: Chooses the questions.
        store: Keeps the answers; the study claims it.
        token: The researcher's token, by which `/researcher` lets in.
        page: What people read.
        hosts: Names that browsers may call the server by; None where a server before this one
            checks them.

    Returns:
        The application, which can be mounted in another one under any path.

    Raises:
        ValueError: If the token is missing or too short, or the store belongs to another study.

    Example:
        >>> service = FastAPI()  # doctest: +SKIP
        >>> service.mount("/study", create_app(study, store, token))  # doctest: +SKIP
    """
    sessions = Sessions(token)
    page = Page() if page is None else page
    store.claim(study.digests, study.items.describe())
    app = FastAPI(title=page.title, docs_url=None, redoc_url=None, openapi_url=None)
    pages = Pages(page)
    pages.install(app)
    interviews = Interviews(study, store)
    _add_entry(app, interviews, sessions, pages)
    _add_questions(app, interviews, pages)
    add_researcher(app, study, store, interviews.settle, sessions, pages)
    app.add_middleware(Guard, hosts=hosts)
    return app


def _add_entry(app: FastAPI, interviews: Interviews, sessions: Sessions, pages: Pages) -> None:
    """Adds the open link, and images."""
    study, store, page = interviews.study, interviews.store, pages.page
    joining = Limiter(60, 60.0)

    @app.get("/")
    def home(request: Request) -> Response:
        """The open link."""
        if not page.places:
            return pages.tell(request, "Please open the link that was sent to you.")
        return pages.render(request, "join", ticket=new_token())

    @app.post("/join")
    def join(request: Request, ticket: Ticket) -> Response:
        """Begins an interview of somebody without a link of their own, one for each form."""
        if not page.places:
            raise HTTPException(404, "This study has no open link.")
        if not joining.allows(client_of(request)):
            raise HTTPException(429, "Too many people begin at once: wait a moment.")
        token = sessions.link_of(ticket)
        if not store.join(token, page.places, study.arm, pilot=page.pilot):
            return pages.tell(request, _FULL, 410)
        return redirect(request, "person", token=token)

    @app.get("/images/{image}")
    def image(image: Annotated[str, Path(max_length=100)]) -> Response:
        """An image of an item."""
        found = study.items.images.get(image)
        if found is None:
            raise HTTPException(404, "There is no such image.")
        kind, content = found
        return Response(
            content, media_type=kind, headers={"Cache-Control": "private, max-age=3600"}
        )


def _add_questions(app: FastAPI, interviews: Interviews, pages: Pages) -> None:
    """Adds the pages of one person."""
    study, store, page = interviews.study, interviews.store, pages.page
    missing, clicks = Limiter(30, 60.0), Limiter(60, 60.0)

    def find(request: Request, token: str) -> Invited:
        who = store.find(token)
        if who is not None:
            return who
        if not missing.allows(client_of(request)):
            raise HTTPException(429, "Too many links that do not exist: wait a moment.")
        raise HTTPException(404, "This link does not exist. Please check that it is complete.")

    def find_asked(request: Request, token: str) -> Invited | None:
        """Returns a person who has agreed and not withdrawn, for a click that takes computing."""
        who = find(request, token)
        if not clicks.allows(who.id):
            raise HTTPException(429, "That was fast: wait a moment, then go on.")
        agreed = who.consent_version == page.consent_version
        return who if agreed and who.withdrawn_at is None else None

    @app.get("/i/{token}", name="person")
    def person(request: Request, token: Token, notice: Notice = "") -> Response:
        """The page of a person: consent, the open question, or the end."""
        who = find(request, token)
        told = {"token": token, "notice": _NOTICES.get(notice)}
        if who.withdrawn_at is not None:
            return pages.tell(request, "You have withdrawn. Your answers were deleted.")
        if who.consent_version != page.consent_version:
            return pages.render(request, "consent", **told)
        question, done = interviews.current(who)
        if question is None and (store.get(who.id) or who).withdrawn_at is not None:
            return redirect(request, "person", token=token)  # In another tab, just now.
        if question is None:
            return pages.render(
                request,
                "done",
                **told,
                **_describe(study, page, done),
                last=None if page.shows_result or not done else done[-1].number,
            )
        names = names_from_json("items", question.items).tolist()
        return pages.render(
            request,
            "question",
            **told,
            question=question,
            items=[study.items.show(name) for name in names],
            labels=study.items.labels,
            has_ties=study.has_ties and len(names) == 2,
            last=done[-1].number if done else None,
            place=sum(q.side != "skip" or q.purpose == HELD_OUT for q in done) + 1,
            skips=sum(q.side == "skip" for q in done),
            most=study.most_questions,
        )

    @app.post("/i/{token}/consent", name="consent")
    def consent(request: Request, token: Token, agree: Word, version: Word) -> Response:
        """Notes that a person agrees."""
        who = find(request, token)
        if agree != "yes":
            raise HTTPException(422, "Please tick that you agree, or close the page.")
        if who.withdrawn_at is not None or who.consent_version == page.consent_version:
            return redirect(request, "person", token=token)
        if version != page.consent_version:  # A form of the text before this one asks again.
            return redirect(request, "person", token=token, notice="text")
        if not store.agree(who.id, version, page.places):
            return pages.tell(request, _FULL, 410)
        return redirect(request, "person", token=token)

    @app.post("/i/{token}/answer", name="answer")
    def answer(request: Request, token: Token, number: Number, choice: Word) -> Response:
        """Takes an answer."""
        who = find_asked(request, token)
        if who is None:
            return redirect(request, "person", token=token, notice="text")
        try:
            taken = interviews.reply(who, number, choice)
        except ValueError as error:
            raise HTTPException(422, "This is no answer to the question.") from error
        return redirect(request, "person", token=token, notice=None if taken else "late")

    @app.post("/i/{token}/undo", name="undo")
    def undo(request: Request, token: Token, number: Number) -> Response:
        """Takes the last answer back, at the end too, unless results are shown there."""
        who = find_asked(request, token)
        if who is None:
            return redirect(request, "person", token=token, notice="text")
        closed = who.finished_at is not None and page.shows_result
        taken = not closed and store.undo(who.id, number)
        if not taken:  # What is sent twice was taken back by the first click.
            taken = all(q.number != number for q in store.list_questions(who.id))
        return redirect(request, "person", token=token, notice=None if taken else "late")

    @app.get("/i/{token}/stop", name="stop")
    def ask_to_stop(request: Request, token: Token) -> Response:
        """Asks whether a person wants to stop here."""
        find(request, token)
        return pages.render(request, "stop", token=token)

    @app.post("/i/{token}/stop")
    def stop(request: Request, token: Token, sure: Word) -> Response:
        """Ends an interview early; the answers stay."""
        if sure != "yes":
            raise HTTPException(422, "Please say that you are sure.")
        who = find_asked(request, token)
        if who is not None and who.finished_at is None:
            interviews.end(who)
        return redirect(request, "person", token=token)

    @app.get("/i/{token}/withdraw", name="withdraw")
    def withdraw(request: Request, token: Token) -> Response:
        """Asks whether a person wants to withdraw."""
        find(request, token)
        return pages.render(request, "withdraw", token=token)

    @app.post("/i/{token}/withdraw")
    def delete(request: Request, token: Token, sure: Word) -> Response:
        """Deletes the answers of a person."""
        who = find(request, token)
        if sure != "yes":
            raise HTTPException(422, "Please say that you are sure.")
        if who.withdrawn_at is None:
            store.withdraw(who.id)
            study.forget(who.id)
        return redirect(request, "person", token=token)


def _describe(study: Study, page: Page, done: list[Question]) -> dict[str, object]:
    """Describes what a person prefers, for the page at the end."""
    posterior = study.posterior({"you": done}) if page.shows_result else None
    if posterior is None:
        return {"rows": []}
    table = study.describe(posterior, "you").head(5)
    rows = [(study.items.show(name).title, row) for name, row in table.iterrows()]
    return {"rows": rows, "num_items": len(study.items.names)}
