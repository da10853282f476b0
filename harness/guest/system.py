"""What the agent needs of its operating system, as protocols.

`harness.guest.linux.LinuxSystem` is the real one; the tests run the same agent on one whose
files are below a temporary directory, whose mounts are a table and whose processes are real.
Paths are the guest's own. File descriptors, pipes, threads and clocks are Python's and are used
directly: they are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20


class ByteStream(Protocol):
    """The bridge: a stream with one reader and any number of writers, one at a time."""

    def read(self, size: int) -> bytes:
        """Return what has come, at most `size` bytes; b"" once the host is gone."""
        ...

    def write(self, data: bytes) -> None:
        """Write all of it. Raises OSError once the host is gone."""
        ...


class Connection(Protocol):
    """A stream that the guest dialed: one thread receives, one sends."""

    def receive(self, *, timeout_s: float | None = None) -> bytes:
        """Return what has come; b"" once the host has finished.

        Raises OSError when reset, TimeoutError (an OSError) when nothing came in time.
        """
        ...

    def send(self, data: bytes) -> None:
        """Send all of it, waiting while the host is slow. Raises OSError when reset."""
        ...

    def send_pipe(self, fd: int, count: int) -> None:
        """Send up to `count` bytes (at least 1) that wait in a pipe. Raises OSError when reset."""
        ...

    def finish(self) -> None:
        """Half-close: nothing more is sent. Never raises."""
        ...

    def close(self) -> None:
        """Give the stream up. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class ChildStdio:
    """The descriptors a child gets as its standard streams; the caller keeps and closes its own."""

    stdin: int
    stdout: int
    stderr: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a command ended: exit code (128 + signal), and all it wrote."""

    exit_code: int
    output: str


class Child(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Return the exit code, 128 + signal for one that was killed; None after the timeout."""
        ...

    def signal(self, number: int) -> bool:
        """Send a signal; False if the process has ended already."""
        ...


class GuestSystem(Protocol):
    """Files, mounts, processes and the host, for the agent. Methods raise OSError."""

    # files
    def exists(self, path: str) -> bool:
        """Whether there is something at `path`; links are not followed."""
        ...

    def is_mount_point(self, path: str) -> bool:
        """Whether something is mounted at `path`."""
        ...

    def mounts_below(self, path: str) -> Sequence[str]:
        """Return the mount points strictly below `path`, the latest first."""
        ...

    def list_dir(self, path: str) -> Sequence[str]:
        """Return the names in a directory."""
        ...

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of a file or device at `offset`."""
        ...

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file, or an attribute of sysfs."""
        ...

    def make_dirs(self, path: str, mode: int) -> bool:
        """Make a directory and its parents; whether `path` itself is new."""
        ...

    def remove_file(self, path: str) -> None:
        """Remove a file or link; missing is fine."""
        ...

    def remove_dir(self, path: str) -> bool:
        """Remove an empty directory; False if it is not empty or busy; missing is fine."""
        ...

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it, on one file system; missing is fine."""
        ...

    def symlink(self, path: str, target: str) -> None:
        """Make `path` a link to `target`."""
        ...

    # mounts
    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        """Mount something; the arguments of the system call."""
        ...

    def mount_overlay(
        self, target: str, lower: Sequence[str], *, upper: str | None, work: str | None
    ) -> None:
        """Mount an overlay, the first of `lower` topmost, of any number of layers."""
        ...

    def unmount(self, target: str) -> None:
        """Unmount the topmost mount; EINVAL when nothing is mounted, EBUSY when in use."""
        ...

    # devices
    def map_device(self, name: str, *, kind: str, sectors: int, parameters: str) -> str:
        """Make a read-only device of one device mapper target; return its path."""
        ...

    def unmap_device(self, name: str) -> None:
        """Remove a mapped device; missing is fine, EBUSY while it is in use."""
        ...

    # processes
    def find_program(self, name: str, *, path: str) -> str | None:
        """Return the executable that `name` means, looked up in the directories of `path`."""
        ...

    def spawn(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        stdio: ChildStdio,
        terminal: bool,
    ) -> Child:
        """Start a process in a session of its own; `terminal`: stdin becomes its terminal."""
        ...

    def adopt(self, argv: Sequence[str], *, pid_file: str, stdio: ChildStdio) -> Child | int:
        """Run a command that leaves a process behind and return that, or the command's exit code.

        The command (crun with --detach) writes the process's id to `pid_file` and exits with 0.
        """
        ...

    def run(self, argv: Sequence[str], *, timeout_s: float) -> RunResult:
        """Run a command to its end; killed after the timeout, which raises TimeoutError."""
        ...

    # the host
    def dial(self, port: int) -> Connection:
        """Connect to a port of the host. Raises OSError: nobody listens, or the host is gone."""
        ...

    def add_entropy(self, data: bytes) -> None:
        """Mix bytes into the kernel's random generator, count them, and reseed from them."""
        ...

    def set_clock(self, seconds: int, nanoseconds: int) -> None:
        """Set the real-time clock, in Unix time."""
        ...

    def set_host_name(self, name: str) -> None:
        """Set the kernel's host name."""
        ...

    def power_off(self) -> None:
        """Flush the disks and end the virtual machine; may return before it has ended."""
        ...
