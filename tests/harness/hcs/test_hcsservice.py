"""The compute service of Windows over the stand-in: its machines, disks, events, and its order."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if sys.platform != "linux":
    pytest.skip("the stand-in's machines need Linux", allow_module_level=True)

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    HcsCallError,
    InfrastructureError,
    SystemExitedError,
    SystemNotFoundError,
    UsageError,
)
from harness.hcs.document import (
    Attachment,
    AttachmentType,
    ComputeSystem,
    attach_request,
    detach_request,
    lcow_document,
)
from harness.hcs.hcsapi import HcsApi
from harness.hcs.hcsdocument import for_hcs
from harness.hcs.hcsservice import HcsComputeService
from harness.hcs.service import (
    BRIDGE_PORT,
    AttachedDisk,
    EventType,
    ExitType,
    StreamEndpoint,
    SystemState,
)
from harness.hcs.windowshost import WindowsHost
from harness.uvm import UtilityVm
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB
from tests.fakes.hcssystem import RefusedError

if TYPE_CHECKING:
    from tests.fakes.computecore import StandInHcs

from tests.fakes.hcsoperations import Trouble


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "scratch.vhdx"
    ScratchTemplate.build(GIB).write(path)
    return str(path)


def boot(service: HcsComputeService, host: WindowsHost, document: ComputeSystem) -> UtilityVm:
    return UtilityVm.boot(service, document, timeout_s=20, listen=host.listen)


@pytest.fixture
def vm(
    service: HcsComputeService, host: WindowsHost, document: ComputeSystem
) -> Iterator[UtilityVm]:
    """A utility VM that runs; nothing of it is left at the end."""
    with boot(service, host, document) as booted:
        yield booted


@pytest.fixture(params=[True, False], ids=["carried out", "not carried out"])
def no_answer(request: pytest.FixtureRequest) -> Trouble:
    """What a call meets that is not answered in time, whether it was carried out or not."""
    return Trouble(RefusedError(0x80370109), carried_out=request.param)


def test_the_document_gets_what_only_hyper_v_needs() -> None:
    neutral = lcow_document(owner="o", kernel="K", initrd="I", serial_pipe="console")
    made = for_hcs("id", neutral)
    raw = made.system.to_json()["VirtualMachine"]
    assert raw["Devices"]["ComPorts"] == {"0": {"NamedPipe": r"\\.\pipe\lcowlab-id-0"}}
    direct = raw["Chipset"]["LinuxKernelDirect"]
    assert direct["KernelCmdLine"].endswith(
        "nr_cpus=2 pci=off brd.rd_nr=0 pmtmr=0 initcall_blacklist=virtio_vsock_init"
    )
    assert (made.boot_files, made.console) == (("K", "I"), r"\\.\pipe\lcowlab-id-0")
    own = for_hcs("id", lcow_document(owner="o", kernel="K", initrd="I", serial_pipe=r"\\.\pipe\x"))
    assert own.console == r"\\.\pipe\x"
    assert for_hcs("id", lcow_document(owner="o", kernel="K", initrd="I")).console == ""
    assert for_hcs("id", ComputeSystem(owner="o")).boot_files == ()


def test_a_utility_vm_boots_over_hyper_v_sockets_runs_programs_and_powers_off(
    service: HcsComputeService, host: WindowsHost, document: ComputeSystem, library: StandInHcs
) -> None:
    with boot(service, host, document) as vm:
        done = vm.processes.start(["/bin/cat"], with_stdin=True)
        done.write_stdin(b"through")
        done.close_stdin()
        assert done.wait().stdout == b"through"
        found = service.properties(vm.system_id)
        assert (found.state, found.owner) == (SystemState.RUNNING, "lcowlab:test")
        assert found.runtime_id == library.systems[vm.system_id].runtime_id != vm.system_id
        assert vm.running
        assert "a stand-in's guest" in console_of(vm)
        gone = vm.system_id
    assert library.systems == {}
    assert host.api.subscriptions == 0
    assert library.late_notification() == 1, "it is dropped"
    with pytest.raises(SystemNotFoundError):
        service.properties(gone)
    assert service.enumerate() == []


def console_of(vm: UtilityVm) -> str:
    """Return what the console says, once it says anything."""
    while not (text := vm.console()):
        threading.Event().wait(0.01)
    return text


def test_a_disk_is_granted_before_it_is_attached_and_taken_back_after(
    service: HcsComputeService, vm: UtilityVm, library: StandInHcs, disk: str
) -> None:
    service.modify(vm.system_id, attach_request(1, 5, disk))
    assert (vm.system_id, disk) in library.grants
    assert service.properties(vm.system_id).disks == (AttachedDisk(1, 5, disk, False),)
    with pytest.raises(HcsCallError, match=r"1:5 is taken") as taken:
        service.modify(vm.system_id, attach_request(1, 5, disk))
    assert taken.value.hresult == 0x800700AA
    assert (vm.system_id, disk) in library.grants, "the first attachment needs it still"
    service.modify_batch(vm.system_id, [detach_request(1, 5)])
    assert (vm.system_id, disk) not in library.grants
    assert service.properties(vm.system_id).disks == ()
    with pytest.raises(HcsCallError) as empty:
        service.modify(vm.system_id, detach_request(1, 5))
    assert empty.value.hresult == 0x80070490


def test_a_refused_grant_attaches_nothing(
    service: HcsComputeService, vm: UtilityVm, library: StandInHcs, disk: str
) -> None:
    library.operations.meet("HcsGrantVmAccess", Trouble(RefusedError(0x80070057)))
    with pytest.raises(HcsCallError, match=r"HcsGrantVmAccess.*scratch\.vhdx"):
        service.modify(vm.system_id, attach_request(0, 0, disk))
    assert "HcsModifyComputeSystem" not in library.calls
    assert service.properties(vm.system_id).disks == ()


def test_a_grant_that_is_not_taken_back_at_once_is_at_the_close(
    service: HcsComputeService,
    host: WindowsHost,
    document: ComputeSystem,
    library: StandInHcs,
    disk: str,
) -> None:
    with boot(service, host, document) as vm:
        service.modify(vm.system_id, attach_request(0, 0, disk))
        library.operations.meet("HcsRevokeVmAccess", Trouble(RefusedError(0x80070020)))
        service.modify(vm.system_id, detach_request(0, 0))
        assert (vm.system_id, disk) in library.grants
    assert library.grants == set()


def test_disks_of_the_document_are_attached_from_the_start(
    service: HcsComputeService, document: ComputeSystem, library: StandInHcs, disk: str
) -> None:
    machine = document.virtual_machine
    assert machine is not None
    attached = {(2, 63): Attachment(AttachmentType.VIRTUAL_DISK, disk, read_only=True)}
    direct = for_hcs("s", document).boot_files
    with_disk = lcow_document(owner="o", kernel=direct[0], initrd=direct[1], attachments=attached)
    assert service.create("s", with_disk).disks == (AttachedDisk(2, 63, disk, True),)
    Path(disk).unlink()
    service.close("s")  # a file that is gone has no access to be taken away


def test_an_attach_without_an_answer_keeps_its_slot_until_a_removal(
    service: HcsComputeService, vm: UtilityVm, library: StandInHcs, disk: str, no_answer: Trouble
) -> None:
    library.operations.meet("HcsModifyComputeSystem", no_answer)
    with pytest.raises(ComputeTimeoutError):
        service.modify(vm.system_id, attach_request(0, 3, disk))
    assert service.properties(vm.system_id).disks == (AttachedDisk(0, 3, disk, False),)
    service.modify(vm.system_id, detach_request(0, 3))  # whether it was there or not
    assert service.properties(vm.system_id).disks == ()


def test_a_detach_without_an_answer_can_be_repeated(
    service: HcsComputeService, vm: UtilityVm, library: StandInHcs, disk: str, no_answer: Trouble
) -> None:
    service.modify(vm.system_id, attach_request(0, 3, disk))
    library.operations.meet("HcsModifyComputeSystem", no_answer)
    with pytest.raises(ComputeTimeoutError):
        service.modify(vm.system_id, detach_request(0, 3))
    service.modify(vm.system_id, detach_request(0, 3))
    assert service.properties(vm.system_id).disks == ()
    assert (vm.system_id, disk) not in library.grants


def test_a_crash_is_told_once_with_the_kernels_words_and_ends_the_bridge(
    service: HcsComputeService, vm: UtilityVm, library: StandInHcs
) -> None:
    log = "<6>[ 1.0] fine\n<0>[ 2.0] Kernel panic - not syncing: on purpose\n<0>[ 2.1] end"
    library.systems[vm.system_id].crash(log)
    events = service.events(vm.system_id)
    assert [each.type for each in events] == [
        EventType.STARTED,
        EventType.CRASHED,
        EventType.EXITED,
    ]
    assert events[1].data["Message"] == "Kernel panic - not syncing: on purpose"
    assert events[1].data["CrashParameters"] == [1, 2, 3, 4, 5]
    assert events[2].data["ExitType"] == "UnexpectedExit"
    assert "on purpose" in vm.death()
    assert service.properties(vm.system_id).exit_type is ExitType.UNEXPECTED
    with pytest.raises(SystemExitedError, match="on purpose"):
        service.modify(vm.system_id, detach_request(0, 0))


def test_an_end_of_the_service_is_an_end_of_its_systems(
    service: HcsComputeService, vm: UtilityVm, library: StandInHcs
) -> None:
    library.disconnect_service()
    assert vm.wait_exit(timeout_s=10)
    assert "vmcompute" in vm.death()


def test_an_end_that_nobody_told_is_seen_by_asking(
    service: HcsComputeService, vm: UtilityVm, library: StandInHcs
) -> None:
    library.systems[vm.system_id].stop("UnexpectedExit", told=False)
    assert service.properties(vm.system_id).state is SystemState.STOPPED
    assert service.events(vm.system_id)[-1].type is EventType.EXITED


def test_a_guest_that_dies_before_it_dials_is_told_at_once(
    service: HcsComputeService, host: WindowsHost, document: ComputeSystem, library: StandInHcs
) -> None:
    library.boots = False

    def die(_: object) -> None:
        next(iter(library.systems.values())).stop("UnexpectedExit")

    library.on_start = die
    with pytest.raises(
        InfrastructureError, match=r"ended before it answered.*never connected.*console"
    ):
        UtilityVm.boot(service, document, timeout_s=120, listen=host.listen)


def test_a_start_that_fails_leaves_nothing(
    service: HcsComputeService, host: WindowsHost, document: ComputeSystem, library: StandInHcs
) -> None:
    refusal = RefusedError(0x80370102, "the hypervisor is not running")
    library.operations.meet("HcsStartComputeSystem", Trouble(refusal))
    with pytest.raises(HcsCallError, match="enable Hyper-V"):
        boot(service, host, document)
    assert library.leaks() == []


def test_an_id_is_given_once(
    service: HcsComputeService, document: ComputeSystem, host: WindowsHost, library: StandInHcs
) -> None:
    service.create("one", document)
    with pytest.raises(ComputeServiceError) as here:
        service.create("one", document)
    assert here.value.hresult == 0x8037010F
    with HcsComputeService(host) as other, pytest.raises(HcsCallError) as there:
        other.create("one", document)
    assert there.value.hresult == 0x8037010F
    assert library.grants, "the grants are those of the system that has the id"
    service.start("one")


def test_what_never_ran_is_terminated_and_closed(
    service: HcsComputeService, document: ComputeSystem
) -> None:
    service.create("s", document)
    service.terminate("s")
    assert service.properties("s").state is SystemState.STOPPED
    service.terminate("s")
    with pytest.raises(SystemExitedError):
        service.start("s")
    service.close("s")
    with pytest.raises(SystemNotFoundError):
        service.close("s")


def test_a_system_that_does_not_end_stays_known_and_can_be_closed_again(
    service: HcsComputeService, host: WindowsHost, document: ComputeSystem, library: StandInHcs
) -> None:
    service.create("s", document)
    service.start("s")
    held = threading.Event()
    library.operations.meet("HcsTerminateComputeSystem", Trouble(wait=held))
    with pytest.raises(ComputeTimeoutError):
        service.terminate("s", timeout_s=0.05)
    assert service.properties("s").state is SystemState.RUNNING
    held.set()
    service.close("s")
    assert library.leaks() == []


def test_nobody_is_inside_of_a_call_when_the_handle_is_closed(
    service: HcsComputeService,
    host: WindowsHost,
    document: ComputeSystem,
    library: StandInHcs,
    disk: str,
) -> None:
    vm = boot(service, host, document)
    held = threading.Event()
    library.operations.meet("HcsModifyComputeSystem", Trouble(wait=held))
    failures: list[BaseException] = []

    def attach() -> None:
        try:
            service.modify(vm.system_id, attach_request(0, 0, disk))
        except ComputeServiceError as error:
            failures.append(error)

    attaching = threading.Thread(target=attach)
    attaching.start()
    while "HcsModifyComputeSystem" not in library.calls:
        threading.Event().wait(0.005)
    closing = threading.Thread(target=vm.close)
    closing.start()
    while library.systems[vm.system_id].state != "Stopped":
        threading.Event().wait(0.005)
    held.set()
    attaching.join(10)
    closing.join(10)
    assert [type(each) for each in failures] == [SystemExitedError]
    assert library.leaks() == []  # a handle closed under a call would be among the mistakes


def test_events_wake_when_the_system_is_closed(
    service: HcsComputeService, document: ComputeSystem
) -> None:
    service.create("s", document)
    woken: list[BaseException] = []

    def wait() -> None:
        try:
            while True:
                service.events("s", after=10, timeout_s=60)
        except SystemNotFoundError as error:
            woken.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    service.close("s")
    waiting.join(10)
    assert len(woken) == 1


def test_a_port_is_the_service_guid_of_the_machine_and_listened_on_once(
    service: HcsComputeService, document: ComputeSystem
) -> None:
    runtime_id = service.create("s", document).runtime_id
    endpoint = service.listen("s", BRIDGE_PORT)
    assert endpoint == StreamEndpoint(
        "hvsock", f"{runtime_id}:40000000-facb-11e6-bd58-64006a7986d3"
    )
    with pytest.raises(ComputeServiceError, match="0x40000000 is listened on already"):
        service.listen("s", BRIDGE_PORT)
    service.unlisten("s", BRIDGE_PORT)
    service.unlisten("s", 77)
    service.listen("s", BRIDGE_PORT)


def test_leftovers_are_found_by_their_owners_tag_and_removed(
    service: HcsComputeService, host: WindowsHost, document: ComputeSystem, library: StandInHcs
) -> None:
    stays = replace(document, should_terminate_on_last_handle_closed=False)
    dead = HcsApi(host.api._core)
    for name, owner in (("left", "lcowlab:crashed"), ("theirs", "containerd-shim")):
        kernel, initrd = for_hcs(name, stays).boot_files
        library.grants |= {(name, kernel), (name, initrd)}
        handle = dead.create(name, replace(stays, owner=owner).to_json(), timeout_s=10)
        dead.start(handle, timeout_s=10)
        dead.close(handle)  # as if its process had died
    library.grants.clear()
    service.create("ours", document)
    (found,) = service.leftovers("lcowlab")
    assert (found.id, found.owner, found.state) == (
        "left",
        "lcowlab:crashed",
        SystemState.RUNNING,
    )
    service.remove_leftover("left")
    assert service.leftovers("lcowlab") == []
    with pytest.raises(SystemNotFoundError):
        service.remove_leftover("left")
    service.remove_leftover("theirs")


def test_a_closed_system_that_hcs_still_has_is_a_leak(
    service: HcsComputeService, document: ComputeSystem, library: StandInHcs, host: WindowsHost
) -> None:
    service.create("s", document)
    keeper = host.api.open("s")  # somebody else's handle: the system outlives ours
    service.close("s")
    (left,) = service.enumerate()
    assert (left.id, left.state) == ("s", SystemState.STOPPED)
    host.api.close(keeper)
    assert service.enumerate() == []


def test_a_closed_service_makes_nothing(host: WindowsHost, document: ComputeSystem) -> None:
    service = HcsComputeService(host)
    assert (service.name, service.schema_versions()) == ("hcs", ("2.1", "2.5"))
    service.prepare()
    service.create("s", document)
    service.close_all()
    service.close_all()
    with pytest.raises(UsageError):
        service.create("s", document)


def test_what_is_made_while_the_service_closes_is_closed_too(
    host: WindowsHost, document: ComputeSystem, library: StandInHcs
) -> None:
    service = HcsComputeService(host)
    held = threading.Event()
    library.operations.meet("HcsCreateComputeSystem", Trouble(wait=held))
    with ThreadPoolExecutor() as pool:
        making = pool.submit(service.create, "s", document)
        while "HcsCreateComputeSystem" not in library.calls:
            threading.Event().wait(0.005)
        service.close_all()
        held.set()
        with pytest.raises(UsageError, match="closed meanwhile"):
            making.result(10)
    assert library.systems == {}
    assert library.leaks() == []


def test_machines_that_come_change_and_go_at_once_leave_nothing(
    service: HcsComputeService,
    document: ComputeSystem,
    library: StandInHcs,
    tmp_path: Path,
) -> None:
    """Requests, deaths and closes from many threads: each refusal is one of the documented ones."""
    template = ScratchTemplate.build(GIB)
    unexpected: list[BaseException] = []

    def live(name: str) -> None:
        disk = tmp_path / f"{name}.vhdx"
        template.write(disk)
        try:
            for turn in range(4):
                service.create(name, document)
                service.start(name)
                helpers = [
                    threading.Thread(target=play, args=(name, str(disk), turn)) for _ in range(2)
                ]
                for helper in helpers:
                    helper.start()
                if turn % 2:
                    library.systems[name].stop("UnexpectedExit")
                service.close(name)
                for helper in helpers:
                    helper.join(30)
        except BaseException as error:  # noqa: BLE001 - the boundary of a thread
            unexpected.append(error)

    def play(name: str, disk: str, lun: int) -> None:
        try:
            for _ in range(3):
                service.modify(name, attach_request(0, lun, disk))
                service.properties(name)
                service.modify(name, detach_request(0, lun))
        except (SystemExitedError, SystemNotFoundError):
            pass
        except HcsCallError as error:
            if error.hresult not in (0x800700AA, 0x80070490, 0x80070020):
                unexpected.append(error)
        except BaseException as error:  # noqa: BLE001 - the boundary of a thread
            unexpected.append(error)

    living = [threading.Thread(target=live, args=(f"vm-{number}",)) for number in range(3)]
    for each in living:
        each.start()
    for each in living:
        each.join(60)
    assert unexpected == []
    assert library.leaks() == []
