"""A pod as scenarios use it: snapshots that share one scratch disk, and containers on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from harness.audit import guest_mounts
from harness.containers import Container, ContainerConfig, disks_of
from harness.processes import Completed
from harness.protection import UNPROTECTED
from harness.scenarios.scenario import ScenarioContext
from harness.uvm import UtilityVm
from snapshotter import Mount
from snapshotter.errors import NotFoundError
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH

WAIT_FOREVER = ("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")


class Pod:
    """The owner's snapshot under the pod's name, and one for each workload that shares its disk."""

    def __init__(self, context: ScenarioContext, name: str = "pod") -> None:
        self.context = context
        self.name = name
        self.mounts: dict[str, Sequence[Mount]] = {}
        self.containers: dict[str, Container] = {}
        self.protection = UNPROTECTED
        self.image = context.lab.demo_image()

    @classmethod
    def prepare(
        cls,
        context: ScenarioContext,
        *workloads: str,
        name: str = "pod",
        labels: Mapping[str, str] | None = None,
    ) -> Self:
        """Prepare the owner's snapshot (with `labels`) and those that share its scratch disk."""
        pod = cls(context, name)
        snapshotter = context.lab.snapshotter
        pod.mounts[name] = snapshotter.prepare(name, pod.image.top, labels=labels)
        for workload in workloads:
            pod.share(workload)
        return pod

    def share(self, workload: str) -> None:
        """Prepare one more snapshot on the owner's disk."""
        self.mounts[workload] = self.context.lab.snapshotter.prepare(
            workload, self.image.top, labels={REUSE_SCRATCH: "true", OWNER_KEY: self.name}
        )

    def read_only_mounts(self) -> Sequence[Mount]:
        """Return the mounts of a view of the image, which is gone again: its layers stay."""
        snapshotter = self.context.lab.snapshotter
        mounts = snapshotter.view("view", self.image.top)
        snapshotter.remove("view")
        return mounts

    @property
    def scratch(self) -> Path:
        """The one disk behind all snapshots."""
        found = {disks_of(mounts).scratch for mounts in self.mounts.values()}
        self.context.check_equal("distinct scratch disks", len(found), 1)
        (scratch,) = found
        assert scratch is not None, "an active snapshot's mount is read-write"
        return scratch

    def start(
        self, vm: UtilityVm, *names: str, container_id: str = "", pod_id: str = ""
    ) -> Container:
        """Start containers on the named snapshots (all of them by default); return the last."""
        config = ContainerConfig(args=WAIT_FOREVER, env=self.image.config.env)
        for name in names or tuple(self.mounts):
            self.containers[name] = Container.start(
                vm,
                container_id or name,
                mounts=self.mounts[name],
                config=config,
                pod_id=pod_id or self.name,
                protection=self.protection,
            )
        return self.containers[name]

    def sh(self, name: str, script: str, *, timeout_s: float = 120.0) -> str:
        """Run a script in a container that has to succeed; return its output."""
        done = self.try_sh(name, script, timeout_s=timeout_s)
        self.context.check_equal(
            f"exit code of {script!r} in {name} ({done.stderr.decode(errors='replace').strip()})",
            done.exit_code,
            0,
        )
        return done.text

    def try_sh(self, name: str, script: str, *, timeout_s: float = 120.0) -> Completed:
        """Run a script in a container and return how it ended."""
        return self.containers[name].run(["/bin/sh", "-c", script], timeout_s=timeout_s)

    def release(self, *names: str) -> None:
        """Release the named containers (all of them by default)."""
        for name in names or tuple(self.containers):
            self.containers[name].release()
            del self.containers[name]

    def close(self, vm: UtilityVm | None = None) -> None:
        """Release everything, check that the machine kept nothing and close it, remove the disk."""
        scratch = self.scratch
        self.release()
        if vm is not None:
            close_clean(self.context, vm)
            self.context.check_equal(
                "directories under scratch/", directories_of(self.context, scratch), []
            )
        for name in self.mounts:
            with contextlib.suppress(NotFoundError):
                self.context.lab.snapshotter.remove(name)
        self.context.lab.snapshotter.cleanup()
        self.context.check(not scratch.exists(), f"{scratch} outlived its sharers")


def close_clean(context: ScenarioContext, vm: UtilityVm) -> None:
    """Check that no disk, mount or device is left in a utility VM, by all who know; close it.

    What the document itself attaches, such as a root disk, stays.
    """
    own = sorted(vm.document.attachments())
    disks = vm.service.properties(vm.system_id).disks
    attached = [(disk.controller, disk.lun) for disk in disks]
    context.check_equal("disks still attached", attached, own)
    context.check_equal("attachments still counted", vm.scsi.snapshot().attachments, ())
    context.check_equal("mounts the guest still has", guest_mounts(vm), [])
    seen = vm.processes.start(["/bin/ls", "/sys/bus/scsi/devices"]).wait().text.split()
    devices = [name for name in seen if name.count(":") == 3]
    # A guest numbers controllers as it likes.
    luns = sorted(int(name.rpartition(":")[2]) for name in devices)
    context.check_equal("LUNs the guest still has", luns, sorted(lun for _, lun in own))
    vm.close()


def directories_of(context: ScenarioContext, scratch: Path) -> list[str]:
    """Return what a disk has under `scratch/`, seen from the host."""
    with context.lab.files_on(scratch) as files:
        try:
            return files.listdir("/scratch")
        except NotFoundError:
            return []


def attachments_of(vm: UtilityVm, disk: Path) -> int:
    """Return how often the virtual machine has a disk, by what its service says."""
    return sum(Path(each.path) == disk for each in vm.service.properties(vm.system_id).disks)


def free_kib(pod: Pod, name: str, *, inodes: bool = False) -> int:
    """Return the free KiB, or inodes, that `df` shows inside a container."""
    flag = "-i" if inodes else "-k"
    return int(pod.sh(name, f"df {flag} /").splitlines()[-1].split()[3])


@contextlib.contextmanager
def pod_in_vm(
    context: ScenarioContext, *workloads: str, labels: Mapping[str, str] | None = None
) -> Iterator[tuple[Pod, UtilityVm]]:
    """Prepare a pod, boot a machine, start everything; take all down again and check it."""
    with context.step("prepare, boot and start"):
        pod = Pod.prepare(context, *workloads, labels=labels)
        vm = context.lab.boot_uvm()
        pod.start(vm)
    yield pod, vm
    with context.step("take everything down"):
        pod.close(vm)
