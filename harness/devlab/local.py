"""Pretend hosts on loopback: an endpoint process for each, until the lab goes down.

::

    (nothing) ── mkdir ──> claimed ── each host: spawn, "listening on" ──> up ── down ──> (nothing)
                              └── anything fails: everything started is ended, the folder removed

The folder of the lab is its lock: who makes it has the lab. What runs is found by the state file,
and by the command line for what was started by an `up` that was killed before it wrote that.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from harness.devlab.inventoryfile import (
    LabHost,
    check_replaceable,
    remove_inventory,
    write_inventory,
    write_whole,
)
from harness.devlab.machines import HostStatus
from harness.devlab.processes import (
    ProcessIdentity,
    processes_of,
    require_proc,
    spawn_detached,
)
from harness.errors import InfrastructureError, UsageError
from harness.scrubber import KNOWN

MAX_HOSTS: Final = 64
_SCHEMA: Final = "lcowlab.devlab/1"
_USER: Final = "lab"
_PASSWORD_VARIABLE: Final = "LCOWLAB_LAB_PASSWORD"  # noqa: S105 - the variable's name
_STATE_FILE: Final = "state.json"
_START_TIMEOUT_S: Final = 30.0
_END_PATIENCE_S: Final = 8.0
_POLL_S: Final = 0.05
_TAIL: Final = 2000
_READY: Final = re.compile(r"^listening on https://[^:]+:(\d+)/", re.MULTILINE)
_PIN: Final = re.compile(r"^sha256 ([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LocalHost:
    """One pretend host: its endpoint's process, port and certificate."""

    name: str
    process: ProcessIdentity
    port: int
    pin: str


class LocalLab:
    """The pretend hosts of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def exists(self) -> bool:
        """Whether this lab is up, or was left half up or down."""
        return self.folder.is_dir()

    def up(self, count: int, *, inventory: Path) -> tuple[LocalHost, ...]:
        """Start `count` hosts and write their inventory; on failure nothing is left.

        Raises UsageError, InfrastructureError with the last output of what did not start.
        """
        if not 1 <= count <= MAX_HOSTS:
            raise UsageError(f"--local takes 1 to {MAX_HOSTS} hosts, not {count}")
        require_proc()
        inventory = inventory.absolute()
        check_replaceable(inventory)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.folder.mkdir(mode=0o700)
        except FileExistsError:
            raise UsageError(
                f"pretend hosts are up already ({self.folder}): lcowlab lab status shows them, "
                "lcowlab lab down ends them"
            ) from None
        hosts: list[LocalHost] = []
        try:
            self._save(hosts, inventory)
            starting = [self._spawn(f"local-{number}") for number in range(1, count + 1)]
            for name, pid in starting:
                hosts.append(self._started(name, pid))
                self._save(hosts, inventory)
            write_inventory(inventory, [self._entry(host) for host in hosts])
        except BaseException:
            self.down()
            raise
        return tuple(hosts)

    def status(self) -> tuple[HostStatus, ...]:
        """Return each host with `running`, or `dead` where its process is gone."""
        hosts, _ = self._load()
        return tuple(
            HostStatus(
                host.name,
                f"127.0.0.1:{host.port}",
                "running" if host.process.running else "dead",
            )
            for host in hosts
        )

    def down(self) -> None:
        """End every host and remove every file of the lab; may be repeated.

        Raises InfrastructureError for a process that does not end: then the files stay.
        """
        if not self.exists:
            return
        try:
            hosts, inventory = self._load()
        except UsageError:
            hosts, inventory = (), None  # damaged: the command lines tell what to end
        processes = {host.process for host in hosts}
        for disk in self.folder.glob("*/disk"):
            processes.update(processes_of(disk.resolve()))
        for process in processes:
            process.end(patience_s=_END_PATIENCE_S)
        if left := [process.pid for process in processes if process.running]:
            numbers = ", ".join(map(str, left))
            raise InfrastructureError(f"these processes of pretend hosts do not end: {numbers}")
        if inventory is not None:
            remove_inventory(inventory)
        shutil.rmtree(self.folder)

    def _spawn(self, name: str) -> tuple[str, int]:
        home = self.folder / name
        disk = (home / "disk").resolve()
        disk.mkdir(parents=True)
        password = secrets.token_urlsafe(24)
        KNOWN.add(password, user=_USER)
        write_whole(home / "password", password)
        command = [
            *(sys.executable, "-c", "from harness.cli import main; main()", "winrmd"),
            *("--listen", "127.0.0.1:0", "--tls", "--auth", "negotiate,ntlm"),
            *("--root", str(disk), "--machine", name.upper()),
            *("--user", _USER, "--password-env", _PASSWORD_VARIABLE),
        ]
        environment = {**os.environ, _PASSWORD_VARIABLE: password, "PYTHONUNBUFFERED": "1"}
        return name, spawn_detached(command, environment=environment, log=home / "log")

    def _started(self, name: str, pid: int) -> LocalHost:
        log = self.folder / name / "log"
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            identity = ProcessIdentity.of(pid)
            text = log.read_text("utf-8", "replace")
            ready, pin = _READY.search(text), _PIN.search(text)
            if ready and pin and identity is not None:
                return LocalHost(name, identity, int(ready[1]), pin[1])
            if identity is None or time.monotonic() >= deadline:
                how = "ended" if identity is None else "is not ready"
                raise InfrastructureError(f"pretend host {name} {how}: {text.strip()[-_TAIL:]}")
            time.sleep(_POLL_S)

    def _entry(self, host: LocalHost) -> LabHost:
        return LabHost(
            name=host.name,
            address="127.0.0.1",
            port=host.port,
            user=_USER,
            password_file=self.folder / host.name / "password",
            pin=host.pin,
            tags=("local",),
        )

    def _save(self, hosts: Sequence[LocalHost], inventory: Path) -> None:
        document = {
            "schema": _SCHEMA,
            "inventory": str(inventory),
            "hosts": [asdict(host) for host in hosts],
        }
        write_whole(self.folder / _STATE_FILE, json.dumps(document, indent=2) + "\n")

    def _load(self) -> tuple[tuple[LocalHost, ...], Path | None]:
        path = self.folder / _STATE_FILE
        try:
            document: dict[str, Any] = json.loads(path.read_text("utf-8"))
            if document["schema"] != _SCHEMA:
                raise ValueError(f"its schema is {document['schema']}")
            hosts = tuple(
                LocalHost(
                    str(host["name"]),
                    ProcessIdentity(**host["process"]),
                    int(host["port"]),
                    str(host["pin"]),
                )
                for host in document["hosts"]
            )
            return hosts, Path(document["inventory"])
        except FileNotFoundError:
            return (), None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"cannot read {path}: {error}; lcowlab lab down ends what runs"
            ) from error
