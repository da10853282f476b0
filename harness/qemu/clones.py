"""Makes machines: a copy of a template where that can be, else a cold one, and says which.

::

    template in the cache? ──no──> build it: boot, Prepare, stop, save ──┐
            │yes                                                        │
            └──> launch with its memory, load its devices, run, Resume <┘
                     │ failed: build it anew and try again, once
                     └──> the same with the whole machine in one stream ──failed──> cold boot

A copy runs when it is handed out: its agent has new entropy, the time and a name, and waits for
the first byte of its bridge. Every step has a deadline; what failed is in `ReadyMachine.notes`,
and is not tried again by this service.
"""

from __future__ import annotations

import contextlib
import enum
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from harness.errors import ComputeServiceError, GuestError, HarnessError
from harness.gcs.prot import LabRequest, Resume
from harness.hcs.document import ComputeSystem
from harness.qemu.agentcall import call_agent
from harness.qemu.hostfacts import HostFacts
from harness.qemu.kernels import bootable_kernel
from harness.qemu.loop import IoLoop
from harness.qemu.machine import Machine
from harness.qemu.migration import MemoryKind, load_state, save_state
from harness.qemu.qmp import QmpCommand
from harness.qemu.spares import Spare, SparePool
from harness.qemu.supervisor import Supervisor
from harness.qemu.templatekey import template_facts, template_key
from harness.qemu.templatestore import (
    DEFAULT_LIMIT_BYTES,
    DamagedTemplateError,
    Draft,
    OpenTemplate,
    TemplateStore,
)
from harness.qemu.translate import Descriptors, GuestMemory, LaunchPlan, plan_launch

_SEED_BYTES: Final = 64
_LAUNCH_S: Final = 60.0


class Origin(enum.StrEnum):
    """Where a machine comes from; MIGRATION is a template whose memory is in its stream."""

    TEMPLATE = "template"
    MIGRATION = "migration"
    COLD = "cold"


_ORIGINS: Final = {MemoryKind.FILE: Origin.TEMPLATE, MemoryKind.STREAM: Origin.MIGRATION}


@dataclass(frozen=True, slots=True)
class TemplatePolicy:
    """Whether and how a service starts its systems from templates.

    `spares`: so many copies of each template are kept ready, and used once: their first container
    costs what a second one does. `kinds` are tried in this order.
    """

    directory: Path
    spares: int = 0
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    copy_timeout_s: float = 10.0
    build_timeout_s: float = 90.0
    kinds: tuple[MemoryKind, ...] = (MemoryKind.FILE, MemoryKind.STREAM)


