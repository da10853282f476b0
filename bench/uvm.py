"""Utility VMs: copies and boots, pods, detaching, density, the stdio relay, beside their bounds.

Each bound is measured in the same run, in turn with ours: a loaded machine slows both.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.measure import Comparison, Figure
from harness.containers import Container, ContainerConfig, ContainerRootfs, disks_of
from harness.guest.oci import complete_spec
from harness.hcs.document import ComputeSystem, lcow_document
from harness.image.build import UvmImage, ensure_image
from harness.image.cpio import CpioWriter
from harness.lab import Lab, LabConfig
from harness.qemu.clones import MachineMaker, TemplatePolicy
from harness.qemu.loop import IoLoop
from harness.qemu.qmp import QmpCommand
from harness.qemu.service import QemuComputeService
from harness.qemu.supervisor import Supervisor
from harness.sharers import release_sharers, start_sharers
from harness.uvm import UtilityVm
from snapshotter import Mount
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB, MIB

_ROUNDS = 7
_DISKS = 16
_ALIVE = 40
_RELAYED = 64 * MIB  # enough that the start of a process does not count
_PODS = 4
_INIT = ContainerConfig(args=("/bin/true",))
_HELLO = b"hello\n"
# The least that says something through a virtio port: the kernel, a shell, the port's drivers.
_NAIVE_INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
cd /lib/modules/lcowlab
for module in $(/bin/busybox cat qemu.first); do /bin/busybox insmod $module; done
until [ -e /dev/vport1p1 ] || [ -e /dev/vport0p1 ]; do :; done
# A port is shown a moment before it can be opened.
for port in /dev/vport*p1; do until command exec 3<>$port; do :; done 2>/dev/null; done
echo hello >&3
for port in /dev/vport*p2; do until command exec 4<>$port; do :; done 2>/dev/null; done
while read -r size <&3; do /bin/busybox dd if=/dev/zero bs=32k count=$((size / 32768)) >&4; done
"""


def run() -> Iterator[Comparison | Figure]:
    """Yield every result of this family."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        image = ensure_image()
        warm = QemuComputeService(templates=TemplatePolicy(folder / "templates"))
        copies = stack.enter_context(warm)
        cold = stack.enter_context(QemuComputeService())
        ours = _document(image)
        copies.prepare_template(ours)
        loop = IoLoop("bench")
        loop.start()
        stack.callback(loop.stop)
        maker = MachineMaker(cold.host_facts(), loop, Supervisor(loop), policy=None)
        naive = _document(image, initrd=_naive(image, folder))
        yield from _starts(copies, cold, maker, ours, naive)
        yield from _relay(copies, maker, ours, naive)
        yield _detaching(copies, ours, folder)
        yield _density(copies, _document(image, memory_mb=256, processors=1))
    yield from _pod()


def _document(
    image: UvmImage, *, initrd: Path | None = None, memory_mb: int = 512, processors: int = 2
) -> ComputeSystem:
    return lcow_document(
        owner="bench",
        kernel=str(image.vmlinux),
        initrd=str(initrd or image.initrd),
        memory_mb=memory_mb,
        processors=processors,
        serial_pipe="console",
    )


def _naive(image: UvmImage, folder: Path) -> Path:
    """Return our initrd with another /init: what the kernel unpacks last stays."""
    path = folder / "naive"
    with path.open("wb") as out:
        out.write(image.initrd.read_bytes())
        archive = CpioWriter(out)
        archive.file("init", _NAIVE_INIT.encode(), mode=0o755)
        archive.finish()
    return path


def _comparison(
    name: str,
    mine: list[float],
    peer: str,
    theirs: list[float],
    target: float | None,
) -> Comparison:
    return Comparison(
        name=name,
        ours_ms=statistics.median(mine),
        ours_min_ms=min(mine),
        peer=peer,
        peer_ms=statistics.median(theirs),
        rounds=len(mine),
        target_ratio=target,
    )


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _starts(
    copies: QemuComputeService,
    cold: QemuComputeService,
    maker: MachineMaker,
    ours: ComputeSystem,
    naive: ComputeSystem,
) -> Iterator[Comparison]:
    copied: list[float] = []
    launched: list[float] = []
    booted: list[float] = []
    hello: list[float] = []
    for number in range(_ROUNDS):
        with UtilityVm.boot(copies, ours) as vm:
            assert vm.origin == "template"
            copied.append(vm.boot_s * 1000)
        system = f"qmp-{number}"
        launched.append(_ms(lambda system=system: cold.create(system, ours)))  # type: ignore[misc]
        cold.close(system)
        if number < 5:
            with UtilityVm.boot(cold, ours) as vm:
                booted.append(vm.boot_s * 1000)
            began = time.perf_counter()
            with _naive_machine(maker, naive):
                hello.append((time.perf_counter() - began) * 1000)
    yield _comparison(
        "UVM from template, reseeded, clock set, answering",
        copied,
        "QEMU start to QMP",
        launched,
        2.6,
    )
    yield _comparison("UVM from template", copied, "cold boot", booted, 1 / 20)
    yield _comparison(
        "cold boot to first message", booted, "busybox sh that says hello", hello, 1.3
    )


@contextlib.contextmanager
def _naive_machine(
    maker: MachineMaker, document: ComputeSystem
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A machine that said hello: its raw ports `gcs` and `stdio`."""
    machine = maker.make("naive", document).machine
    try:
        machine.qmp.execute(QmpCommand("cont"), deadline=time.monotonic() + 10)
        machine.gcs.settimeout(60)
        machine.stdio.settimeout(60)
        said = b""
        while _HELLO not in said:
            part = machine.gcs.recv(64)
            assert part, machine.console.text()
            said += part
        yield machine.gcs, machine.stdio
    finally:
        machine.discard()


