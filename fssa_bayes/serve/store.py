"""The database: who was invited, what was asked, what was answered.

Every change is one transaction that is committed before the caller goes on. Nothing is held in
memory, so that a process can be killed at any moment, and several processes can share a database.
What must happen once happens once because a row of the database says so: a question has a number
in its interview, which is unique, and an answer is taken only while the question is open.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import sqlalchemy as sa

__all__ = ["Invited", "Question", "Store", "digest_token", "new_token"]

_FORMAT = 1
_ITEMS = "features of items"  # Beside digests, but no part of what must agree.
_DIGEST = 64  # Characters of a SHA-256.
_WAIT = 30.0  # Seconds that SQLite waits for another writer.

metadata = sa.MetaData()

studies = sa.Table(
    "study",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("format", sa.Integer, nullable=False),
    sa.Column("digests", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    # People who agreed after they came by the open link, those who withdrew included.
    sa.Column("joined", sa.Integer, nullable=False),
)
interviews = sa.Table(
    "interview",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("token", sa.String(64), nullable=False, unique=True),  # SHA-256 of the link's.
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("arm", sa.String(16), nullable=False),
    sa.Column("pilot", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("consent_version", sa.String(64)),
    sa.Column("consented_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("withdrawn_at", sa.Float),
)
questions = sa.Table(
    "question",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("interview", sa.ForeignKey("interview.id"), nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("items", sa.JSON, nullable=False),
    sa.Column("arm", sa.String(16), nullable=False),
    sa.Column("goal", sa.String(200), nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("prob_best", sa.Float),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("consent_version", sa.String(64), nullable=False),
    sa.Column("asked_at", sa.Float, nullable=False),
    sa.Column("answer", sa.JSON(none_as_null=True)),
    sa.Column("side", sa.String(16)),
    sa.Column("answered_at", sa.Float),
    sa.Column("seconds", sa.Float),
    sa.Column("prob", sa.Float),
    sa.Column("undone_at", sa.Float),
    sa.UniqueConstraint("interview", "number"),
)

ended_sessions = sa.Table(
    "ended_session",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),  # SHA-256 of the researcher's session.
    sa.Column("expires_at", sa.Float, nullable=False),
)


@dataclass(frozen=True)
class Invited:
    """Holds what is known of an interview besides its questions; times are Unix times in seconds.

    Attributes:
        id: Number of the interview, from 1.
        source: How the person came: "link" or "open".
        arm: Who chooses the questions: "adaptive" or "random".
        pilot: Whether the interview is a trial of the page.
        created_at: When the interview was made.
        consent_version: The text that the person agreed to; None before.
        consented_at: When that was.
        finished_at: When the last question was answered, or the person stopped.
        withdrawn_at: When the answers were deleted.
    """

    id: int
    source: str
    arm: str
    pilot: bool
    created_at: float
    consent_version: str | None
    consented_at: float | None
    finished_at: float | None
    withdrawn_at: float | None

    @property
    def code(self) -> str:
        """Name of the person in exports."""
        return f"P{self.id:04d}"


@dataclass(frozen=True)
class Question:
    """Holds a question that was shown, and its answer; times are Unix times in seconds.

    Attributes:
        interview: Number of the interview.
        number: Number of the question in the interview, from 1; never used twice.
        purpose: "choose", or "held-out" of questions that judge predictions alone.
        items: Names of the items in the order shown, as JSON holds names.
        arm: Who chose the question: "adaptive" or "random".
        goal: The goal of the interview.
        score: Score of the question; None where nothing was scored.
        prob_best: Probability, before the answer, that the item to recommend is good enough; None
            where it was not computed.
        model: SHA-256 of model and guide.
        consent_version: The text that the person had agreed to.
        asked_at: When the question was first shown.
        answer: Name of the item chosen, as JSON holds names, or "tie" where `side` is; None before,
            and for a question that was skipped.
        side: "left", "right" or "tie" of two items, "1", "2", … of more; "skip"; None before.
        answered_at: When the answer was taken; None before.
        seconds: Seconds between both.
        prob: Probability that the posterior gave to the answer before; None before, and for a skip.
        undone_at: When the person took the answer back; None for what counts.
    """

    interview: int
    number: int
    purpose: str
    items: list
    arm: str
    goal: str
    score: float | None
    prob_best: float | None
    model: str
    consent_version: str
    asked_at: float
    answer: Any = None
    side: str | None = None
    answered_at: float | None = None
    seconds: float | None = None
    prob: float | None = None
    undone_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the question waits for its answer."""
        return self.answered_at is None and self.undone_at is None


