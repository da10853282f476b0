"""PowerShell commands over PSRP: sent as structures, answered with plain values.

Any record on the error stream is a failure, whatever the pipeline's final state says:
`Get-WinEvent` and others write their failures there and end well.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import uuid
from collections.abc import Mapping
from typing import Final

from pypsrp.complex_objects import GenericComplexObject, PSInvocationState
from pypsrp.powershell import PowerShell, RunspacePool

from harness.errors import RemoteCommandError, RemoteError
from harness.remote.deadline import Deadline
from harness.remote.links import Connector
from harness.remote.powershell import Command
from harness.remote.retries import call_with_retries
from harness.remote.wire import Wire

Plain = (
    None | bool | int | float | str | bytes | datetime.datetime | list["Plain"] | dict[str, "Plain"]
)
"""What a PowerShell object becomes: its properties, or its text where it has none."""

# After 1000 pipelines a runspace pool refuses more (MaxConcurrentCommandsPerShell, pypsrp#148).
_PIPELINES_PER_POOL: Final = 500
_POOL_IDLE_S: Final = 600
_TIDY_S: Final = 10.0


class PowerShellSession:
    """A runspace pool on the host, made when first needed and made anew when it is lost."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._turn = threading.Lock()
        self._wire: Wire | None = None
        self._pool: RunspacePool | None = None
        self._used = 0

    def run(self, command: Command, *, deadline: Deadline) -> tuple[Plain, ...]:
        """Return the objects that a command put out.

        It is repeated after a lost connection where it cannot have run or is repeatable. Raises
        RemoteCommandError with PowerShell's message and error id; RemoteError.
        """
        return self._repeat(
            command.text,
            script=None,
            command=command,
            deadline=deadline,
            idempotent=command.cmdlet.repeatable,
        )

    def run_script(self, text: str, *, deadline: Deadline) -> tuple[Plain, ...]:
        """Return what one of our fixed scripts put out; it must be repeatable."""
        return self._repeat(text, script=text, command=None, deadline=deadline, idempotent=True)

    def _repeat(
        self,
        what: str,
        *,
        script: str | None,
        command: Command | None,
        deadline: Deadline,
        idempotent: bool,
    ) -> tuple[Plain, ...]:
        def once() -> tuple[Plain, ...]:
            try:
                return self._run(what, script=script, command=command, deadline=deadline)
            except RemoteCommandError:
                raise
            except RemoteError:
                self._drop()
                raise

        with self._turn:
            return call_with_retries(
                once,
                what=f"{self._connector.host}: {what}",
                policy=self._connector.policy,
                deadline=deadline,
                idempotent=idempotent,
                attempts=self._connector.attempts,
            )

    def _run(
        self, what: str, *, script: str | None, command: Command | None, deadline: Deadline
    ) -> tuple[Plain, ...]:
        wire, pool = self._open(deadline)
        pipeline = PowerShell(pool)
        if script is not None:
            pipeline.add_script(script)
        if command is not None:
            pipeline.add_cmdlet(command.cmdlet.name)
            for name, value in command.parameters.items():
                pipeline.add_parameter(name, _for_wire(value))
        with wire.request(what, deadline):
            pipeline.begin_invoke()
        self._used += 1
        try:
            while pipeline.state == PSInvocationState.RUNNING:
                with wire.request(what, deadline):
                    pipeline.poll_invoke()
        except RemoteError as error:
            error.maybe_ran = True
            raise
        with contextlib.suppress(RemoteError), wire.request("end the pipeline", deadline):
            pipeline.close()
        if pipeline.streams.error or pipeline.state != PSInvocationState.COMPLETED:
            raise self._failure(what, pipeline)
        return tuple(to_plain(each) for each in pipeline.output)

    def _open(self, deadline: Deadline) -> tuple[Wire, RunspacePool]:
        if self._wire is not None and (self._wire.dead or self._used >= _PIPELINES_PER_POOL):
            self._drop()
        if self._wire is None or self._pool is None:
            wire = self._connector.connect()
            pool = RunspacePool(wire.wsman, idle_timeout=_POOL_IDLE_S)
            try:
                with wire.request("open a PowerShell session", deadline):
                    pool.open()
            except RemoteError as error:
                wire.close()
                error.maybe_ran = False  # no command was in it
                raise
            self._wire, self._pool, self._used = wire, pool, 0
        return self._wire, self._pool

    def _failure(self, what: str, pipeline: PowerShell) -> RemoteCommandError:
        records = pipeline.streams.error
        first = records[0] if records else None
        message = str(first) if first is not None else f"ended in state {pipeline.state}"
        error_id = str(getattr(first, "fq_error", None) or "")
        return RemoteCommandError(
            message, host=self._connector.host, command=what, error_id=error_id
        )

    def _drop(self) -> None:
        wire, pool = self._wire, self._pool
        self._wire = self._pool = None
        if wire is None:
            return
        if pool is not None and not wire.dead:
            # What still runs in it ends with it.
            with (
                contextlib.suppress(RemoteError),
                wire.request("close the PowerShell session", Deadline.after(_TIDY_S)),
            ):
                pool.close()
        wire.close()

    def close(self) -> None:
        """End the session; may be repeated, never raises."""
        with self._turn:
            self._drop()


def _for_wire(value: object) -> object:
    """Return what pypsrp serialises as PowerShell expects: lists and dicts, not our tuples."""
    if isinstance(value, tuple):
        return [_for_wire(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _for_wire(each) for key, each in value.items()}
    return value


def to_plain(value: object) -> Plain:
    """Return a deserialised PowerShell object as plain values."""
    if isinstance(value, GenericComplexObject):
        properties = {**value.adapted_properties, **value.extended_properties}
        if "System.Enum" in value.types or not properties:
            return value.to_string
        return {str(name): to_plain(each) for name, each in properties.items()}
    if isinstance(value, Mapping):
        return {str(name): to_plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str | bytes | datetime.datetime):
        return value
    if isinstance(value, uuid.UUID):
        return str(value)
    return str(value)
