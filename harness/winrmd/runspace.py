"""A runspace pool of the pretend host: fragments in, pipelines that run, fragments out.

::

    BeforeOpen ── SESSION_CAPABILITY, INIT_RUNSPACEPOOL ──► Opened ── close ──► Closed
    pipeline:  NotStarted ─► Running ─► Completed | Failed | Stopped      (one thread each)

psrpcore is the protocol; it is not thread-safe and is only touched under the pool's condition.
Source: [MS-PSRP] 3.2 (server details).
"""

from __future__ import annotations

import struct
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from psrpcore import (
    Command,
    CreatePipelineEvent,
    EndOfPipelineInputEvent,
    GetAvailableRunspacesEvent,
    GetCommandMetadataEvent,
    PipelineInputEvent,
    PowerShell,
    PSRPCoreError,
    PSRPEvent,
    PSRPPayload,
    ResetRunspaceStateEvent,
    ServerPipeline,
    ServerRunspacePool,
    SetMaxRunspacesEvent,
    SetMinRunspacesEvent,
    StreamType,
)
from psrpcore.types import PipelineState, PSInvocationState

from harness.errors import ProtocolError
from harness.winrmd.cmdlets import CmdletError
from harness.winrmd.cmdlets.binding import Output, Streams
from harness.winrmd.psrpvalues import error_record, from_psrp, to_psrp

