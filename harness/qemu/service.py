"""The compute service on QEMU: HCS documents and requests on a Linux machine.

Implements `harness.hcs.service.ComputeService`. One I/O thread owns all children and streams; it
and the private directory exist from the first `create` to `close_all`.
"""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from harness.errors import ComputeServiceError, SystemNotFoundError, UsageError
from harness.hcs.document import ComputeSystem, ModifySettingRequest
from harness.hcs.service import EventType, StreamEndpoint, SystemEvent, SystemProperties
from harness.qemu.clones import MachineMaker, TemplatePolicy, TemplateReport
from harness.qemu.hostfacts import QEMU_PROGRAM, HostFacts, read_host_facts
from harness.qemu.kvm import AcceleratorChoice
from harness.qemu.loop import IoLoop
from harness.qemu.runtimedir import RuntimeDirectory
from harness.qemu.supervisor import Supervisor
from harness.qemu.system import QemuSystem, deadline_after

_NOT_FOUND: Final = 0x8037010E  # HCS_E_SYSTEM_NOT_FOUND
_ALREADY_EXISTS: Final = 0x8037010F  # HCS_E_SYSTEM_ALREADY_EXISTS
_LAUNCH_TIMEOUT_S: Final = 60.0


class QemuComputeService:
    """A compute service whose systems are QEMU processes. A context manager that closes them all.

    No QEMU outlives the process that made it, however that ends.
    """

    def __init__(
        self,
        *,
        accelerator: AcceleratorChoice = "auto",
        program: str = QEMU_PROGRAM,
        templates: TemplatePolicy | None = None,
    ) -> None:
        """With `templates`, systems start as copies of a saved machine where that can be."""
        self._templates = templates
        self._maker: MachineMaker | None = None
        self._accelerator: AcceleratorChoice = accelerator
        self._program = program
        self._opening = threading.Lock()
        self._facts: HostFacts | None = None
        self._loop: IoLoop | None = None
        self._supervisor: Supervisor | None = None
        self._directory: RuntimeDirectory | None = None
        self._closed = False
        self._directories = itertools.count(1)
        # The I/O thread takes this lock: never hold it while waiting for that thread.
        self._changed = threading.Condition()
        self._systems: dict[str, QemuSystem] = {}
        self._creating: set[str] = set()
        self._events: dict[str, list[SystemEvent]] = {}
        self._sequences = itertools.count(1)

    @property
    def name(self) -> str:
        """`qemu`."""
        return "qemu"

    def host_facts(self) -> HostFacts:
        """Return the facts of this host: QEMU's version, the accelerator and why it was chosen.

        Raises MissingProgramError without QEMU, ComputeServiceError when it does not run.
        """
        with self._opening:
            if self._facts is None:
                self._facts = read_host_facts(program=self._program, accelerator=self._accelerator)
            return self._facts

    def prepare(self) -> None:
        """Open what the service itself holds until `close_all`: thread, sockets, directory."""
        self._open()

    def create(self, system_id: str, document: ComputeSystem) -> SystemProperties:
        """Create a system: QEMU with its disks attached, paused. On failure nothing is left.

        A copy of a template runs already, with an agent that waits for its first request;
        `details["from"]` is `template`, `migration` or `cold`, and `from_notes` what was tried.

        Raises LaunchError with the command, the exit code and the output, MissingProgramError,
        ComputeServiceError for an id in use (0x8037010f), a disk or a document QEMU cannot run.
        """
        host = self.host_facts()
        loop, maker, directory = self._open()
        with self._changed:
            if system_id in self._systems or system_id in self._creating:
                raise ComputeServiceError(
                    f"there is a system {system_id} already", hresult=_ALREADY_EXISTS
                )
            self._creating.add(system_id)
            self._events[system_id] = []
        own = directory / str(next(self._directories))
        try:
            own.mkdir(mode=0o700)
            system = QemuSystem(
                system_id,
                document,
                maker.make(system_id, document),
                host=host,
                loop=loop,
                directory=own,
                report=lambda kind, data: self._report(system_id, kind, data),
            )
            system.create(deadline=deadline_after(_LAUNCH_TIMEOUT_S))
        except BaseException:
            shutil.rmtree(own, ignore_errors=True)
            with self._changed:
                self._creating.discard(system_id)
                self._events.pop(system_id, None)
            raise
        with self._changed:
            self._creating.discard(system_id)
            self._systems[system_id] = system
        return system.properties()

    def prepare_template(self, document: ComputeSystem) -> TemplateReport:
        """Return the template of a document, built where it is missing and proved by a copy.

        Raises ComputeServiceError or GuestError: why there is none.
        """
        self.host_facts()
        _, maker, _ = self._open()
        return maker.prepare_template(document)

    def spare_pids(self) -> frozenset[int]:
        """Return the processes of copies that were made ahead and belong to no system yet."""
        return self._maker.spares.pids() if self._maker is not None else frozenset()

    def wait_for_spares(self, *, timeout_s: float) -> bool:
        """Return whether as many copies are ready as the policy wants, within the time."""
        return self._maker is None or self._maker.spares.wait_full(timeout_s)

    def start(self, system_id: str, *, timeout_s: float = 60.0) -> None:
        """Start it; returns once the virtual machine runs (its guest may still boot)."""
        self._system(system_id).start(deadline=deadline_after(timeout_s))

    def modify(
        self, system_id: str, request: ModifySettingRequest, *, timeout_s: float = 30.0
    ) -> None:
        """Attach or detach a disk; returns once the virtual machine has it, or has it no more."""
        self.modify_batch(system_id, [request], timeout_s=timeout_s)

    def modify_batch(
        self, system_id: str, requests: Sequence[ModifySettingRequest], *, timeout_s: float = 30.0
    ) -> None:
        """Apply changes in order, waiting once for detachments in a row; stops at a failure."""
        self._system(system_id).apply(requests, deadline=deadline_after(timeout_s))

    def properties(self, system_id: str) -> SystemProperties:
        """Return what is known of a system; `details` has pid, argv, accelerator and parity."""
        return self._system(system_id).properties()

    def enumerate(self, *, owner: str | None = None) -> Sequence[SystemProperties]:
        """Return every system that was not closed, or those of one owner."""
        with self._changed:
            systems = list(self._systems.values())
        return [item.properties() for item in systems if owner in (None, item.owner)]

    def listen(self, system_id: str, port: int) -> StreamEndpoint:
        """Return the Unix socket where the consumer of the guest's stream to `port` connects."""
        return self._system(system_id).listen(port)

    def unlisten(self, system_id: str, port: int) -> None:
        """Give up a port that the guest has not dialed; unknown ports are fine."""
        self._system(system_id).unlisten(port)

    def events(
        self, system_id: str, *, after: int = 0, timeout_s: float = 0.0
    ) -> Sequence[SystemEvent]:
        """Return events with a sequence above `after`; waits up to `timeout_s` for the first."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if system_id not in self._systems:
                    raise _not_found(system_id)
                new = [event for event in self._events[system_id] if event.sequence > after]
                remaining = deadline - time.monotonic()
                if new or remaining <= 0:
                    return new
                self._changed.wait(remaining)

    def console(self, system_id: str) -> str:
        """Return the last 64 KiB the guest wrote to its serial console."""
        return self._system(system_id).console()

    def terminate(self, system_id: str, *, timeout_s: float = 10.0) -> None:
        """Stop it at once, as pulling the plug does; returns once it stopped. Stopped is fine."""
        self._system(system_id).terminate(timeout_s=timeout_s)

    def close(self, system_id: str) -> None:
        """Forget a system, terminating it first where needed; nothing of it is left on the host."""
        self._close(self._system(system_id))

    def close_all(self) -> None:
        """Close every system and the service; may be repeated. Raises its first error last."""
        errors: list[ComputeServiceError] = []
        if self._maker is not None:
            self._maker.spares.close()
        with self._changed:
            systems = list(self._systems.values())
        for system in systems:
            try:
                self._close(system)
            except ComputeServiceError as error:
                errors.append(error)
        with self._opening:
            self._closed = True
            # With a child that does not end the thread must stay: its end would be the child's.
            if self._loop is not None and self._supervisor is not None and not errors:
                self._supervisor.kill_all()
                self._loop.stop()
                self._loop = self._supervisor = None
            if self._directory is not None:
                self._directory.remove()
                self._directory = None
        if errors:
            raise errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_all()

    def _open(self) -> tuple[IoLoop, MachineMaker, Path]:
        with self._opening:
            if self._closed:
                raise UsageError("the compute service was closed")
            if self._loop is None:
                self._loop = IoLoop("lcowlab-qemu")
                self._loop.start()
            if self._supervisor is None:
                self._supervisor = Supervisor(self._loop)
            if self._directory is None:
                self._directory = RuntimeDirectory.create()
            if self._maker is None:
                assert self._facts is not None, "the host's facts come first"
                self._maker = MachineMaker(
                    self._facts, self._loop, self._supervisor, policy=self._templates
                )
            return self._loop, self._maker, self._directory.path

    def _close(self, system: QemuSystem) -> None:
        # A running machine is quit first: a killed QEMU leaves the log of its VHDX files to replay.
        system.terminate(timeout_s=10.0)
        system.close()
        shutil.rmtree(system.directory, ignore_errors=True)
        with self._changed:
            self._systems.pop(system.id, None)
            self._events.pop(system.id, None)
            self._changed.notify_all()

    def _system(self, system_id: str) -> QemuSystem:
        with self._changed:
            system = self._systems.get(system_id)
        if system is None:
            raise _not_found(system_id)
        return system

    def _report(self, system_id: str, kind: EventType, data: Mapping[str, Any]) -> None:
        with self._changed:
            if system_id in self._events:
                sequence = next(self._sequences)
                event = SystemEvent(sequence, system_id, kind, time.time(), data)
                self._events[system_id].append(event)
                self._changed.notify_all()


def _not_found(system_id: str) -> SystemNotFoundError:
    return SystemNotFoundError(f"there is no system {system_id}", hresult=_NOT_FOUND)
