"""Parts of a file over several WinRS commands at once, each going on where it broke off.

A Send is a round trip in which nothing else happens on its connection, so several shells share the
work. Each part is a file of its own on the host, and its length says how far it came.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from isal import isal_zlib

from harness.errors import (
    ConnectionLostError,
    QuotaError,
    RemoteError,
    RemoteTimeoutError,
    TransferError,
    UsageError,
)
from harness.remote.deadline import Deadline
from harness.remote.hostpython import load_script, python_argv, script_input
from harness.remote.retries import Attempts, RetryPolicy, call_with_retries
from harness.remote.transport import RemoteProcess, Shell, Transport
from harness.remote.ways import Closed, Delivery, Errand, Progress, WayName

_LEAST_PART: Final = 1 << 20
_READ: Final = 1 << 20
_BATCH: Final = 2 << 20  # compressed bytes handed over at once: a few full envelopes
_LEVEL: Final = 1  # of ISA-L: several times zlib's speed, also where nothing shrinks
_TIDY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a file: `length` bytes from `start`."""

    index: int
    start: int
    length: int


def divide(size: int, count: int) -> tuple[Segment, ...]:
    """Return at most `count` segments of nearly the same length, none below 1 MiB but the only one.

    The same size and count always give the same segments: a resumed transfer depends on it.
    """
    count = max(1, min(count, size // _LEAST_PART))
    bounds = [size * index // count for index in range(count + 1)]
    return tuple(
        Segment(index, start, end - start)
        for index, (start, end) in enumerate(itertools.pairwise(bounds))
    )


class _Tally:
    """Bytes done over all segments; goes back when a segment starts again from less."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done: dict[int, int] = {}
        self._lock = threading.Lock()

    def note(self, segment: Segment, done: int) -> None:
        with self._lock:
            self._done[segment.index] = done
            if self._progress is not None:
                self._progress(sum(self._done.values()), self._total)


class Talk:
    """A script on the host that is spoken with: what it reports, and why it failed."""

    def __init__(self, host: str, process: RemoteProcess, deadline: Deadline) -> None:
        self._host = host
        self._process = process
        self._deadline = deadline
        self._stderr = b""
        self._pending = b""
        self._exit_code: int | None = None

    def begin(self, script: str, parameters: dict[str, Any]) -> None:
        self.write(script_input(load_script(script), parameters))

    def write(self, data: bytes) -> None:
        try:
            self._process.write(data, deadline=self._deadline)
        except RemoteError as error:
            if not isinstance(error, ConnectionLostError | RemoteTimeoutError):
                self._explain(error)
            raise

    def end_input(self) -> None:
        self._process.close_stdin(deadline=self._deadline)

    def read(self) -> bytes:
        """Return what it put out next; empty once it has ended well. Raises TransferError."""
        while self._exit_code is None:
            output = self._process.read(deadline=self._deadline)
            self._stderr = (self._stderr + output.stderr)[-2000:]
            self._exit_code = output.exit_code
            if output.stdout:
                return output.stdout
        if self._exit_code != 0:
            raise self._failure()
        return b""

    def report(self) -> dict[str, Any]:
        """Return its next report. Raises TransferError when it ended without one."""
        while b"\n" not in self._pending:
            more = self.read()
            if not more:
                raise self._failure()
            self._pending += more
        line, _, self._pending = self._pending.partition(b"\n")
        values: dict[str, Any] = json.loads(line)
        return values

    def reports(self) -> Iterator[dict[str, Any]]:
        """Yield its reports until it ends. Raises TransferError when it ends badly."""
        while True:
            while b"\n" in self._pending:
                yield self.report()
            more = self.read()
            if not more:
                return
            self._pending += more

    def _explain(self, error: RemoteError) -> None:
        """Raise what the script said, if it ended before it read everything."""
        with contextlib.suppress(RemoteTimeoutError):
            while self._exit_code is None:
                output = self._process.read(deadline=self._deadline.capped(_TIDY_S))
                self._stderr = (self._stderr + output.stderr)[-2000:]
                self._exit_code = output.exit_code
            raise self._failure() from error

    def _failure(self) -> TransferError:
        text = self._stderr.decode(errors="replace").strip()
        return TransferError(
            f"the script on the host ended early: {text or 'it said nothing'}",
            host=self._host,
            code=self._exit_code,
        )


@contextmanager
def talking(
    transport: Transport, shell: Shell, argv: Sequence[str], deadline: Deadline
) -> Iterator[Talk]:
    """Give a conversation with a script on the host; it is ended with the context."""
    process = shell.start_alone(argv, deadline=deadline)
    try:
        yield Talk(transport.host, process, deadline)
    finally:
        process.close()


@dataclass(frozen=True, slots=True)
class StreamCopier:
    """Copies segments through a transport; `text` sends base64 where raw bytes do not pass.

    A `Way`, and the one that is always open.
    """

    transport: Transport
    python: str
    root: str
    streams: int
    text: bool
    policy: RetryPolicy
    attempts: Attempts
    name: WayName = "streams"

    def carry(self, errand: Errand) -> Delivery | Closed:
        """See `Way.carry`."""
        segments = divide(errand.size, self.streams)
        parts = tuple(
            f"cache/partial/{errand.sha256}.{each.index}of{len(segments)}" for each in segments
        )
        moved = self.upload(
            errand.source,
            tuple(zip(segments, parts, strict=True)),
            deadline=errand.deadline,
            progress=errand.progress,
        )
        return Delivery(parts, segments[0].length, moved)

    def upload(
        self,
        source: Path,
        parts: Sequence[tuple[Segment, str]],
        *,
        deadline: Deadline,
        progress: Progress | None = None,
    ) -> int:
        """Send each segment of `source` into its file below `root`; return how much was missing.

        Raises RemoteError; what arrived stays for the next attempt.
        """
        tally = _Tally(sum(segment.length for segment, _ in parts), progress)
        names = {segment.index: name for segment, name in parts}
        argv = python_argv(self.python, {"root": self.root})
        read: list[int] = []

        def work(shell: Shell, segment: Segment) -> None:
            with (
                source.open("rb") as file,
                talking(self.transport, shell, argv, deadline) as talk,
            ):
                talk.begin(
                    "receive",
                    {"part": names[segment.index], "size": segment.length, "text": self.text},
                )
                have = int(talk.report()["have"])
                for block, done in _compressed(file, segment, have):
                    talk.write(base64.b64encode(block) + b"\n" if self.text else block)
                    read.append(done - have)
                    have = done
                    tally.note(segment, done)
                talk.end_input()
                last = talk.report()
                if not last["complete"] or last["have"] != segment.length:
                    # Bytes were lost on the way and nobody noticed: what is there cannot be used.
                    raise TransferError(
                        f"part {segment.index} arrived as {last}", host=self.transport.host
                    )

        self._work_through([segment for segment, _ in parts], work, deadline)
        return sum(read)

    def download(
        self,
        path: str,
        target: Path,
        segments: Sequence[Segment],
        *,
        deadline: Deadline,
        progress: Progress | None = None,
    ) -> None:
        """Fetch each segment of a file of the host into `target`, at its place.

        Raises RemoteError.
        """
        tally = _Tally(sum(segment.length for segment in segments), progress)
        came = dict.fromkeys(segments, 0)
        argv = python_argv(self.python, {"path": path})
        with target.open("wb") as whole:
            whole.truncate(sum(segment.length for segment in segments))

        def work(shell: Shell, segment: Segment) -> None:
            with (
                target.open("r+b") as file,
                talking(self.transport, shell, argv, deadline) as talk,
            ):
                file.seek(segment.start + came[segment])
                talk.begin(
                    "send",
                    {
                        "offset": segment.start + came[segment],
                        "length": segment.length - came[segment],
                        "text": self.text,
                    },
                )
                talk.end_input()
                decoder = isal_zlib.decompressobj()
                rest = b""
                while block := talk.read():
                    if self.text:
                        lines, newline, rest = (rest + block).rpartition(b"\n")
                        block = b"".join(map(base64.b64decode, (lines + newline).splitlines()))
                    data = decoder.decompress(block)
                    file.write(data)
                    came[segment] += len(data)
                    tally.note(segment, came[segment])
                if not decoder.eof or came[segment] != segment.length:
                    raise TransferError(
                        f"part {segment.index} came as {came[segment]} bytes",
                        host=self.transport.host,
                    )

        self._work_through(segments, work, deadline)

    def _work_through(
        self,
        segments: Sequence[Segment],
        work: Callable[[Shell, Segment], None],
        deadline: Deadline,
    ) -> None:
        """Have every segment worked on, by as many shells at once as the host's quota lets us."""
        waiting = deque(segments)
        errors: list[Exception] = []
        lock = threading.Lock()
        running = min(self.streams, len(segments))

        def worker() -> None:
            nonlocal running
            shell: Shell | None = None

            def once(segment: Segment) -> None:
                nonlocal shell
                try:
                    if shell is None:
                        shell = self.transport.open_shell(deadline=deadline)
                    work(shell, segment)
                except RemoteError:
                    if shell is not None:
                        shell.close()
                        shell = None
                    raise

            try:
                while not errors:
                    with lock:
                        if not waiting:
                            break
                        segment = waiting.popleft()
                    try:
                        call_with_retries(
                            lambda segment=segment: once(segment),  # type: ignore[misc]
                            what=f"{self.transport.host}: copy part {segment.index}",
                            policy=self.policy,
                            deadline=deadline,
                            idempotent=True,
                            attempts=self.attempts,
                        )
                    except RemoteError as error:
                        with lock:
                            waiting.append(segment)
                            # The others have what the quota gives: they take this part as well.
                            if not (isinstance(error, QuotaError) and running > 1):
                                errors.append(error)
                        break
            except Exception as error:  # noqa: BLE001 - a thread's end: raised by its starter
                with lock:
                    errors.append(error)
            finally:
                with lock:
                    running -= 1
                if shell is not None:
                    shell.close()

        threads = [threading.Thread(target=worker, daemon=True) for _ in range(running)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        if waiting:
            raise TransferError("no shell was left to copy", host=self.transport.host)


def _compressed(file: IO[bytes], segment: Segment, have: int) -> Iterator[tuple[bytes, int]]:
    """Yield compressed batches of what is missing, and how much of the segment is done by then."""
    encoder = isal_zlib.compressobj(_LEVEL)
    file.seek(segment.start + have)
    batch: list[bytes] = []
    size = 0
    done = have
    while done < segment.length:
        block = file.read(min(_READ, segment.length - done))
        if not block:
            raise UsageError(f"{file.name} became shorter while it was sent")
        done += len(block)
        batch.append(encoder.compress(block))
        size += len(batch[-1])
        if size >= _BATCH:
            yield b"".join(batch), done
            batch, size = [], 0
    batch.append(encoder.flush())
    yield b"".join(batch), done
