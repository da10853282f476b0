"""Utility VMs that die, and bridges that close: what is left, who is told, what is lost."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

from harness.errors import BridgeClosedError, HarnessError
from harness.scenarios.pods import Pod, attachments_of
from harness.scenarios.scenario import Scenario, ScenarioContext
from harness.uvm import UtilityVm
from snapshotter.errors import NotFoundError

_SHARERS = ("c1", "c2")


def _killed_while_writing(context: ScenarioContext) -> None:
    """Without a journal: the disk mounts again or is refused in words; what was synced is there."""
    pod = Pod.prepare(context, *_SHARERS)
    vm = context.lab.boot_uvm()
    pod.start(vm)
    markers = {name: secrets.token_hex(16) for name in _SHARERS}
    for name, marker in markers.items():
        pod.sh(name, f"echo {marker} > /root/marker && sync")
    loop = "while :; do echo x >> /root/noise; mkdir /root/d; rm -rf /root/d; done"
    writers = [threading.Thread(target=_until_the_end, args=(pod, name, loop)) for name in _SHARERS]
    with context.step("kill the machine while all write"):
        for writer in writers:
            writer.start()
        vm.processes.start(["/bin/sleep", "0.5"]).wait()
        vm.kill()
        for writer in writers:
            writer.join(30)
        context.check(not any(w.is_alive() for w in writers), "somebody still waits for the guest")
        vm.close()
    with context.step("everything counts as released"):
        for container in pod.containers.values():
            _release_after_death(container.release)
        pod.containers.clear()
        context.check_equal("attachments still counted", vm.scsi.snapshot().attachments, ())
    with context.step("use the disk in a new machine, or be refused in words"):
        fresh = context.lab.boot_uvm()
        try:
            pod.start(fresh, "pod", container_id="pod-again")
        except HarnessError as refusal:
            context.fact("refused", str(refusal))
        else:
            pod.sh("pod", "echo again > /root/again && sync")
            pod.release("pod")
        context.check_equal("attachments", attachments_of(fresh, pod.scratch), 0)
        fresh.close()
    with context.step("find what was synced"), context.lab.files_on(pod.scratch) as files:
        for name, marker in markers.items():
            found = files.read(f"/scratch/{name}/upper/root/marker").decode().strip()
            context.check_equal(f"marker of {name}", found, marker)
    pod.close()


def _until_the_end(pod: Pod, name: str, script: str) -> None:
    try:
        pod.try_sh(name, script)
    except HarnessError:
        return  # the machine is gone


def _release_after_death(release: Callable[[], None]) -> None:
    try:
        release()
    except HarnessError:
        return  # told that the machine is gone, and not kept waiting


def _dies_in(context: ScenarioContext, boundary: str) -> None:
    """The machine dies at a boundary: the start fails in words, and nothing is left counted."""
    pod = Pod.prepare(context, "c1")
    vm = context.lab.boot_uvm()
    pod.start(vm, "pod")
    with context.step(f"the machine dies in {boundary}"):
        context.lab.faults.add(boundary, "die")
        with context.expect(f"a start whose {boundary} kills the machine", HarnessError):
            _attach_another(vm, pod)
        _release_after_death(pod.containers.pop("pod").release)
        vm.close()
        context.check_equal("attachments still counted", vm.scsi.snapshot().attachments, ())
    with context.step("the same snapshots in a new machine"):
        context.lab.faults.clear()
        fresh = context.lab.boot_uvm()
        pod.start(fresh)
        pod.sh("c1", "echo fine > /root/file && sync")
        pod.release()
        fresh.close()
    pod.close()


def _attach_another(vm: UtilityVm, pod: Pod) -> None:
    other = pod.context.lab.directory / "other.vhdx"
    other.write_bytes(pod.scratch.read_bytes())
    try:
        vm.scsi.acquire(other, holder="other")
    finally:
        other.unlink()


def _bridge_lost(context: ScenarioContext) -> None:
    """The bridge closes in a call: who waits is told, and the machine can be taken down."""
    pod = Pod.prepare(context, "c1")
    vm = context.lab.boot_uvm()
    pod.start(vm, "pod")
    errors: list[HarnessError] = []

    def wait() -> None:
        try:
            pod.try_sh("pod", "sleep 3600")
        except HarnessError as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    with context.step("lose the answer to a message"):
        waiter.start()
        vm.processes.start(["/bin/sleep", "0.2"]).wait()
        context.lab.faults.add("guest.create", "lost")
        with context.expect("a call whose answer is lost", BridgeClosedError):
            pod.start(vm, "c1")
        waiter.join(30)
        context.check(not waiter.is_alive(), "a waiter was not released")
        context.check_equal("told", [type(error) for error in errors], [BridgeClosedError])
    with context.step("take the machine down"):
        _release_after_death(pod.containers.pop("pod").release)
        vm.close()
        context.check_equal("attachments still counted", vm.scsi.snapshot().attachments, ())
    pod.close()


def _unsynced(context: ScenarioContext) -> None:
    """Killed twice in a row: the disk is still good for a third machine."""
    pod = Pod.prepare(context)
    for turn in range(2):
        with context.step(f"write and be killed, {turn + 1}. time"):
            vm = context.lab.boot_uvm()
            pod.start(vm, "pod", container_id=f"turn-{turn}")
            pod.sh("pod", f"echo {turn} > /root/turn && sync")
            vm.kill()
            vm.close()
            pod.containers.clear()
    with context.step("read both from the host"), context.lab.files_on(pod.scratch) as files:
        for turn in range(2):
            path = f"/scratch/turn-{turn}/upper/root/turn"
            try:
                found = files.read(path).decode().strip()
            except NotFoundError:
                found = "missing"
            context.check_equal(path, found, str(turn))
    pod.close()


SCENARIOS = (
    Scenario(
        "killed-while-writing",
        "The machine is killed while sharers write; what was synced is there afterwards.",
        ("scratch", "sharing", "crash"),
        _killed_while_writing,
    ),
    Scenario(
        "dies-in-attach",
        "The machine dies while a disk is attached: nothing is counted, nobody waits.",
        ("scsi", "crash", "failure"),
        lambda context: _dies_in(context, "service.attach"),
    ),
    Scenario(
        "bridge-lost",
        "The bridge closes while others wait on it: everybody is told.",
        ("gcs", "crash", "failure"),
        _bridge_lost,
    ),
    Scenario(
        "killed-twice",
        "Two machines are killed one after the other; the disk outlives both.",
        ("scratch", "crash"),
        _unsynced,
    ),
)
