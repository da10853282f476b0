"""Console tools of the pretend host: what they print, return and change."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.winrmd.acl import ADMINISTRATORS, SYSTEM
from harness.winrmd.cmdlets import Machine
from harness.winrmd.tasks import parse_task
from harness.winrmd.tools import TOOLS, Answer
from tests.harness.winrmd.pretend.test_tasks import ended, xml


def run(machine: Machine, *argv: str) -> Answer:
    return TOOLS[argv[0]](machine, argv[1:])


@pytest.fixture
def lab(machine: Machine) -> Path:
    folder = machine.host.root / "lab"
    folder.mkdir()
    return folder


def test_icacls_protects_a_folder(machine: Machine, lab: Path) -> None:
    grants = ("/grant:r", f"*{SYSTEM}:(OI)(CI)F", f"*{ADMINISTRATORS}:(OI)(CI)(F)")
    done = run(machine, "icacls", "c:\\LAB", "/inheritance:r", *grants)
    assert done.code == 0
    assert "Successfully processed 1 files; Failed processing 0 files" in done.out
    expected = "O:BAG:SYD:P(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)"
    assert machine.host.acl("C:\\lab").sddl == expected
    run(machine, "icacls", "C:\\lab", "/inheritance:r", *grants)
    # The second time changes the order at most, never the entries.
    assert len(machine.host.acl("C:\\lab").entries) == 2


def test_icacls_shows_what_is_in_force(machine: Machine, lab: Path) -> None:
    shown = run(machine, "icacls", "C:\\lab").out
    assert shown.splitlines()[0] == "C:\\lab NT AUTHORITY\\SYSTEM:(I)(OI)(CI)(F)"
    assert "NT AUTHORITY\\Authenticated Users:(I)(OI)(CI)(M)" in shown


def test_icacls_changes_the_owner_and_takes_rights_away(machine: Machine, lab: Path) -> None:
    run(
        machine,
        "icacls",
        "C:\\lab",
        "/inheritance:d",
        "/remove",
        "*S-1-5-11",
        "/setowner",
        "SYSTEM",
    )
    found = machine.host.acl("C:\\lab")
    assert found.owner == SYSTEM
    assert found.protected
    assert "S-1-5-11" not in {each.sid for each in found.entries}
    assert not any(each.inherited for each in found.entries)


def test_icacls_reaches_what_is_below(machine: Machine, lab: Path) -> None:
    (lab / "deep").mkdir()
    (lab / "deep" / "file").touch()
    done = run(machine, "icacls", "C:\\lab", "/setowner", f"*{SYSTEM}", "/t", "/q")
    assert "Successfully processed 3 files" in done.out
    assert machine.host.acl("C:\\lab\\deep\\file").owner == SYSTEM


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("C:\\nothing",), 2),
        (("C:\\lab", "/grant", "nobody:F"), 1332),
        (("C:\\lab", "/grant", "SYSTEM:Z"), 87),
        (("C:\\lab", "/grant"), 87),
        (("C:\\lab", "/inheritance:x"), 87),
        (("C:\\lab", "/inheritance:r", "/nonsense"), 87),
    ],
)
def test_icacls_refuses_and_leaves_nothing_half_done(
    machine: Machine, lab: Path, argv: tuple[str, ...], code: int
) -> None:
    before = machine.host.read().acls
    refused = run(machine, "icacls", *argv)
    assert (refused.code, machine.host.read().acls) == (code, before)
    assert refused.err


def test_schtasks_goes_through_a_task_s_life(machine: Machine) -> None:
    (machine.host.root / "job.xml").write_bytes(xml("cmd.exe", "/c exit 5").encode("utf-16"))
    create = ("schtasks", "/Create", "/TN", "\\lab\\job", "/XML", "C:\\job.xml", "/RU", "SYSTEM")
    assert run(machine, *create).code == 0
    assert run(machine, *create).code == 1  # it exists
    assert run(machine, *create, "/F").code == 0
    assert run(machine, "schtasks", "/run", "/tn", "\\lab\\job").code == 0
    assert machine.tasks.find("job", "\\lab\\") is not None

    def status() -> str:
        return run(machine, "schtasks", "/query", "/tn", "\\lab\\job", "/v", "/fo", "LIST").out

    while "Running" in status():
        pass
    assert "Last Result:                          5\n" in status()
    assert run(machine, "schtasks", "/delete", "/tn", "\\lab\\job").code == 1  # it would ask
    assert run(machine, "schtasks", "/delete", "/tn", "\\lab\\job", "/f").code == 0
    missing = run(machine, "schtasks", "/query", "/tn", "\\lab\\job")
    assert (missing.code, missing.err) == (
        1,
        "ERROR: The system cannot find the file specified.\n",
    )


def test_the_power_scheme_is_set_by_name_or_id(machine: Machine) -> None:
    assert "(Balanced)" in run(machine, "powercfg", "/getactivescheme").out
    assert run(machine, "powercfg", "-SetActive", "SCHEME_MIN").code == 0
    assert "(High performance)" in run(machine, "powercfg", "/GetActiveScheme").out
    assert run(machine, "powercfg", "/setactive", "381b4222-0000-0000-0000-000000000000").code == 1
    assert run(machine, "powercfg", "/change", "standby-timeout-ac", "0").code == 0
    assert machine.host.read().power_settings == {"standby-timeout-ac": "0"}


def test_the_hypervisor_s_launch_type_holds_from_the_next_boot(machine: Machine) -> None:
    with machine.host.change() as state:
        state.features["Microsoft-Hyper-V"].state = "Enabled"
        state.hypervisor_launch = "Off"
    assert "hypervisorlaunchtype    Off" in run(machine, "bcdedit", "/enum", "{current}").out
    assert run(machine, "bcdedit", "/set", "{current}", "hypervisorlaunchtype", "auto").code == 0
    assert not machine.host.read().hypervisor_present
    machine.host.restart(after_s=0)
    assert machine.host.read().hypervisor_present
    assert run(machine, "bcdedit", "/set", "nothing", "auto").code == 1


def test_event_logs_have_sizes_in_whole_blocks(machine: Machine) -> None:
    log = "Microsoft-Windows-Hyper-V-Worker-Admin"
    assert run(machine, "wevtutil", "sl", log.lower(), "/ms:67108865").code == 0
    assert "maxSize: 67174400\n" in run(machine, "wevtutil", "gl", log).out
    assert run(machine, "wevtutil", "gl", "Nothing").code == 15007
    assert run(machine, "wevtutil", "sl", log, "/ms:5").code == 87


def test_user_rights_go_out_and_in_through_a_file(machine: Machine) -> None:
    export = ("secedit", "/export", "/cfg", "C:\\p.inf", "/areas", "USER_RIGHTS")
    assert run(machine, *export).code == 0
    file = machine.host.root / "p.inf"
    text = file.read_bytes().decode("utf-16")
    assert "SeServiceLogonRight = *S-1-5-80-0,*S-1-5-83-0\r\n" in text
    changed = text.replace("*S-1-5-80-0,*S-1-5-83-0", "*S-1-5-80-0,*S-1-5-83-0,*S-1-5-18")
    file.write_bytes(changed.encode("utf-16"))
    configure = ("secedit", "/configure", "/db", "x.sdb", "/cfg", "C:\\p.inf")
    assert run(machine, *configure).code == 0
    rights = machine.host.read().user_rights
    assert rights["SeServiceLogonRight"] == ("S-1-5-80-0", "S-1-5-83-0", "S-1-5-18")
    assert rights["SeBatchLogonRight"] == ("S-1-5-32-544", "S-1-5-32-551")


def test_services_start_and_stop(machine: Machine) -> None:
    assert run(machine, "net", "start", "vmms").code == 2  # the feature is missing
    assert run(machine, "net", "start", "wuauserv").code == 0
    assert run(machine, "net", "start", "wuauserv").code == 2
    assert "4  RUNNING" in run(machine, "sc", "query", "wuauserv").out
    assert run(machine, "sc", "stop", "wuauserv").code == 0
    assert run(machine, "sc", "stop", "wuauserv").code == 1062
    assert run(machine, "sc", "query", "nothing").code == 1060


def test_a_detached_task_restarts_winrm(machine: Machine) -> None:
    with machine.host.change() as state:
        state.wsman["Shell\\MaxShellsPerUser"] = "60"
    task = parse_task("r", "\\", xml("cmd.exe", "/c net stop winrm &amp; net start winrm"))
    machine.tasks.register(task, replace=True)
    machine.tasks.start("r")
    assert ended(machine, "r") == 0
    assert machine.host.read().wsman_in_force["Shell\\MaxShellsPerUser"] == "60"
    assert machine.host.read().services["WinRM"].status == "Running"


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_nonsense_is_an_error_with_a_reason(machine: Machine, name: str) -> None:
    answer = run(machine, name, "/nonsense")
    assert answer.code != 0
    assert (answer.out + answer.err).strip()
