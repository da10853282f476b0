"""Containers: made by Create, run by their first ExecuteProcess, removed by DeleteContainerState.

Life of a container::

    Create ──> CREATED ──first process──> RUNNING ──init exits──> STOPPED
                  │ ^                                                │
                  │ └─ failed start: nothing of it is left           │
                  └────────── DeleteContainerState, from any state ──┴──> gone

A removal that fails leaves the container STOPPED; it can be repeated.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import enum
import os
import threading
from collections.abc import Callable
from typing import Any

from harness.gcs.codec import dumps
from harness.gcs.prot import (
    ContainerConfig,
    ContainerNotification,
    HResult,
    NotificationType,
    ProcessDetails,
    ProcessParameters,
    Properties,
    PropertyQuery,
    StdioPorts,
)
from harness.guest import cgroup
from harness.guest.crun import Crun
from harness.guest.disks import unmount
from harness.guest.errors import GuestFailure
from harness.guest.mounts import MountTable
from harness.guest.oci import complete_process, complete_spec
from harness.guest.processes import GuestProcess, ProcessTable, requested_ports
from harness.guest.relay import StdioRelay
from harness.guest.system import GuestSystem

_KILL_S = 10.0


class ContainerState(enum.Enum):
    """Where a container is in its life."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


class Container:
    """One container."""

    def __init__(self, container_id: str, activity_id: str, config: ContainerConfig) -> None:
        self.id = container_id
        self.activity_id = activity_id
        self.bundle = os.path.normpath(config.oci_bundle_path or f"/run/gcs/c/{container_id}")
        self.scratch = config.scratch_dir_path and os.path.normpath(config.scratch_dir_path)
        self.spec = complete_spec(config.oci_specification or {}, root=f"{self.bundle}/rootfs")
        self.processes = ProcessTable()
        self.changing = threading.Lock()  # one start or removal at a time
        self.state = ContainerState.CREATED
        self.init: GuestProcess | None = None
        self.group: str | None = None  # its cgroup, which stays until crun deletes the container
        self.exit_type = NotificationType.UNEXPECTED_EXIT
        self.told = threading.Event()  # its end was published

    def need_init(self) -> GuestProcess:
        """Return its init. Raises GuestFailure if it never ran."""
        if self.init is None:
            raise GuestFailure(HResult.INVALID_STATE, f"container {self.id} does not run")
        return self.init


