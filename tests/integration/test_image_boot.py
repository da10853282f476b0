"""The image boots on real QEMU and everything in it works there: oracle is the guest's kernel."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InfrastructureError
from harness.image.build import UvmImage, ensure_image
from harness.image.distribution import Distribution
from harness.image.packages import Apt
from harness.image.sources import GuestSources

pytestmark = pytest.mark.qemu

_BOOT_TIMEOUT_S = 90
_MODULES = (  # noqa: SIM905
    "os sys struct json ctypes time subprocess socket selectors threading select signal errno fcntl"
    " dataclasses enum typing pathlib logging shutil uuid collections"
).split()
_COMMANDS = {
    "crun": ["/usr/bin/crun", "--version"],
    "mke2fs": ["/sbin/mke2fs", "-V"],
    "mkfs.ext4": ["/sbin/mkfs.ext4", "-q", "-F", "/tmp/disk"],
    "e2fsck": ["/sbin/e2fsck", "-fn", "/tmp/disk"],
    "busybox": ["/bin/busybox", "echo", "from busybox"],
    "sh": ["/bin/sh", "-c", "echo from sh | cat"],
    "df": ["df", "-P", "/dev"],
}
# Runs in the guest as PID 1, in place of the agent.
_PROGRAM = f'''
import {", ".join(_MODULES)}
import importlib

LIBC = ctypes.CDLL(None, use_errno=True)
POWER_OFF = 0x4321FEDC
THREAD = """
import ctypes
start = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
libc = ctypes.CDLL(None)
thread = ctypes.c_ulong()
exit_thread = ctypes.cast(libc.pthread_exit, ctypes.c_void_p)
assert libc.pthread_create(ctypes.byref(thread), None, exit_thread, None) == 0
assert libc.pthread_join(thread, None) == 0
print("joined")
"""


def mount(kind, target):
    if LIBC.mount(kind.encode(), target.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), target)


def load(name):
    for file in pathlib.Path("/lib/modules/lcowlab", name).read_text().split():
        with open("/lib/modules/lcowlab/" + file, "rb") as module:
            if LIBC.syscall(313, module.fileno(), b"", 0):  # finit_module
                number = ctypes.get_errno()
                if number != errno.EEXIST:
                    raise OSError(number, file)


def run(argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return [done.returncode, done.stdout]


def library_modules():
    root = pathlib.Path("/usr/lib/python%d.%d" % sys.version_info[:2])
    for path in sorted(root.rglob("*.pyc")) + sorted(root.rglob("*.so")):
        parts = list(path.relative_to(root).parts)
        parts[-1] = parts[-1].split(".")[0]
        if parts[0] == "lib-dynload":
            parts = parts[1:]
        yield ".".join(parts).removesuffix(".__init__")


def main():
    for kind, target in (("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")):
        mount(kind, target)
    result = {{"pid": os.getpid(), "python": sys.version.split()[0], "path": sys.path}}
    result["uptime"] = float(open("/proc/uptime").read().split()[0])
    load("qemu.first")
    load("qemu.later")
    for name in ("qemu.first", "qemu.later", "hyperv.first", "hyperv.later"):
        result[name] = pathlib.Path("/lib/modules/lcowlab", name).read_text().split()
    with open("/tmp/disk", "wb") as disk:
        disk.truncate(8 << 20)
    result["commands"] = {{name: run(argv) for name, argv in {_COMMANDS!r}.items()}}
    result["filesystems"] = open("/proc/filesystems").read().split()
    result["drivers"] = sorted(os.listdir("/sys/bus/virtio/drivers"))
    failed = {{}}
    names = list(library_modules())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            failed[name] = repr(error)
    result["library"] = len(names)
    result["failed_imports"] = failed
    # glibc loads libgcc_s.so.1 by name when a thread exits this way, and aborts without it.
    result["thread_exit"] = run([sys.executable, "-S", "-E", "-s", "-c", THREAD])
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    try:
        main()
    finally:
        LIBC.sync()
        LIBC.reboot(POWER_OFF)
'''


@pytest.fixture(scope="module")
def image() -> UvmImage:
    program = {
        "harness/__init__.py": b"",
        "harness/guest/__init__.py": b"",
        "harness/guest/__main__.py": _PROGRAM.encode(),
    }
    try:
        Apt().require([Distribution.of_this_machine().kernel_metapackage()])
    except InfrastructureError as error:
        pytest.skip(f"no packages can be had here: {error}")
    return ensure_image(sources=GuestSources(program))


def _boot(image: UvmImage, kernel: Path) -> dict[str, Any]:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    done = subprocess.run(
        [
            *(qemu, "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", "stdio", "-kernel", str(kernel), "-initrd", str(image.initrd)),
            *("-device", "virtio-scsi-pci", "-device", "virtio-serial-pci"),
            "-append",
            "console=ttyS0 quiet panic=-1 cryptomgr.notests init_on_alloc=0 mitigations=off",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_BOOT_TIMEOUT_S,
        check=False,
    )
    line = next((li for li in done.stdout.splitlines() if li.startswith("RESULT ")), None)
    assert line is not None, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return result


@pytest.fixture(scope="module")
def guest(image: UvmImage) -> dict[str, Any]:
    return _boot(image, image.vmlinux)


def test_python_is_pid_1_and_sees_only_its_own_folders(guest: dict[str, Any]) -> None:
    assert guest["pid"] == 1
    assert guest["path"][0] == "/usr/lib/lcowlab"
    assert all(path.startswith("/usr/lib/") for path in guest["path"])


def test_every_shipped_module_can_be_imported(guest: dict[str, Any]) -> None:
    assert guest["failed_imports"] == {}
    assert guest["library"] > 50


def test_every_program_runs(guest: dict[str, Any]) -> None:
    assert guest["commands"].keys() == _COMMANDS.keys()
    assert {name: out for name, (code, out) in guest["commands"].items() if code != 0} == {}
    assert guest["commands"]["crun"][1].startswith("crun version ")
    assert guest["commands"]["busybox"][1] == "from busybox\n"


def test_a_thread_may_exit_by_unwinding(guest: dict[str, Any]) -> None:
    assert guest["thread_exit"] == [0, "joined\n"]


def test_the_modules_load_in_the_listed_order(guest: dict[str, Any]) -> None:
    assert {"virtio_console", "virtio_scsi", "virtio_rng"} <= set(guest["drivers"])
    assert {"ext4", "overlay", "cgroup2"} <= set(guest["filesystems"])
    for first, later in (("qemu.first", "qemu.later"), ("hyperv.first", "hyperv.later")):
        assert not set(guest[first]) & set(guest[later])
    assert guest["hyperv.first"][-1] == "hv_sock.ko"
    assert "hv_storvsc.ko" in guest["hyperv.later"]


def test_the_bzimage_boots_as_well(image: UvmImage) -> None:
    assert _boot(image, image.bzimage)["pid"] == 1
