"""A fresh host becomes one that runs utility VMs; a second apply finds nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ProvisionError, UnprotectedRootError
from harness.hosts.protectedroot import ProtectedRoot, judge_sddl
from harness.hosts.provision import Provisioner
from harness.hosts.restarts import RestartPatience
from harness.hosts.steps import Options, State
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from harness.winrmd.acl import Ace, Acl
from harness.winrmd.hoststate import CRASH_CONTROL, UPDATE_REBOOT_REQUIRED, HostState, RegistryKey
from tests.harness.hosts.pretend import Pretend, pretend_host

ROOT = ProtectedRoot("C:\\ProgramData\\lcowlab")
FAST = RestartPatience(timeout_s=30, sessions=3, interval_s=0.02, delay_s=0)


def provisioner(pretend: Pretend, winrm: WinRM) -> Provisioner:
    options = Options(ROOT, port=pretend.port, least_python=(3, 11), smoke="model")
    return Provisioner(winrm, options, patience=FAST)


def updates_wait(state: HostState) -> None:
    state.registry[UPDATE_REBOOT_REQUIRED] = RegistryKey()


def assert_provisioned(pretend: Pretend) -> None:
    state = pretend.host.read()
    assert state.features["Microsoft-Hyper-V"].state == "Enabled"
    assert state.features["Containers"].state == "Enabled"
    assert state.hypervisor_present
    assert state.wsman_in_force["Shell\\MaxShellsPerUser"] == "100"
    assert state.defender.exclusion_path == [ROOT.path]
    assert state.power_scheme == "8c5e7fda-e8bf-4a96-9a85-a6e23a8c635c"
    assert state.event_log_sizes["System"] == 64 << 20
    dumps = state.registry[CRASH_CONTROL].values
    assert (dumps["CrashDumpEnabled"][1], dumps["AlwaysKeepMemoryDump"][1]) == (2, 1)
    (rule,) = [each for name, each in state.firewall.items() if name.startswith("lcowlab-winrm-")]
    assert rule.remote_address == ("LocalSubnet",)
    assert judge_sddl(pretend.host.acl(ROOT.path).sddl) == ("S-1-5-32-544", "")


def test_a_plan_changes_nothing_and_prints_what_then_runs(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        before = pretend.host.read()
        plan = provisioner(pretend, winrm).plan()
        assert pretend.host.read() == before
        planned = [a.text for each in plan for a in each.assessment.actions]
        ran = provisioner(pretend, winrm).apply().ran
        # The times of a pause are those of the moment.
        assert [t for t in planned if "Pause" not in t] == [t for t in ran if "Pause" not in t]
        assert len(planned) == len(ran)


def test_a_controller_that_dies_while_the_host_restarts_is_followed_by_another(
    tmp_path: Path,
) -> None:
    class Died(BaseException):
        pass

    def die(line: str) -> None:
        if line.startswith("restart"):
            raise Died

    options = Options(ROOT, port=1, least_python=(3, 11), smoke="model")
    with pretend_host(tmp_path / "host") as pretend:
        with pretend.connect() as winrm, pytest.raises(Died):
            Provisioner(winrm, options, patience=FAST, report=die).apply()
        assert pretend.host.read().features["Containers"].state == "EnablePending"
        with pretend.connect() as winrm:
            rest = Provisioner(winrm, options, patience=FAST).apply()
        assert not any("Enable-WindowsOptionalFeature" in text for text in rest.ran)
        assert rest.restarts == 1
        assert_provisioned(pretend)


def test_a_folder_that_waited_under_our_name_is_not_trusted(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        folder = pretend.host.local_path(ROOT.path)
        (folder / "agent").mkdir(parents=True)
        plan = {each.step: each.assessment for each in provisioner(pretend, winrm).plan()}
        assert plan["protected-root"].state is State.BLOCKED
        with pytest.raises(ProvisionError, match="cannot be trusted"):
            provisioner(pretend, winrm).apply()
        assert pretend.host.read().features["Containers"].state == "Disabled"


def test_a_root_that_was_opened_up_stops_the_next_elevated_step(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        deadline = Deadline.after(20)
        for action in ROOT.mend(ROOT.read(winrm, deadline=deadline), host="win-01"):
            action.run(winrm, deadline=deadline)
        ROOT.verify(winrm, deadline=deadline)
        with pretend.host.change() as state:
            acl = state.acls[ROOT.path.lower()]
            state.acls[ROOT.path.lower()] = acl.granted(Ace("S-1-1-0", 0x1301BF))
        with pytest.raises(UnprotectedRootError, match="entry"):
            ROOT.verify(winrm, deadline=deadline)


def test_a_host_without_virtualisation_is_refused_before_anything_is_changed(
    tmp_path: Path,
) -> None:
    def weak(state: HostState) -> None:
        state.processor.firmware_virtualization = False
        state.memory = 4 << 30

    with pretend_host(tmp_path / "host", change=weak) as pretend, pretend.connect() as winrm:
        with pytest.raises(ProvisionError, match=r"virtualisation.*4 GiB"):
            provisioner(pretend, winrm).apply()
        assert not pretend.host.local_path(ROOT.path).exists()


def test_tamper_protection_is_told_and_not_fought(tmp_path: Path) -> None:
    def protected(state: HostState) -> None:
        state.defender.tamper_protected = True

    with pretend_host(tmp_path / "host", change=protected) as pretend, pretend.connect() as winrm:
        plan = {each.step: each.assessment for each in provisioner(pretend, winrm).plan()}
        assert plan["defender"].state is State.NOTE
        assert "tamper protection" in plan["defender"].detail
        assert plan["defender"].actions == ()


@pytest.mark.parametrize(
    ("sddl", "wrong"),
    [
        ("O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)", ""),
        ("O:S-1-5-18G:SYD:PAI(A;OICI;0x1f01ff;;;S-1-5-18)(A;OICI;FA;;;BA)", ""),
        ("O:BUD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)", "belongs"),
        ("O:BAD:AI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)", "inherits"),
        ("O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;;FR;;;WD)", "entry"),
        ("O:BAD:P(D;OICI;FA;;;SY)(A;OICI;FA;;;BA)", "entry"),
        ("O:BAD:P(A;OICI;FA;;;BA)", "lacking"),
        ("O:BAD:P(A;OI;FA;;;SY)(A;OICI;FA;;;BA)", "lacking"),
        ("O:BAD:P(A;OICI;FR;;;SY)(A;OICI;FA;;;BA)", "lacking"),
        ("", "unreadable"),
        ("O:BAD:NO_ACCESS_CONTROL", "inherits"),
    ],
)
def test_only_system_and_administrators_make_a_protected_root(sddl: str, wrong: str) -> None:
    found = judge_sddl(sddl)[1]
    assert wrong in found
    assert bool(found) == bool(wrong)


def test_a_new_folder_of_a_pretend_host_is_open_to_others() -> None:
    assert judge_sddl(Acl("S-1-5-32-544", ()).sddl)[1]