# What PowerShell uses itself; a fragment has a 21-byte header and must fit a reply.
_FRAGMENT: Final = 32 * 1024
_HEADER: Final = 21
_STREAM: Final = 128  # what the XML around one fragment takes, in bytes before base64
# What psrpcore lets out for messages that are none; ElementTree's ParseError is a SyntaxError.
_NOT_PSRP: Final = (
    PSRPCoreError,
    AttributeError,
    KeyError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class Request:
    """One command as PSRP carried it: a script's text, or a name with its parameters."""

    text: str
    is_script: bool
    parameters: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Sink:
    """Where a running pipeline writes, and where its input comes from (None: it has none)."""

    output: Callable[[Output], None]
    error: Callable[[CmdletError], None]
    streams: Streams
    wait_for_input: Callable[[], Sequence[object] | None]
    pause: Callable[[float], None]


class PipelineStopped(Exception):  # noqa: N818 - PowerShell's own word for it
    """The caller stopped the pipeline while it ran."""


Runner = Callable[[Request, Sink], None]
"""Runs one command; raises CmdletError to fail its pipeline."""


@dataclass(slots=True)
class _Running:
    """One pipeline: what it has to say, and what was said to it."""

    pipeline: ServerPipeline
    fragments: list[bytes] = field(default_factory=list)
    input: list[object] = field(default_factory=list)
    has_input: bool = False
    input_ended: bool = False
    stopping: bool = False
    ended: bool = False
    started: bool = False


class RunspaceServer:
    """The server's half of one pool. Every method may be called from any thread."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._pool = ServerRunspacePool()
        self._changed = threading.Condition()
        self._fragments: list[bytes] = []
        self._running: dict[uuid.UUID, _Running] = {}
        self._closed = False

    @property
    def running(self) -> int:
        """How many pipelines have not ended."""
        with self._changed:
            return sum(not each.ended for each in self._running.values())

    @property
    def pool_id(self) -> uuid.UUID:
        """The pool's id, known once its first message has come."""
        return self._pool.runspace_pool_id

    def create_pipeline(self, pipeline_id: uuid.UUID, data: bytes) -> None:
        """Take the fragments that begin a pipeline. Raises ProtocolError."""
        with self._changed:
            if pipeline_id in self._running:
                raise ProtocolError(f"pipeline {pipeline_id} exists")
            self._running[pipeline_id] = _Running(ServerPipeline(self._pool, pipeline_id))
        self.feed(data)

    def feed(self, data: bytes) -> None:
        """Take fragments for the pool or a pipeline. Raises ProtocolError for what is none."""
        split_fragments(data)
        with self._changed:
            try:
                self._pool.receive_data(PSRPPayload(data, StreamType.default, None))
                while (event := self._pool.next_event()) is not None:
                    self._take(event)
            except _NOT_PSRP as error:
                raise ProtocolError(f"not PSRP: {error}") from error
            self._flush()

    def receive(
        self, pipeline_id: uuid.UUID | None, *, limit: int, wait: Callable[[], float]
    ) -> tuple[list[bytes], bool] | None:
        """Return fragments that fit `limit` bytes (one at least), and whether all is said.

        Waits while `wait()`, the seconds left, is positive; None is a time-out or a closed pool.
        Raises KeyError for a pipeline that is not there.
        """
        with self._changed:
            while True:
                mine = None if pipeline_id is None else self._running[pipeline_id]
                waiting = self._fragments if mine is None else mine.fragments
                if waiting or (mine is not None and mine.ended):
                    taken: list[bytes] = []
                    while waiting and (
                        not taken or sum(map(len, taken)) + len(waiting[0]) <= limit
                    ):
                        taken.append(waiting.pop(0))
                    return taken, mine is not None and mine.ended and not waiting
                left = wait()
                if self._closed or left <= 0:
                    return None
                self._changed.wait(left)

    def stop(self, pipeline_id: uuid.UUID) -> None:
        """Ask a pipeline to stop. Raises KeyError for one that is not there."""
        with self._changed:
            self._running[pipeline_id].stopping = True
            self._changed.notify_all()

    def remove(self, pipeline_id: uuid.UUID) -> None:
        """Stop and forget a pipeline. Raises KeyError for one that is not there."""
        with self._changed:
            self._running.pop(pipeline_id).stopping = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop everything and wake who waits; may be called again."""
        with self._changed:
            self._closed = True
            for each in self._running.values():
                each.stopping = True
            self._running.clear()
            self._changed.notify_all()

    def _take(self, event: PSRPEvent[Any, Any]) -> None:
        if isinstance(event, CreatePipelineEvent):
            self._start(event.pipeline_id, event.pipeline)
        elif isinstance(event, PipelineInputEvent | EndOfPipelineInputEvent):
            mine = self._running.get(event.pipeline_id)
            if mine is not None and isinstance(event, PipelineInputEvent):
                mine.input.append(from_psrp(event.data))
            elif mine is not None:
                mine.input_ended = True
        elif isinstance(event, GetAvailableRunspacesEvent):
            busy = sum(not each.ended for each in self._running.values())
            self._pool.runspace_availability_response(
                event.ci, max(0, self._pool.max_runspaces - busy)
            )
        elif isinstance(
            event, SetMaxRunspacesEvent | SetMinRunspacesEvent | ResetRunspaceStateEvent
        ):
            self._pool.runspace_availability_response(event.ci, True)
        elif isinstance(event, GetCommandMetadataEvent):
            mine = self._running[event.pipeline_id]
            mine.pipeline.start()
            self._fail(mine, _unsupported("Command metadata is not offered by this host."))

    def _start(self, pipeline_id: uuid.UUID, shell: object) -> None:
        mine = self._running.get(pipeline_id)
        if mine is None or mine.started:
            raise ProtocolError(f"CREATE_PIPELINE for {pipeline_id}, which is not waiting for one")
        assert isinstance(shell, PowerShell)
        mine.started = True
        mine.has_input = not shell.no_input
        commands: list[Command] = list(shell.commands)
        threading.Thread(
            target=self._execute,
            args=(mine, commands),
            name=f"pipeline {pipeline_id}",
            daemon=True,
        ).start()

    def _execute(self, mine: _Running, commands: list[Command]) -> None:
        with self._changed:
            mine.pipeline.start()
            self._flush()
        sink = self._sink(mine)
        try:
            if len(commands) != 1:
                raise _unsupported("This host runs one command in a pipeline.")
            command = commands[0]
            parameters = tuple((name or "", from_psrp(value)) for name, value in command.parameters)
            self._run(Request(command.command_text, bool(command.is_script), parameters), sink)
            self._end(mine, None)
        except PipelineStopped:
            self._end(mine, None)
        except CmdletError as error:
            self._end(mine, error)
        except Exception as error:  # the thread's boundary
            self._end(mine, _unsupported(f"{type(error).__name__}: {error}"))
            raise

    def _end(self, mine: _Running, error: CmdletError | None) -> None:
        with self._changed:
            if mine.stopping:
                mine.pipeline.stop()
            elif error is not None:
                self._fail(mine, error)
                return
            else:
                mine.pipeline.complete()
            self._finish(mine)

    def _fail(self, mine: _Running, error: CmdletError) -> None:
        record = error_record(error, stopped=not error.terminating)
        mine.pipeline.prepare_message(
            PipelineState(
                PipelineState=int(PSInvocationState.Failed), ExceptionAsErrorRecord=record
            )
        )
        mine.pipeline.state = PSInvocationState.Failed
        self._finish(mine)

    def _finish(self, mine: _Running) -> None:
        self._flush()
        mine.pipeline.close()
        mine.ended = True
        self._changed.notify_all()

    def _sink(self, mine: _Running) -> Sink:
        pipeline = mine.pipeline

        def write(send: Callable[[], None]) -> None:
            with self._changed:
                if mine.stopping:
                    raise PipelineStopped
                send()
                self._flush()

        def wait_for_input() -> Sequence[object] | None:
            with self._changed:
                if not mine.has_input:
                    return None
                self._changed.wait_for(lambda: mine.input_ended or mine.stopping)
                if mine.stopping:
                    raise PipelineStopped
                return tuple(mine.input)

        def pause(seconds: float) -> None:
            with self._changed:
                if self._changed.wait_for(lambda: mine.stopping, seconds):
                    raise PipelineStopped

        return Sink(
            output=lambda value: write(lambda: pipeline.write_output(to_psrp(value))),
            error=lambda error: write(lambda: _write_error(pipeline, error)),
            streams=Streams(
                warning=lambda text: write(lambda: pipeline.write_warning(text)),
                verbose=lambda text: write(lambda: pipeline.write_verbose(text)),
                progress=lambda what, percent: write(
                    lambda: pipeline.write_progress(what, 1, what, percent_complete=percent)
                ),
                stopped=lambda: mine.stopping,
            ),
            wait_for_input=wait_for_input,
            pause=pause,
        )

    def _flush(self) -> None:
        """Move what psrpcore has to say to whom it is for, cut into fragments."""
        while (payload := self._pool.data_to_send(_FRAGMENT)) is not None:
            target = self._fragments
            if payload.pipeline_id is not None:
                mine = self._running.get(payload.pipeline_id)
                if mine is None:
                    continue  # removed: nobody listens
                target = mine.fragments
            target.extend(split_fragments(payload.data))
        self._changed.notify_all()


def split_fragments(data: bytes) -> list[bytes]:
    """Return the fragments in `data`, each with its header ([MS-PSRP] 2.2.4). Raises ProtocolError.

    Every one travels in a Stream element of its own: some clients read one message an element.
    """
    found: list[bytes] = []
    at = 0
    while at < len(data):
        # ObjectId (8), FragmentId (8), flags (1), length of the blob (4), all big-endian
        end = at + _HEADER + int.from_bytes(data[at + 17 : at + _HEADER], "big")
        if at + _HEADER > len(data) or end > len(data):
            raise ProtocolError(f"a PSRP fragment at {at} needs {end - len(data)} bytes more")
        found.append(data[at:end])
        at = end
    return found


def _write_error(pipeline: ServerPipeline, error: CmdletError) -> None:
    record = error_record(error, stopped=False)
    pipeline.write_error(
        record.Exception,
        record.CategoryInfo,
        target_object=record.TargetObject,
        fully_qualified_error_id=record.FullyQualifiedErrorId,
    )


def _unsupported(message: str) -> CmdletError:
    return CmdletError(message, id="NotSupported", category="NotImplemented", terminating=True)
