"""state.db: SQLite in WAL mode, short IMMEDIATE transactions, nothing slow inside one.

`_sqlite3` is imported directly: `sqlite3` itself adds datetime and collections, 1 ms of the hot path, and nothing that is used here.
"""

from __future__ import annotations

import os
import time

import _sqlite3

from utsuwa.errors import UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from types import TracebackType

    Value = str | int | bytes | float | None
    Row = tuple[Value, ...]

BUSY_SECONDS = 30.0
VERSION = 1
"""Of the tables in schema.py. A file of another version is refused, not guessed at."""


class Database:
    """One connection; one thread at a time. Made, with its tables, when the file is new (safe against a second maker)."""

    def __init__(self, path: str) -> None:
        new = not os.path.exists(path)
        try:
            self._connection: Connection = _sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            if new:
                os.chmod(path, 0o600)
                self._retry("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            version = 0 if new else self.read("PRAGMA user_version")[0][0]
            if not version:
                self._create()
            elif version != VERSION:
                raise UtsuwaError(f"cannot use the database {path}: it is of version {version!s}, this utsuwa knows {VERSION}; install the one that made it, or set UTSUWA_ROOT")
        except _sqlite3.Error as error:
            raise UtsuwaError(f"cannot open the database {path}: {error}; is the disk full or the file damaged?") from None

    def _retry(self, sql: str) -> None:
        # Switching to WAL takes the file exclusively and ignores the busy handler: SQLite documentation, "pragma journal_mode".
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute(sql)
            except _sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return

    def _create(self) -> None:
        from utsuwa.state import schema

        with self.write():
            if not self.read("PRAGMA user_version")[0][0]:
                for statement in schema.TABLES.split(";\n"):
                    if statement.strip():
                        self.do(statement)
                self.do(f"PRAGMA user_version={VERSION}")

    def read(self, sql: str, *values: Value) -> list[Row]:
        """Run a query and return all rows. Raises UtsuwaError."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except _sqlite3.Error as error:
            raise UtsuwaError(f"cannot read the database: {error}") from None

    def do(self, sql: str, *values: Value) -> int:
        """Run one statement inside `with db.write():`; returns the number of rows touched. sqlite3.IntegrityError passes through."""
        return self._connection.execute(sql, values).rowcount

    def write(self) -> _Transaction:
        """A short IMMEDIATE transaction: `with db.write(): db.do(…)`. Commits, or rolls back when the block raises."""
        return _Transaction(self._connection)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()


class _Transaction:
    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except _sqlite3.Error as error:
            raise UtsuwaError(f"cannot write the database: {error}") from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._connection.execute("ROLLBACK" if kind else "COMMIT")
        except _sqlite3.Error as failure:
            if kind is None:
                raise UtsuwaError(f"cannot write the database: {failure}") from None


IntegrityError = _sqlite3.IntegrityError