def _relay(
    copies: QemuComputeService,
    maker: MachineMaker,
    ours: ComputeSystem,
    naive: ComputeSystem,
) -> Iterator[Comparison]:
    mine: list[float] = []
    theirs: list[float] = []
    command = ["/bin/dd", "if=/dev/zero", "bs=32k", f"count={_RELAYED // 32768}"]
    with UtilityVm.boot(copies, ours) as vm, _naive_machine(maker, naive) as (gcs, stdio):

        def through_the_relay() -> None:
            done = vm.processes.start(command).wait()
            assert len(done.stdout) == _RELAYED

        def through_the_port() -> None:
            gcs.sendall(b"%d\n" % _RELAYED)
            left = _RELAYED
            while left:
                left -= len(stdio.recv(min(left, 65536)))

        through_the_relay()
        through_the_port()
        for _ in range(_ROUNDS):
            mine.append(_ms(through_the_relay))
            theirs.append(_ms(through_the_port))
    yield _comparison(
        f"stdio relay, {_RELAYED // MIB} MiB from the guest", mine, "raw port", theirs, 1 / 0.6
    )


def _detaching(service: QemuComputeService, document: ComputeSystem, folder: Path) -> Comparison:
    template = ScratchTemplate.build(GIB)
    paths = [folder / f"disk{number}.vhdx" for number in range(_DISKS)]
    for path in paths:
        template.write(path)
    times: dict[int, list[float]] = {1: [], _DISKS: []}
    with UtilityVm.boot(service, document) as vm:
        for _ in range(5):
            for count, found in times.items():
                held = [
                    vm.scsi.acquire(path, read_only=False, holder="bench") for path in paths[:count]
                ]
                # A guest that still looks for disks would do that within the time of the detach.
                seen = f"until [ $(ls -d /sys/block/sd* | wc -l) = {count} ]; do sleep 0.1; done"
                assert vm.processes.start(["/bin/sh", "-c", seen]).wait().exit_code == 0
                found.append(_ms(lambda held=held: vm.scsi.release_all(held)))  # type: ignore[misc]
    return _comparison(
        f"detach of {_DISKS} disks in one release", times[_DISKS], "of one", times[1], 1.3
    )


