"""What stands in the way is said before anything is changed, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.hosts.facts import probe_host
from harness.hosts.rightsstep import Rights, parse_user_rights, read_user_rights
from harness.hosts.steps import Assessment, Look, Options, State, Step
from harness.hosts.systemsteps import Preflight
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from harness.winrmd.hoststate import VIRTUAL_MACHINES_GROUP, HostState
from tests.harness.hosts.pretend import pretend_host
from tests.harness.hosts.test_provision import ROOT


def assess(step: Step, winrm: WinRM) -> Assessment:
    facts = probe_host(winrm, deadline=Deadline.after(30))
    return step.assess(Look(winrm, facts, Options(ROOT, port=1), Deadline.after(30)))


def with_hyper_v(state: HostState) -> None:
    state.features["Microsoft-Hyper-V"].state = "Enabled"
    state.hypervisor_present = True


def without(state: HostState, right: str) -> None:
    state.user_rights[right] = tuple(
        each for each in state.user_rights[right] if each != VIRTUAL_MACHINES_GROUP
    )


def test_rights_that_virtual_machines_lack_are_named_with_the_mend(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        fine = assess(Rights(), winrm)
        assert (fine.state, fine.actions) == (State.FINE, ())
        assert "does not have batch" in fine.detail
        with pretend.host.change() as state:
            without(state, "SeServiceLogonRight")
        # Hyper-V grants it when it comes: only told.
        assert assess(Rights(), winrm).state is State.NOTE
        with pretend.host.change() as state:
            with_hyper_v(state)
        for right, title in (
            ("SeServiceLogonRight", "Log on as a service"),
            ("SeCreateSymbolicLinkPrivilege", "Create symbolic links"),
        ):
            with pretend.host.change() as state:
                without(state, right)
            found = assess(Rights(), winrm)
            assert found.state is State.BLOCKED
            assert f'"{title}" ({right}) is not theirs: add NT VIRTUAL MACHINE' in found.detail
            assert "secpol.msc" in found.detail
            assert "gpupdate /force" in found.detail
        assert not list((pretend.host.root / "Windows" / "Temp").iterdir())


@pytest.mark.parametrize("right", ["SeDenyServiceLogonRight", "SeDenyBatchLogonRight"])
@pytest.mark.parametrize("who", [VIRTUAL_MACHINES_GROUP, "S-1-1-0"])
def test_a_denial_blocks_whatever_is_granted(tmp_path: Path, right: str, who: str) -> None:
    def deny(state: HostState) -> None:
        state.user_rights[right] = (who,)

    with pretend_host(tmp_path / "host", change=deny) as pretend, pretend.connect() as winrm:
        found = assess(Rights(), winrm)
        assert found.state is State.BLOCKED
        assert f"({right}) names them" in found.detail


def test_rights_are_read_as_secedit_exports_them(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        rights = read_user_rights(winrm, deadline=Deadline.after(30))
        assert rights == {
            name: frozenset(sids) for name, sids in pretend.host.read().user_rights.items()
        }


@pytest.mark.parametrize("encoding", ["utf-16", "ascii"])
def test_a_name_counts_as_the_group_that_it_names(encoding: str) -> None:
    text = (
        "[Unicode]\r\nUnicode=yes\r\n[Privilege Rights]\r\n"
        "SeServiceLogonRight = *S-1-5-80-0,NT VIRTUAL MACHINE\\Virtual Machines\r\n"
        "SeBatchLogonRight = \r\n[Version]\r\nRevision=1\r\n"
    )
    rights = parse_user_rights(text.encode(encoding))
    assert rights is not None
    assert rights["SeServiceLogonRight"] == {"S-1-5-80-0", "S-1-5-83-0"}
    assert rights["SeBatchLogonRight"] == frozenset()
    assert set(rights) == {"SeServiceLogonRight", "SeBatchLogonRight"}


def test_what_is_no_export_is_not_known_rather_than_lacking() -> None:
    assert parse_user_rights(b"The system cannot find the file specified.") is None


def test_a_virtual_machine_without_nested_virtualisation_is_told_how_to_get_it(
    tmp_path: Path,
) -> None:
    def inside(state: HostState) -> None:
        state.manufacturer, state.model = "Microsoft Corporation", "Virtual Machine"
        state.inside_vm = state.hypervisor_present = True
        state.processor.firmware_virtualization = False

    with pretend_host(tmp_path / "host", change=inside) as pretend, pretend.connect() as winrm:
        # It sees a hypervisor, the outer one, and that is not enough.
        found = assess(Preflight(), winrm)
        assert found.state is State.BLOCKED
        assert "no nested virtualisation in this Microsoft Corporation Virtual" in found.detail
        assert "ExposeVirtualizationExtensions" in found.detail
        with pretend.host.change() as state:
            state.processor.firmware_virtualization = True
        assert assess(Preflight(), winrm).state is State.FINE
        with pretend.host.change() as state:  # once ours runs, it hides what it uses
            with_hyper_v(state)
            state.processor.firmware_virtualization = False
        assert assess(Preflight(), winrm).state is State.FINE


def test_a_processor_without_second_level_translation_is_refused(tmp_path: Path) -> None:
    def old(state: HostState) -> None:
        state.processor.slat = False

    with pretend_host(tmp_path / "host", change=old) as pretend, pretend.connect() as winrm:
        found = assess(Preflight(), winrm)
        assert found.state is State.BLOCKED
        assert "second-level address translation" in found.detail
