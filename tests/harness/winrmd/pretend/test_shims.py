"""Tools as files: what a real process on the pretend host starts by name."""

from __future__ import annotations

import json
import stat

import pytest

from harness.winrmd.acl import SYSTEM
from harness.winrmd.cmdlets import Machine
from harness.winrmd.pretendmachine import PretendMachine, open_machine
from harness.winrmd.tools import ToolServer
from tests.harness.winrmd.pretend.test_tasks import ended, register, xml

SCRIPT = """\
import json, subprocess, sys
out = []
for argv in (
    ["icacls", sys.argv[1], "/setowner", "*S-1-5-18"],
    ["icacls.exe", sys.argv[1]],
    ["schtasks", "/query", "/tn", "nothing"],
):
    done = subprocess.run(argv, capture_output=True, text=True)
    out.append([done.returncode, done.stdout, done.stderr])
json.dump(out, open(sys.argv[2], "w"))
"""


def test_a_task_s_python_starts_the_tools_by_name(machine: Machine) -> None:
    root = machine.host.root
    (root / "lab").mkdir()
    (root / "job.py").write_text(SCRIPT)
    register(machine, xml("python.exe", "C:\\job.py C:\\lab C:\\out.json"))
    machine.tasks.start("job")
    assert ended(machine) == 0
    owner, shown, missing = json.loads((root / "out.json").read_text())
    assert owner[0] == 0
    assert machine.host.acl("C:\\lab").owner == SYSTEM
    assert shown[1].startswith("C:\\lab ")
    assert (missing[0], missing[2].strip()) == (
        1,
        "ERROR: The system cannot find the file specified.",
    )


def test_shims_are_their_owner_s_alone_and_go_with_the_host(
    pretend: PretendMachine,
) -> None:
    folder = pretend.host.root / "Windows" / "System32"
    modes = {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()}
    assert modes == {0o700}
    with open_machine(pretend.host.root.parent / "second") as second:
        there = second.host.root / "Windows" / "System32"
        assert list(there.iterdir())
    assert list(there.iterdir()) == []


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"null", b'{"token": "0", "tool": "icacls", "arguments": ["C:\\\\"]}']
)
def test_who_does_not_know_the_token_is_not_answered(machine: Machine, line: bytes) -> None:
    assert ToolServer(machine).answer(line) is None
