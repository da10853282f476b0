"""The compute service on QEMU: HCS documents and requests on a Linux machine.

Implements `harness.hcs.service.ComputeService`. One I/O thread owns all children and streams; it
and the private directory exist from the first `create` to `close_all`.
"""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness.errors import UsageError
from harness.hcs.document import ComputeSystem, ModifySettingRequest
from harness.hcs.service import StreamEndpoint, SystemEvent, SystemProperties
from harness.hcs.systems import EventLog, SystemTable
from harness.qemu.clones import MachineMaker, TemplatePolicy, TemplateReport
from harness.qemu.hostfacts import QEMU_PROGRAM, HostFacts, read_host_facts
from harness.qemu.kvm import AcceleratorChoice
from harness.qemu.loop import IoLoop
from harness.qemu.runtimedir import RuntimeDirectory
from harness.qemu.supervisor import Supervisor
from harness.qemu.system import QemuSystem, deadline_after

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
        self._systems: SystemTable[tuple[QemuSystem, EventLog]] = SystemTable()

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
        with self._systems.creating(system_id):
            own = directory / str(next(self._directories))
            events = EventLog(system_id)
            try:
                own.mkdir(mode=0o700)
                system = QemuSystem(
                    system_id,
                    document,
                    maker.make(system_id, document),
                    host=host,
                    loop=loop,
                    directory=own,
                    report=events.report,
                )
                system.create(deadline=deadline_after(_LAUNCH_TIMEOUT_S))
            except BaseException:
                shutil.rmtree(own, ignore_errors=True)
                raise
            self._systems.add(system_id, (system, events), close=self._close)
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
        systems = [system for system, _ in self._systems.all()]
        return [each.properties() for each in systems if owner in (None, each.owner)]

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
        _, events = self._systems.find(system_id)
        return events.read(after=after, timeout_s=timeout_s)

    def console(self, system_id: str) -> str:
        """Return the last 64 KiB the guest wrote to its serial console."""
        return self._system(system_id).console()

    def terminate(self, system_id: str, *, timeout_s: float = 10.0) -> None:
        """Stop it at once, as pulling the plug does; returns once it stopped. Stopped is fine."""
        self._system(system_id).terminate(timeout_s=timeout_s)

    def close(self, system_id: str) -> None:
        """Forget a system, terminating it first where needed; nothing of it is left on the host."""
        self._close(self._systems.find(system_id))

    def close_all(self) -> None:
        """Close every system and the service; may be repeated. Raises its first error last."""
        if self._maker is not None:
            self._maker.spares.close()
        errors = self._systems.close(self._close)
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

    def _close(self, known: tuple[QemuSystem, EventLog]) -> None:
        system, events = known
        # A running machine is quit first: a killed QEMU leaves the log of its VHDX files to replay.
        system.terminate(timeout_s=10.0)
        system.close()
        shutil.rmtree(system.directory, ignore_errors=True)
        self._systems.forget(system.id)
        events.close()

    def _system(self, system_id: str) -> QemuSystem:
        system, _ = self._systems.find(system_id)
        return system
