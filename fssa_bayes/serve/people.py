"""People whose choices steer a language model: their part of the database.

The tables stand beside those of the interviews, and follow their rules: a change is one
transaction, committed before the caller goes on, and nothing is held in memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from fssa_bayes.serve.store import Store, metadata

__all__ = ["KeyTakenError", "People"]

_FORMAT = 1

bundles = sa.Table(
    "steering_bundle",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("format", sa.Integer, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)
people = sa.Table(
    "steered_person",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
)
choices = sa.Table(
    "steered_choice",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("person", sa.ForeignKey("steered_person.id"), nullable=False, index=True),
    sa.Column("key", sa.String(200)),  # The caller's own; NULL is unlike any other.
    sa.Column("record", sa.JSON, nullable=False),
    sa.Column("made_at", sa.Float, nullable=False),
    sa.UniqueConstraint("person", "key"),
    sqlite_autoincrement=True,  # So that no id of a deleted choice comes again.
)


class KeyTakenError(ValueError):
    """Says that a person's key already stands for another choice."""


class People:
    """Keeps people and their choices in the database of a :class:`Store`.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self.engine = store.engine
        metadata.create_all(self.engine)  # For a store opened before this module was loaded.

    def claim(self, digest: str) -> None:
        """Takes the database for a bundle, or makes sure that it is the bundle's.

        Raises:
            ValueError: If people of the database are steered by another bundle.
        """
        query = sa.select(bundles.c.format, bundles.c.digest)
        values = {"id": 1, "format": _FORMAT, "digest": digest, "created_at": time.time()}
        try:
            with self.engine.begin() as connection:
                row = connection.execute(query).first()
                if row is None:
                    connection.execute(bundles.insert(), values)
                    return
        except sa.exc.IntegrityError:  # Another process was faster.
            with self.engine.begin() as connection:
                row = connection.execute(query).one()
        if row.format != _FORMAT or row.digest != digest:
            raise ValueError(
                "db must be a new database or that of this bundle, got one of another bundle or "
                f"format ({row.digest[:12]}, this one is {digest[:12]}): what is known of people "
                "does not carry over"
            )

    def add(self, name: str, records: Sequence[tuple[str | None, Mapping[str, Any]]]) -> int:
        """Adds choices of a person, who is made if there is none of the name; all or none.

        Args:
            name: The person.
            records: Choices, each with a key of its own or None. A choice whose key the person has
                already is passed over, so that a request may be sent again.

        Returns:
            Number of choices that are new.

        Raises:
            KeyTakenError: If a key stands for another choice of the person; nothing is added.
        """
        try:
            return self._add(name, records)
        except sa.exc.IntegrityError:  # Another process took the same name or key: once more.
            return self._add(name, records)

    def _add(self, name: str, records: Sequence[tuple[str | None, Mapping[str, Any]]]) -> int:
        with self.engine.begin() as connection:
            found = sa.select(people.c.id).where(people.c.name == name)
            person = connection.execute(found).scalar()
            if person is None:
                added = connection.execute(
                    people.insert(), {"name": name, "created_at": time.time()}
                )
                (person,) = added.inserted_primary_key
            own = sa.select(choices.c.key, choices.c.record).where(
                choices.c.person == person, choices.c.key.is_not(None)
            )
            known = {key: record for key, record in connection.execute(own)}
            rows = []
            for key, record in records:
                held = json.loads(json.dumps(dict(record)))  # As the database returns it.
                if key is not None and known.setdefault(key, held) is not held:
                    if known[key] != held:
                        raise KeyTakenError(
                            f"key must stand for one choice, got {key!r}, by which {name!r} chose "
                            "otherwise before"
                        )
                    continue
                rows.append({"person": person, "key": key, "record": held})
            for row in rows:
                connection.execute(choices.insert(), row | {"made_at": time.time()})
        return len(rows)

    def version(self, name: str) -> tuple[int, int] | None:
        """Returns what changes with a person's choices; None if there is no such person."""
        query = (
            sa.select(people.c.id, sa.func.coalesce(sa.func.max(choices.c.id), 0))
            .select_from(people.outerjoin(choices))
            .where(people.c.name == name)
            .group_by(people.c.id)
        )
        with self.engine.begin() as connection:
            row = connection.execute(query).first()
        return None if row is None else tuple(row)

    def records(self, name: str) -> list[dict[str, Any]]:
        """Lists the choices of a person in order."""
        query = (
            sa.select(choices.c.record)
            .join(people)
            .where(people.c.name == name)
            .order_by(choices.c.id)
        )
        with self.engine.begin() as connection:
            return [record for (record,) in connection.execute(query)]

    def remove(self, name: str) -> bool:
        """Deletes a person and their choices; says whether there was such a person."""
        own = sa.select(people.c.id).where(people.c.name == name).scalar_subquery()
        with self.engine.begin() as connection:
            connection.execute(choices.delete().where(choices.c.person == own))
            return bool(connection.execute(people.delete().where(people.c.name == name)).rowcount)
