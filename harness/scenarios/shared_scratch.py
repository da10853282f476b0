"""Several containers on one scratch disk: the sharing itself, and its survival of a crash."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.containers import Container, ContainerConfig, disks_of
from harness.lab import Lab
from harness.scenarios.scenario import Scenario, ScenarioContext
from harness.uvm import UtilityVm
from snapshotter import Mount
from snapshotter.errors import NotFoundError
from snapshotter.image import ImportedImage
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH

POD = "pod"
WORKLOADS = ("c1", "c2", "c3")
EVERYONE = (POD, *WORKLOADS)
_WAIT_FOREVER = ("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")
_MARKER = "/root/marker"
_BALLAST_KIB = 4096


@dataclass(frozen=True, slots=True)
class Prepared:
    """The snapshots of a pod: mounts by holder, and the one disk they share."""

    mounts: Mapping[str, Sequence[Mount]]
    scratch: Path


def prepare_pod(context: ScenarioContext, image: ImportedImage) -> Prepared:
    """Prepare a pod snapshot with its own scratch and three that share it by the two labels."""
    snapshotter = context.lab.snapshotter
    share = {REUSE_SCRATCH: "true", OWNER_KEY: POD}
    mounts = {POD: snapshotter.prepare(POD, image.top)}
    for name in WORKLOADS:
        mounts[name] = snapshotter.prepare(name, image.top, labels=share)
    scratches = {disks_of(each).scratch for each in mounts.values()}
    context.check_equal("distinct scratch files behind the four snapshots", len(scratches), 1)
    (scratch,) = scratches
    assert scratch is not None, "an active snapshot's mount is read-write"
    return Prepared(mounts, scratch)


def start_pod(
    vm: UtilityVm, image: ImportedImage, prepared: Prepared, names: Mapping[str, str]
) -> dict[str, Container]:
    """Start a container on each snapshot, under the id that `names` gives it; all or none."""
    config = ContainerConfig(args=_WAIT_FOREVER, env=image.config.env)
    containers: dict[str, Container] = {}
    with contextlib.ExitStack() as undo:
        for snapshot, container_id in names.items():
            containers[snapshot] = Container.start(
                vm,
                container_id,
                mounts=prepared.mounts[snapshot],
                config=config,
                pod_id=names[POD],
            )
            undo.push(containers[snapshot])
        undo.pop_all()
    return containers


@contextlib.contextmanager
def released(containers: Mapping[str, Container]) -> Iterator[None]:
    """Release every container at the end; those that were released already do nothing."""
    with contextlib.ExitStack() as stack:
        for container in containers.values():
            stack.push(container)
        yield


def scratch_attachments(vm: UtilityVm, scratch: Path) -> int:
    """Return how often the virtual machine has the disk, by what its service says."""
    disks = vm.service.properties(vm.system_id).disks
    return sum(1 for disk in disks if Path(disk.path) == scratch)


def scratch_mounts(vm: UtilityVm, container: Container) -> int:
    """Return how often the guest's kernel has the container's scratch device mounted."""
    if container.scratch is None:
        return 0
    target = container.scratch.guest_path
    table = vm.processes.start(["/bin/cat", "/proc/self/mountinfo"]).wait().text.splitlines()
    # mountinfo: id, parent, major:minor, root, mount point, ... (proc(5))
    rows = [line.split() for line in table]
    devices = {row[2] for row in rows if row[4] == target}
    return sum(1 for row in rows if row[2] in devices)


def free_kib(container: Container) -> int:
    """Return the free KiB that `df` shows inside a container."""
    return int(container.run(["/bin/df", "-k", "/"]).text.splitlines()[-1].split()[3])


def _shared_scratch(context: ScenarioContext) -> None:
    lab = context.lab
    with context.step("import the image"):
        image = lab.demo_image()
        context.fact("layers", len(image.layers))
    with context.step("prepare four snapshots on one scratch"):
        prepared = prepare_pod(context, image)
    with context.step("boot a utility VM"):
        vm = lab.boot_uvm()
        context.fact("boot_s", round(vm.boot_s, 3))
    names = {name: name for name in EVERYONE}
    with context.step("attach, mount and start four containers"):
        containers = start_pod(vm, image, prepared, names)
        context.fact("containers", len(containers))
    with released(containers):
        with context.step("run a process in each container"):
            for index, (name, container) in enumerate(containers.items()):
                script = f"echo out-{name}; echo err-{name} >&2; exit {40 + index}"
                done = container.run(["/bin/sh", "-c", script])
                found = (done.exit_code, done.stdout, done.stderr)
                expected = (40 + index, f"out-{name}\n".encode(), f"err-{name}\n".encode())
                context.check_equal(f"code and output of {name}", found, expected)
        with context.step("one attachment, one mount, four holders"):
            check_sharing(context, vm, prepared.scratch, containers)
        with context.step("the same free space in all four"):
            _check_free_space(context, containers)
        with context.step("no container sees another's file"):
            _check_isolation(context, containers)
        for name in (POD, "c2", "c1", "c3"):
            with context.step(f"release {name}"):
                containers[name].release()
                if name == POD:
                    _remove_owner(context, prepared.scratch)
                left = scratch_attachments(vm, prepared.scratch)
                context.check_equal(
                    f"attachments of the scratch after {name} let go",
                    left,
                    0 if name == "c3" else 1,
                )
    with context.step("nothing is left in the utility VM"):
        context.check_equal("disks still attached", vm.service.properties(vm.system_id).disks, ())
        names_seen = vm.processes.start(["/bin/ls", "/sys/bus/scsi/devices"]).wait().text.split()
        devices = [name for name in names_seen if name.count(":") == 3]
        context.check_equal("SCSI devices the guest still has", devices, [])
        vm.close()
    with context.step("no container's directory is left in the disk"):
        context.check_equal(
            "directories under scratch/", scratch_directories(lab, prepared.scratch), []
        )
    with context.step("remove the snapshots"):
        _remove_snapshots(context, WORKLOADS)
        context.check(not prepared.scratch.exists(), f"{prepared.scratch} outlived its sharers")


def check_sharing(
    context: ScenarioContext, vm: UtilityVm, scratch: Path, containers: Mapping[str, Container]
) -> None:
    """Check, by the service, the guest's kernel and our own count, that the disk is there once."""
    attachments = scratch_attachments(vm, scratch)
    mounts = scratch_mounts(vm, containers[POD])
    context.fact("scratch_attachments", attachments)
    context.fact("scratch_mounts", mounts)
    context.check_equal("attachments of the scratch", attachments, 1)
    context.check_equal("mounts of the scratch", mounts, 1)
    holders = vm.scsi.holders(scratch)
    context.check_equal("holders of the scratch", len(holders), len(containers))


