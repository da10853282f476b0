"""One writer a file: a lock that QEMU honours too.

On Linux these are open-file-description locks on the bytes that QEMU's file driver uses (QEMU
docs/system/qemu-block-drivers, `locking`): byte 100 + P is read-locked by whoever has permission
P, byte 200 + P by whoever does not let others have it. A disk that a virtual machine writes to is
refused here, and a disk that is being written here is refused there. Where there are no such
locks, flock(2) keeps our own processes apart.
"""

from __future__ import annotations

import errno
import fcntl
import struct
import sys
from pathlib import Path
from typing import Final

from snapshotter.errors import FailedPreconditionError, UnavailableError

assert sys.platform != "win32"  # tells the type checker

_HELD: Final = 100
_REFUSED: Final = 200
_WRITE: Final = 1  # bit numbers of QEMU's BLK_PERM_WRITE and BLK_PERM_RESIZE
_RESIZE: Final = 3

# struct flock, 64-bit: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = struct.Struct("@hhqqi4x")
_UNSUPPORTED: Final = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def lock_for_writing(descriptor: int, path: Path) -> None:
    """Keep every other writer from the file until the descriptor is closed.

    Raises FailedPreconditionError where somebody has it already. File systems without locks give
    none.
    """
    try:
        if sys.platform.startswith("linux"):
            for byte in (_HELD + _WRITE, _HELD + _RESIZE, _REFUSED + _WRITE, _REFUSED + _RESIZE):
                _lock_byte(descriptor, byte)
            for byte in (_HELD + _WRITE, _HELD + _RESIZE, _REFUSED + _WRITE, _REFUSED + _RESIZE):
                if _is_locked(descriptor, byte):
                    raise _in_use(path)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise _in_use(path) from error
        if error.errno not in _UNSUPPORTED:
            raise UnavailableError(f"cannot lock {path}: {error.strerror}") from error


def _in_use(path: Path) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{path} is open for writing in another program or virtual machine; detach it there first"
    )


def _lock_byte(descriptor: int, byte: int) -> None:
    wanted = _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)


def _is_locked(descriptor: int, byte: int) -> bool:
    """Say whether another open file holds a lock on a byte."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0)
    (kind, *_) = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    return bool(kind != fcntl.F_UNLCK)