def _density(service: QemuComputeService, document: ComputeSystem) -> Figure:
    service.prepare_template(document)
    with contextlib.ExitStack() as stack:
        vms = [stack.enter_context(UtilityVm.boot(service, document)) for _ in range(_ALIVE)]
        for vm in vms:
            assert vm.processes.start(["/bin/echo", "alive"]).wait().text == "alive"
        sizes = []
        for vm in vms:
            pid = service.properties(vm.system_id).details["pid"]
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            line = next(line for line in text.splitlines() if line.startswith("Pss:"))
            sizes.append(int(line.split()[1]) / 1000)
    return Figure(f"{_ALIVE} UVMs alive, proportional memory each", max(sizes), "MB", 35.0)


def _pod() -> Iterator[Comparison]:
    mine: list[float] = []
    theirs: list[float] = []
    runtime: list[float] = []
    with Lab.open() as lab, Lab.open(LabConfig(cold=True)) as naive:
        lab.prepare_template()
        for _ in range(_PODS):
            mine.append(_ms(lambda: _run_pod(lab, _AtOnce())))
            theirs.append(_ms(lambda: _run_pod(naive, _CallByCall())))
            runtime.append(_crun_alone(lab))
    yield _comparison(
        "UVM, pod, 3 sharing containers, teardown", mine, "cold, call by call", theirs, 0.35
    )
    yield _comparison("crun's own: 4 containers run and deleted", runtime, "that pod", mine, None)


class _CallByCall:
    """Sharers one after the other, as a caller without this harness would."""

    def start(self, vm: UtilityVm, mounts: Mapping[str, Sequence[Mount]]) -> list[Container]:
        return [
            Container.start(vm, name, mounts=each, config=_INIT, pod_id="pod")
            for name, each in mounts.items()
        ]

    def release(self, containers: Sequence[Container]) -> None:
        for container in reversed(containers):
            container.release()


class _AtOnce:
    """Sharers at the same time."""

    def start(self, vm: UtilityVm, mounts: Mapping[str, Sequence[Mount]]) -> list[Container]:
        return list(start_sharers(vm, mounts, config=_INIT, pod_id="pod").values())

    def release(self, containers: Sequence[Container]) -> None:
        release_sharers(containers)


def _run_pod(lab: Lab, way: _AtOnce | _CallByCall) -> None:
    mounts = _prepare_pod(lab, "a", "b", "c")
    vm = lab.boot_uvm()
    owner = Container.start(vm, "pod", mounts=mounts.pop("pod"), config=_INIT)
    sharers = way.start(vm, mounts)
    for container in (owner, *sharers):
        assert container.init is not None
        assert container.init.wait().exit_code == 0
    way.release(sharers)
    owner.release()
    vm.close()
    lab.reset()


def _prepare_pod(lab: Lab, *sharers: str) -> dict[str, list[Mount]]:
    top, snapshotter = lab.demo_image().top, lab.snapshotter
    labels = {REUSE_SCRATCH: "true", OWNER_KEY: "pod"}
    return {"pod": snapshotter.prepare("pod", top)} | {
        name: snapshotter.prepare(name, top, labels=labels) for name in sharers
    }


def _crun_alone(lab: Lab) -> float:
    """Return the time that crun itself takes for four containers, in a copy that ran none yet."""
    mounts = _prepare_pod(lab)
    vm = lab.boot_uvm()
    root = ContainerRootfs(vm.scsi, vm.guest, "pod")
    root.build(disks_of(mounts["pod"]), "pod", timeout_s=60)
    spec = complete_spec({"process": {"args": list(_INIT.args), "cwd": "/"}}, root=root.path)
    bundle = root.path.removesuffix("/rootfs")
    vm.guest.create_container("pod", spec, bundle=bundle, scratch_dir=root.scratch_directory)
    crun = "/run/lcowlab/bin/crun --root /run/bench --cgroup-manager cgroupfs"
    script = (
        "for name in 1 2 3 4; do"
        f" {crun} run --detach --bundle {bundle} $name </dev/null >/dev/null &&"
        f" {crun} delete --force $name || exit 1; done"
    )
    # The shell itself is translated before.
    assert vm.processes.start(["/bin/sh", "-c", "true"]).wait().exit_code == 0
    began = time.perf_counter()
    done = vm.processes.start(["/bin/sh", "-c", script]).wait()
    took = (time.perf_counter() - began) * 1000
    assert done.exit_code == 0, done.stderr
    vm.close()
    lab.reset()
    return took
