"""The life of a shared scratch disk: who may let go of what, when, and how often."""

from __future__ import annotations

import threading

from harness.audit import guest_mounts
from harness.errors import GuestError, HarnessError
from harness.scenarios.pods import (
    Pod,
    attachments_of,
    directories_of,
    free_kib,
    pod_in_vm,
)
from harness.scenarios.scenario import Scenario, ScenarioContext
from snapshotter.errors import FailedPreconditionError
from snapshotter.labels import SIZE_GB

_CYCLES = 20
_MANY_CYCLES = 1000
_GROWTH = 8 << 20  # bytes by which a VHDX may grow while nothing stays in it


def _exec_after_owner(context: ScenarioContext) -> None:
    """As in hcsshim: the pod goes first. Its sharers go on, and so does what is started in them."""
    with pod_in_vm(context, "c1", "c2") as (pod, vm):
        with context.step("release the owner, and remove its snapshot"):
            pod.release("pod")
            context.lab.snapshotter.remove("pod")
            del pod.mounts["pod"]
        with context.step("start processes in the others"):
            for name in ("c1", "c2"):
                context.check_equal(f"output in {name}", pod.sh(name, "echo alive"), "alive")
                pod.sh(name, f"echo {name} > /root/late && sync")
        context.check_equal("attachments", attachments_of(vm, pod.scratch), 1)


def _same_id_again(context: ScenarioContext) -> None:
    with pod_in_vm(context, "c1") as (pod, vm):
        for turn in range(3):
            with context.step(f"the same container id for the {turn + 1}. time"):
                seen = pod.sh("c1", "ls /root; ls /opt").split()
                context.check("mine" not in seen, "it sees what its predecessor wrote")
                pod.sh("c1", "echo old > /root/mine; rm -rf /opt/data; mkdir /opt/mine; sync")
                pod.release("c1")
                pod.start(vm, "c1")