@dataclass(frozen=True, slots=True)
class ReadyMachine:
    """A launched machine: `runs` with an agent that waits, or is paused before its first step."""

    machine: Machine
    runtime_id: str
    origin: Origin
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether it runs already."""
        return self.origin is not Origin.COLD


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """A template that is ready to be copied: its key, whether this call built it, and how long."""

    key: str
    kind: MemoryKind
    built: bool
    seconds: float


class MachineMaker:
    """Makes the machines of one service."""

    def __init__(
        self,
        host: HostFacts,
        loop: IoLoop,
        supervisor: Supervisor,
        *,
        policy: TemplatePolicy | None,
    ) -> None:
        self._host = host
        self._loop = loop
        self._supervisor = supervisor
        self._policy = policy
        self._store = (
            TemplateStore(policy.directory, limit_bytes=policy.limit_bytes) if policy else None
        )
        self._lock = threading.Lock()
        self._failed: dict[tuple[str, MemoryKind], str] = {}
        self.spares = SparePool(policy.spares if policy else 0)

    def make(self, system_id: str, document: ComputeSystem) -> ReadyMachine:
        """Return a machine for a document, without its disks. On failure nothing is left.

        Raises LaunchError or ComputeServiceError where not even a cold machine comes up.
        """
        notes: list[str] = []
        for kind in self._kinds(document):
            try:
                if (ready := self._take_spare(document, kind)) is not None:
                    return ready
                machine, runtime_id, (key, _, _) = self._copy(system_id, document, kind)
            except HarnessError as error:
                notes.append(f"{_ORIGINS[kind]}: {error}")
            else:
                self.spares.stock(key, partial(self._make_spare, document, kind))
                return ReadyMachine(machine, runtime_id, _ORIGINS[kind], tuple(notes))
        runtime_id = str(uuid.uuid4())
        machine = self._launch(document, system_id, runtime_id, timeout_s=_LAUNCH_S)
        return ReadyMachine(machine, runtime_id, Origin.COLD, tuple(notes))

    def prepare_template(self, document: ComputeSystem) -> TemplateReport:
        """Return the template of a document after copying it once; built where it is missing.

        Raises ComputeServiceError that says why there is none, GuestError.
        """
        began = time.monotonic()
        failure: HarnessError = ComputeServiceError(
            "no template is made: templates are off, or the document has disks of its own"
        )
        for kind in self._kinds(document):
            try:
                machine, _, report = self._copy("template-check", document, kind)
            except HarnessError as error:
                failure = error
                continue
            machine.discard()
            return TemplateReport(*report, time.monotonic() - began)
        raise failure

    def _take_spare(self, document: ComputeSystem, kind: MemoryKind) -> ReadyMachine | None:
        assert self._policy is not None
        if not self._policy.spares:
            return None
        spare = self.spares.take(template_key(self._facts(document, kind)))
        if spare is None:
            return None
        try:
            deadline = time.monotonic() + self._policy.copy_timeout_s
            resume(spare.machine, spare.runtime_id, deadline=deadline)
        except HarnessError:
            spare.machine.discard()
            return None
        return ReadyMachine(spare.machine, spare.runtime_id, _ORIGINS[kind])

    def _make_spare(self, document: ComputeSystem, kind: MemoryKind) -> Spare:
        assert self._policy is not None
        machine, runtime_id, _ = self._copy("spare", document, kind)
        try:
            deadline = time.monotonic() + self._policy.build_timeout_s
            call_agent(machine.gcs, LabRequest.PREPARE, deadline=deadline)
        except BaseException:
            machine.discard()
            raise
        return Spare(machine, runtime_id)

    def _facts(self, document: ComputeSystem, kind: MemoryKind) -> Mapping[str, Any]:
        kernel = bootable_kernel(document, self._host)
        try:
            return template_facts(document, self._host, kernel=kernel, memory=kind)
        except OSError as error:
            raise ComputeServiceError(f"no template: {error}") from error

    def _kinds(self, document: ComputeSystem) -> tuple[MemoryKind, ...]:
        # A saved machine with disks would go on with what it remembers of them.
        if self._policy is None or document.attachments():
            return ()
        return self._policy.kinds

    def _copy(
        self, system_id: str, document: ComputeSystem, kind: MemoryKind
    ) -> tuple[Machine, str, tuple[str, MemoryKind, bool]]:
        """Return a running copy, its runtime id, and what template it is of."""
        assert self._policy is not None
        assert self._store is not None
        facts = self._facts(document, kind)
        signature = (str(facts["arguments"]), kind)
        with self._lock:
            if signature in self._failed:
                raise ComputeServiceError(self._failed[signature])
        fresh = built = False
        try:
            while True:
                template = self._open(facts)
                if template is None:
                    if fresh:
                        raise ComputeServiceError("the template went as soon as it was built")
                    built = self._build(document, kind, facts)
                    fresh = True
                    continue
                with template:
                    try:
                        machine, runtime_id = self._clone(system_id, document, template)
                    except (ComputeServiceError, GuestError):
                        if fresh:
                            raise
                        # It looks right and does not work: once more from the beginning.
                        self._store.remove(template.key)
                        continue
                    return machine, runtime_id, (template.key, kind, built)
        except HarnessError as error:
            with self._lock:
                self._failed[signature] = str(error)
            raise

    def _open(self, facts: Mapping[str, Any]) -> OpenTemplate | None:
        assert self._store is not None
        try:
            return self._store.open(facts)
        except DamagedTemplateError:
            return None  # the builder replaces it

    def _build(self, document: ComputeSystem, kind: MemoryKind, facts: Mapping[str, Any]) -> bool:
        """Have the template built; whether it was by us."""
        assert self._policy is not None
        assert self._store is not None
        timeout_s = self._policy.build_timeout_s
        with self._store.building(facts, timeout_s=timeout_s) as draft:
            if draft is not None:
                self._boot_and_save(document, kind, draft, deadline=time.monotonic() + timeout_s)
            return draft is not None

    def _boot_and_save(
        self, document: ComputeSystem, kind: MemoryKind, draft: Draft, *, deadline: float
    ) -> None:
        memory = None
        if kind is MemoryKind.FILE:
            memory = GuestMemory(str(draft.memory), shared=True)
        machine = self._launch(
            document, "template", str(uuid.uuid4()), timeout_s=_LAUNCH_S, memory=memory
        )
        try:
            machine.qmp.execute(QmpCommand("cont"), deadline=deadline)
            call_agent(machine.gcs, LabRequest.PREPARE, deadline=deadline)
            machine.qmp.execute(QmpCommand("stop"), deadline=deadline)
            with draft.state.open("wb") as state:
                save_state(machine.qmp, state.fileno(), memory=kind, deadline=deadline)
            machine.stop(timeout_s=_LAUNCH_S)
        finally:
            machine.discard()

    def _clone(
        self, system_id: str, document: ComputeSystem, template: OpenTemplate
    ) -> tuple[Machine, str]:
        assert self._policy is not None
        deadline = time.monotonic() + self._policy.copy_timeout_s
        memory: GuestMemory | None = None
        pass_fds: tuple[int, ...] = ()
        if template.kind is MemoryKind.FILE:
            # By its descriptor: the file may be unlinked before QEMU comes to open it.
            memory = GuestMemory(f"/proc/self/fd/{template.memory_fd}", shared=False)
            pass_fds = (template.memory_fd,)
        runtime_id = str(uuid.uuid4())
        machine = self._launch(
            document,
            system_id,
            runtime_id,
            timeout_s=self._policy.copy_timeout_s,
            memory=memory,
            incoming=True,
            pass_fds=pass_fds,
        )
        try:
            load_state(machine.qmp, template.state_fd, memory=template.kind, deadline=deadline)
            machine.qmp.execute(QmpCommand("cont"), deadline=deadline)
            resume(machine, runtime_id, deadline=deadline)
        except BaseException:
            machine.discard()
            raise
        return machine, runtime_id

    def _launch(
        self,
        document: ComputeSystem,
        system_id: str,
        runtime_id: str,
        *,
        timeout_s: float,
        memory: GuestMemory | None = None,
        incoming: bool = False,
        pass_fds: tuple[int, ...] = (),
    ) -> Machine:
        machine = Machine(self._loop)

        def plan(descriptors: Descriptors) -> LaunchPlan:
            return plan_launch(
                document,
                self._host,
                descriptors,
                system_id=system_id,
                runtime_id=runtime_id,
                kernel=bootable_kernel(document, self._host),
                memory=memory,
                incoming=incoming,
            )

        try:
            machine.launch(
                self._supervisor, plan, deadline=time.monotonic() + timeout_s, pass_fds=pass_fds
            )
        except BaseException:
            with contextlib.suppress(ComputeServiceError):
                machine.discard()
            raise
        return machine


def resume(machine: Machine, runtime_id: str, *, deadline: float) -> None:
    """Make a copy that runs a machine of its own. Raises ComputeServiceError, GuestError."""
    now = time.time_ns()
    message = Resume(
        seed=os.urandom(_SEED_BYTES).hex(),
        unix_s=now // 1_000_000_000,
        unix_ns=now % 1_000_000_000,
        host_name=f"uvm-{runtime_id[:8]}",
    )
    call_agent(machine.gcs, LabRequest.RESUME, message, deadline=deadline)
