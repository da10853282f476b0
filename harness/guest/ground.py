"""What an agent stands on: the root, the mounts and the modules that its transport needs.

Imported before the agent itself, and with little: the modules are loaded in a thread while the
other processor imports the rest.

An initramfs is the kernel's rootfs, which nothing can pivot away from, as crun wants to: the root
is bound to itself, the bind is moved over `/`, and the agent lives in it. Nothing is copied. A root
disk is a mount already, and read-only.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import os
import threading

from harness.guest import syscalls
from harness.guest.system import MS_BIND, MS_MOVE, MS_NODEV, MS_NOEXEC, MS_NOSUID

_MODULES = "/lib/modules/lcowlab"
_ROOT = "/.root"
_NO = MS_NOSUID | MS_NODEV | MS_NOEXEC
_MOUNTS = (
    # source, target, type, flags, data
    ("proc", "/proc", "proc", _NO, ""),
    ("sysfs", "/sys", "sysfs", _NO, ""),
    ("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755"),
    ("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666"),
    ("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),  # noqa: S108 - a mount point
    ("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755"),
    ("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),  # noqa: S108 - a mount point
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", _NO, ""),
)
_DEVICE_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
)


class Ground:
    """A machine with its root and mounts, whose first modules are being loaded."""

    def __init__(self) -> None:
        """Move the root, mount, and begin to load. Raises OSError."""
        _move_root()
        _mount_all()
        self.machine = "hyperv" if _on_hyperv() else "qemu"
        self._failure: BaseException | None = None
        self._loader = threading.Thread(target=self._load, name="modules")
        self._loader.start()

    def wait(self) -> None:
        """Return once the modules of the transport are loaded. Raises OSError."""
        self._loader.join()
        if self._failure is not None:
            raise self._failure

    def _load(self) -> None:
        try:
            load(f"{self.machine}.first")
        except BaseException as error:  # noqa: BLE001 - raised by `wait`
            self._failure = error


def root_is_disk() -> bool:
    return bool(os.major(os.stat("/").st_dev))  # what has no device, such as rootfs, has 0


def _move_root() -> None:
    if root_is_disk():
        return
    os.makedirs(_ROOT, exist_ok=True)  # noqa: PTH103 - pathlib is slow to import
    syscalls.mount("/", _ROOT, "", MS_BIND, "")
    os.chdir(_ROOT)
    syscalls.mount(".", "/", "", MS_MOVE, "")
    os.chroot(".")
    os.chdir("/")


def _mount_all() -> None:
    for source, target, kind, flags, data in _MOUNTS:
        os.makedirs(target, exist_ok=True)  # noqa: PTH103 - pathlib is slow to import
        syscalls.mount(source, target, kind, flags, data)
    for target, path in _DEVICE_LINKS:
        with contextlib.suppress(FileExistsError):
            os.symlink(target, path)  # noqa: PTH211 - pathlib is slow to import
    for path in ("/root", "/run/gcs/c", "/run/mounts/scsi"):
        os.makedirs(path, exist_ok=True)  # noqa: PTH103 - pathlib is slow to import


def _on_hyperv() -> bool:
    """Whether the kernel shows a VMBus: as an ACPI device before hv_vmbus is loaded."""
    if os.path.isdir("/sys/bus/vmbus/devices"):  # noqa: PTH112 - pathlib is slow to import
        return True
    with contextlib.suppress(FileNotFoundError):
        names = os.listdir("/sys/bus/acpi/devices")  # noqa: PTH208 - pathlib is slow to import
        return any(name.startswith(("VMBUS:", "VMBus:", "MSFT1000:")) for name in names)
    return False


def load(module_set: str) -> None:
    """Load the modules that a list names, in its order; a kernel may have all of them built in."""
    for path in _listed(module_set):
        syscalls.load_module(path)


def load_what_fits(module_set: str) -> None:
    """Load those of a list that this processor suits: the others refuse."""
    for path in _listed(module_set):
        with contextlib.suppress(OSError):
            syscalls.load_module(path)


def _listed(module_set: str) -> list[str]:
    try:
        with open(f"{_MODULES}/{module_set}", encoding="ascii") as file:
            return [f"{_MODULES}/{name}" for name in file.read().split()]
    except FileNotFoundError:
        return []
