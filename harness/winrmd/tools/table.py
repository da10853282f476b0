"""Which tools there are, and how each becomes a program of cmd.exe's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from harness.winrmd.cmdlets import Machine
from harness.winrmd.processes import JobEndedError
from harness.winrmd.programs import Program, ProgramCall
from harness.winrmd.tools.certutil import certutil
from harness.winrmd.tools.console import Tool
from harness.winrmd.tools.icacls import icacls
from harness.winrmd.tools.schtasks import schtasks
from harness.winrmd.tools.services import net, sc
from harness.winrmd.tools.settings import bcdedit, powercfg, secedit, wevtutil

TOOLS: Final[Mapping[str, Tool]] = MappingProxyType(
    {
        "bcdedit": bcdedit,
        "certutil": certutil,
        "icacls": icacls,
        "net": net,
        "powercfg": powercfg,
        "sc": sc,
        "schtasks": schtasks,
        "secedit": secedit,
        "wevtutil": wevtutil,
    }
)


def host_programs(machine: Machine) -> Mapping[str, Program]:
    """Return the tools of that machine as programs of the endpoint."""
    return {name: _program(machine, tool) for name, tool in TOOLS.items()}


def _program(machine: Machine, tool: Tool) -> Program:
    def run(call: ProgramCall) -> int:
        answer = tool(machine, call.argv[1:])
        if call.job.ending.is_set():
            raise JobEndedError("what it did ended its own shell")
        for descriptor, text in (
            (call.descriptors.stdout, answer.out),
            (call.descriptors.stderr, answer.err),
        ):
            data = memoryview(text.replace("\n", "\r\n").encode())
            while data:
                data = data[os.write(descriptor, data) :]
        return answer.code

    return run
