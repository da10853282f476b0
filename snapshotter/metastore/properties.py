"""Facts about a store as a whole: its identity, and where it was."""

from __future__ import annotations

import sqlite3


class Properties:
    """The properties of one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, name: str) -> str:
        """The value, or "" where there is none."""
        row = self._connection.execute(
            "SELECT value FROM property WHERE name = ?", (name,)
        ).fetchone()
        return "" if row is None else str(row[0])

    def put(self, name: str, value: str) -> None:
        """Set the value."""
        self._connection.execute(
            "INSERT INTO property (name, value) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )
