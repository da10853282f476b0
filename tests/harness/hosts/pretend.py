"""A pretend Windows host behind the real endpoint, with the console programs that we call."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.hosts.inventory import Host
from harness.remote.passwords import Secret
from harness.remote.retries import RetryPolicy
from harness.remote.winrm import WinRM
from harness.remote.wire import Endpoint
from harness.winrmd.acl import Acl, parse_grant
from harness.winrmd.cim import CimHandler
from harness.winrmd.cimclasses import POWER_SCHEMES
from harness.winrmd.cmdlets import Machine
from harness.winrmd.config import EndpointConfig
from harness.winrmd.host import PretendHost
from harness.winrmd.hoststate import HostState
from harness.winrmd.knobs import Knobs
from harness.winrmd.programs import Program, ProgramCall
from harness.winrmd.psrp import PsrpHandler
from harness.winrmd.server import WinRmServer
from harness.winrmd.tasks import TaskScheduler

CANARY = "Canary-93fa!horse"
QUICK = RetryPolicy(attempts=8, first_wait_s=0.02, longest_wait_s=0.1, jitter_s=0.0)


@dataclass(frozen=True, slots=True)
class Pretend:
    """One host: its machine, its knobs, and how it is reached."""

    machine: Machine
    knobs: Knobs
    port: int

    @property
    def host(self) -> PretendHost:
        return self.machine.host

    def connect(self) -> WinRM:
        return WinRM(
            Endpoint("win-01", "127.0.0.1", self.port, "ntlm", "off", "lab", Secret(CANARY)),
            policy=QUICK,
        )

    def inventory_host(self) -> Host:
        return Host.model_validate(
            {
                "address": "127.0.0.1",
                "port": self.port,
                "auth": "ntlm",
                "tls": "off",
                "user": "lab",
                "password": {"env": "LCOWLAB_TEST_PASSWORD"},
            }
        )


@contextlib.contextmanager
def pretend_host(
    root: Path, *, change: Callable[[HostState], None] | None = None
) -> Iterator[Pretend]:
    """Yield a running host; `change` makes it what the test needs before anybody connects."""
    host = PretendHost.open(root)
    if change is not None:
        with host.change() as state:
            change(state)
    tasks = TaskScheduler(host, {"python": (sys.executable,)})
    machine = Machine(host, tasks)
    knobs = Knobs(reboot_down_s=0.1, shutdown_grace_s=0.05)
    config = EndpointConfig(
        users={"lab": CANARY}, root=host.root, knobs=knobs, programs=console_programs(host)
    )
    try:
        with WinRmServer(config, resources=[PsrpHandler(machine), CimHandler(machine)]) as server:
            yield Pretend(machine, knobs, server.port)
    finally:
        tasks.close()


def console_programs(host: PretendHost) -> Mapping[str, Program]:
    """The argv forms that provisioning uses, on the host's own state; all else is refused."""

    def icacls(argv: Sequence[str]) -> tuple[int, str]:
        key = host.windows_path(argv[1]).lower()
        with host.change() as state:
            acl = state.acls.get(key) or Acl("S-1-5-32-544", ())
            match argv[2:]:
                case ["/setowner", owner]:
                    acl = replace(acl, owner=owner.removeprefix("*"))
                case ["/inheritance:r", "/grant:r", *grants]:
                    acl = replace(acl, protected=True)
                    for grant in grants:
                        sid, _, rights = grant.removeprefix("*").partition(":")
                        acl = acl.granted(parse_grant(rights, sid=sid), replacing=True)
                case _:
                    return 87, f"Invalid parameter {argv[2:]}"
            state.acls[key] = acl
        return 0, "Successfully processed 1 files"

    def powercfg(argv: Sequence[str]) -> tuple[int, str]:
        if argv[1:] != ["/setactive", POWER_SCHEMES["High performance"]]:
            return 1, "Invalid Parameters"
        with host.change() as state:
            state.power_scheme = argv[2]
        return 0, ""

    def bcdedit(argv: Sequence[str]) -> tuple[int, str]:
        match [each.lower() for each in argv[1:]]:
            case ["/enum", "{current}"]:
                return 0, f"hypervisorlaunchtype    {host.read().hypervisor_launch}"
            case ["/set", "{current}", "hypervisorlaunchtype", "auto"]:
                with host.change() as state:
                    state.hypervisor_launch = "Auto"
                return 0, "The operation completed successfully."
            case _:
                return 1, "The parameter is incorrect."

    def wevtutil(argv: Sequence[str]) -> tuple[int, str]:
        match argv[1:]:
            case ["gl", name]:
                return 0, f"name: {name}\n  maxSize: {host.read().event_log_sizes[name]}"
            case ["sl", name, size] if found := re.fullmatch(r"/ms:(\d+)", size):
                with host.change() as state:
                    state.event_log_sizes[name] = int(found[1])
                return 0, ""
            case _:
                return 87, "The parameter is incorrect."

    tools = {"icacls": icacls, "powercfg": powercfg, "bcdedit": bcdedit, "wevtutil": wevtutil}
    return {name: _program(tool) for name, tool in tools.items()}


def _program(tool: Callable[[Sequence[str]], tuple[int, str]]) -> Program:
    def run(call: ProgramCall) -> int:
        code, text = tool(list(call.argv))
        os.write(call.descriptors.stdout, (text + "\r\n").encode())
        return code

    return run
