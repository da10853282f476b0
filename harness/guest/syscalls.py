"""Linux system calls that Python does not have, through libc, or not whole. Each raises OSError."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import ctypes
import fcntl
import os
import struct
from typing import Any

_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_FS = 0x00000200
_REBOOT_POWER_OFF = 0x4321FEDC
_RNDADDENTROPY = 0x40085203  # linux/random.h: _IOW('R', 0x03, int[2])
_RNDRESEEDCRNG = 0x5207  # _IO('R', 0x07)

_ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """Mount something; an empty type or data is a null pointer."""
    _call(
        "mount",
        target,
        _libc.mount,
        os.fsencode(source),
        os.fsencode(target),
        os.fsencode(fstype) or None,
        ctypes.c_ulong(flags),
        os.fsencode(data) or None,
    )


def unmount(target: str) -> None:
    """Call umount2(2) without flags."""
    _call("umount", target, _libc.umount2, os.fsencode(target), 0)


def load_module(path: str) -> None:
    """Call finit_module(2); a module that is loaded already is fine."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = _FINIT_MODULE[os.uname().machine]
        _call("finit_module", path, _libc.syscall, ctypes.c_long(number), fd, b"", 0)
    except FileExistsError:
        pass
    finally:
        os.close(fd)


def seal_program(path: str) -> str:
    """Return a path of this process that runs a copy of a program from sealed memory.

    crun copies itself there and executes itself again, so that no container can overwrite it
    (CVE-2019-5736), unless it finds itself in a memory file with exactly these seals. Under
    emulation that saves half of its 100 ms.
    """
    memory = os.memfd_create(os.path.basename(path), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(path, "rb") as program:
            os.sendfile(memory, program.fileno(), 0, os.fstat(program.fileno()).st_size)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(memory)
        raise
    return f"/proc/{os.getpid()}/fd/{memory}"


def become_subreaper() -> None:
    """Make this process the parent of what its descendants leave behind."""
    _call("prctl", None, _libc.prctl, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def unshare_directory() -> None:
    """Give the calling thread a working directory of its own."""
    _call("unshare", None, _libc.unshare, _CLONE_FS)


def add_entropy(device: int, data: bytes) -> None:
    """Credit `data` (whole words) as entropy and have the generator start anew from it.

    `device` is a descriptor of /dev/random or /dev/urandom.
    """
    fcntl.ioctl(device, _RNDADDENTROPY, struct.pack("ii", 8 * len(data), len(data)) + data)
    fcntl.ioctl(device, _RNDRESEEDCRNG)


def power_off() -> None:
    """End the machine; the caller has flushed the disks."""
    _call("reboot", None, _libc.reboot, ctypes.c_int(_REBOOT_POWER_OFF))


def _call(name: str, path: str | None, function: Any, *arguments: object) -> None:  # noqa: ANN401 - ctypes has no type for a function of a library
    if function(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}", path)
