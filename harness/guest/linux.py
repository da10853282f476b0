"""The real operating system below the agent: `GuestSystem` on the kernel it runs on."""

# `shutil` and `subprocess` are imported where they are used: the first message does not wait for
# them.
# Paths are plain text of the protocol here, and pathlib is slow to import:
# ruff: noqa: PTH102, PTH103, PTH106, PTH108, PTH112, PTH208, PTH211

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from harness.guest import devicemapper, syscalls
from harness.guest.reaper import ReapedChild, Reaper
from harness.guest.system import ChildStdio, Connection, RunResult

_MOUNT_DATA_MAX = 4095  # a page, with its final zero
_OUTPUT_MAX = 64 * 1024


class LinuxSystem:
    """Implements `harness.guest.system.GuestSystem`; `dial` is the transport's."""

    def __init__(self, dial: Callable[[int], Connection]) -> None:
        self._dial = dial
        self._reaper = Reaper()
        self._urandom = -1
        self._hostname = -1

    def start(self) -> None:
        """Become the subreaper of all descendants and collect them from now on."""
        syscalls.become_subreaper()
        self._reaper.start()

    # -- files -----------------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        """Whether there is something at `path`; links are not followed."""
        return os.path.lexists(path)

    def is_mount_point(self, path: str) -> bool:
        """Whether something is mounted at `path`."""
        return os.path.normpath(path) in _mount_points()

    def mounts_below(self, path: str) -> Sequence[str]:
        """Return the mount points strictly below `path`, the latest first."""
        prefix = os.path.normpath(path).rstrip("/") + "/"
        return [point for point in reversed(_mount_points()) if point.startswith(prefix)]

    def list_dir(self, path: str) -> Sequence[str]:
        """Return the names in a directory."""
        return os.listdir(path)

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of a file or device at `offset`."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, size, offset) if offset else os.read(fd, size)
        finally:
            os.close(fd)

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file, or an attribute of sysfs."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)

    def make_dirs(self, path: str, mode: int) -> bool:
        """Make a directory and its parents; whether `path` itself is new."""
        parent = os.path.dirname(path)
        if parent:
            os.makedirs(parent, mode=0o755, exist_ok=True)
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if os.path.isdir(path):
                return False
            raise
        return True

    def remove_file(self, path: str) -> None:
        """Remove a file or link; missing is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def remove_dir(self, path: str) -> bool:
        """Remove an empty directory; False if it is not empty or busy; missing is fine."""
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EBUSY, errno.EEXIST, errno.EROFS):
                return False
            raise
        return True

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it; missing is fine, a mount point in it an error."""
        if not os.path.lexists(path):
            return
        if below := self.mounts_below(path):
            raise OSError(errno.EBUSY, f"{below[0]} is mounted below", path)
        import shutil

        shutil.rmtree(path)

    def symlink(self, path: str, target: str) -> None:
        """Make `path` a link to `target`."""
        os.symlink(target, path)

    # -- mounts ----------------------------------------------------------------------------------

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        """Mount something; the arguments of the system call."""
        syscalls.mount(source, target, fstype, flags, data)

    def mount_overlay(
        self, target: str, lower: Sequence[str], *, upper: str | None, work: str | None
    ) -> None:
        """Mount an overlay, the first of `lower` topmost, of any number of layers."""
        options = overlay_options(lower, upper=upper, work=work)
        if len(os.fsencode(options)) <= _MOUNT_DATA_MAX:
            syscalls.mount("overlay", target, "overlay", 0, options)
            return
        base = os.path.commonpath(lower)
        short = [os.path.relpath(path, base) for path in lower]
        options = overlay_options(short, upper=upper, work=work)
        if len(os.fsencode(options)) > _MOUNT_DATA_MAX:
            raise OSError(errno.E2BIG, f"the paths of {len(lower)} layers are too long", target)
        _in_directory(base, lambda: syscalls.mount("overlay", target, "overlay", 0, options))

    def unmount(self, target: str) -> None:
        """umount2(2) without flags."""
        syscalls.unmount(target)

    # -- devices ---------------------------------------------------------------------------------

    def map_device(self, name: str, *, kind: str, sectors: int, parameters: str) -> str:
        """Make a read-only device of one device mapper target; return its path."""
        return devicemapper.create_device(name, kind=kind, sectors=sectors, parameters=parameters)

    def unmap_device(self, name: str) -> None:
        """Remove a mapped device; missing is fine, EBUSY while it is in use."""
        devicemapper.remove_device(name)

    # -- processes -------------------------------------------------------------------------------

    def find_program(self, name: str, *, path: str) -> str | None:
        """Return the executable that `name` means, looked up in the directories of `path`."""
        import shutil

        return shutil.which(name, path=path)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        stdio: ChildStdio,
        terminal: bool,
    ) -> ReapedChild:
        """Start a process in a session of its own; `terminal`: stdin becomes its terminal."""
        # A terminal becomes the controlling one in the child; busybox does that after exec, where
        # Python would have to run code between fork and exec in a process with threads.
        command = ["/bin/busybox", "setsid", "-c", *argv] if terminal else list(argv)
        return self._start(command, cwd, env, stdio, new_session=not terminal)

    def adopt(self, argv: Sequence[str], *, pid_file: str, stdio: ChildStdio) -> ReapedChild | int:
        """Run a command that leaves a process behind; return that, or the exit code."""
        with self._reaper.adopting() as adopt:
            command = self._start(list(argv), "/", dict(os.environ), stdio, new_session=True)
            code = command.wait()
            assert code is not None, "waited without a timeout"
            if code:
                return code
            return adopt(int(self.read_at(pid_file, 0, 32)))

    def run(self, argv: Sequence[str], *, timeout_s: float) -> RunResult:
        """Run a command to its end; killed after the timeout, which raises TimeoutError."""
        read, write = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            stdio = ChildStdio(null, write, write)
            child = self._start(list(argv), "/", dict(os.environ), stdio, new_session=True)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
            os.close(null)
        output = bytearray()
        reader = threading.Thread(target=_drain, args=(read, output), daemon=True)
        reader.start()
        code = child.wait(timeout_s)
        if code is None:
            import signal

            child.signal(signal.SIGKILL)
            child.wait()
            raise TimeoutError(errno.ETIMEDOUT, f"{argv[0]} did not end within {timeout_s} s")
        reader.join(1.0)  # a grandchild may hold the pipe
        return RunResult(code, output.decode(errors="replace"))

    def _start(
        self,
        argv: list[str],
        cwd: str,
        env: Mapping[str, str],
        stdio: ChildStdio,
        *,
        new_session: bool,
    ) -> ReapedChild:
        import subprocess

        def start() -> int:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=dict(env),
                stdin=stdio.stdin,
                stdout=stdio.stdout,
                stderr=stdio.stderr,
                start_new_session=new_session,
            )
            process.returncode = 0  # the reaper collects it; this object must not
            return process.pid

        return self._reaper.spawn(start)

    # -- the host --------------------------------------------------------------------------------

    def dial(self, port: int) -> Connection:
        """Connect to a port of the host."""
        return self._dial(port)

    def add_entropy(self, data: bytes) -> None:
        """Mix bytes into the kernel's random generator, count them, and reseed from them."""
        if self._urandom < 0:
            self._urandom = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
        syscalls.add_entropy(self._urandom, data)

    def set_clock(self, seconds: int, nanoseconds: int) -> None:
        """Set the real-time clock, in Unix time."""
        time.clock_settime_ns(time.CLOCK_REALTIME, seconds * 1_000_000_000 + nanoseconds)

    def set_host_name(self, name: str) -> None:
        """Set the kernel's host name."""
        if self._hostname < 0:
            self._hostname = os.open("/proc/sys/kernel/hostname", os.O_WRONLY | os.O_CLOEXEC)
        os.pwrite(self._hostname, name.encode(), 0)

    def power_off(self) -> None:
        """Flush the disks and end the virtual machine."""
        os.sync()
        syscalls.power_off()


