"""The kernel's device mapper: a block device made of others by a table of one line.

Linux include/uapi/linux/dm-ioctl.h. Nodes appear in devtmpfs as /dev/dm-N; the names below
/dev/mapper are links that udev would make.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import fcntl
import os
import struct

DIRECTORY = "/dev/mapper"
_CONTROL = f"{DIRECTORY}/control"
_CREATE, _REMOVE, _RESUME, _LOAD = 3, 4, 6, 9  # DM_DEV_SUSPEND without its flag resumes
_READ_ONLY = 1
_VERSION = (4, 0, 0)
_ALIGNMENT = 8
# version, data size and start, targets, open count, flags, event, device, name, uuid
_HEADER = struct.Struct("=3IIIIiII4xQ128s129s7x")
_TARGET = struct.Struct("=QQiI16s")  # first sector, sectors, status, next, type

assert _HEADER.size == 312
assert _TARGET.size == 40


def create_device(name: str, *, kind: str, sectors: int, parameters: str) -> str:
    """Make a read-only device of one target and return its path below /dev/mapper.

    On failure nothing is left. Raises OSError.
    """
    answer = _call(_CREATE, name, flags=_READ_ONLY)
    number = os.minor(_HEADER.unpack_from(answer)[9])
    try:
        table = _TARGET.pack(0, sectors, 0, 0, kind.encode()) + parameters.encode() + b"\0"
        table += bytes(-len(table) % _ALIGNMENT)
        _call(_LOAD, name, flags=_READ_ONLY, table=table)
        _call(_RESUME, name)
        path = f"{DIRECTORY}/{name}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - pathlib is slow to import
        os.symlink(f"../dm-{number}", path)  # noqa: PTH211 - pathlib is slow to import
    except OSError:
        _call(_REMOVE, name)
        raise
    return path


def remove_device(name: str) -> None:
    """Remove a device; one that is not there is fine. Raises OSError (EBUSY while in use)."""
    with contextlib.suppress(FileNotFoundError):
        _call(_REMOVE, name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{DIRECTORY}/{name}")  # noqa: PTH108 - pathlib is slow to import


def _call(command: int, name: str, *, flags: int = 0, table: bytes = b"") -> bytearray:
    """Do one request and return the kernel's answer. ENXIO is told as ENOENT: no such device."""
    size = _HEADER.size + len(table)
    header = _HEADER.pack(
        *_VERSION, size, _HEADER.size, bool(table), 0, flags, 0, 0, name.encode(), b""
    )
    buffer = bytearray(header + table)
    request = 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command  # _IOWR(0xfd, command, header)
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, request, buffer)
    except OSError as error:
        import errno

        code = errno.ENOENT if error.errno == errno.ENXIO else error.errno
        raise OSError(code, f"device mapper: {os.strerror(code or 0)}", name) from error
    finally:
        os.close(control)
    return buffer
