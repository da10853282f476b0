"""What a container must not reach: the disk that it shares, and the others' files on it."""

from __future__ import annotations

from harness.capabilities import Capability
from harness.scenarios.pods import pod_in_vm
from harness.scenarios.scenario import Scenario, ScenarioContext


def _no_device(context: ScenarioContext) -> None:
    with pod_in_vm(context, "c1") as (pod, vm):
        table = vm.processes.start(["/bin/cat", "/proc/self/mountinfo"]).wait().text.splitlines()
        scratch = pod.containers["pod"].scratch
        assert scratch is not None, "an active snapshot has one"
        (device,) = {row.split()[2] for row in table if row.split()[4] == scratch.guest_path}
        numbers = device.replace(":", " ")
        context.fact("device", device)
        with context.step("the container has no device node of a disk"):
            nodes = pod.sh("c1", "ls /dev").split()
            context.check_equal("disks in /dev", [n for n in nodes if n.startswith("sd")], [])
        with context.step("a device node of its own making does not open"):
            done = pod.try_sh("c1", f"mknod /tmp/disk b {numbers} && dd if=/tmp/disk bs=1 count=1")
            context.check(done.exit_code != 0, "a container read the shared scratch disk raw")
            context.fact("said", done.stderr.decode(errors="replace").strip()[-100:])
        with context.step("nor for writing"):
            script = f"mknod /tmp/disk2 b {numbers} && echo x > /tmp/disk2"
            context.check(pod.try_sh("c1", script).exit_code != 0, "a container wrote to it raw")


def _no_foreign_files(context: ScenarioContext) -> None:
    with pod_in_vm(context, "c1", "c2") as (pod, _):
        pod.sh("c1", "echo secret > /root/secret && sync")
        with context.step("no path leads to another's upper directory"):
            for path in ("/run/gcs", "/scratch", "/root/secret", "/proc/1/root/run/gcs"):
                done = pod.try_sh("c2", f"ls {path}")
                context.check(done.exit_code != 0, f"{path} is there: {done.text}")
        with context.step("nor does a way up"):
            done = pod.try_sh("c2", "cd / && cd ../../../.. && ls")
            context.check("scratch" not in done.text.split(), "it left its root")
        with context.step("nor a mount"):
            done = pod.try_sh("c2", "mkdir -p /tmp/m && mount -t tmpfs none /tmp/m")
            context.check(done.exit_code != 0, "a container mounted something")
        with context.step("nor a process of another"):
            done = pod.try_sh("c2", "ls /proc/[0-9]*/root/root/secret")
            context.check("secret" not in done.stdout.decode(), "it sees another's process")


SCENARIOS = (
    Scenario(
        "no-raw-scratch",
        "A container can open the device of its scratch disk by no means.",
        ("scratch", "isolation"),
        _no_device,
        needs=(Capability.KERNEL,),
    ),
    Scenario(
        "no-foreign-upper",
        "A container reaches the files of nobody that shares its disk.",
        ("scratch", "sharing", "isolation"),
        _no_foreign_files,
        needs=(Capability.KERNEL,),
    ),
)