_INVITED = [interviews.c[field.name] for field in fields(Invited)]
_QUESTION = [questions.c[field.name] for field in fields(Question)]


def new_token() -> str:
    """Returns 192 random bits as text, for a link that cannot be guessed."""
    return secrets.token_urlsafe(24)


def digest_token(token: str) -> str:
    """Returns the SHA-256 of a token: the database does not hold links."""
    return hashlib.sha256(token.encode()).hexdigest()


class Store:
    """Keeps interviews in a database.

    Args:
        db: A path of a SQLite file, which is made where there is none, or any URL of SQLAlchemy,
            such as `postgresql+psycopg://…`.

    Raises:
        ValueError: If the database cannot be opened, or holds something else.
    """

    def __init__(self, db: str) -> None:
        self.url = _parse(db) if "://" in db else sa.URL.create("sqlite", database=db)
        try:
            self.engine = _connect(self.url)
            self._check_tables()
            metadata.create_all(self.engine)
        except (sa.exc.SQLAlchemyError, ModuleNotFoundError) as error:
            reason = str(getattr(error, "orig", None) or error).split("\n")[0]
            raise ValueError(f"db must be a database, got {_shown(self.url)}: {reason}") from error

    def __enter__(self) -> Self:
        """Returns the store."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the connections."""
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

    def claim(
        self, digests: Mapping[str, str], items: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        """Takes the database for a study, or makes sure that it is the study's.

        Args:
            digests: What answers of a study have in common, by name: model, items, seed, …
            items: Features of each item, by name, so that an error can tell which one is another.

        Raises:
            ValueError: If the database belongs to another study, or to another version.
        """
        row = self._read(sa.select(studies)).first()
        if row is None:
            saved = dict(digests) | ({} if items is None else {_ITEMS: items})
            values = {"id": 1, "format": _FORMAT, "digests": saved, "joined": 0}
            try:
                with self.engine.begin() as connection:
                    connection.execute(studies.insert(), values | {"created_at": time.time()})
                return
            except sa.exc.IntegrityError:  # Another process was faster.
                row = self._read(sa.select(studies)).one()
        if row.format != _FORMAT:
            raise ValueError(f"db must be of format {_FORMAT}, got format {row.format}")
        old = dict(row.digests)
        known = old.pop(_ITEMS, None)
        names = [*digests, *(old.keys() - digests.keys())]
        other = [name for name in names if old.get(name) != digests.get(name)]
        if other:
            told = [_difference(name, old.get(name), digests.get(name)) for name in other]
            told = ", ".join(told) + _other_item(known or {}, items or {})
            raise ValueError(
                f"db must be a new database or that of this study, got {_shown(self.url)} of a "
                f"study with other {told}"
            )

    def enrol(self, tokens: Sequence[str], arm: Callable[[int], str], *, pilot: bool) -> None:
        """Makes an interview for each link.

        Args:
            tokens: The links' tokens.
            arm: Returns the arm of an interview, given its number.
            pilot: Whether these are trials.
        """
        with self.engine.begin() as connection:
            for token in tokens:
                _insert_interview(connection, token, "link", arm, pilot)

    def join(self, token: str, most: int, arm: Callable[[int], str], *, pilot: bool) -> bool:
        """Makes an interview for somebody who comes by the open link, once for each token.

        A place is taken by :meth:`agree`: who only looks takes none.

        Args:
            token: The token of the link that the interview gets.
            most: How many may agree; who withdrew counts.
            arm: Returns the arm of an interview, given its number.
            pilot: Whether this is a trial.

        Returns:
            Whether there is an interview of that token now: False if no place is left.
        """
        if self.find(token) is not None:
            return True
        try:
            with self.engine.begin() as connection:
                if connection.execute(sa.select(studies.c.joined)).scalar_one() >= most:
                    return False
                _insert_interview(connection, token, "open", arm, pilot)
        except sa.exc.IntegrityError:  # A second click.
            return True
        return True

    def count(self, source: str, *, pilot: bool) -> int:
        """Counts the interviews that came one way, those withdrawn included."""
        which = (interviews.c.source == source) & (interviews.c.pilot == pilot)
        return self._read(sa.select(sa.func.count()).where(which)).scalar_one()

    def find(self, token: str) -> Invited | None:
        """Finds the interview of a link; None if there is none."""
        return self._find_interview(interviews.c.token == digest_token(token))

    def get(self, interview: int) -> Invited | None:
        """Finds an interview by its number; None if there is none."""
        return self._find_interview(interviews.c.id == interview)

    def list_interviews(self, *, pilot: bool | None = None) -> list[Invited]:
        """Lists all interviews, or those that are trials or are none, in order."""
        query = sa.select(*_INVITED).order_by(interviews.c.id)
        if pilot is not None:
            query = query.where(interviews.c.pilot == pilot)
        return [Invited(*row) for row in self._read(query)]

    def agree(self, interview: int, version: str, most: int | None = None) -> bool:
        """Notes that a person agreed to a text.

        Args:
            interview: Number of the interview.
            version: The text.
            most: How many may agree who come by the open link; None for no limit.

        Returns:
            Whether there was a place: False for somebody of the open link who came too late, and
            nothing is changed.
        """
        own = interviews.c.id == interview
        new = own & (interviews.c.source == "open") & interviews.c.consented_at.is_(None)
        values = {"consent_version": version, "consented_at": time.time()}
        left = sa.true() if most is None else studies.c.joined < most
        counted = studies.update().where(left).values(joined=studies.c.joined + 1)
        with self.engine.begin() as connection:
            # The row of the study is taken first, so that a second click waits for the first.
            connection.execute(sa.select(studies.c.id).with_for_update())
            takes = connection.execute(sa.select(interviews.c.id).where(new)).first() is not None
            if takes and not connection.execute(counted).rowcount:
                return False
            connection.execute(interviews.update().where(own).values(**values))
        return True

    def finish(self, interview: int) -> None:
        """Notes that no question is left."""
        change = interviews.update().where(
            interviews.c.id == interview, interviews.c.finished_at.is_(None)
        )
        with self.engine.begin() as connection:
            connection.execute(change.values(finished_at=time.time()))

    def end(self, interview: int) -> None:
        """Notes that a person stops, whose open question then counts as taken back."""
        now = time.time()
        open_ = questions.c.answered_at.is_(None) & questions.c.undone_at.is_(None)
        own = questions.update().where(questions.c.interview == interview, open_)
        at = interviews.c.finished_at
        change = interviews.update().where(
            interviews.c.id == interview, at.is_(None), interviews.c.withdrawn_at.is_(None)
        )
        with self.engine.begin() as connection:
            if connection.execute(change.values(finished_at=now)).rowcount:
                connection.execute(own.values(undone_at=now))

    def withdraw(self, interview: int) -> None:
        """Deletes the answers of a person; that there was an interview remains."""
        with self.engine.begin() as connection:
            connection.execute(questions.delete().where(questions.c.interview == interview))
            change = interviews.update().where(interviews.c.id == interview)
            values = {"consent_version": None, "consented_at": None, "finished_at": None}
            connection.execute(change.values(withdrawn_at=time.time(), **values))
        if self.engine.dialect.name == "sqlite":  # Nor does the log keep what was deleted.
            with self._reading() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def list_questions(
        self, interview: int | None = None, *, undone: bool = False
    ) -> list[Question]:
        """Lists questions in order, the open one last.

        Args:
            interview: Number of the interview; None for all interviews.
            undone: Whether to list also what was taken back.
        """
        query = sa.select(*_QUESTION).order_by(questions.c.interview, questions.c.number)
        if interview is not None:
            query = query.where(questions.c.interview == interview)
        if not undone:
            query = query.where(questions.c.undone_at.is_(None))
        return [Question(*row) for row in self._read(query)]

    def pose(self, question: Question, probs: Mapping[int, float] | None = None) -> Question | None:
        """Opens a question, unless one is open already.

        Args:
            question: The question; its number is not looked at.
            probs: As for :meth:`note_probs`, in the same transaction.

        Returns:
            The open question, which another request may have opened; None for a person who has
            withdrawn or stopped.
        """
        of_person = interviews.c.id == question.interview
        here = sa.select(interviews.c.id).where(
            of_person, interviews.c.withdrawn_at.is_(None), interviews.c.finished_at.is_(None)
        )
        query = sa.select(sa.func.max(questions.c.number))
        own = query.where(questions.c.interview == question.interview)
        row = {field.name: getattr(question, field.name) for field in fields(Question)}
        attempt = 0
        while True:
            attempt += 1
            found = [q for q in self.list_questions(question.interview) if q.is_open]
            if found:
                return found[-1]
            row["number"] = (self._read(own).scalar() or 0) + 1
            try:
                with self.engine.begin() as connection:
                    if connection.execute(here.with_for_update()).first() is None:
                        return None
                    _note_probs(connection, question.interview, probs or {})
                    connection.execute(questions.insert(), row)
            except sa.exc.IntegrityError:  # Another request was faster: its question is open.
                if attempt == 10:
                    raise

    def reply(self, interview: int, number: int, answer: object, side: str) -> bool:
        """Takes an answer.

        Args:
            interview: Number of the interview.
            number: Number of the question.
            answer: As :attr:`Question.answer`.
            side: As :attr:`Question.side`.

        Returns:
            Whether the question was open. If not, nothing is changed.
        """
        now = time.time()
        change = questions.update().where(
            questions.c.interview == interview,
            questions.c.number == number,
            questions.c.answered_at.is_(None),
            questions.c.undone_at.is_(None),
        )
        seconds = sa.case((questions.c.asked_at < now, now - questions.c.asked_at), else_=0.0)
        values = {"answer": answer, "side": side, "answered_at": now, "seconds": seconds}
        with self.engine.begin() as connection:
            return bool(connection.execute(change.values(values)).rowcount)

    def undo(self, interview: int, number: int) -> bool:
        """Takes an answer or a skip back, with the question or the end that follows it.

        Args:
            interview: Number of the interview.
            number: Number of the question, which must be the last one answered.

        Returns:
            Whether it was. If not, nothing is changed.
        """
        own = (questions.c.interview == interview) & questions.c.undone_at.is_(None)
        answered = questions.c.answered_at.is_not(None)
        last = sa.select(sa.func.max(questions.c.number)).where(own & answered)
        with self.engine.begin() as connection:
            if connection.execute(last).scalar() != number:
                return False
            change = questions.update().where(own & (questions.c.number >= number))
            done = connection.execute(change.values(undone_at=time.time())).rowcount
            back = interviews.update().where(interviews.c.id == interview)
            connection.execute(back.values(finished_at=None))
            return bool(done)

    def note_probs(self, interview: int, probs: Mapping[int, float]) -> None:
        """Notes the probabilities that the posterior gave to answers before, by their number."""
        with self.engine.begin() as connection:
            _note_probs(connection, interview, probs)

    def end_session(self, session: str, seconds: float) -> None:
        """Notes that the researcher has logged out.

        Args:
            session: The session.
            seconds: How long a session lasts: the note is kept for as long.
        """
        now, own = time.time(), ended_sessions.c.digest == digest_token(session)
        with contextlib.suppress(sa.exc.IntegrityError), self.engine.begin() as connection:
            old = (ended_sessions.c.expires_at < now) | own
            connection.execute(ended_sessions.delete().where(old))
            row = {"digest": digest_token(session), "expires_at": now + seconds}
            connection.execute(ended_sessions.insert(), row)  # Or another request was faster.

    def has_ended(self, session: str) -> bool:
        """Says whether the researcher has logged out of a session."""
        own = ended_sessions.c.digest == digest_token(session)
        return self._read(sa.select(ended_sessions.c.digest).where(own)).first() is not None

    def _check_tables(self) -> None:
        """Raises a ValueError unless the database is empty or holds the tables of a study."""
        found = sa.inspect(self.engine)
        for table in metadata.sorted_tables:
            if found.has_table(table.name):
                have = {column["name"] for column in found.get_columns(table.name)}
                if have != set(table.columns.keys()):
                    raise ValueError(
                        f"db must be a new database or that of this study, got {_shown(self.url)}"
                        f" with a table {table.name!r} of something else"
                    )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """Yields a connection whose statements are no transaction."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection

    def _read(self, query: sa.Select) -> sa.FrozenResult:
        with self._reading() as connection:
            return connection.execute(query).freeze()()

    def _find_interview(self, which: sa.ColumnElement) -> Invited | None:
        row = self._read(sa.select(*_INVITED).where(which)).first()
        return None if row is None else Invited(*row)


def _note_probs(connection: sa.Connection, interview: int, probs: Mapping[int, float]) -> None:
    own = questions.update().where(questions.c.interview == interview)
    for number, prob in probs.items():
        connection.execute(own.where(questions.c.number == number).values(prob=prob))


def _insert_interview(
    connection: sa.Connection, token: str, source: str, arm: Callable[[int], str], pilot: bool
) -> None:
    values = {"token": digest_token(token), "source": source, "arm": "", "pilot": pilot}
    added = connection.execute(interviews.insert(), values | {"created_at": time.time()})
    (number,) = added.inserted_primary_key
    change = interviews.update().where(interviews.c.id == number)
    connection.execute(change.values(arm=arm(number)))


def _difference(name: str, old: str | None, new: str | None) -> str:
    """Names a setting of another study; tells both values of it unless they are digests."""
    if None in (old, new) or len(old) == len(new) == _DIGEST:
        return name
    return f"{name} ({old} there, {new} here)"


def _other_item(old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]) -> str:
    """Names the first item that differs between two studies; empty if none does, or none known."""
    if not old or not new:
        return ""
    for name in [*new, *old]:
        if name not in old:
            return f": item {name!r} is new"
        if name not in new:
            return f": item {name!r} is missing"
        for column in [*new[name], *old[name]]:
            values = old[name].get(column), new[name].get(column)
            if values[0] != values[1]:
                there, here = ("nothing" if value is None else value for value in values)
                return f": {column!r} of item {name!r} is {there} there, {here} here"
    return ""


def _parse(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # The message may hold parts of a password.
        pass
    raise ValueError(
        "db must be a path, or a URL such as postgresql+psycopg://user:password@host/name, in "
        "which special characters of a password are percent-encoded"
    )


def _connect(parsed: sa.URL) -> sa.Engine:
    """Opens a database; SQLite synchronises every commit, and overwrites what is deleted."""
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True)
    file = parsed.database
    if not file or file == ":memory:" or "mode=memory" in file:
        raise ValueError(f"db must be a database that lasts, got {_shown(parsed)} in memory")
    if not file.startswith(
        "file:"
    ):  # Answers are for the owner's eyes; so are SQLite's other files.
        with contextlib.suppress(OSError):
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    engine = sa.create_engine(parsed, connect_args={"timeout": _WAIT})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # SQLAlchemy begins transactions below.
        for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            # A transaction that reads first could not write after another one has.
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _shown(parsed: sa.URL) -> str:
    """Returns a URL without its password, or the path of a SQLite file, for messages."""
    is_file = parsed.get_backend_name() == "sqlite"
    return repr(parsed.database if is_file else parsed.render_as_string(hide_password=True))
