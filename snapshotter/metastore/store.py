"""The SQLite file: connections, and transactions for any thread of any process.

One writer at a time over all processes; readers see the last committed state and never wait
for it (WAL). A commit that returned survives a power cut (synchronous=FULL).

Threads that `write` at the same time share one SQLite transaction and its flush (group commit),
and one of them does the work of all, so that no other has to wake up in between::

    leader    BEGIN IMMEDIATE, its own operation
              SAVEPOINT, the operation of another one that waits, RELEASE     -- as long as one does
              COMMIT, wake them
    others    wait

Each operation sees what the ones before it did. One that raises undoes its own part alone, and
its thread gets the error; where COMMIT fails, all of them fail.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar, cast

from snapshotter.errors import UnavailableError
from snapshotter.metastore import writeahead
from snapshotter.metastore.connections import ClosedError, Connections, Tables
from snapshotter.metastore.reserve import Reserve
from snapshotter.metastore.schema import migrate
from snapshotter.metastore.turns import Standing, Ticket, Turns

Result = TypeVar("Result")

DEFAULT_BUSY_TIMEOUT_S: Final = 10.0
_BUGS: Final = (sqlite3.IntegrityError, sqlite3.ProgrammingError)
"""Errors that are ours: the checks come before the statements."""
_MAX_GROUP: Final = 64
"""Members of a group commit; the first one waits for all of them."""


class StoreFullError(UnavailableError):
    """No space for the metadata; `MetaStore.reserve` has a little."""


class Transaction:
    """The tables, as one transaction sees them."""

    __slots__ = ("_flushes", "properties", "scratches", "snapshots")

    def __init__(self, tables: Tables) -> None:
        self.snapshots = tables.snapshots
        self.scratches = tables.scratches
        self.properties = tables.properties
        self._flushes: dict[Path, Callable[[], None]] = {}

    def flush_before_commit(self, path: Path, flush: Callable[[], None]) -> None:
        """Have `flush` called once before the commit, however many ask for this path.

        Where it raises, nothing is committed.
        """
        self._flushes[path] = flush

    def flush(self) -> None:
        """Call what `flush_before_commit` was given."""
        for flush in self._flushes.values():
            flush()


class _Operation(Generic[Result]):
    """What a thread wants done in a write transaction, and what came of it."""

    __slots__ = ("_body", "_result", "error")

    def __init__(self, body: Callable[[Transaction], Result]) -> None:
        self._body = body
        self._result: Result | None = None
        self.error: BaseException | None = None

    def run(self, transaction: Transaction) -> None:
        self._result = self._body(transaction)

    def result(self) -> Result:
        """What the body gave. Raises what it raised, or why it was not committed."""
        if self.error is not None:
            raise self.error
        return cast("Result", self._result)

    def not_committed(self, failure: Exception) -> None:
        """Fail, where the body did not by itself."""
        if self.error is None:
            # An exception of its own for each thread.
            self.error = type(failure)(str(failure))
            self.error.__cause__ = failure


class MetaStore:
    """The metadata of one root."""

    def __init__(self, path: Path, *, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S) -> None:
        self.path = path
        self.reserve = Reserve(path.with_suffix(".reserve"))
        self._busy_timeout_s = busy_timeout_s
        self._turns: Turns[_Operation[Any]] = Turns()
        self._connections = Connections(path, busy_timeout_s=busy_timeout_s)

    @classmethod
    def open(cls, path: Path, *, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S) -> Self:
        """Open the file, making or migrating it where needed. Raises UnavailableError."""
        store = cls(path, busy_timeout_s=busy_timeout_s)
        with store._errors():
            tables = store._connections.writer()
            try:
                store._use_wal(tables.connection)
                migrate(tables.connection)
            except BaseException:
                tables.connection.close()
                raise
        store._connections.give_back(tables)
        store.reserve.fill()
        return store

    def warm(self) -> None:
        """Lay out the write-ahead log, for commits that cost less: what will commit often wants it.

        Writers wait for some milliseconds. Raises UnavailableError.
        """
        log = writeahead.log_of(self.path)
        with self.transaction(write=True):
            changed = writeahead.lay_out(log)
        if changed:
            writeahead.flush(log)

    def close(self) -> None:
        """Close; a second call does nothing. Transactions under way end by themselves."""
        self._connections.close()

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Transaction]:
        """A transaction: committed when the block ends, rolled back when it raises.

        A write transaction waits for every other one, of this process or another. Its block must
        not start another. Raises UnavailableError: still locked after the busy timeout, disk
        full, store closed.
        """
        with self._write() if write else self._read() as transaction:
            yield transaction

    def write(self, body: Callable[[Transaction], Result]) -> Result:
        """What `body` gives, called once in a write transaction that is then committed.

        Another thread may call it. Where it raises, what it did is undone. It must not start
        another transaction. Raises what it raises, and UnavailableError as `transaction` does.
        """
        operation = _Operation(body)
        ticket: Ticket[_Operation[Any]] = Ticket(operation)
        if self._enter(ticket):
            self._lead(operation)
        return operation.result()

    @contextmanager
    def looking(self) -> Iterator[Transaction]:
        """The tables as last committed, for a single statement: it needs no transaction.

        Raises UnavailableError.
        """
        tables = self._take(self._connections.reader)
        try:
            yield Transaction(tables)
        except _BUGS:
            raise
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error
        finally:
            self._end(tables)

    @contextmanager
    def _read(self) -> Iterator[Transaction]:
        with self._errors():
            tables = self._take(self._connections.reader)
            try:
                tables.connection.execute("BEGIN")
                yield Transaction(tables)
            finally:
                self._end(tables)

    @contextmanager
    def _write(self) -> Iterator[Transaction]:
        self._enter(Ticket(None))  # without work, so that it leads
        try:
            tables = self._begin()
            try:
                with self._errors():
                    transaction = Transaction(tables)
                    yield transaction
                    transaction.flush()
                    tables.connection.execute("COMMIT")
            finally:
                self._end(tables)
        finally:
            self._turns.pass_on()

    def _enter(self, ticket: Ticket[_Operation[Any]]) -> bool:
        """Wait, and whether to lead; else the work is done."""
        standing = self._turns.enter(ticket, timeout_s=self._busy_timeout_s)
        if standing is Standing.GONE:
            raise self._locked()
        return standing is Standing.LEADS

    def _lead(self, first: _Operation[Any]) -> None:
        """Do the operation, and those that wait meanwhile, and commit; see there for errors."""
        others: list[Ticket[_Operation[Any]]] = []
        failure: Exception | None = None
        try:
            tables = self._begin()
            try:
                transaction = Transaction(tables)
                try:
                    first.run(transaction)
                except _BUGS:
                    raise
                except sqlite3.DatabaseError as error:
                    raise self._error(error) from error
                self._run_others(tables.connection, transaction, others)
                transaction.flush()
                tables.connection.execute("COMMIT")
            finally:
                self._end(tables)
        except sqlite3.DatabaseError as error:
            failure = error if isinstance(error, _BUGS) else self._error(error)
        except Exception as error:  # noqa: BLE001, for whoever asked for it
            failure = error
        except BaseException as error:
            failure = UnavailableError(f"the store {self.path} was interrupted; try again")
            failure.__cause__ = error
            raise
        finally:
            # The next leader first: it can begin while the others are woken.
            self._turns.pass_on()
            for ticket in others:
                if failure is not None and ticket.work is not None:
                    ticket.work.not_committed(failure)
                ticket.wake()
        first.error = failure

    def _run_others(
        self,
        connection: sqlite3.Connection,
        transaction: Transaction,
        taken: list[Ticket[_Operation[Any]]],
    ) -> None:
        """Do the work of those who wait, each in a savepoint; they are added to `taken`.

        Raises UnavailableError where one of them took the whole transaction with it.
        """
        while len(taken) < _MAX_GROUP and (ticket := self._turns.take()) is not None:
            taken.append(ticket)
            operation = ticket.work
            assert operation is not None, "only tickets with work are taken"
            connection.execute("SAVEPOINT member")
            try:
                operation.run(transaction)
            except Exception as error:
                known = self._known(error)
                operation.error = known
                if not connection.in_transaction:
                    # After some errors, such as a full disk, SQLite rolls back all by itself.
                    raise self._lost(known) from error
                connection.execute("ROLLBACK TO member")
            connection.execute("RELEASE member")

    def _begin(self) -> Tables:
        tables = self._take(self._connections.writer)
        try:
            tables.connection.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            tables.connection.close()
            raise self._error(error) from error
        except BaseException:
            tables.connection.close()
            raise
        return tables

    def _end(self, tables: Tables) -> None:
        """Roll back what is not committed, and keep the connection where it is sound."""
        try:
            if tables.connection.in_transaction:
                tables.connection.execute("ROLLBACK")
        except sqlite3.Error:
            tables.connection.close()
        else:
            self._connections.give_back(tables)

    def _take(self, take: Callable[[], Tables]) -> Tables:
        try:
            return take()
        except ClosedError:
            raise UnavailableError(f"the store {self.path} is closed; open it again") from None
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        # Changing the journal mode takes an exclusive lock without the busy handler, so two
        # processes that make the same store at the same time have to take turns here.
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except _BUGS:
            raise
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def _error(self, error: sqlite3.DatabaseError) -> UnavailableError:
        return self._locked() if _is_busy(error) else self._failed(error)

    def _known(self, error: Exception) -> Exception:
        """An error as whoever wrote may see it."""
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, _BUGS):
            known = self._error(error)
            known.__cause__ = error
            return known
        return error

    def _lost(self, error: Exception) -> UnavailableError:
        """Why a group is not committed one member of which met `error`."""
        if isinstance(error, UnavailableError):
            return error
        return UnavailableError(f"the store {self.path} failed: {error}; try again")

    def _locked(self) -> UnavailableError:
        return UnavailableError(
            f"the store {self.path} is still locked by another operation"
            f" after {self._busy_timeout_s:g} s; try again"
        )

    def _failed(self, error: sqlite3.DatabaseError) -> UnavailableError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        hint = {
            sqlite3.SQLITE_FULL: "free some space and try again",
            sqlite3.SQLITE_NOTADB: "this is no store of lcow-snapshotter; use another root",
            sqlite3.SQLITE_CORRUPT: "restore it from a backup",
            sqlite3.SQLITE_READONLY: "make the directory writable",
            sqlite3.SQLITE_CANTOPEN: "check that the directory exists and is writable",
        }.get(code, "check the disk")
        kind = StoreFullError if code == sqlite3.SQLITE_FULL else UnavailableError
        return kind(f"the store {self.path} failed: {error}; {hint}")


def _is_busy(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