class Containers:
    """All containers of the utility VM."""

    def __init__(
        self,
        system: GuestSystem,
        mounts: MountTable,
        notify: Callable[[ContainerNotification], None],
        *,
        crun: str,
    ) -> None:
        self._system = system
        self._mounts = mounts
        self._notify = notify
        self._crun = Crun(system, crun)
        self._lock = threading.Lock()
        self._containers: dict[str, Container] = {}

    def create(self, container_id: str, activity_id: str, config: ContainerConfig) -> None:
        """Make a container and its bundle. Raises GuestFailure."""
        version = (config.schema_version.major, config.schema_version.minor)
        if version < (2, 1):
            raise GuestFailure(HResult.INVALID_JSON, f"schema version {version[0]}.{version[1]}")
        if config.oci_specification is None:
            raise GuestFailure(HResult.INVALID_ARGUMENT, "no OCI specification")
        container = Container(container_id, activity_id, config)
        for path in filter(None, (container.bundle, container.scratch)):
            if not path.startswith("/") or path.count("/") < 2:
                raise GuestFailure(HResult.INVALID_ARGUMENT, f"path {path!r}")
        with self._lock:
            if container_id in self._containers:
                raise GuestFailure(
                    HResult.SYSTEM_ALREADY_EXISTS, f"container {container_id} exists already"
                )
            self._containers[container_id] = container
        try:
            self._system.make_dirs(container.bundle, 0o755)
            self._system.write_file(self._config_path(container), dumps(container.spec).encode())
        except BaseException:
            with self._lock:
                del self._containers[container_id]
            raise

    def get(self, container_id: str) -> Container:
        """Return a container. Raises GuestFailure."""
        with self._lock:
            container = self._containers.get(container_id)
        if container is None:
            raise GuestFailure(HResult.SYSTEM_NOT_FOUND, f"no container {container_id}")
        return container

    def execute(
        self, container_id: str, parameters: ProcessParameters, ports: StdioPorts
    ) -> GuestProcess:
        """Start the container's init, or one more process. Raises GuestFailure."""
        container = self.get(container_id)
        ports = requested_ports(parameters, ports)
        if parameters.oci_process is None:
            return self._start_init(container, ports)
        return self._start_more(container, parameters.oci_process, ports)

    def _start_init(self, container: Container, ports: StdioPorts) -> GuestProcess:
        with container.changing:
            if container.state is not ContainerState.CREATED:
                raise GuestFailure(
                    HResult.INVALID_STATE,
                    f"container {container.id} was started already: it is {container.state.value}",
                )
            terminal = bool(container.spec["process"].get("terminal"))
            relay = StdioRelay.open(self._system.dial, ports, terminal=terminal)
            try:
                child = self._crun.run(container.id, container.bundle, relay, terminal=terminal)
            except BaseException:
                relay.abandon()
                self._crun.delete(container.id)
                raise
            process = GuestProcess(child, relay)
            container.init = process
            self._group(container)
            container.state = ContainerState.RUNNING
            container.processes.add(process)
        process.watch(lambda _: self._init_exited(container))
        return process

    def _start_more(
        self, container: Container, wanted: dict[str, Any], ports: StdioPorts
    ) -> GuestProcess:
        if container.need_init().exited:
            raise GuestFailure(HResult.INVALID_STATE, f"container {container.id} has exited")
        process = complete_process(wanted, container.spec["process"])
        if not process.get("args"):
            raise GuestFailure(HResult.INVALID_ARGUMENT, "no command")
        relay = StdioRelay.open(self._system.dial, ports, terminal=bool(process.get("terminal")))
        try:
            child = self._crun.exec(container.id, process, relay)
        except BaseException:
            relay.abandon()
            raise
        started = GuestProcess(child, relay)
        container.processes.add(started)
        started.watch()
        return started

    def _init_exited(self, container: Container) -> None:
        container.state = ContainerState.STOPPED
        kills = cgroup.out_of_memory_kills(self._system, container.group) if container.group else 0
        self._notify(
            ContainerNotification(
                container_id=container.id,
                activity_id=container.activity_id,
                type=container.exit_type,
                operation="None",
                result_info=dumps({"OutOfMemoryKills": kills}) if kills else "",
            )
        )
        container.told.set()

    def stop(self, container_id: str, *, force: bool) -> None:
        """Send SIGTERM or SIGKILL to the init. Raises GuestFailure if it does not run."""
        container = self.get(container_id)
        import signal

        init = container.need_init()
        container.exit_type = (
            NotificationType.FORCED_EXIT if force else NotificationType.GRACEFUL_EXIT
        )
        if not init.child.signal(signal.SIGKILL if force else signal.SIGTERM):
            raise GuestFailure(
                HResult.SYSTEM_ALREADY_STOPPED, f"container {container_id} has exited"
            )

    def properties(self, container_id: str, query: PropertyQuery) -> Properties:
        """Return what was asked for. Raises GuestFailure if the container never ran."""
        container = self.get(container_id)
        init = container.need_init()
        group = None if init.exited else self._group(container)
        processes: tuple[ProcessDetails, ...] = ()
        statistics: dict[str, Any] | None = None
        if group is not None and "ProcessList" in query.property_types:
            pids = cgroup.processes(self._system, group)
            processes = tuple(ProcessDetails(process_id=pid) for pid in pids)
        if group is not None and "Statistics" in query.property_types:
            statistics = cgroup.statistics(self._system, group)
        return Properties(process_list=processes, statistics=statistics)

    def _group(self, container: Container) -> str | None:
        """Return a running container's cgroup, and note it: nobody can be asked after the end."""
        if container.group is None:
            container.group = cgroup.of_process(self._system, container.need_init().pid)
        return container.group

    def delete_state(self, container_id: str) -> None:
        """Remove a container, its bundle and its scratch directory. Raises GuestFailure.

        Call it while the scratch disk is mounted, after its combined layers are removed. What is
        left of a failure is removed by another call.
        """
        container = self.get(container_id)
        with container.changing:
            self._kill(container)
            for path in self._system.mounts_below(container.bundle):
                with self._mounts.release(path):
                    unmount(self._system, path)
            if container.scratch:
                if users := self._mounts.users_of(container.scratch):
                    raise GuestFailure(
                        HResult.INVALID_STATE, f"{container.scratch} is in use by {users[0]}"
                    )
                self._system.remove_tree(container.scratch)
            # Another container's disks and directories may be in the bundle of a pod: only what
            # this container put there is removed.
            self._system.remove_file(self._config_path(container))
            self._system.remove_dir(f"{container.bundle}/rootfs")
            if not self._system.is_mount_point(container.bundle):
                self._system.remove_dir(container.bundle)
            with self._lock:
                self._containers.pop(container_id, None)

    def _kill(self, container: Container) -> None:
        init = container.init
        if init is None:
            return
        import signal

        container.exit_type = NotificationType.FORCED_EXIT
        init.child.signal(signal.SIGKILL)
        self._crun.delete(container.id)  # kills what init's end has left, too
        # Told too late, the end would be taken for that of the next container of this id.
        if init.wait(_KILL_S) is None or not container.told.wait(_KILL_S):
            raise GuestFailure(
                HResult.TIMEOUT, f"container {container.id} runs {_KILL_S:g} s after SIGKILL"
            )

    @staticmethod
    def _config_path(container: Container) -> str:
        return f"{container.bundle}/config.json"
