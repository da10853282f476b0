"""An operating system for the guest agent that needs neither root nor a virtual machine.

Files are below a temporary directory, mounts are a table, SCSI disks are files that sysfs-like
directories point to, and processes are real ones of this machine. crun is played: a container's
process runs unconfined, and a program that does not exist fails as crun 1.8.1 says it.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.guest.disks import CONTROLLER_IDS
from harness.guest.system import ChildStdio, Connection, RunResult
from harness.guest.transport import SocketConnection

EXT4_MAGIC = (1080, b"\x53\xef")


@dataclass(frozen=True)
class FakeMount:
    """One mount: what mount(2) was given."""

    source: str
    target: str
    fstype: str
    flags: int
    data: str


class FakeChild:
    """A real process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout_s: float | None = None) -> int | None:
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return 128 - code if code < 0 else code

    def signal(self, number: int) -> bool:
        if self._process.poll() is not None:
            return False
        self._process.send_signal(number)
        return True


@dataclass
class FakeGuestOs:
    """Implements `harness.guest.system.GuestSystem`."""

    root: Path
    mounts: list[FakeMount] = field(default_factory=list)
    busy: set[str] = field(default_factory=set)
    fail_mounts: list[int] = field(default_factory=list)
    """errno values of the next mounts; 0 is one that works."""
    fail_opens: list[int] = field(default_factory=list)
    """errno values of the next opens of a disk."""
    commands: list[list[str]] = field(default_factory=list)
    fail_commands: list[str] = field(default_factory=list)
    """Words; the next command that has the first of them fails."""
    mapped: dict[str, str] = field(default_factory=dict)
    """Device mapper tables by name."""
    unmaps: list[str] = field(default_factory=list)
    fail_unmaps: list[int] = field(default_factory=list)
    tampered: bool = False
    """Whether a mapped device cannot be read."""
    powered_off: threading.Event = field(default_factory=threading.Event)
    entropy: list[bytes] = field(default_factory=list)
    hold_deletes: threading.Event | None = None
    """The kernel forgets no disk before this is set."""
    clock_ns: int = 0
    host_name: str = ""
    _ports: dict[int, socket.socket] = field(default_factory=dict)
    _children: dict[str, list[FakeChild]] = field(default_factory=dict)
    _disks: int = 0

    # -- what a test sets up ---------------------------------------------------------------------

    def at(self, path: str) -> Path:
        """Return where a path of the guest is on this machine."""
        return self.root / path.lstrip("/")

    def attach(
        self, controller: int, lun: int, *, formatted: bool = True, host: int | None = None
    ) -> Path:
        """Have a disk appear; `host` is the number the kernel gave its controller, on Hyper-V."""
        if host is not None:
            self.at(f"/sys/bus/vmbus/devices/{CONTROLLER_IDS[controller]}/host{host}").mkdir(
                parents=True, exist_ok=True
            )
        name = f"sd{chr(ord('a') + self._disks)}"
        self._disks += 1
        device = self.at(f"/dev/{name}")
        device.parent.mkdir(parents=True, exist_ok=True)
        with device.open("wb") as file:
            if formatted:
                file.seek(EXT4_MAGIC[0])
                file.write(EXT4_MAGIC[1])
            file.truncate(4096)
        number = controller if host is None else host
        sysfs = self.at(f"/sys/bus/scsi/devices/{number}:0:0:{lun}")
        (sysfs / "block" / name).mkdir(parents=True)
        return sysfs

    def listen(self, port: int) -> socket.socket:
        """Return the host's end of a stream that the guest may dial once."""
        host, guest = socket.socketpair()
        self._ports[port] = guest
        return host

    def close(self) -> None:
        """Give up the streams that the guest never dialed."""
        for guest in self._ports.values():
            guest.close()

    def mounted(self) -> dict[str, FakeMount]:
        """Return the topmost mount of each path."""
        return {mount.target: mount for mount in self.mounts}

    # -- files -----------------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.at(path))

    def is_mount_point(self, path: str) -> bool:
        return path in self.mounted()

    def mounts_below(self, path: str) -> Sequence[str]:
        return [m.target for m in reversed(self.mounts) if m.target.startswith(path + "/")]

    def list_dir(self, path: str) -> Sequence[str]:
        return os.listdir(self.at(path))

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        self._open_disk(path)
        with self.at(path).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def write_file(self, path: str, data: bytes) -> None:
        if path.startswith("/sys/") and path.endswith("/delete"):
            if self.hold_deletes is not None:
                assert self.hold_deletes.wait(30), "a test never let the kernel forget"
            if not self.exists(os.path.dirname(path)):
                raise FileNotFoundError(errno.ENOENT, "no such device", path)
            shutil.rmtree(self.at(os.path.dirname(path)))
            return
        self.at(path).write_bytes(data)

    def make_dirs(self, path: str, mode: int) -> bool:
        new = not self.at(path).is_dir()
        self.at(path).mkdir(parents=True, exist_ok=True)
        return new

    def remove_file(self, path: str) -> None:
        self.at(path).unlink(missing_ok=True)

    def remove_dir(self, path: str) -> bool:
        try:
            self.at(path).rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def remove_tree(self, path: str) -> None:
        if self.exists(path):
            shutil.rmtree(self.at(path))

    def symlink(self, path: str, target: str) -> None:
        self.at(path).symlink_to(target)

    # -- mounts ----------------------------------------------------------------------------------

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        if self.fail_mounts and (code := self.fail_mounts.pop(0)):
            raise OSError(code, os.strerror(code), target)
        self.mounts.append(FakeMount(source, target, fstype, flags, data))

    def mount_overlay(
        self, target: str, lower: Sequence[str], *, upper: str | None, work: str | None
    ) -> None:
        self.mount("overlay", target, "overlay", 0, f"{':'.join(lower)}|{upper}|{work}")

    def unmount(self, target: str) -> None:
        if target in self.busy:
            raise OSError(errno.EBUSY, "in use", target)
        if not self.exists(target):
            raise OSError(errno.ENOENT, "missing", target)
        for mount in reversed(self.mounts):
            if mount.target == target:
                self.mounts.remove(mount)
                return
        raise OSError(errno.EINVAL, "not mounted", target)

    # -- devices ---------------------------------------------------------------------------------

    def map_device(self, name: str, *, kind: str, sectors: int, parameters: str) -> str:
        path = f"/dev/mapper/{name}"
        self._open_disk(parameters.split()[1])
        source = self.at(parameters.split()[1])
        self.at(path).write_bytes(source.read_bytes())
        if self.tampered:
            self.at(path).unlink()
            self.at(path).mkdir()  # what is read of it is an error
        self.mapped[name] = f"0 {sectors} {kind} {parameters}"
        return path

    def _open_disk(self, path: str) -> None:
        if path.startswith("/dev/sd") and self.fail_opens:
            code = self.fail_opens.pop(0)
            raise OSError(code, os.strerror(code), path)

    def unmap_device(self, name: str) -> None:
        self.unmaps.append(name)
        if self.fail_unmaps:
            code = self.fail_unmaps.pop(0)
            raise OSError(code, os.strerror(code), name)
        path = self.at(f"/dev/mapper/{name}")
        if self.mapped.pop(name, None) is not None:
            path.rmdir() if path.is_dir() else path.unlink()

    # -- processes -------------------------------------------------------------------------------

    def find_program(self, name: str, *, path: str) -> str | None:
        return shutil.which(name, path=path)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        stdio: ChildStdio,
        terminal: bool,
    ) -> FakeChild:
        command = ["setsid", "-c", *argv] if terminal else list(argv)
        return FakeChild(
            subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(env),
                stdin=stdio.stdin,
                stdout=stdio.stdout,
                stderr=stdio.stderr,
                start_new_session=not terminal,
            )
        )

    def adopt(self, argv: Sequence[str], *, pid_file: str, stdio: ChildStdio) -> FakeChild | int:
        arguments = list(argv)
        container = arguments[-1]

        def option(name: str) -> str:
            return arguments[arguments.index(name) + 1]

        if "run" in arguments:
            process = json.loads(self.at(f"{option('--bundle')}/config.json").read_text())[
                "process"
            ]
        else:
            process = json.loads(self.at(option("--process")).read_text())
        program = shutil.which(process["args"][0])
        if program is None:
            self.at(option("--log")).write_text(
                f"executable file `{process['args'][0]}` not found in $PATH: "
                "No such file or directory\n"
            )
            return 1
        env = dict(setting.split("=", 1) for setting in process["env"])
        child = self.spawn(process["args"], cwd="/", env=env, stdio=stdio, terminal=False)
        self._children.setdefault(container, []).append(child)
        return child

    def run(self, argv: Sequence[str], *, timeout_s: float) -> RunResult:
        self.commands.append(list(argv))
        if self.fail_commands and self.fail_commands[0] in argv:
            return RunResult(1, f"no {self.fail_commands.pop(0)} today")
        if argv[0] == "/sbin/cryptsetup":
            return self._cryptsetup(argv)
        if argv[0] == "crun" and "delete" in argv:
            for child in self._children.pop(argv[-1], []):
                with contextlib.suppress(ProcessLookupError):
                    child.signal(9)
            return RunResult(0, "")
        if argv[0] == "/sbin/mkfs.xfs":
            with self.at(argv[-1]).open("r+b") as file:
                file.write(b"XFSB")
            return RunResult(0, "")
        if argv[0].startswith("/sbin/mkfs"):
            with self.at(argv[-1]).open("r+b") as file:
                file.seek(EXT4_MAGIC[0])
                file.write(EXT4_MAGIC[1])
            return RunResult(0, "")
        return RunResult(127, f"{argv[0]}: not played")

    def _cryptsetup(self, argv: Sequence[str]) -> RunResult:
        """Play LUKS: a mapped device is a file of its own, there while it is open."""
        name = argv[-1]
        device = self.at(f"/dev/mapper/{name}")
        if argv[1] == "luksOpen":
            device.write_bytes(b"")
        elif argv[1] == "luksClose":
            if not device.exists():
                return RunResult(4, f"Device {name} is not active.")
            device.unlink()
        return RunResult(0, "")

    # -- the host --------------------------------------------------------------------------------

    def dial(self, port: int) -> Connection:
        guest = self._ports.pop(port, None)
        if guest is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens on port {port}")
        return SocketConnection(guest)

    def add_entropy(self, data: bytes) -> None:
        self.entropy.append(data)

    def set_clock(self, seconds: int, nanoseconds: int) -> None:
        self.clock_ns = seconds * 1_000_000_000 + nanoseconds

    def set_host_name(self, name: str) -> None:
        self.host_name = name

    def power_off(self) -> None:
        self.powered_off.set()


class SocketByteStream:
    """The guest's end of a bridge over a socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def read(self, size: int) -> bytes:
        return self._socket.recv(size)

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 5.0) -> bool:
    """Whether a condition comes true in time."""
    done = threading.Event()
    for _ in range(int(timeout_s / 0.005)):
        if condition():
            return True
        done.wait(0.005)
    return False
