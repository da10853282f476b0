"""The agent as PID 1 of a real utility VM on QEMU: real mounts, real crun, a real kernel.

Oracles: the guest's own kernel and busybox, e2fsck and debugfs on the host afterwards.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import BridgeClosedError, GuestError
from harness.gcs.prot import CombinedLayers, HResult, Layer, MappedVirtualDisk
from harness.hcs.document import attach_request, lcow_document
from harness.hcs.service import ExitType
from harness.image.build import ensure_image
from harness.qemu.service import QemuComputeService
from harness.scsi import MountConfig
from harness.uvm import UtilityVm
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None,
        reason="qemu-system-x86_64 is not installed (apt install qemu-system-x86)",
    ),
    pytest.mark.skipif(
        shutil.which("mkfs.ext4") is None, reason="mkfs.ext4 is not installed (e2fsprogs)"
    ),
]

LAYER = MappedVirtualDisk(mount_path="/run/mounts/scsi/m0", lun=0, read_only=True)
SCRATCH = MappedVirtualDisk(
    mount_path="/run/gcs/c/pod", controller=1, lun=5, ensure_filesystem=True, filesystem="ext4"
)


@pytest.fixture(scope="module")
def service() -> Iterator[QemuComputeService]:
    with QemuComputeService() as made:
        yield made


def boot(service: QemuComputeService, *init_options: str) -> UtilityVm:
    image = ensure_image()
    document = lcow_document(
        owner="guest-tests",
        kernel=str(image.vmlinux),
        initrd=str(image.initrd),
        memory_mb=512,
        processors=1,
        serial_pipe="console",
        init_options=init_options,
    )
    return UtilityVm.boot(service, document, timeout_s=90)


@pytest.fixture(scope="module")
def vm(
    service: QemuComputeService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UtilityVm]:
    """A utility VM with a layer (busybox) mounted and an empty scratch, formatted by the guest."""
    folder = tmp_path_factory.mktemp("disks")
    layer, scratch = folder / "layer.vhdx", folder / "scratch.vhdx"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", scratch, "300M"], check=True)
    with boot(service) as machine:
        busybox = machine.processes.start(["cat", "/bin/busybox"]).wait().stdout
        make_layer(folder, layer, busybox)
        service.modify_batch(
            machine.system_id,
            [
                attach_request(0, 0, str(layer), read_only=True),
                attach_request(1, 5, str(scratch)),
            ],
        )
        machine.guest.mount_disk(LAYER)
        machine.guest.mount_disk(SCRATCH)
        yield machine
        machine.guest.unmount_disk(LAYER)
        machine.guest.unmount_disk(SCRATCH)
        machine.guest.eject_disk(controller=1, lun=5)
    check_scratch(folder, scratch)


def make_layer(folder: Path, layer: Path, busybox: bytes) -> None:
    """Make a layer's disk with the guest's own busybox in it."""
    root, raw = folder / "root", folder / "layer.raw"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "release").write_text("from the layer\n")
    (root / "bin").mkdir()
    (root / "bin" / "busybox").write_bytes(busybox)
    (root / "bin" / "busybox").chmod(0o755)
    for name in ("sh", "cat", "echo", "ls", "id", "sleep", "touch", "df", "stty", "tty"):
        (root / "bin" / name).symlink_to("busybox")
    subprocess.run(["truncate", "-s", "16M", raw], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", root, raw], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "vhdx", raw, layer], check=True)


def check_scratch(folder: Path, scratch: Path) -> None:
    raw = folder / "scratch.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", scratch, raw], check=True)
    subprocess.run(["e2fsck", "-fn", raw], check=True, capture_output=True)
    listing = subprocess.run(
        ["debugfs", "-R", "ls -p /scratch", raw], check=True, capture_output=True, text=True
    ).stdout
    names = [line.split("/")[5] for line in listing.splitlines() if line.startswith("/")]
    # Tests that ran elsewhere made none, and no /scratch either.
    assert set(names) <= {".", ".."}, "a container's directory was left on the scratch"


def layers(container: str) -> CombinedLayers:
    return CombinedLayers(
        container_id=container,
        container_root_path=f"/run/gcs/c/{container}/rootfs",
        layers=(Layer(path=LAYER.mount_path),),
        scratch_path=f"/run/gcs/c/pod/scratch/{container}",
    )


def create(vm: UtilityVm, container: str, *args: str, terminal: bool = False) -> None:
    vm.guest.add_combined_layers(layers(container))
    vm.guest.create_container(
        container,
        {"process": {"args": list(args), "terminal": terminal}},
        bundle=f"/run/gcs/c/{container}",
        scratch_dir=f"/run/gcs/c/pod/scratch/{container}",
    )


def delete(vm: UtilityVm, container: str) -> None:
    vm.guest.remove_combined_layers(layers(container))
    vm.guest.delete_container_state(container)


def test_a_process_of_the_utility_vm_gives_output_and_exit_code(vm: UtilityVm) -> None:
    done = vm.processes.start(["sh", "-c", "echo out; echo err >&2; exit 3"]).wait()
    assert (done.exit_code, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_the_root_is_one_that_can_be_pivoted_away_from(vm: UtilityVm) -> None:
    mounts = vm.processes.start(["cat", "/proc/self/mountinfo"]).wait().text.splitlines()
    root = next(line.split() for line in mounts if line.split()[4] == "/")
    parents = {line.split()[0] for line in mounts}
    assert root[1] not in parents, "the root's parent is outside, which pivot_root needs"
    points = [line.split()[4] for line in mounts]
    for point in ("/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp"):
        assert points.count(point) == 1, point
    assert "/sys/fs/cgroup" in points


def test_loopback_is_up(vm: UtilityVm) -> None:
    assert int(vm.processes.start(["cat", "/sys/class/net/lo/flags"]).wait().text, 16) & 1


def test_containers_share_a_scratch_and_not_their_files(vm: UtilityVm) -> None:
    for name in ("c1", "c2"):
        create(vm, name, "sh", "-c", f"cat /etc/release; echo {name} > /mark; ls /; exit 5")
        done = vm.processes.start(container_id=name).wait()
        assert done.exit_code == 5
        assert done.text.splitlines()[0] == "from the layer"
        assert vm.guest.wait_container_exit(name, timeout_s=5).container_id == name
        marks = vm.processes.start(["cat", f"/run/gcs/c/{name}/rootfs/mark"]).wait()
        assert marks.text == name
    with pytest.raises(GuestError) as info:
        vm.guest.unmount_disk(SCRATCH)
    assert info.value.hresult == HResult.INVALID_STATE
    delete(vm, "c1")
    delete(vm, "c2")
    left = vm.processes.start(["ls", "-A", "/run/gcs/c", "/run/gcs/c/pod/scratch", "/run/crun"])
    assert left.wait().text.split() == [
        "/run/crun:", "/run/gcs/c:", "pod", "/run/gcs/c/pod/scratch:"
    ]  # fmt: skip


def test_more_processes_run_in_a_container_and_are_listed_and_killed(vm: UtilityVm) -> None:
    create(vm, "c3", "sleep", "1000")
    init = vm.processes.start(container_id="c3")
    try:
        more = vm.processes.start(
            container_id="c3",
            oci_process={"args": ["sh", "-c", "cat; echo $A; id -u; exit 9"], "env": ["A=b"]},
            with_stdin=True,
        )
        more.write_stdin(b"typed\n")
        more.close_stdin()
        done = more.wait()
        assert (done.exit_code, done.text) == (9, "typed\nb\n0")
        properties = vm.guest.get_properties("c3", types=("ProcessList", "Statistics"))
        assert [entry.process_id for entry in properties.process_list] == [init.process_id]
        assert properties.statistics is not None
        with pytest.raises(GuestError, match="executable file `/no/such` not found"):
            vm.guest.execute_process("c3", args=["/no/such"])
    finally:
        vm.guest.shutdown_container("c3", force=True)
        assert vm.guest.wait_container_exit("c3", timeout_s=5).type == "ForcedExit"
        assert init.wait().exit_code == 137
        delete(vm, "c3")


def test_an_init_that_does_not_exist_is_cruns_error_at_once(vm: UtilityVm) -> None:
    create(vm, "c4", "/no/such")
    began = time.monotonic()
    with pytest.raises(GuestError, match="executable file `/no/such` not found"):
        vm.guest.execute_process("c4")
    assert time.monotonic() - began < 10
    delete(vm, "c4")


def test_a_terminal_in_a_container_is_its_controlling_one(vm: UtilityVm) -> None:
    create(
        vm, "c5", "sh", "-c", "read x; stty size; tty; sleep 0.1 < /dev/tty; exit 4", terminal=True
    )
    shell = vm.processes.start(container_id="c5", with_stdin=True)
    vm.guest.resize_console("c5", shell.process_id, height=33, width=121)
    shell.write_stdin(b"go\n")
    done = shell.wait()
    assert done.exit_code == 4
    assert "33 121\r\n/dev/" in done.stdout.decode()
    delete(vm, "c5")


def test_limits_hold_and_running_out_of_memory_is_reported(vm: UtilityVm) -> None:
    limits = {"memory": {"limit": 16 << 20, "swap": 16 << 20}, "pids": {"limit": 20}}
    vm.guest.add_combined_layers(layers("c6"))
    script = (
        "cat /proc/self/cgroup >&2; read x; dd if=/dev/zero of=/dev/null bs=64M count=1; sleep 0"
    )
    vm.guest.create_container(
        "c6",
        {"process": {"args": ["sh", "-c", script]}, "linux": {"resources": limits}},
        bundle="/run/gcs/c/c6",
        scratch_dir="/run/gcs/c/pod/scratch/c6",
    )
    init = vm.processes.start(container_id="c6", with_stdin=True)
    (group,) = (
        vm.processes.start(["find", "/sys/fs/cgroup", "-name", "c6"]).wait().text.splitlines()
    )
    found = vm.processes.start(["cat", f"{group}/memory.max", f"{group}/pids.max"]).wait().text
    assert found.split() == [str(16 << 20), "20"]
    statistics = vm.guest.get_properties("c6", types=["Statistics"]).statistics
    assert statistics is not None
    assert statistics["memory_oom_control"] == {"oom_kill": 0}
    assert 0 < statistics["memory"]["usage"]["usage"] <= 16 << 20
    init.write_stdin(b"go\n")
    init.wait()
    told = vm.guest.wait_container_exit("c6", timeout_s=20)
    assert json.loads(told.result_info)["OutOfMemoryKills"] >= 1
    deadline = time.monotonic() + 20  # the log has a way of its own
    while not any("ran out of memory" in line for line in vm.log.messages()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    delete(vm, "c6")


def test_a_device_link_leads_to_the_disk(vm: UtilityVm) -> None:
    link = MappedVirtualDisk(mount_path="/run/mounts/device", lun=0, block_dev=True)
    vm.guest.mount_disk(link)
    done = vm.processes.start(
        ["sh", "-c", "dd if=/run/mounts/device bs=1 skip=1080 count=2"]
    ).wait()
    assert done.stdout == b"\x53\xef", "the layer's ext4"
    vm.guest.unmount_disk(link)
    assert vm.processes.start(["ls", "/run/mounts/device"]).wait().exit_code != 0


def test_output_is_whole_under_back_pressure(vm: UtilityVm) -> None:
    done = vm.processes.start(["sh", "-c", "head -c 3000000 /dev/zero"]).wait()
    assert done.stdout == bytes(3_000_000)


def test_a_disk_that_is_not_attached_is_an_error_in_bounded_time(vm: UtilityVm) -> None:
    began = time.monotonic()
    with pytest.raises(GuestError, match="is it attached") as info:
        vm.guest.mount_disk(MappedVirtualDisk(mount_path="/run/mounts/x", lun=60))
    assert info.value.hresult == HResult.NOT_FOUND
    assert time.monotonic() - began < 10


def test_slots_given_back_together_get_other_disks_whose_own_content_is_seen(
    service: QemuComputeService, tmp_path: Path
) -> None:
    template = ScratchTemplate.build(GIB)
    disks = [tmp_path / f"{number}.vhdx" for number in range(6)]
    for disk in disks:
        template.write(disk)
    mount = MountConfig()
    with boot(service) as vm:
        for turn in range(2):
            # The other way round each time: nearly every slot gets another disk than before.
            disks.reverse()
            shares = [vm.scsi.acquire(disk, holder="test", mount=mount) for disk in disks]
            for disk, share in zip(disks, shares, strict=True):
                name = f"{share.guest_path}/{disk.stem}"
                script = f"touch {name}" if turn == 0 else f"ls {name}"
                assert vm.processes.start(["sh", "-c", script]).wait().exit_code == 0
            vm.scsi.release_all(shares)
        known = vm.processes.start(["ls", "/sys/bus/scsi/devices"]).wait().text.split()
        assert [name for name in known if name.count(":") == 3] == []


def test_a_guest_whose_host_is_gone_powers_off(service: QemuComputeService) -> None:
    with boot(service) as machine:
        machine.guest.execute_process(None, args=["sleep", "1000"])
        machine.guest.close()
        assert machine.wait_exit(timeout_s=30)
        assert machine.service.properties(machine.system_id).exit_type is ExitType.GRACEFUL
        assert "the host is gone, powering off" in machine.console()


def test_a_guest_that_is_to_stay_outlives_its_bridge(service: QemuComputeService) -> None:
    with boot(service, "-s") as machine:
        alive = "while sleep 0.2; do echo still here >/dev/console; done"
        machine.guest.execute_process(None, args=["sh", "-c", alive])
        machine.guest.close()
        deadline = time.monotonic() + 30
        while "still here" not in machine.console().partition("is gone, staying")[2]:
            assert time.monotonic() < deadline, machine.console()
            time.sleep(0.05)
        assert machine.running
        service.terminate(machine.system_id)


def test_an_agent_that_dies_is_reported_and_is_no_kernel_panic(
    service: QemuComputeService,
) -> None:
    with boot(service) as machine:
        agent = machine.processes.start(["sh", "-c", "echo $PPID"]).wait().text
        machine.guest.execute_process(None, args=["sh", "-c", f"sleep 0.2; kill -ABRT {agent}"])
        waiting = machine.guest.execute_process(None, args=["sleep", "1000"])
        with pytest.raises(BridgeClosedError):
            machine.guest.wait_process(None, waiting, timeout_s=20)
        assert machine.wait_exit(timeout_s=20)
        console = machine.console()
    assert "the agent ended: signal 6; powering off" in console
    assert "panic" not in console
