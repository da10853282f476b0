"""A pretend host without an endpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.winrmd.cmdlets import Machine
from harness.winrmd.host import PretendHost
from harness.winrmd.psrp import PsrpHandler
from harness.winrmd.tasks import TaskScheduler
from tests.harness.winrmd.psrp_client import Client


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    host = PretendHost.open(tmp_path / "host")
    tasks = TaskScheduler(host, {"python": (sys.executable,)})
    yield Machine(host, tasks)
    tasks.close()


@pytest.fixture
def powershell(machine: Machine) -> Client:
    return Client(PsrpHandler(machine), machine.host.root)
