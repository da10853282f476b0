"""Changing a VHDX file so that a power cut at any moment leaves it whole, [MS-VHDX] 2.2.2, 2.3.

::

    clean ── begin: entry without updates, flush; both headers name the log ──> logged
    logged ── commit: flush; entry; flush; apply ──> logged     (any number of times)
    logged ── close: flush; both headers without a log ──> clean
    any ── an error of the system ──> failed: nothing more is written, the log is replayed
           by whoever opens the file next

What `commit` is given takes effect as a whole or not at all. Payload is never logged: it goes to
places that nothing on disk refers to yet, before the flush with which a commit starts.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Sequence
from dataclasses import replace

from snapshotter.blockio import BlockFile
from snapshotter.errors import UnavailableError, VhdxCorruptError, VhdxUnsupportedError
from snapshotter.units import MIB, TIB
from snapshotter.vhdx.format import HEADER_OFFSETS
from snapshotter.vhdx.header import NO_GUID, Header
from snapshotter.vhdx.log import LogEntry
from snapshotter.vhdx.logwriter import LogRing
from snapshotter.vhdx.replay import ReplayedFile
from snapshotter.vhdx.structures import Structures

# The largest disk with all its structures takes less: bounds what a replayed log can ask for.
_MAX_FILE_SIZE = 66 * TIB

# Far beyond what counting reaches: the next numbers must fit 64 bits.
_LAST_SEQUENCE_NUMBER = (1 << 64) - (1 << 32)


class _State(enum.Enum):
    CLEAN = enum.auto()
    LOGGED = enum.auto()
    FAILED = enum.auto()


class WriteSession:
    """The right to change `file`, whose structures are `found`."""

    def __init__(self, file: BlockFile, found: Structures) -> None:
        self._file = file
        self._header = found.header
        self._state = _State.CLEAN
        self._ring: LogRing | None = None
        self._data_announced = False
        self._file_announced = False
        self.capacity = LogRing.capacity(found.header.log_length)

    @classmethod
    def start(cls, file: BlockFile, found: Structures) -> WriteSession:
        """Return a session on a file whose log has been replayed on disk, where it was dirty.

        Nothing is written to a clean file. Raises VhdxUnsupportedError for a file without room
        for a log, VhdxCorruptError for a log that asks for an impossible length of the file.
        """
        if LogRing.capacity(found.header.log_length) == 0:
            raise VhdxUnsupportedError(
                f"a log of {found.header.log_length} bytes: changes need {MIB} at least;"
                " convert the disk to a new file"
            )
        if found.header.log_offset + found.header.log_length > found.file.size:
            raise VhdxCorruptError(
                "log", "the file ends inside", section="2.3", offset=found.header.log_offset
            )
        if found.header.sequence_number >= _LAST_SEQUENCE_NUMBER:
            raise VhdxCorruptError(
                "SequenceNumber", found.header.sequence_number, section="2.2.2", offset=None
            )
        session = cls(file, found)
        if found.log_dirty:
            with session.guard():
                session._replay(found.sequence)
        return session

    def begin(self, *, data_changes: bool = True, data_write_guid: uuid.UUID | None = None) -> None:
        """Make sure that the headers announce a change, before it is made.

        They get a new FileWriteGuid and a LogGuid once, and with `data_changes` (what a reader of
        the disk can see) a new DataWriteGuid once: `data_write_guid`, where one is given with the
        first change. Raises UnavailableError.
        """
        if self._state is _State.LOGGED and (self._data_announced or not data_changes):
            return
        with self.guard():
            header = self._header
            if data_changes and not self._data_announced:
                header = replace(header, data_write_guid=data_write_guid or uuid.uuid4())
            if self._state is _State.CLEAN:
                log_guid = uuid.uuid4()
                self._ring = LogRing(
                    self._file, self._header.log_offset, self._header.log_length, log_guid
                )
                # The headers never name a log without an entry: that is a damaged file to some.
                self._ring.append([], file_size=self._file.size)
                self._file.flush()
                header = replace(header, file_write_guid=self._fresh_file_guid(), log_guid=log_guid)
            self._write_headers(header)
            self._data_announced = self._data_announced or data_changes
            self._state = _State.LOGGED

    def commit(self, updates: Sequence[tuple[int, bytes]]) -> None:
        """Make everything written so far durable, and `updates` with it, all of them or none.

        They are (file offset, 4 KiB), at most `capacity`, outside the payload. Raises
        UnavailableError; then what is on disk is the state before or after.
        """
        with self.guard():
            self._file.flush()
            if not updates:
                return
            assert self._ring is not None
            assert len(updates) <= self.capacity
            self._ring.append(updates, file_size=self._file.size)
            self._file.flush()
            for offset, data in updates:
                self._file.write_at(offset, data)

    def close(self) -> bool:
        """Leave the file without a log to replay; say whether there was one.

        What was not committed is lost. After a failure nothing is done. Raises UnavailableError.
        """
        if self._state is not _State.LOGGED:
            return False
        with self.guard():
            self._file.flush()
            self._write_headers(replace(self._header, log_guid=NO_GUID))
            self._ring = None
            self._state = _State.CLEAN
            self._file_announced = False
            self._data_announced = False
        return True

    def _fresh_file_guid(self) -> uuid.UUID:
        """Return the FileWriteGuid of this session: one is enough, replay included."""
        if self._file_announced:
            return self._header.file_write_guid
        self._file_announced = True
        return uuid.uuid4()

    def _replay(self, sequence: tuple[LogEntry, ...]) -> None:
        at = self._header.log_offset
        replayed = ReplayedFile.check(self._file, sequence, at=at)
        if replayed.size > max(self._file.size, _MAX_FILE_SIZE):
            raise VhdxCorruptError(
                "log", f"asks for a file of {replayed.size} bytes", section="2.3.3", offset=at
            )
        self._write_headers(replace(self._header, file_write_guid=self._fresh_file_guid()))
        replayed.apply(self._file)
        self._file.flush()
        self._write_headers(replace(self._header, log_guid=NO_GUID))

    def _write_headers(self, header: Header) -> None:
        """Write both headers, the one that is not current first, [MS-VHDX] 2.2.2.1."""
        slot = self._slot()
        for at in (HEADER_OFFSETS[1 - slot], HEADER_OFFSETS[slot]):
            header = replace(header, sequence_number=self._header.sequence_number + 1)
            self._file.write_at(at, header.pack())
            self._file.flush()
            self._header = header

    def _slot(self) -> int:
        """Return which of the two headers on disk is the current one."""
        current = self._header.pack()
        return int(self._file.read_at(HEADER_OFFSETS[0], len(current))[:80] != current[:80])

    def guard(self) -> _Guard:
        """Return a context in which a failure ends the session. Raises UnavailableError then."""
        if self._state is _State.FAILED:
            raise UnavailableError(
                "an earlier change of this disk failed: close it and open it again"
            )
        return _Guard(self)

    def fail(self) -> None:
        """Refuse every further change; the file keeps its log."""
        self._state = _State.FAILED


class _Guard:
    """Whoever leaves this by an exception leaves the session failed."""

    def __init__(self, session: WriteSession) -> None:
        self._session = session

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._session.fail()
