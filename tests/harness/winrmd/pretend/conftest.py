"""A pretend host without an endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.winrmd.cmdlets import Machine
from harness.winrmd.pretendmachine import PretendMachine, open_machine
from harness.winrmd.psrp import PsrpHandler
from tests.harness.winrmd.pretend.psrp_client import Client


@pytest.fixture
def pretend(tmp_path: Path) -> Iterator[PretendMachine]:
    with open_machine(tmp_path / "host") as opened:
        yield opened


@pytest.fixture
def machine(pretend: PretendMachine) -> Machine:
    return pretend.machine


@pytest.fixture
def powershell(machine: Machine) -> Client:
    return Client(PsrpHandler(machine), machine.host.root)
