"""A real utility VM: processes, containers, and what bad situations get."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.containers import Container, ContainerConfig
from harness.errors import (
    BridgeClosedError,
    GuestError,
    HarnessError,
    InfrastructureError,
    SystemExitedError,
)
from harness.hcs.document import lcow_document
from harness.hcs.service import SystemState
from harness.image.demo import DEMO_MOTD
from harness.lab import Lab
from harness.scsi import MountConfig
from harness.uvm import UtilityVm

SLEEP = ("/bin/sleep", "3600")


def test_a_process_gives_back_output_error_output_and_code(uvm: UtilityVm) -> None:
    done = uvm.processes.start(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"]).wait()
    assert (done.exit_code, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_standard_input_reaches_the_process_whole(uvm: UtilityVm) -> None:
    data = bytes(range(256)) * 4096
    process = uvm.processes.start(["/bin/sha256sum"], with_stdin=True)
    process.write_stdin(data)
    process.close_stdin()
    assert process.wait().text.split()[0] == hashlib.sha256(data).hexdigest()


def test_a_program_that_does_not_exist_is_a_guest_error_naming_it(uvm: UtilityVm) -> None:
    with pytest.raises(GuestError, match="no-such-program"):
        uvm.processes.start(["/no-such-program"])


def test_a_killed_process_reports_128_and_the_signal(uvm: UtilityVm) -> None:
    process = uvm.processes.start(SLEEP)
    process.signal(15)
    assert process.wait().exit_code == 128 + 15


def test_the_guest_negotiated_protocol_4_and_is_linux(uvm: UtilityVm) -> None:
    assert uvm.guest.capabilities.runtime_os == "Linux"


def test_a_scratch_disk_is_attached_mounted_written_and_gone_again(
    uvm: UtilityVm, scratch: Path
) -> None:
    config = MountConfig(ensure_filesystem=True, filesystem="ext4")
    with uvm.scsi.acquire(scratch, read_only=False, mount=config, holder="test") as held:
        command = f"echo hello > {held.guest_path}/file && cat {held.guest_path}/file"
        assert uvm.processes.start(["/bin/sh", "-c", command]).wait().text == "hello"
    assert uvm.service.properties(uvm.system_id).disks == ()
    assert uvm.scsi.snapshot().attachments == ()


def test_a_command_missing_in_the_container_leaves_nothing_behind(uvm: UtilityVm, lab: Lab) -> None:
    image = lab.demo_image()
    mounts = lab.snapshotter.prepare("missing-command", image.top)
    try:
        with pytest.raises(GuestError, match="no-such-command"):
            Container.start(
                uvm,
                "missing-command",
                mounts=mounts,
                config=ContainerConfig(args=("/bin/no-such-command",)),
            )
        assert uvm.service.properties(uvm.system_id).disks == ()
        again = Container.start(
            uvm, "missing-command", mounts=mounts, config=ContainerConfig(args=SLEEP)
        )
        with again:
            with pytest.raises(GuestError, match="no-such-command"):
                again.run(["/bin/no-such-command"])
            assert again.run(["/bin/echo", "still here"]).text == "still here"
        assert uvm.service.properties(uvm.system_id).disks == ()
    finally:
        lab.snapshotter.remove("missing-command")


def test_a_release_after_a_release_does_nothing(uvm: UtilityVm, lab: Lab) -> None:
    mounts = lab.snapshotter.prepare("released-twice", lab.demo_image().top)
    try:
        container = Container.start(
            uvm, "released-twice", mounts=mounts, config=ContainerConfig(args=SLEEP)
        )
        container.release()
        container.release()
    finally:
        lab.snapshotter.remove("released-twice")


def test_the_image_runs_as_its_layers_say(uvm: UtilityVm, lab: Lab) -> None:
    """Whiteout, opaque directory, hard link, xattr and device of the demo image, by overlayfs."""
    mounts = lab.snapshotter.prepare("layers", lab.demo_image().top)
    try:
        with Container.start(
            uvm, "layers", mounts=mounts, config=ContainerConfig(args=SLEEP)
        ) as container:

            def output(*args: str) -> str:
                return container.run(args).stdout.decode()

            assert output("/bin/cat", "/etc/motd") == DEMO_MOTD
            assert "removed.conf" not in output("/bin/ls", "/etc")
            assert output("/bin/ls", "/opt/data").split() == ["new"]
            hard = output("/bin/stat", "-c", "%i %h", "/opt/special/original")
            assert output("/bin/stat", "-c", "%i %h", "/opt/special/linked") == hard
            assert hard.split()[1] == "2"
            assert ".wh." not in output("/bin/ls", "-aR", "/etc", "/opt")
            devices = output("/bin/ls", "-lR", "/opt/special")
            assert re.search(r"^crw-rw-rw-", devices, re.MULTILINE), devices
    finally:
        lab.snapshotter.remove("layers")


def test_a_machine_that_dies_in_the_middle_ends_every_call_with_an_error(
    make_uvm: Callable[[], UtilityVm], scratch: Path
) -> None:
    vm = make_uvm()
    held = vm.scsi.acquire(
        scratch, read_only=False, mount=MountConfig(), guest_path="/run/s", holder="test"
    )
    process = vm.processes.start(SLEEP)
    vm.kill()
    began = time.monotonic()
    with pytest.raises((BridgeClosedError, GuestError)):
        process.wait(timeout_s=30)
    with pytest.raises(HarnessError):
        vm.processes.start(["/bin/true"])
    with pytest.raises(SystemExitedError):
        vm.service.start(vm.system_id)
    assert time.monotonic() - began < 10
    held.release()
    assert vm.service.properties(vm.system_id).state is SystemState.STOPPED
    vm.close()
    assert vm.system_id not in [each.id for each in vm.service.enumerate()]


def test_a_guest_that_cannot_start_its_agent_is_reported_with_its_console(
    lab: Lab, tmp_path: Path
) -> None:
    empty = tmp_path / "initrd"
    empty.write_bytes(b"\0" * 512)
    document = lcow_document(
        owner="test",
        kernel=str(lab.image.vmlinux),
        initrd=str(empty),
        memory_mb=256,
        serial_pipe="console",
    )
    before = [each.id for each in lab.service.enumerate()]
    with pytest.raises(InfrastructureError, match="console ends"):
        UtilityVm.boot(lab.service, document, timeout_s=30)
    assert [each.id for each in lab.service.enumerate()] == before
