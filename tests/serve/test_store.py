"""The database: whose it is, and that it says what is wrong with it."""

from __future__ import annotations

import re
import sqlite3
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra serve is not installed")

from fssa_bayes.serve import Store


def test_a_database_is_of_one_study(tmp_path: Path) -> None:
    path = str(tmp_path / "answers.sqlite")
    with Store(path) as store:
        store.claim({"model": "1", "items": "2"})
    with Store(path) as store:
        store.claim({"model": "1", "items": "2"})
        with pytest.raises(ValueError, match="^db must .* of a study with other items"):
            store.claim({"model": "1", "items": "3"})


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no database " * 100)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE question (id INTEGER, text TEXT)")
    other.close()
    for db, reason in (
        (str(tmp_path / "text.txt"), "not a database"),
        (str(tmp_path / "no" / "a.sqlite"), "unable to open"),
        (str(tmp_path / "other.sqlite"), "something else"),
        ("nothing://x", "nothing"),
        ("sqlite://", "in memory"),
        (":memory:", "in memory"),
        ("postgresql://", "No module named" if find_spec("psycopg2") is None else "connect"),
    ):
        with pytest.raises(ValueError, match=f"^db must be a.*{re.escape(reason)}"):
            Store(db)


@pytest.mark.parametrize(
    "url", ["nothing://me:secret@host/x", "postgresql://me:sec/secret@host/x", "no thing://secret"]
)
def test_a_message_holds_no_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"^db must be a (database|path)") as error:
        Store(url)
    assert "sec" not in str(error.value)


def test_answers_are_for_their_owner(tmp_path: Path) -> None:
    with Store(str(tmp_path / "answers.sqlite")) as store:
        store.claim({"model": "1"})
        files = list(tmp_path.iterdir())
        assert len(files) > 1  # SQLite's log is one of them.
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