def _cycles(context: ScenarioContext, cycles: int) -> None:
    with pod_in_vm(context) as (pod, vm):
        scratch = pod.scratch
        inodes, size = free_kib(pod, "pod", inodes=True), scratch.stat().st_size
        with context.step(f"start and release {cycles} containers"):
            for turn in range(cycles):
                name = f"w{turn}"
                pod.share(name)
                pod.start(vm, name)
                pod.sh(name, "dd if=/dev/zero of=/root/ballast bs=1k count=256 2>/dev/null; sync")
                pod.release(name)
                context.lab.snapshotter.remove(name)
                del pod.mounts[name]
        with context.step("nothing piled up"):
            left = free_kib(pod, "pod", inodes=True)
            context.check(left >= inodes - 2, f"{inodes - left} inodes are lost")
            grown = scratch.stat().st_size - size
            context.fact("grown_kib", grown // 1024)
            context.check(grown <= _GROWTH, f"the disk grew by {grown} bytes")


def _sharers(context: ScenarioContext, count: int) -> None:
    names = [f"w{number}" for number in range(count)]
    with pod_in_vm(context, *names) as (pod, vm):
        with context.step("one disk, one mount, as many holders"):
            context.check_equal("attachments", attachments_of(vm, pod.scratch), 1)
            context.check_equal("holders", len(vm.scsi.holders(pod.scratch)), count + 1)
        with context.step("each has its own files"):
            for name in names:
                pod.sh(name, f"echo {name} > /root/name")
            for name in names:
                context.check_equal(f"file of {name}", pod.sh(name, "cat /root/name"), name)


def _busy_overlay(context: ScenarioContext) -> None:
    """A process of the utility VM sits in a container's root: no release by force."""
    with pod_in_vm(context, "c1") as (pod, vm):
        container = pod.containers["c1"]
        script = f"cd {container.rootfs} && exec sleep 3600"
        intruder = vm.processes.start(["/bin/sh", "-c", script])
        vm.processes.start(["/bin/sleep", "0.3"]).wait()
        with (
            context.step("release while the root is in use"),
            context.expect("release of a busy root", GuestError),
        ):
            container.release()
        with context.step("the disk stays, and the other container works"):
            context.check_equal("attachments", attachments_of(vm, pod.scratch), 1)
            pod.sh("pod", "echo fine > /root/file")
        with context.step("release again once the process is gone"):
            intruder.signal(9)
            intruder.wait()
            container.release()
            del pod.containers["c1"]


def _background_process(context: ScenarioContext) -> None:
    """What a container leaves running in the background ends with it and holds nothing."""
    with pod_in_vm(context, "c1") as (pod, _):
        pod.sh("c1", "(while :; do echo x >> /root/noise; sleep 0.05; done) >/dev/null 2>&1 &")
        with context.step("release while it writes"):
            pod.release("c1")
        context.check_equal("mounts of the pod", pod.sh("pod", "echo fine"), "fine")


def _removed_while_writing(context: ScenarioContext) -> None:
    with pod_in_vm(context, "c1", "c2", "c3") as (pod, vm):
        loop = "n=0; while [ $n -lt 40 ]; do n=$((n+1)); echo $n > /root/n$n; sleep 0.01; done"
        failures: list[str] = []

        def write() -> None:
            try:
                pod.sh("c1", loop)
            except HarnessError as error:
                failures.append(str(error))

        writer = threading.Thread(target=write)
        with context.step("two go while one writes"):
            writer.start()
            pod.release("c2")
            pod.release("c3")
            writer.join()
        context.check_equal("failures of the writer", failures, [])
        context.check_equal("what was written last", pod.sh("c1", "cat /root/n40"), "40")
        context.check_equal("holders", len(vm.scsi.holders(pod.scratch)), 2)


def _no_extra_disk(context: ScenarioContext) -> None:
    """As hcsshim RunContainer_ShareScratch: a sharer brings no disk of its own."""
    with pod_in_vm(context) as (pod, vm):
        before = len(vm.service.properties(vm.system_id).disks)
        pod.share("c1")
        pod.start(vm, "c1")
        after = len(vm.service.properties(vm.system_id).disks)
        context.check_equal("disks that the sharer added", after - before, 0)
        layers = len(pod.image.layers)
        context.check_equal("disks in all: the layers and one scratch", after, layers + 1)


def _sizes(context: ScenarioContext) -> None:
    """As hcsshim CustomizableScratch: 20 GB by default, and what the label says."""
    vm = context.lab.boot_uvm()
    for name, labels, kib in (("small", None, 20642524), ("large", {SIZE_GB: "200"}, 206425432)):
        with context.step(f"a {name} scratch"):
            pod = Pod.prepare(context, name=name, labels=labels)
            pod.start(vm)
            shown = int(pod.sh(name, "df -k /").splitlines()[-1].split()[1])
            context.fact(f"{name}_kib", shown)
            context.check(abs(shown - kib) <= kib // 100, f"{shown} KiB, not {kib} within 1 %")
            pod.close()
    vm.close()


def _read_only(context: ScenarioContext) -> None:
    """A view has no scratch: its root cannot be written to, and nothing is left of it."""
    with pod_in_vm(context) as (pod, vm):
        pod.mounts["view"] = context.lab.snapshotter.view("view", pod.image.top)
        view = pod.start(vm, "view")
        context.check(view.scratch is None, "a view has a scratch disk")
        done = pod.try_sh("view", "echo x > /root/file")
        context.check(done.exit_code != 0, "a read-only root took a file")
        context.check("Read-only" in done.stderr.decode(), f"it says {done.stderr!r}")
        pod.release("view")
        context.lab.snapshotter.remove("view")
        del pod.mounts["view"]


def _two_pods(context: ScenarioContext) -> None:
    """Keys of which one contains the other: each sharer gets the disk of exactly its owner."""
    vm = context.lab.boot_uvm()
    first = Pod.prepare(context, "a1", name="pod-1")
    second = Pod.prepare(context, "b1", name="pod-11")
    context.check(first.scratch != second.scratch, "two pods share one disk")
    first.start(vm)
    second.start(vm)
    second.sh("b1", "echo second > /root/file && sync")
    context.check_equal("attachments of the first", attachments_of(vm, first.scratch), 1)
    first.close()
    context.check_equal("the second pod's file", second.sh("b1", "cat /root/file"), "second")
    second.close(vm)


def _image_removed(context: ScenarioContext) -> None:
    """A collector takes the image away under its containers: refused, in the caller's terms."""
    with pod_in_vm(context, "c1") as (pod, _):
        for layer in reversed(pod.image.layers):
            with context.expect("removing a layer in use", FailedPreconditionError):
                context.lab.snapshotter.remove(layer.chain_id)
        context.lab.snapshotter.cleanup()
        context.check_equal("a file of the image", pod.sh("c1", "ls /etc/passwd"), "/etc/passwd")


def _owner_removed(context: ScenarioContext) -> None:
    """A collector takes the owner away while its container runs: the disk stays to the last."""
    with pod_in_vm(context, "c1") as (pod, vm):
        scratch = pod.scratch
        context.lab.snapshotter.remove("pod")
        context.lab.snapshotter.cleanup()
        context.check(scratch.exists(), "the shared disk went with its owner's snapshot")
        pod.sh("pod", "echo still > /root/here && sync")
        pod.release("pod")
        context.lab.snapshotter.cleanup()
        del pod.mounts["pod"]
        pod.sh("c1", "echo still > /root/here && sync")
        context.check_equal("attachments", attachments_of(vm, scratch), 1)


def _started_together(context: ScenarioContext) -> None:
    """Seen in hcsshim #1483: whoever comes second waits until the disk is there, and shares it."""
    names = [f"w{number}" for number in range(6)]
    pod = Pod.prepare(context, *names)
    vm = context.lab.boot_uvm()
    failures: list[str] = []

    def start(name: str) -> None:
        try:
            pod.start(vm, name)
        except HarnessError as error:
            failures.append(f"{name}: {error}")

    for turn in range(2):
        with context.step(f"start all at once, {turn + 1}. time"):
            threads = [threading.Thread(target=start, args=(name,)) for name in ("pod", *names)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            context.check_equal("failures", failures, [])
            context.check_equal("attachments", attachments_of(vm, pod.scratch), 1)
        with context.step("release all at once"):
            threads = [threading.Thread(target=pod.release, args=(n,)) for n in ("pod", *names)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            context.check_equal("mounts left", guest_mounts(vm), [])
            context.check_equal("disks left", vm.service.properties(vm.system_id).disks, ())
    pod.close(vm)


def _released_twice(context: ScenarioContext) -> None:
    with pod_in_vm(context, "c1") as (pod, vm):
        container = pod.containers.pop("c1")
        container.release()
        container.release()
        context.check_equal("holders", vm.scsi.holders(pod.scratch), ("container pod",))
        pod.release("pod")
        context.check_equal("directories", directories_of(context, pod.scratch), [])


SCENARIOS = (
    Scenario(
        "exec-after-owner-released",
        "Processes start in sharers after the owner and its snapshot are gone.",
        ("scratch", "sharing"),
        _exec_after_owner,
    ),
    Scenario(
        "same-id-again",
        "The same container id never sees the upper and work directories of its predecessor.",
        ("scratch",),
        _same_id_again,
    ),
    Scenario(
        "container-cycles",
        f"{_CYCLES} containers come and go on one scratch: size and inodes stay bounded.",
        ("scratch", "sharing"),
        lambda context: _cycles(context, _CYCLES),
    ),
    Scenario(
        "container-cycles-1000",
        f"{_MANY_CYCLES} containers come and go on one scratch: size and inodes stay bounded.",
        ("scratch", "sharing", "slow", "soak"),
        lambda context: _cycles(context, _MANY_CYCLES),
    ),
    Scenario(
        "eight-sharers",
        "Eight workloads and their pod on one disk.",
        ("scratch", "sharing"),
        lambda context: _sharers(context, 8),
    ),
    Scenario(
        "sixty-four-sharers",
        "Sixty-four workloads and their pod on one disk.",
        ("scratch", "sharing", "slow", "soak"),
        lambda context: _sharers(context, 64),
    ),
    Scenario(
        "busy-overlay",
        "A root that is in use is not released by force; the release is repeated and succeeds.",
        ("scratch", "failure"),
        _busy_overlay,
    ),
    Scenario(
        "background-process",
        "A process that a container left in the background holds nothing up.",
        ("scratch",),
        _background_process,
    ),
    Scenario(
        "removed-while-others-write",
        "Containers and their directories go while another one writes to the same disk.",
        ("scratch", "sharing"),
        _removed_while_writing,
    ),
    Scenario(
        "no-extra-disk",
        "A sharer brings no disk of its own.",
        ("scratch", "sharing"),
        _no_extra_disk,
    ),
    Scenario(
        "scratch-sizes",
        "A scratch disk has 20 GB, or what its label says.",
        ("scratch",),
        _sizes,
    ),
    Scenario(
        "read-only-view",
        "A view needs no scratch and cannot be written to.",
        ("layers",),
        _read_only,
    ),
    Scenario(
        "similar-owner-keys",
        "Owners whose keys contain each other keep their disks apart.",
        ("scratch", "sharing"),
        _two_pods,
    ),
    Scenario(
        "image-removed-while-attached",
        "An image in use cannot be removed.",
        ("layers",),
        _image_removed,
    ),
    Scenario(
        "owner-removed-while-attached",
        "The owner's snapshot goes while its container runs; the disk stays to the last sharer.",
        ("scratch", "sharing"),
        _owner_removed,
    ),
    Scenario(
        "started-together",
        "Seven containers of one pod start, and end, at the same moment.",
        ("scratch", "sharing", "concurrency"),
        _started_together,
    ),
    Scenario(
        "released-twice",
        "A second release does nothing.",
        ("scratch",),
        _released_twice,
    ),
)
