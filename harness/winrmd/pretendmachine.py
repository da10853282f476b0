"""A whole pretend Windows host, put together: state, tasks, tools, PowerShell and CIM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.winrmd.cim import CimHandler
from harness.winrmd.cmdlets import Machine
from harness.winrmd.host import PretendHost
from harness.winrmd.hoststate import HostState
from harness.winrmd.programs import Program, real_programs
from harness.winrmd.psrp import PsrpHandler
from harness.winrmd.resources import ResourceHandler
from harness.winrmd.tasks import TaskScheduler
from harness.winrmd.tools import ToolServer, host_programs


@dataclass(frozen=True, slots=True)
class PretendMachine:
    """What an endpoint takes: `EndpointConfig.programs` and `WinRmServer`'s resources."""

    machine: Machine
    programs: Mapping[str, Program]
    resources: tuple[ResourceHandler, ...]

    @property
    def host(self) -> PretendHost:
        """Its state, and the knobs in it."""
        return self.machine.host


@contextlib.contextmanager
def open_machine(
    root: Path, *, initial: HostState | None = None, programs: Mapping[str, Program] | None = None
) -> Iterator[PretendMachine]:
    """Yield the host of a folder; its tasks end with the block.

    `initial` is what a new folder's host is, `programs` adds to the programs it has. Raises
    UsageError for a folder whose state is not ours.
    """
    host = PretendHost.open(root, initial=initial)
    tasks = TaskScheduler(host)
    machine = Machine(host, tasks)
    tools = {**host_programs(machine), **(programs or {})}
    tasks.use_programs({**real_programs(), **tools})
    with ToolServer(machine):
        try:
            yield PretendMachine(machine, tools, (PsrpHandler(machine), CimHandler(machine)))
        finally:
            tasks.close()
