"""From the ground of a machine to an agent that serves: transport, setup, the end."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import fcntl
import os
import struct
import threading
import time

from harness.guest import syscalls
from harness.guest.agent import Agent
from harness.guest.ground import Ground, load, load_what_fits, root_is_disk
from harness.guest.linux import LinuxSystem
from harness.guest.log import Log
from harness.guest.system import DEFAULT_PATH, MS_NODEV, MS_NOEXEC, MS_NOSUID
from harness.guest.transport import Transport, VirtioTransport, VsockTransport

_CRUN = "/run/lcowlab/bin/crun"
_WRITABLE = "/run/lcowlab/writable"
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_GRACE_S = 0.5  # for requests that are under way when the host goes


def serve(ground: Ground) -> None:
    """Set the machine up and serve until the host is gone; then power off, or stay (`-s`)."""
    os.environ.clear()
    os.environ.update(PATH=DEFAULT_PATH, HOME="/root", LANG="C.UTF-8")
    options = _options(sys.argv[1:])
    stays = "s" in options
    log = Log(_to_console)
    ground.wait()
    transport: Transport
    if ground.machine == "hyperv":
        transport = VsockTransport(patience_s=None) if stays else VsockTransport()
    else:
        transport = VirtioTransport.open(on_violation=lambda text: log.error(f"stdio port: {text}"))
    system = LinuxSystem(transport.dial)
    system.start()
    setup = Setup(ground.machine, log, writable="w" in options)
    agent = Agent(system, log, crun=_CRUN, setup=setup.complete)
    for bridge in transport.bridges():
        agent.serve(bridge)
    if stays:
        _to_console("agent: the host is gone, staying")
        threading.Event().wait()
    _to_console("agent: the host is gone, powering off")
    time.sleep(_GRACE_S)
    system.power_off()


def _options(arguments: list[str]) -> set[str]:
    """Return the letters of init's options, as hcsshim's document gives them behind `--`.

    `-e` and `-d` have a value; what follows the options is a command that stands for our agent.
    """
    found: set[str] = set()
    while arguments and arguments[0].startswith("-"):
        option, *arguments = arguments
        found.add(option[1:])
        if option in ("-e", "-d"):
            arguments = arguments[1:]
    return found


class Setup:
    """What the first message need not wait for: the other modules, loopback, crun."""

    def __init__(self, modules: str, log: Log, *, writable: bool) -> None:
        """`writable`: a root disk's /etc and /var can be written to, in memory."""
        self._modules = modules
        self._writable = writable
        self._log = log
        self._lock = threading.Lock()
        self._done = False

    def complete(self) -> None:
        """Return once everything is set up; the first caller does it. Raises OSError."""
        if self._done:
            return
        with self._lock:
            if not self._done:
                load(f"{self._modules}.later")
                load_what_fits("extra.faster")
                load("extra")
                if self._writable and root_is_disk():
                    _make_writable()
                _import_the_rest()
                _loopback_up(self._log)
                _seal_crun(self._log)
                self._done = True
                uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
                _to_console(f"agent: serves {self._modules}, {uptime:.2f} s")


def _import_the_rest() -> None:
    """Import what functions import, so that no request waits for it, and no copy of a template.

    The originals behind the image's stand-ins come with that, in one thread alone: two could load
    two of them.
    """
    import signal
    import termios

    assert signal.SIGKILL
    assert termios.FIONREAD
    contextlib.ExitStack().close()


def _make_writable() -> None:
    """Lay memory over what programs of a read-only root want to write to, as hcsshim's init."""
    os.makedirs(_WRITABLE)  # noqa: PTH103 - pathlib is slow to import
    syscalls.mount(
        "tmpfs", _WRITABLE, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700,size=40%"
    )
    for path in ("/etc", "/var"):
        upper, work = f"{_WRITABLE}{path}/upper", f"{_WRITABLE}{path}/work"
        for folder in (upper, work):
            os.makedirs(folder)  # noqa: PTH103 - pathlib is slow to import
        options = f"lowerdir={path},upperdir={upper},workdir={work}"
        syscalls.mount("overlay", path, "overlay", 0, options)


def _seal_crun(log: Log) -> None:
    """Put crun at `_CRUN`: in sealed memory where that can be."""
    import shutil

    program = shutil.which("crun")
    if program is None:
        log.warning("no crun: containers cannot run")
        return
    try:
        program = syscalls.seal_program(program)
    except OSError as error:
        log.warning("crun runs from its file", {"error": str(error)})
    os.makedirs(os.path.dirname(_CRUN), exist_ok=True)  # noqa: PTH103 - pathlib is slow to import
    os.symlink(program, _CRUN)  # noqa: PTH211 - pathlib is slow to import


def _loopback_up(log: Log) -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            request = struct.pack("16sH14x", b"lo", 0)
            (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
        except OSError as error:
            log.warning("no loopback", {"error": str(error)})


def _to_console(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, line.encode() + b"\n")
