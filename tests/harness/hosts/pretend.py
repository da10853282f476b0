"""A pretend Windows host behind the real endpoint, with the console programs that we call."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.hosts.inventory import Host
from harness.remote.endpoint import Endpoint
from harness.remote.passwords import Secret
from harness.remote.retries import RetryPolicy
from harness.remote.winrm import WinRM
from harness.winrmd.cmdlets import Machine
from harness.winrmd.config import EndpointConfig
from harness.winrmd.host import PretendHost
from harness.winrmd.hoststate import HostState
from harness.winrmd.knobs import Knobs
from harness.winrmd.pretendmachine import open_machine
from harness.winrmd.programs import Program
from harness.winrmd.server import WinRmServer

CANARY = "Canary-93fa!horse"
QUICK = RetryPolicy(attempts=8, first_wait_s=0.02, longest_wait_s=0.1, jitter_s=0.0)


@dataclass(frozen=True, slots=True)
class Pretend:
    """One host: its machine, its knobs, and how it is reached."""

    machine: Machine
    knobs: Knobs
    server: WinRmServer

    @property
    def port(self) -> int:
        return self.server.port

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
    root: Path,
    *,
    change: Callable[[HostState], None] | None = None,
    programs: Mapping[str, Program] | None = None,
) -> Iterator[Pretend]:
    """Yield a running host; `change` makes it what the test needs before anybody connects."""
    with open_machine(root, programs={"python": (sys.executable,), **(programs or {})}) as opened:
        if change is not None:
            with opened.host.change() as state:
                change(state)
        knobs = Knobs(reboot_down_s=0.1, shutdown_grace_s=0.05)
        config = EndpointConfig(
            users={"lab": CANARY}, root=opened.host.root, knobs=knobs, programs=opened.programs
        )
        with WinRmServer(config, resources=opened.resources) as server:
            yield Pretend(opened.machine, knobs, server)
