"""The compute service with a real QEMU and a kernel of a few bytes: no guest agent is needed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import (
    ComputeServiceError,
    LaunchError,
    MissingProgramError,
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
from harness.hcs.service import (
    BRIDGE_PORT,
    ComputeService,
    EventType,
    ExitType,
    SystemEvent,
    SystemState,
)
from harness.hcs.streams import open_listener
from harness.qemu.service import QemuComputeService
from tests.harness.qemu.tinykernel import Action, write_kernel

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None,
        reason="qemu-system-x86_64 is not installed (apt install qemu-system-x86)",
    ),
]


@pytest.fixture
def service() -> Iterator[QemuComputeService]:
    with QemuComputeService(accelerator="tcg") as made:
        yield made


@pytest.fixture
def idle(tmp_path: Path) -> ComputeSystem:
    return document(tmp_path, Action.HALT)


def document(
    folder: Path, action: Action, *, message: str = "up\n", **disks: Attachment
) -> ComputeSystem:
    (folder / "initrd").write_bytes(bytes(512))
    return lcow_document(
        owner="tests",
        kernel=str(write_kernel(folder / action.name, message, action)),
        initrd=str(folder / "initrd"),
        memory_mb=256,
        processors=1,
        serial_pipe="console",
        attachments={(0, index): disk for index, disk in enumerate(disks.values())},
    )


def vhdx(path: Path) -> str:
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", path, "64M"], check=True)
    return str(path)


def wait_for(service: ComputeService, system: str, kind: EventType) -> SystemEvent:
    after = 0
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for event in service.events(system, after=after, timeout_s=1.0):
            if event.type is kind:
                return event
            after = event.sequence
    raise AssertionError(f"no {kind}: {service.console(system)}")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_a_guest_that_powers_off_ends_gracefully(
    service: QemuComputeService, tmp_path: Path
) -> None:
    made = service.create("s", document(tmp_path, Action.POWER_OFF))
    assert made.state is SystemState.CREATED
    service.start("s")
    event = wait_for(service, "s", EventType.EXITED)
    assert event.data["ExitType"] == ExitType.GRACEFUL
    assert service.properties("s").state is SystemState.STOPPED
    assert service.console("s") == "up\n"


def test_a_guest_that_resets_ends_unexpectedly(service: QemuComputeService, tmp_path: Path) -> None:
    service.create("s", document(tmp_path, Action.RESET))
    service.start("s")
    event = wait_for(service, "s", EventType.EXITED)
    assert event.data["ExitType"] == ExitType.UNEXPECTED
    assert "reset" in event.data["Reason"]


def test_a_kernel_panic_is_reported_as_a_crash(service: QemuComputeService, tmp_path: Path) -> None:
    panic = "Kernel panic - not syncing: Attempted to kill init!"
    service.create("s", document(tmp_path, Action.RESET, message=panic + "\n"))
    service.start("s")
    assert wait_for(service, "s", EventType.CRASHED).data["Message"] == panic
    assert wait_for(service, "s", EventType.EXITED).data["Reason"] == panic


def test_a_killed_qemu_is_an_event_and_the_end_of_every_stream(
    service: QemuComputeService, idle: ComputeSystem
) -> None:
    pid = service.create("s", idle).details["pid"]
    with (
        open_listener(service.listen("s", BRIDGE_PORT)).accept(5) as bridge,
        open_listener(service.listen("s", 109)).accept(5) as log,
    ):
        service.start("s")
        os.kill(pid, signal.SIGKILL)
        bridge.settimeout(5)
        log.settimeout(5)
        assert bridge.recv(1) == b""
        assert log.recv(1) == b""
    event = wait_for(service, "s", EventType.EXITED)
    assert event.data["ExitType"] == ExitType.UNEXPECTED
    assert "SIGKILL" in event.data["Reason"]
    assert service.properties("s").disks == ()
    with pytest.raises(SystemExitedError, match="SIGKILL"):
        service.modify("s", detach_request(0, 0))
    with pytest.raises(SystemExitedError):
        service.listen("s", 110)


def test_terminating_is_a_forced_exit_and_may_be_repeated(
    service: QemuComputeService, idle: ComputeSystem
) -> None:
    pid = service.create("s", idle).details["pid"]
    service.start("s")
    service.terminate("s")
    assert not alive(pid)
    service.terminate("s")
    assert service.properties("s").exit_type is ExitType.FORCED
    types = [event.type for event in service.events("s")]
    assert types == [EventType.STARTED, EventType.EXITED]


def test_nothing_is_left_of_a_closed_service(tmp_path: Path) -> None:
    # Others in this process (a lab of the session) may have one of their own.
    before = [thread.name for thread in threading.enumerate()].count("lcowlab-qemu")
    with QemuComputeService(accelerator="tcg") as service:
        pids = [
            service.create(name, document(tmp_path, Action.HALT)).details["pid"] for name in "ab"
        ]
        address = Path(service.listen("a", BRIDGE_PORT).address)
        assert address.parent.stat().st_mode & 0o777 == 0o700
        service.start("a")
    assert not any(alive(pid) for pid in pids)
    assert not address.parent.parent.exists()
    after = [thread.name for thread in threading.enumerate()].count("lcowlab-qemu")
    assert after == before
    with pytest.raises(UsageError):
        service.create("c", document(tmp_path, Action.HALT))


def test_disks_of_the_document_are_attached_when_it_is_created(
    service: QemuComputeService, tmp_path: Path
) -> None:
    layer = Attachment(AttachmentType.VIRTUAL_DISK, vhdx(tmp_path / "a.vhdx"), read_only=True)
    made = service.create("s", document(tmp_path, Action.HALT, layer=layer))
    assert [(d.controller, d.lun, d.read_only) for d in made.disks] == [(0, 0, True)]
    service.start("s")
    service.modify("s", detach_request(0, 0))
    assert service.properties("s").disks == ()


def test_a_document_with_a_disk_that_is_missing_leaves_nothing(
    service: QemuComputeService, tmp_path: Path
) -> None:
    layer = Attachment(AttachmentType.VIRTUAL_DISK, str(tmp_path / "none.vhdx"))
    with pytest.raises(ComputeServiceError, match=r"none\.vhdx"):
        service.create("s", document(tmp_path, Action.HALT, layer=layer))
    assert service.enumerate() == []
    with pytest.raises(SystemNotFoundError):
        service.events("s")


def test_disks_come_and_go_in_any_slot_of_a_running_machine(
    service: QemuComputeService, idle: ComputeSystem, tmp_path: Path
) -> None:
    service.create("s", idle)
    service.start("s")
    slots = [(0, 0), (1, 31), (2, 5), (3, 63)]
    files = [vhdx(tmp_path / f"{index}.vhdx") for index in range(len(slots))]
    durations = []
    for step in (1, len(slots)):
        service.modify_batch(
            "s", [attach_request(*slot, file) for slot, file in zip(slots, files, strict=True)]
        )
        held = service.properties("s").disks
        assert [((d.controller, d.lun), d.path) for d in held] == list(
            zip(slots, files, strict=True)
        )
        started = time.monotonic()
        for first in range(0, len(slots), step):
            service.modify_batch("s", [detach_request(*s) for s in slots[first : first + step]])
        durations.append(time.monotonic() - started)
        assert service.properties("s").disks == ()
    # QEMU takes 51 ms for a detachment, and as long for several that are waited for together.
    in_turn, together = durations
    assert together < in_turn * 0.7
    service.terminate("s")
    for file in files:
        subprocess.run(["qemu-img", "check", "-q", file], check=True)


def test_a_layer_in_a_fixed_vhd_is_shared_read_only_by_two_machines(
    service: QemuComputeService, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(2 << 20))
    layer = tmp_path / "layer.vhd"
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o"]
    subprocess.run([*convert, "subformat=fixed,force_size=on", raw, layer], check=True)
    for name in "ab":
        service.create(name, document(tmp_path, Action.HALT))
        service.modify(name, attach_request(1, 1, str(layer), read_only=True))
    assert all(len(item.disks) == 1 for item in service.enumerate(owner="tests"))
    assert service.enumerate(owner="someone else") == []


def test_a_writable_disk_belongs_to_one_machine(
    service: QemuComputeService, tmp_path: Path
) -> None:
    scratch = vhdx(tmp_path / "scratch.vhdx")
    for name in "ab":
        service.create(name, document(tmp_path, Action.HALT))
    service.modify("a", attach_request(0, 0, scratch))
    refused = [("a", 1, False), ("b", 0, False), ("b", 0, True)]
    for name, lun, read_only in refused:
        with pytest.raises(ComputeServiceError, match=r"scratch\.vhdx") as caught:
            service.modify(name, attach_request(0, lun, scratch, read_only=read_only))
        assert caught.value.hresult == 0x80070020
    service.modify("a", detach_request(0, 0))
    service.modify("b", attach_request(0, 0, scratch))  # no refusal left anything behind


def test_slots_that_are_taken_or_empty_are_told_apart(
    service: QemuComputeService, idle: ComputeSystem, tmp_path: Path
) -> None:
    service.create("s", idle)
    first, second = vhdx(tmp_path / "1.vhdx"), vhdx(tmp_path / "2.vhdx")
    service.modify("s", attach_request(0, 0, first))
    with pytest.raises(ComputeServiceError, match="taken") as caught:
        service.modify("s", attach_request(0, 0, second))
    assert caught.value.hresult == 0x800700B7
    with pytest.raises(ComputeServiceError, match="empty") as caught:
        service.modify("s", detach_request(0, 1))
    assert caught.value.hresult == 0x80070490


def test_a_batch_stops_at_a_failure_after_what_came_before_it(
    service: QemuComputeService, idle: ComputeSystem, tmp_path: Path
) -> None:
    service.create("s", idle)
    service.modify("s", attach_request(0, 0, vhdx(tmp_path / "1.vhdx")))
    late = attach_request(0, 3, vhdx(tmp_path / "2.vhdx"))
    with pytest.raises(ComputeServiceError, match="0:1 is empty"):
        service.modify_batch("s", [detach_request(0, 0), detach_request(0, 1), late])
    assert service.properties("s").disks == ()


def test_threads_change_different_slots_at_once(
    service: QemuComputeService, idle: ComputeSystem, tmp_path: Path
) -> None:
    service.create("s", idle)
    service.start("s")
    files = [vhdx(tmp_path / f"{n}.vhdx") for n in range(4)]
    failures: list[Exception] = []

    def churn(controller: int) -> None:
        try:
            for lun in range(5):
                service.modify("s", attach_request(controller, lun, files[controller]))
                service.modify("s", detach_request(controller, lun))
        except ComputeServiceError as error:
            failures.append(error)

    threads = [threading.Thread(target=churn, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert service.properties("s").disks == ()


def test_a_kernel_that_is_none_is_a_launch_error_with_the_command(
    service: QemuComputeService, tmp_path: Path
) -> None:
    (tmp_path / "kernel").write_bytes(b"not a kernel" * 1000)
    (tmp_path / "initrd").write_bytes(bytes(512))
    bad = lcow_document(owner="t", kernel=str(tmp_path / "kernel"), initrd=str(tmp_path / "initrd"))
    with pytest.raises(LaunchError, match="kernel") as caught:
        service.create("s", bad)
    assert str(tmp_path / "kernel") in caught.value.command
    assert caught.value.exit_code == 1
    assert caught.value.output
    assert service.enumerate() == []


def test_a_program_that_is_not_installed_is_named_with_its_package(tmp_path: Path) -> None:
    with (
        QemuComputeService(program="qemu-system-none") as service,
        pytest.raises(MissingProgramError, match="apt install qemu-system-x86"),
    ):
        service.create("s", document(tmp_path, Action.HALT))


def test_ids_are_used_once_and_unknown_ones_are_not_found(
    service: QemuComputeService, idle: ComputeSystem
) -> None:
    service.create("s", idle)
    with pytest.raises(ComputeServiceError, match="already") as caught:
        service.create("s", idle)
    assert caught.value.hresult == 0x8037010F
    service.close("s")
    for call in (service.properties, service.start, service.console, service.terminate):
        with pytest.raises(SystemNotFoundError):
            call("s")
    service.create("s", idle)


def test_states_are_kept(service: QemuComputeService, idle: ComputeSystem) -> None:
    service.create("s", idle)
    service.start("s")
    for wrong in (lambda: service.start("s"), lambda: service.listen("s", BRIDGE_PORT)):
        with pytest.raises(ComputeServiceError) as caught:
            wrong()
        assert caught.value.hresult == 0x80370105


def test_qemu_runs_in_its_sandbox(service: QemuComputeService, idle: ComputeSystem) -> None:
    if not service.host_facts().sandbox:
        pytest.skip("this kernel or this QEMU has no seccomp")
    pid = service.create("s", idle).details["pid"]
    assert "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()


def test_properties_tell_what_runs(service: QemuComputeService, idle: ComputeSystem) -> None:
    details = service.create("s", idle).details
    assert details["accelerator"] == "tcg"
    assert details["qemu_version"].split(".")[0].isdecimal()
    assert details["argv"][0].endswith("qemu-system-x86_64")
    assert {item["treatment"] for item in details["parity"]} == {"different"}


CONTROLLER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from harness.hcs.document import ComputeSystem
    from harness.qemu.service import QemuComputeService
    from tests.integration.test_qemu_service import document
    from tests.harness.qemu.tinykernel import Action

    service = QemuComputeService(accelerator="tcg")
    made = [service.create(n, document(Path(sys.argv[1]), Action.HALT)) for n in "ab"]
    service.start("a")
    print(*(item.details["pid"] for item in made), flush=True)
    time.sleep(60)
    """
)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_machine_outlives_a_controller_that_is_killed(
    tmp_path: Path, end: signal.Signals
) -> None:
    with tempfile.TemporaryDirectory() as short:
        controller = subprocess.Popen(
            [sys.executable, "-c", CONTROLLER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_RUNTIME_DIR": short},
        )
        with controller, controller.stdout or open(os.devnull) as output:
            pids = [int(word) for word in output.readline().split()]
            assert len(pids) == 2
            assert all(alive(pid) for pid in pids)
            controller.send_signal(end)
            controller.wait(5)
        assert all(gone_within(pid, 5.0) for pid in pids)


def test_the_sockets_of_a_killed_controller_are_swept_by_the_next_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as short:  # tmp_path is too long for sockets
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        dead = Path(short, "lcowlab-qemu-dead")
        (dead / "1").mkdir(parents=True)
        with QemuComputeService(accelerator="tcg") as one:
            one.create("s", document(tmp_path, Action.HALT))
            assert not dead.exists()
            with QemuComputeService(accelerator="tcg") as two:
                two.create("s", document(tmp_path, Action.HALT))
                assert len(os.listdir(short)) == 2
        assert os.listdir(short) == []