def _check_free_space(context: ScenarioContext, containers: Mapping[str, Container]) -> None:
    before = {name: free_kib(container) for name, container in containers.items()}
    context.check_equal("different values of free space", len(set(before.values())), 1)
    command = f"dd if=/dev/zero of=/root/ballast bs=1k count={_BALLAST_KIB} 2>/dev/null && sync"
    done = containers["c2"].run(["/bin/sh", "-c", command])
    context.check_equal("exit code of the writer", done.exit_code, 0)
    after = {name: free_kib(container) for name, container in containers.items()}
    context.check_equal("different values after one wrote", len(set(after.values())), 1)
    taken = before[POD] - after[POD]
    context.check(
        taken >= _BALLAST_KIB,
        f"one container wrote {_BALLAST_KIB} KiB, but free space fell by {taken} KiB",
    )
    context.fact("free_kib", after[POD])


def _check_isolation(context: ScenarioContext, containers: Mapping[str, Container]) -> None:
    for name, container in containers.items():
        done = container.run(["/bin/sh", "-c", f"echo {name} > /root/only-{name}"])
        context.check_equal(f"exit code of {name} writing a file", done.exit_code, 0)
    for name, container in containers.items():
        seen = container.run(["/bin/ls", "/root"]).text.split()
        others = [file for file in seen if file.startswith("only-") and file != f"only-{name}"]
        context.check_equal(f"files of others that {name} sees", others, [])
        context.check(f"only-{name}" in seen, f"{name} does not see its own file")


