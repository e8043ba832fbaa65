"""The database: whose it is, and that it says what is wrong with it."""

from __future__ import annotations

import re
import sqlite3
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
    ):
        with pytest.raises(ValueError, match=f"^db must be a.*{re.escape(reason)}"):
            Store(db)


def test_a_message_holds_no_password() -> None:
    with pytest.raises(ValueError, match=r"^db must be a database, got ") as error:
        Store("nothing://me:secret@host/x")
    assert "secret" not in str(error.value)
