"""The operating system of a model's guest: what `harness.guest.agent` needs, played in memory.

Disks, mounts, overlays and processes follow Linux's rules as far as the agent and the scenarios
can tell: a mount in use is EBUSY, a disk has one device, an overlay keeps its layers. Containers
are processes with a namespace of their own; crun is played.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import errno
import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from harness.guest.disks import APPEAR_S
from harness.guest.system import MS_BIND, MS_RDONLY, MS_REMOUNT, ChildStdio, Connection, RunResult
from harness.model.crun import PlayedCrun
from harness.model.disks import ModelDisk
from harness.model.files import FileSystem, Kind, Node, Tree, directory
from harness.model.namespace import Mounted, Namespace
from harness.model.overlay import Branch, Overlay
from harness.model.process import Process
from harness.model.processtable import ProcessTable
from harness.model.rootdisk import HOST_NUMBERS, INIT, folders_of, root_files

_SCSI: Final = "/sys/bus/scsi/devices"
_EXT4_MAGIC_AT: Final = 1024 + 56
_EXT4_MAGIC: Final = b"\x53\xef"

assert APPEAR_S > 0, "a disk appears at once here: the agent's waiting never shows"


class ModelGuestOs:
    """Implements `harness.guest.system.GuestSystem`."""

    def __init__(self, *, dial: Callable[[int], Connection], power_off: Callable[[], None]) -> None:
        self._dial = dial
        self._power_off = power_off
        self.lock = threading.RLock()
        self._names = itertools.count()
        self._disks: dict[str, ModelDisk] = {}
        self._slots: dict[tuple[int, int], str] = {}
        self._processes = ProcessTable(self.lock)
        self._crun = PlayedCrun(self._processes, lambda: self.namespace, self.lock)
        self.namespace = Namespace(Mounted("/", root_files(), "rootfs", "rootfs", (0, 2)))
        self.namespace.generated["/proc/self/mountinfo"] = self.namespace.mountinfo

    # -- the hardware ----------------------------------------------------------------------------

    def boot_from_disk(self, controller: int, lun: int, *, writable: bool) -> None:
        """Have the root on the disk of a slot, as `root=` says. Raises OSError, as a panic tells.

        `writable` lays memory over /etc and /var, as init's `-w` says.

        What is plugged in appears after it, as in a machine.
        """
        with self.lock:
            name = self._slots.get((controller, lun))
            disk = self._disks[name] if name is not None else None
            if disk is None or disk.files is None:
                raise OSError(errno.ENXIO, "VFS: Unable to mount root fs on unknown-block(0,0)")
            if disk.files.find(INIT) is None:
                raise OSError(errno.ENOENT, f"No working init found: no {INIT}")
            root = Overlay([Branch(disk.files, "/")], None)
            namespace = Namespace(Mounted("/", root, f"/dev/{name}", "ext4", (8, 0), name or ""))
            for target in ("/dev", "/proc", "/run", "/sys", "/tmp"):  # noqa: S108 - the guest's own
                files = folders_of(target)
                namespace.mounts.append(Mounted(target, files, target[1:], "tmpfs", (0, 20)))
            for target in ("/etc", "/var") if writable else ():
                memory = Branch(FileSystem(directory(), name=target), "/")
                over = Overlay([Branch(disk.files, target)], memory)
                namespace.mounts.append(Mounted(target, over, "overlay", "overlay", (0, 21)))
            namespace.generated["/proc/self/mountinfo"] = namespace.mountinfo
            self.namespace = namespace
            for (at, number), present in self._slots.items():
                self._show(at, number, present)

    def plug(self, controller: int, lun: int, disk: ModelDisk) -> None:
        """Have a disk appear."""
        with self.lock:
            name = f"sd{_letters(next(self._names))}"
            self._disks[name] = disk
            self._slots[controller, lun] = name
            self._show(controller, lun, name)

    def _show(self, controller: int, lun: int, name: str) -> None:
        base = _sysfs(controller, lun)
        for path in (base, f"{base}/block", f"{base}/block/{name}"):
            self.namespace.put(path, directory())
        self.namespace.put(f"/dev/{name}", Node(Kind.BLOCK, 0o600))

    def unplug(self, controller: int, lun: int) -> None:
        """Take a disk away, let go of or not."""
        with self.lock:
            name = self._slots.pop((controller, lun), None)
            if name is not None:
                self._forget(controller, lun, name)

    def crash(self) -> None:
        """Stop at once: every process is gone and nothing more is written."""
        self._processes.crash()

    def _forget(self, controller: int, lun: int, name: str) -> None:
        self._disks.pop(name, None)
        for path in (_sysfs(controller, lun), f"/dev/{name}"):
            if self.namespace.find(path) is not None:
                self.namespace.remove(path)

    # -- files -----------------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        """Whether there is something at `path`; links are not followed."""
        with self.lock:
            return self.namespace.find(path, follow=False) is not None

    def is_mount_point(self, path: str) -> bool:
        """Whether something is mounted at `path`."""
        with self.lock:
            return self.namespace.mount_at(path) is not None

    def mounts_below(self, path: str) -> Sequence[str]:
        """Return the mount points strictly below `path`, the latest first."""
        with self.lock:
            targets = [mount.target for mount in reversed(self.namespace.mounts)]
            return [target for target in targets if target.startswith(path + "/")]

    def list_dir(self, path: str) -> Sequence[str]:
        """Return the names in a directory."""
        with self.lock:
            return self.namespace.names(path)

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of a file or device at `offset`."""
        with self.lock:
            disk = self._disks.get(path.removeprefix("/dev/"))
            if disk is not None:
                return _EXT4_MAGIC[:size] if disk.files is not None else bytes(size)
            return self.namespace.read(path)[offset : offset + size]

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file, or an attribute of sysfs."""
        with self.lock:
            device = path.removesuffix("/delete")
            if device == path or not path.startswith(f"{_SCSI}/"):
                self.namespace.write(path, data)
                return
            host, _, _, lun = (int(part) for part in os.path.basename(device).split(":"))
            controller = HOST_NUMBERS.index(host)
            name = self._slots.pop((controller, lun), None)
            if name is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self._forget(controller, lun, name)

    def make_dirs(self, path: str, mode: int) -> bool:
        """Make a directory and its parents; whether `path` itself is new."""
        with self.lock:
            at, new = "", False
            for part in [part for part in path.split("/") if part]:
                at += f"/{part}"
                new = self.namespace.find(at) is None
                if new:
                    self.namespace.make_directory(at, mode if at == path else 0o755)
            return new

    def remove_file(self, path: str) -> None:
        """Remove a file or link; missing is fine."""
        with self.lock:
            if self.namespace.find(path, follow=False) is not None:
                self.namespace.remove(path)

    def remove_dir(self, path: str) -> bool:
        """Remove an empty directory; False if it is not empty or busy; missing is fine."""
        with self.lock:
            if self.namespace.find(path) is None:
                return True
            if self.namespace.mount_at(path) is not None or self.namespace.names(path):
                return False
            self.namespace.remove(path)
            return True

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it; missing is fine, a mount point in it an error."""
        with self.lock:
            if self.namespace.find(path, follow=False) is not None:
                self.namespace.remove(path)

    def symlink(self, path: str, target: str) -> None:
        """Make `path` a link to `target`."""
        with self.lock:
            if self.namespace.find(path, follow=False) is not None:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            self.namespace.put(path, Node(Kind.LINK, 0o777, target=target))

    # -- mounts ----------------------------------------------------------------------------------

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        """Mount something; the arguments of the system call. `data` is not looked at."""
        del data
        with self.lock:
            if not source:
                self._change(target, flags)
                return
            self.namespace.need(target)
            if flags & MS_BIND:
                tree = Overlay([self._branch(source)], None)
                below, _ = self.namespace.owner(source)
                self.namespace.mounts.append(
                    Mounted(target, tree, below.source, below.fstype, below.device)
                )
                return
            name = source.removeprefix("/dev/")
            disk = self._disks.get(name)
            if disk is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), source)
            if disk.files is None or fstype != "ext4":
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), source)
            if disk.read_only and not flags & MS_RDONLY:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), source)
            files: Tree = disk.files
            if flags & MS_RDONLY:
                files = Overlay([Branch(files, "/")], None)
            device = (8, 16 * (ord(name[-1]) - ord("a")))
            self.namespace.mounts.append(Mounted(target, files, source, fstype, device, name))

    def _change(self, target: str, flags: int) -> None:
        """Remount or change the propagation: only read-only makes a difference here."""
        mount = self.namespace.mount_at(target)
        if mount is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), target)
        if flags & MS_REMOUNT and flags & MS_RDONLY and not mount.tree.read_only:
            raise OSError(errno.ENOSYS, "the model remounts nothing that can be written to")

    def mount_overlay(
        self, target: str, lower: Sequence[str], *, upper: str | None, work: str | None
    ) -> None:
        """Mount an overlay, the first of `lower` topmost, of any number of layers."""
        with self.lock:
            self.namespace.need(target)
            top = None
            if upper is not None and work is not None:
                self.namespace.need(work)
                top = self._branch(upper)
            tree = Overlay([self._branch(path) for path in lower], top)
            number = len(self.namespace.mounts) + 30
            self.namespace.mounts.append(Mounted(target, tree, "overlay", "overlay", (0, number)))

    def _branch(self, path: str) -> Branch:
        self.namespace.need(path)
        mount, inside = self.namespace.owner(path)
        return Branch(mount.tree, inside)

    def unmount(self, target: str) -> None:
        """Unmount the topmost mount; EINVAL when nothing is mounted, EBUSY when in use."""
        with self.lock:
            if self.namespace.find(target) is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), target)
            mount = self.namespace.mount_at(target)
            if mount is None:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), target)
            if self.mounts_below(target) or any(
                self._uses(p, target) for p in self._processes.alive()
            ):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), target)
            mount.tree.sync()
            self.namespace.mounts.remove(mount)

    @staticmethod
    def _uses(process: Process, target: str) -> bool:
        # A container's own mount namespace holds no mount of the utility VM's.
        return process.rootfs == "/" and (
            process.cwd == target or process.cwd.startswith(target + "/")
        )

    # -- devices ---------------------------------------------------------------------------------

    def map_device(self, name: str, *, kind: str, sectors: int, parameters: str) -> str:
        """Refuse: there is no device mapper, and the agent finds none."""
        del kind, sectors, parameters
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def unmap_device(self, name: str) -> None:
        """Do nothing: nothing is mapped."""

    # -- processes -------------------------------------------------------------------------------

    def find_program(self, name: str, *, path: str) -> str | None:
        """Return the executable that `name` means, looked up in the directories of `path`."""
        with self.lock:
            for folder in [""] if "/" in name else path.split(":"):
                full = f"{folder}/{name}" if folder else name
                if self.namespace.find(full) is not None:
                    return full
        return None

    def spawn(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        stdio: ChildStdio,
        terminal: bool,
    ) -> Process:
        """Start a process of the utility VM; a terminal is a stream like any other here."""
        del terminal
        with self.lock:
            self.namespace.names(cwd)
        return self._processes.start(argv, self.namespace, env=env, cwd=cwd, stdio=stdio)

    def adopt(self, argv: Sequence[str], *, pid_file: str, stdio: ChildStdio) -> Process | int:
        """Play `crun run` and `crun exec`: the process they leave behind, or their exit code."""
        del pid_file
        return self._crun.adopt(argv, stdio)

    def run(self, argv: Sequence[str], *, timeout_s: float) -> RunResult:
        """Play `crun delete` and `mkfs.ext4`."""
        if "delete" in argv:
            return self._crun.delete(argv[-1], timeout_s=timeout_s)
        if argv[0] == "/sbin/mkfs.ext4":
            disk = self._disks.get(argv[-1].removeprefix("/dev/"))
            if disk is None or disk.read_only:
                return RunResult(1, f"{argv[-1]}: cannot be written to")
            disk.format()
            return RunResult(0, "")
        return RunResult(127, f"{argv[0]}: the model does not play it")

    # -- the host --------------------------------------------------------------------------------

    def dial(self, port: int) -> Connection:
        """Connect to a port of the host."""
        return self._dial(port)

    # -- a copy of a saved machine: what must differ from its siblings -----------------------------

    def add_entropy(self, data: bytes) -> None:
        """Mix bytes into the random generator, which is this process's: it needs none."""

    def set_clock(self, seconds: int, nanoseconds: int) -> None:
        """Set the real-time clock, which is this process's and right."""

    def set_host_name(self, name: str) -> None:
        """Set the host name, which nothing that is played looks at."""

    def power_off(self) -> None:
        """Flush the disks and end the virtual machine."""
        with self.lock, contextlib.suppress(OSError):
            self.namespace.sync()
        self._power_off()


def _sysfs(controller: int, lun: int) -> str:
    return f"{_SCSI}/{HOST_NUMBERS[controller]}:0:0:{lun}"


def _letters(number: int) -> str:
    """Return a, b … z, aa, ab …, as the kernel names disks."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
