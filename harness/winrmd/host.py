"""A Windows host that is not there: its state on disk, and what a restart does to it.

::

    change() ── lock ── edit the state ── write beside, rename over ── unlock
    restart(delay) ──► the endpoint closes its port ── rebooted(boot) ──► opens it again

What is set survives this process, as the registry survives a restart; what runs does not.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol, Self

from pydantic import TypeAdapter, ValidationError

from harness.errors import UsageError
from harness.winrmd.acl import ADMINISTRATORS, DRIVE_ROOT, Acl, inherited_from
from harness.winrmd.boots import Boot
from harness.winrmd.hoststate import (
    PREFETCH,
    REBOOT_PENDING,
    SESSION_MANAGER,
    UPDATE_REBOOT_REQUIRED,
    Event,
    HostState,
    RegistryKey,
    fresh,
)
from harness.winrmd.paths import HostPaths
from harness.winrmd.resources import HostControl

_ABSOLUTE: Final = re.compile(r"(?:\\\\\?\\)?[A-Za-z]:(?:[\\/]|$)")
_QUOTAS: Final = {
    r"MaxEnvelopeSizekb": "max_envelope_size_kib",
    r"MaxTimeoutms": "max_timeout_ms",
    r"Service\MaxConcurrentOperationsPerUser": "max_concurrent_operations_per_user",
    r"Service\MaxConnections": "max_connections",
    r"Shell\IdleTimeout": "idle_timeout_ms",
    r"Shell\MaxConcurrentUsers": "max_concurrent_users",
    r"Shell\MaxProcessesPerShell": "max_processes_per_shell",
    r"Shell\MaxMemoryPerShellMB": "max_memory_per_shell_mib",
    r"Shell\MaxShellsPerUser": "max_shells_per_user",
}
STATE_FILE: Final = ".pretend-host.json"
_STATE: Final = TypeAdapter(HostState)


class BadPathError(Exception):
    """What Windows would refuse as a path, or what names no drive of this host."""


class RunsUntilReboot(Protocol):
    """Something that lives on a host and dies with its boot."""

    def rebooted(self) -> None:
        """End what runs; start what starts at boot."""


class PretendHost:
    """State, files and boot of one host. Every method may be called from any thread."""

    def __init__(self, root: Path, state: HostState) -> None:
        self.root = root
        self.paths = HostPaths(root)
        self._state = state
        self._lock = threading.RLock()
        self._editing = False
        self._boot = Boot.first()
        self._control: HostControl | None = None
        self._living: list[RunsUntilReboot] = []

    @classmethod
    def open(cls, root: Path, *, initial: HostState | None = None) -> Self:
        """Return the host of a folder, made as `initial` (a new server) where it has none yet.

        Raises UsageError for a folder that cannot be made, and a state file that is not ours.
        """
        try:
            root.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"{root} is no folder, and none can be made there: {error}") from error
        file = root / STATE_FILE
        if file.exists():
            try:
                state = _STATE.validate_json(file.read_bytes())
            except ValidationError as error:
                raise UsageError(
                    f"{file} is no state of a pretend host: delete it to start anew ({error})"
                ) from error
            host = cls(root.resolve(), state)
            # The process that held the host is gone, and with it all that ran: that was a restart.
            host.rebooted(host.boot.next())
            return host
        host = cls(root.resolve(), initial or fresh("WINRMD"))
        (root / "Windows" / "Temp").mkdir(parents=True, exist_ok=True)
        with host.change():
            pass
        return host

    @property
    def boot(self) -> Boot:
        """The boot that runs."""
        with self._lock:
            return self._boot

    def read(self) -> HostState:
        """Return a copy of the state."""
        with self._lock:
            return copy.deepcopy(self._state)

    @contextlib.contextmanager
    def change(self) -> Iterator[HostState]:
        """Edit the state: it is written when the block ends, and as before if that raises."""
        with self._lock:
            assert not self._editing, "an edit inside of an edit would be lost"
            edited = copy.deepcopy(self._state)
            self._editing = True
            try:
                yield edited
            finally:
                self._editing = False
            target = self.root / STATE_FILE
            beside = target.with_suffix(".new")
            beside.write_bytes(_STATE.dump_json(edited, indent=1))
            beside.replace(target)
            self._state = edited

    def attach(self, control: HostControl) -> None:
        """Stand behind an endpoint: its boot is ours, its quotas are those of the WSMan: drive.

        Quotas that were never set here are taken from the endpoint, others are put in force.
        """
        with self.change() as state:
            self._control = control
            self._boot = control.boot
            if state.wsman == fresh("").wsman:
                given = {key: str(getattr(control.quotas, name)) for key, name in _QUOTAS.items()}
                state.wsman.update(given)
                state.wsman_in_force = dict(state.wsman)
        self._enforce()

    def lives_here(self, thing: RunsUntilReboot) -> None:
        """Tell `thing` of every restart from now on."""
        with self._lock:
            self._living.append(thing)

    def restart(self, *, after_s: float) -> None:
        """Restart after `after_s`: through the endpoint, or at once where none is attached."""
        with self._lock:
            control = self._control
        if control is None:
            self.rebooted(self.boot.next())
        else:
            control.reboot(after_s=after_s)

    def restart_winrm(self, *, after_s: float) -> None:
        """Restart the WinRM service alone; the quotas that were set are in force from then on."""
        with self.change() as state:
            state.wsman_in_force = dict(state.wsman)
        self._enforce()
        with self._lock:
            control = self._control
        if control is not None:
            control.restart_service(after_s=after_s)

    def stop_winrm(self) -> None:
        """Stop the WinRM service: who is connected is cut off, every shell ends."""
        with self._lock:
            control = self._control
        if control is not None:
            control.stop_service()

    def start_winrm(self) -> None:
        """Start the WinRM service: it reads its quotas, then it listens."""
        with self.change() as state:
            state.wsman_in_force = dict(state.wsman)
        self._enforce()
        with self._lock:
            control = self._control
        if control is not None:
            control.start_service()

    def rebooted(self, boot: Boot) -> None:
        """Take note of a restart: pending features are enabled, pending reasons are gone.

        Being told twice of one boot changes nothing: several handlers may share a host.
        """
        with self._lock:
            if boot == self._boot:
                return
        with self.change() as state:
            self._boot = boot
            state.boots += 1
            _start(state)
            living = list(self._living)
        self._enforce()
        for thing in living:
            thing.rebooted()

    def log(self, name: str, provider: str, *, event_id: int, level: int, message: str) -> None:
        """Add a record to an event log."""
        now = datetime.datetime.now(datetime.UTC)
        with self.change() as state:
            state.events.append(Event(name, provider, event_id, level, now, message))

    def local_path(self, path: str) -> Path:
        """Return where an absolute Windows path lies on this machine. Raises BadPathError."""
        found = self.paths.local(path) if _ABSOLUTE.match(path) else None
        if found is None:
            raise BadPathError(f"Cannot find path '{path}' because it does not exist.")
        return found

    def windows_path(self, path: str) -> str:
        """Return the one spelling of an absolute Windows path. Raises BadPathError."""
        return self.paths.windows(self.local_path(path))

    def acl(self, path: str) -> Acl:
        """Return what is in force on a path: inherited entries included.

        Raises BadPathError, and FileNotFoundError for a path where nothing is.
        """
        if not os.path.lexists(self.local_path(path)):
            raise FileNotFoundError(path)
        return self.effective_acl(self.read(), path)

    def effective_acl(self, state: HostState, path: str) -> Acl:
        """Return what `state` says is in force on a path."""
        chain = _chain(self.windows_path(path))
        current = state.acls.get(chain[-1].lower(), DRIVE_ROOT)
        for each in reversed(chain[:-1]):
            current = inherited_from(
                current,
                state.acls.get(each.lower()),
                owner=ADMINISTRATORS,
                directory=self.local_path(each).is_dir(),
            )
        return current

    def forget_acls(self, path: str) -> None:
        """Drop the records of a path and all below it: what is deleted has no list."""
        gone = self.windows_path(path).lower()
        with self.change() as state:
            for each in [one for one in state.acls if one == gone or one.startswith(gone + "\\")]:
                del state.acls[each]

    def _enforce(self) -> None:
        """Hand the quotas in force to the endpoint."""
        with self._lock:
            control, wsman = self._control, dict(self._state.wsman_in_force)
        if control is None:
            return
        changed = {
            name: int(wsman[key]) for key, name in _QUOTAS.items() if wsman.get(key, "").isdigit()
        }
        control.set_quotas(replace(control.quotas, **changed))


def _chain(path: str) -> list[str]:
    r"""Return a path and its parents, the drive (`C:\`) last."""
    drive, names = path[:3], [name for name in path[3:].split("\\") if name]
    return [drive + "\\".join(names[:count]) for count in range(len(names), -1, -1)]


def find_key(state: HostState, path: str) -> str | None:
    """Return the spelling under which a registry key is kept, or None. Any case finds it."""
    wanted = registry_path(path).lower()
    return next((each for each in state.registry if each.lower() == wanted), None)


def registry_path(path: str) -> str:
    r"""Return the key's path as `HKLM:\…`, without a backslash at its end."""
    for prefix in ("Registry::HKEY_LOCAL_MACHINE\\", "HKEY_LOCAL_MACHINE\\", "HKLM:", "HKLM\\"):
        if path.lower().startswith(prefix.lower()):
            return "HKLM:\\" + path[len(prefix) :].strip("\\")
    return path.rstrip("\\")


def restart_reasons(state: HostState) -> tuple[str, ...]:
    """Return why a restart is waited for, as its places in the registry say."""
    reasons = [name for name, path in _REASONS.items() if find_key(state, path) is not None]
    renames = state.registry.get(SESSION_MANAGER, RegistryKey()).values
    if "PendingFileRenameOperations" in renames:
        reasons.append("file renames")
    return tuple(reasons)


_REASONS: Final = {"servicing": REBOOT_PENDING, "windows update": UPDATE_REBOOT_REQUIRED}


def _start(state: HostState) -> None:
    """What the system does while it boots."""
    for feature in state.features.values():
        if feature.state == "EnablePending":
            feature.state = "Enabled"
    for reason in _REASONS.values():
        if (found := find_key(state, reason)) is not None:
            del state.registry[found]
    state.registry.setdefault(SESSION_MANAGER, RegistryKey()).values.pop(
        "PendingFileRenameOperations", None
    )
    state.registry.setdefault(PREFETCH, RegistryKey()).values["BootId"] = ("DWord", state.boots)
    hyper_v = state.features.get("Microsoft-Hyper-V")
    state.hypervisor_present = state.inside_vm or (
        hyper_v is not None
        and hyper_v.state == "Enabled"
        and state.hypervisor_launch == "Auto"
        and state.processor.firmware_virtualization
    )
    for service in state.services.values():
        needed = state.features.get(service.with_feature)
        if service.with_feature and (needed is None or needed.state != "Enabled"):
            continue
        if service.start_type == "Automatic":
            service.status = "Running"
    state.wsman_in_force = dict(state.wsman)
    for disk in state.disks:
        if disk.suspended_reboots:
            disk.suspended_reboots -= 1
            disk.protection = "On" if disk.suspended_reboots == 0 else "Off"
