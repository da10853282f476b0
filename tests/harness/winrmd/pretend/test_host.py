"""The state of a pretend host: what survives what, and what a restart does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.winrmd.acl import ADMINISTRATORS, DRIVE_ROOT, FULL, SYSTEM, Ace, Acl
from harness.winrmd.boots import Boot
from harness.winrmd.config import Quotas
from harness.winrmd.host import STATE_FILE, BadPathError, PretendHost, restart_reasons
from harness.winrmd.hoststate import (
    REBOOT_PENDING,
    SESSION_MANAGER,
    FirewallRule,
    RegistryKey,
    fresh,
)


class Endpoint:
    """The endpoint as a host sees it."""

    def __init__(self, quotas: Quotas | None = None) -> None:
        self.boot = Boot.first()
        self.quotas = quotas or Quotas()
        self.restarts: list[str] = []

    def set_quotas(self, quotas: Quotas) -> None:
        self.quotas = quotas

    def reboot(self, *, after_s: float = 0.0) -> None:
        self.restarts.append(f"reboot {after_s}")

    def restart_service(self, *, after_s: float = 0.0) -> None:
        self.restarts.append(f"service {after_s}")

    def stop_service(self) -> None:
        self.restarts.append("stop")

    def start_service(self) -> None:
        self.restarts.append("start")

    def power_off(self, *, after_s: float = 0.0) -> None:
        self.restarts.append(f"off {after_s}")


@pytest.fixture
def host(tmp_path: Path) -> PretendHost:
    return PretendHost.open(tmp_path / "host")


def test_state_survives_the_process(host: PretendHost) -> None:
    with host.change() as state:
        state.firewall["x"] = FirewallRule("x", "X", "Inbound", "Allow", local_port=("5986",))
        state.acls["c:\\lab"] = Acl(ADMINISTRATORS, (Ace(SYSTEM, FULL),), protected=True)
    before, again = host.read(), PretendHost.open(host.root).read()
    assert again.firewall == before.firewall
    assert again.acls == before.acls
    assert again.boots == before.boots + 1


def test_an_edit_that_fails_changes_nothing(host: PretendHost) -> None:
    before = (host.root / STATE_FILE).read_bytes()

    def half_done() -> None:
        with host.change() as state:
            state.power_scheme = "other"
            raise KeyError

    with pytest.raises(KeyError):
        half_done()
    assert host.read().power_scheme != "other"
    assert (host.root / STATE_FILE).read_bytes() == before


def test_a_copy_of_the_state_is_no_handle_on_it(host: PretendHost) -> None:
    host.read().features["Containers"].state = "Enabled"
    assert host.read().features["Containers"].state == "Disabled"


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"computer_name": 5}'])
def test_a_damaged_state_file_is_named(host: PretendHost, damage: bytes) -> None:
    (host.root / STATE_FILE).write_bytes(damage)
    with pytest.raises(UsageError, match=STATE_FILE):
        PretendHost.open(host.root)


def test_a_restart_enables_what_was_pending(host: PretendHost) -> None:
    with host.change() as state:
        state.features["Microsoft-Hyper-V"].state = "EnablePending"
        state.registry[REBOOT_PENDING] = RegistryKey()
        state.registry[SESSION_MANAGER].values["PendingFileRenameOperations"] = (
            "MultiString",
            ["\\??\\C:\\a", ""],
        )
    assert restart_reasons(host.read()) == ("servicing", "file renames")
    boot = host.boot
    host.restart(after_s=0)
    state = host.read()
    assert state.features["Microsoft-Hyper-V"].state == "Enabled"
    assert restart_reasons(state) == ()
    assert (state.hypervisor_present, state.services["vmms"].status) == (True, "Running")
    assert host.boot.number == boot.number + 1
    assert host.boot.began > boot.began


def test_the_hypervisor_needs_firmware_and_boot_entry(host: PretendHost) -> None:
    with host.change() as state:
        state.features["Microsoft-Hyper-V"].state = "Enabled"
        state.hypervisor_launch = "Off"
    host.restart(after_s=0)
    assert not host.read().hypervisor_present
    with host.change() as state:
        state.hypervisor_launch = "Auto"
        state.processor.firmware_virtualization = False
    host.restart(after_s=0)
    assert not host.read().hypervisor_present


def test_the_boot_counter_of_the_registry_counts(host: PretendHost) -> None:
    def boot_id() -> object:
        registry = host.read().registry
        (key,) = [each for each in registry if each.endswith("PrefetchParameters")]
        return registry[key].values["BootId"][1]

    assert boot_id() == 1
    host.restart(after_s=0)
    assert boot_id() == 2


def test_one_boot_told_twice_counts_once(host: PretendHost) -> None:
    boot = host.boot.next()
    host.rebooted(boot)
    host.rebooted(boot)
    assert host.read().boots == 2


def test_what_lives_on_a_host_hears_of_its_restart(host: PretendHost) -> None:
    class Living:
        told = 0

        def rebooted(self) -> None:
            self.told += 1

    living = Living()
    host.lives_here(living)
    host.restart(after_s=0)
    assert living.told == 1


def test_an_endpoint_carries_out_restarts(host: PretendHost) -> None:
    endpoint = Endpoint()
    host.attach(endpoint)
    host.restart(after_s=3)
    host.restart_winrm(after_s=1)
    assert endpoint.restarts == ["reboot 3", "service 1"]
    assert host.boot == endpoint.boot


def test_quotas_come_from_the_endpoint_until_they_are_set(host: PretendHost) -> None:
    endpoint = Endpoint(Quotas(max_shells_per_user=5))
    host.attach(endpoint)
    assert host.read().wsman["Shell\\MaxShellsPerUser"] == "5"
    with host.change() as state:
        state.wsman["Shell\\MaxShellsPerUser"] = "40"
    assert endpoint.quotas.max_shells_per_user == 5
    host.restart_winrm(after_s=0)
    assert endpoint.quotas.max_shells_per_user == 40
    later = Endpoint()
    PretendHost.open(host.root).attach(later)
    assert later.quotas.max_shells_per_user == 40


def test_bitlocker_suspended_for_one_restart_is_on_again(host: PretendHost) -> None:
    with host.change() as state:
        state.disks[0].protection = "Off"
        state.disks[0].suspended_reboots = 1
    host.restart(after_s=0)
    assert host.read().disks[0].protection == "On"


def test_a_new_folder_on_a_drive_is_open_to_users(host: PretendHost) -> None:
    (host.root / "lab").mkdir()
    found = host.acl("C:\\lab")
    assert found.owner == ADMINISTRATORS
    assert all(each.inherited for each in found.entries)
    assert "(A;OICIID;0x1301bf;;;AU)" in found.sddl  # authenticated users may change it


def test_a_protected_folder_passes_only_its_own_entries_on(host: PretendHost) -> None:
    (host.root / "lab" / "deep").mkdir(parents=True)
    (host.root / "lab" / "deep" / "file").touch()
    entry = Ace(SYSTEM, FULL, object_inherit=True, container_inherit=True)
    with host.change() as state:
        state.acls["c:\\lab"] = Acl(ADMINISTRATORS, (entry,), protected=True)
    assert host.acl("c:/LAB").sddl == "O:BAG:SYD:P(A;OICI;FA;;;SY)"
    assert host.acl("C:\\lab\\deep").sddl == "O:BAG:SYD:AI(A;OICIID;FA;;;SY)"
    assert host.acl("C:\\lab\\deep\\file").sddl == "O:BAG:SYD:AI(A;ID;FA;;;SY)"
    host.forget_acls("C:\\Lab")
    assert host.read().acls == {}


def test_the_drive_itself_has_the_list_of_a_new_volume(host: PretendHost) -> None:
    assert host.acl("C:\\") == DRIVE_ROOT


@pytest.mark.parametrize("path", ["lab", "D:\\x", "\\\\server\\share", "", "HKLM:\\x"])
def test_paths_of_other_places_are_refused(host: PretendHost, path: str) -> None:
    with pytest.raises(BadPathError):
        host.local_path(path)


def test_no_path_leads_out_of_the_folder(host: PretendHost) -> None:
    assert host.local_path("C:\\..\\..\\etc\\passwd") == host.root / "etc" / "passwd"


def test_the_state_file_is_plain_json(host: PretendHost) -> None:
    document = json.loads((host.root / STATE_FILE).read_bytes())
    assert document["computer_name"] == "WINRMD"
    assert fresh("x").build == document["build"]