def overlay_options(lower: Sequence[str], *, upper: str | None, work: str | None) -> str:
    """Return an overlay's mount options; separators in paths are escaped."""

    def escaped(path: str) -> str:
        return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")

    options = "lowerdir=" + ":".join(escaped(path) for path in lower)
    if upper is not None and work is not None:
        options += f",upperdir={escaped(upper)},workdir={escaped(work)}"
    return options


def _in_directory(path: str, action: Callable[[], None]) -> None:
    """Run `action` in a thread whose own working directory is `path`; others keep theirs."""
    failure: list[OSError] = []

    def run() -> None:
        try:
            syscalls.unshare_directory()
            os.chdir(path)
            action()
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _mount_points() -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        fields = [line.split(" ", 5)[4] for line in table]
    return [_unescaped(point) if "\\" in point else point for point in fields]


def _unescaped(point: str) -> str:
    """Return a mount point whose blanks and backslashes the kernel wrote in octal."""
    return os.fsdecode(os.fsencode(point).decode("unicode_escape").encode("latin-1"))


def _drain(fd: int, output: bytearray) -> None:
    """Read a pipe to its end; keep the last part."""
    try:
        while data := os.read(fd, 4096):
            output += data
            del output[:-_OUTPUT_MAX]
    finally:
        os.close(fd)