def _remove_owner(context: ScenarioContext, scratch: Path) -> None:
    """The owner's snapshot goes first: the disk must stay for those who share it."""
    context.lab.snapshotter.remove(POD)
    context.check(scratch.exists(), "removing the owner's snapshot removed the shared disk")


def _remove_snapshots(context: ScenarioContext, names: Sequence[str]) -> None:
    for name in names:
        context.lab.snapshotter.remove(name)
    context.lab.snapshotter.cleanup()


def scratch_directories(lab: Lab, scratch: Path) -> list[str]:
    """Return what the disk has under `scratch/`, read from the host without a virtual machine."""
    with lab.files_on(scratch) as files:
        try:
            return files.listdir("/scratch")
        except NotFoundError:
            return []


def _shared_scratch_crash(context: ScenarioContext) -> None:
    lab = context.lab
    image = lab.demo_image()
    with context.step("prepare four snapshots on one scratch"):
        prepared = prepare_pod(context, image)
    with context.step("boot a utility VM"):
        vm = lab.boot_uvm()
    markers = {name: secrets.token_hex(32) for name in EVERYONE}
    names = {name: name for name in EVERYONE}
    with context.step("attach, mount and start four containers"):
        containers = start_pod(vm, image, prepared, names)  # dies with the machine, unreleased
        context.fact("containers", len(containers))
    with context.step("write a marker in each and sync"):
        for name, container in containers.items():
            command = f"echo {markers[name]} > {_MARKER} && sync"
            done = container.run(["/bin/sh", "-c", command])
            context.check_equal(f"exit code of {name}", done.exit_code, 0)
        check_sharing(context, vm, prepared.scratch, containers)
    with context.step("kill the utility VM"):
        vm.kill()
        vm.close()
    with context.step("find every marker in the disk from the host"):
        _check_markers(context, prepared.scratch, markers)
    with context.step("boot a fresh utility VM"):
        vm = lab.boot_uvm()
    with context.step("use the disk again"):
        again = {name: f"{name}-again" for name in EVERYONE}
        containers = start_pod(vm, image, prepared, again)
        with released(containers):
            for name, container in containers.items():
                done = container.run(["/bin/sh", "-c", f"echo more > {_MARKER} && sync"])
                context.check_equal(f"exit code of {name}", done.exit_code, 0)
            check_sharing(context, vm, prepared.scratch, containers)
        context.check_equal(
            "attachments after the last release", scratch_attachments(vm, prepared.scratch), 0
        )
        vm.close()
    with context.step("the old markers are still in the disk"):
        _check_markers(context, prepared.scratch, markers)
    with context.step("remove the snapshots"):
        _remove_snapshots(context, EVERYONE)


def _check_markers(context: ScenarioContext, scratch: Path, markers: Mapping[str, str]) -> None:
    with context.lab.files_on(scratch) as files:
        for name, marker in markers.items():
            found = files.read(f"/scratch/{name}/upper{_MARKER}").decode().strip()
            context.check_equal(f"marker of {name} in the disk", found, marker)
    context.fact("markers_found", len(markers))


SHARED_SCRATCH = Scenario(
    name="shared-scratch",
    summary="Four containers share one scratch disk; the owner lets go first.",
    tags=("core", "scratch", "sharing"),
    body=_shared_scratch,
)
SHARED_SCRATCH_CRASH = Scenario(
    name="shared-scratch-crash",
    summary="The utility VM dies under four sharers; every synced byte is found afterwards.",
    tags=("core", "scratch", "sharing", "crash"),
    body=_shared_scratch_crash,
)
