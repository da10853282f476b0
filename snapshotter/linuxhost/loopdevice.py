"""Loop devices: a file as a block device, for as long as somebody uses it.

Every device is set to clear itself (LO_FLAGS_AUTOCLEAR): with its last mount it is gone, even
where the process that made it was killed. A writable file that has a device already gets that one
again: a second one would mean two ext4 instances on one disk.
Source: <linux/loop.h>, loop(4).
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshotter.errors import UnavailableError

_CONTROL: Final = Path("/dev/loop-control")
_MAJOR: Final = 7
_GET_FREE: Final = 0x4C82  # LOOP_CTL_GET_FREE
_CONFIGURE: Final = 0x4C0A  # LOOP_CONFIGURE, Linux 5.8
_GET_STATUS: Final = 0x4C05  # LOOP_GET_STATUS64
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_NAME_SIZE: Final = 64

# struct loop_info64: device, inode, rdevice, offset, size limit, number, encryption type and key
# size, flags, file name, crypt name, key, two words.
_INFO: Final = struct.Struct("<5Q4I64s64s32s2Q")
assert _INFO.size == 232
# struct loop_config: descriptor, block size (0: the kernel's choice), the above, reserved.
_CONFIG: Final = struct.Struct(f"<2I{_INFO.size}s64x")
assert _CONFIG.size == 304

_ATTEMPTS: Final = 100
_PAUSE_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """A device node and its open descriptor; without a mount the device ends with that."""

    path: Path
    descriptor: int


@contextlib.contextmanager
def loop_device(file: Path, *, writable: bool) -> Iterator[LoopDevice]:
    """Yield a loop device of `file`: for writing the one that it has, else a new one.

    Mount it inside the context; the mount keeps it. A trailer of less than a sector, or one that
    the file system does not count as its own, is no harm. Raises UnavailableError.
    """
    try:
        backing = os.open(file, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        raise UnavailableError(f"cannot open {file}: {error.strerror}") from error
    try:
        device = (_existing(backing) if writable else None) or _new(
            backing, file, writable=writable
        )
        try:
            yield device
        finally:
            os.close(device.descriptor)
    finally:
        os.close(backing)


def _existing(backing: int) -> LoopDevice | None:
    wanted = os.fstat(backing)
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        path = Path("/dev") / entry.parts[-3]
        with contextlib.suppress(OSError):  # it was cleared in the meantime
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                device, inode, *_ = _INFO.unpack(
                    fcntl.ioctl(descriptor, _GET_STATUS, bytes(_INFO.size))
                )
            except OSError:
                os.close(descriptor)
                continue
            if (device, inode) == (_kernel_device(wanted.st_dev), wanted.st_ino):
                return LoopDevice(path, descriptor)
            os.close(descriptor)
    return None


def _kernel_device(device: int) -> int:
    """`st_dev` as the kernel's huge_encode_dev gives it in lo_device."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _new(backing: int, file: Path, *, writable: bool) -> LoopDevice:
    flags = _AUTOCLEAR | (0 if writable else _READ_ONLY)
    name = os.fsencode(file)[: _NAME_SIZE - 1]
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    config = _CONFIG.pack(backing, 0, info)
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnavailableError(
            f"no loop devices: {_CONTROL}: {error.strerror}; load the kernel module loop"
        ) from error
    try:
        for _ in range(_ATTEMPTS):
            number = fcntl.ioctl(control, _GET_FREE)
            path = Path(f"/dev/loop{number}")
            _ensure_node(path, number)
            descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, _CONFIGURE, config)
            except OSError as error:
                os.close(descriptor)
                if error.errno != errno.EBUSY:
                    raise
                time.sleep(_PAUSE_S)  # somebody else took it first
                continue
            return LoopDevice(path, descriptor)
    except OSError as error:
        raise UnavailableError(f"cannot make a loop device of {file}: {error.strerror}") from error
    finally:
        os.close(control)
    raise UnavailableError(f"no loop device for {file}: all that the kernel offered were taken")


def _ensure_node(path: Path, number: int) -> None:
    # devtmpfs makes the node by itself; in a container with a /dev of its own nobody does.
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(_MAJOR, number))
