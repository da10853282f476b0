"""Windows error codes, and the OSError for each on any system.

Source: WinError.h; the errno values are those that CPython gives on Windows.
"""

from __future__ import annotations

import errno
import sys
from typing import Final

INVALID_FUNCTION: Final = 1
FILE_NOT_FOUND: Final = 2
PATH_NOT_FOUND: Final = 3
ACCESS_DENIED: Final = 5
NOT_SAME_DEVICE: Final = 17
SHARING_VIOLATION: Final = 32
LOCK_VIOLATION: Final = 33
NOT_SUPPORTED: Final = 50
FILE_EXISTS: Final = 80
INVALID_PARAMETER: Final = 87
BROKEN_PIPE: Final = 109
DISK_FULL: Final = 112
INSUFFICIENT_BUFFER: Final = 122
DIR_NOT_EMPTY: Final = 145
ALREADY_EXISTS: Final = 183
FILENAME_EXCED_RANGE: Final = 206
PIPE_BUSY: Final = 231
NO_DATA: Final = 232
PIPE_NOT_CONNECTED: Final = 233
DIRECTORY: Final = 267
PIPE_CONNECTED: Final = 535
OPERATION_ABORTED: Final = 995
IO_PENDING: Final = 997
NOT_FOUND: Final = 1168
PRIVILEGE_NOT_HELD: Final = 1314

BUSY: Final = (SHARING_VIOLATION, LOCK_VIOLATION, ACCESS_DENIED)
"""Somebody has the file open; "access denied" is the answer of a directory that contains one."""

_TEXTS: Final[dict[int, tuple[int, str]]] = {
    INVALID_FUNCTION: (errno.EINVAL, "Incorrect function"),
    FILE_NOT_FOUND: (errno.ENOENT, "The system cannot find the file specified"),
    PATH_NOT_FOUND: (errno.ENOENT, "The system cannot find the path specified"),
    ACCESS_DENIED: (errno.EACCES, "Access is denied"),
    NOT_SAME_DEVICE: (errno.EXDEV, "The system cannot move the file to a different disk drive"),
    SHARING_VIOLATION: (errno.EACCES, "The file is being used by another process"),
    LOCK_VIOLATION: (errno.EACCES, "Another process has locked a portion of the file"),
    NOT_SUPPORTED: (errno.EINVAL, "The request is not supported"),
    FILE_EXISTS: (errno.EEXIST, "The file exists"),
    INVALID_PARAMETER: (errno.EINVAL, "The parameter is incorrect"),
    BROKEN_PIPE: (errno.EPIPE, "The pipe has been ended"),
    DISK_FULL: (errno.ENOSPC, "There is not enough space on the disk"),
    DIR_NOT_EMPTY: (errno.ENOTEMPTY, "The directory is not empty"),
    ALREADY_EXISTS: (errno.EEXIST, "Cannot create a file when that file already exists"),
    FILENAME_EXCED_RANGE: (errno.ENOENT, "The filename or extension is too long"),
    PIPE_BUSY: (errno.EAGAIN, "All pipe instances are busy"),
    NO_DATA: (errno.EPIPE, "The pipe is being closed"),
    PIPE_NOT_CONNECTED: (errno.EPIPE, "No process is on the other end of the pipe"),
    OPERATION_ABORTED: (errno.EINTR, "The I/O operation has been aborted"),
    DIRECTORY: (errno.ENOTDIR, "The directory name is invalid"),
    PRIVILEGE_NOT_HELD: (errno.EINVAL, "A required privilege is not held by the client"),
}

_WINERROR: Final = "winerror"
"""An attribute that typing knows on Windows alone."""


def windows_error(code: int, path: str) -> OSError:
    """The OSError for a Windows error code; its `winerror` is the code on every system."""
    number, text = _TEXTS.get(code, (errno.EINVAL, f"Windows error {code}"))
    if sys.platform == "win32":
        error = OSError(number, text, path, code)
    else:
        error = OSError(number, text, path)
        setattr(error, _WINERROR, code)
    return error


def winerror_of(error: OSError) -> int | None:
    """The Windows error code behind an OSError, if any."""
    code = getattr(error, _WINERROR, None)
    return code if isinstance(code, int) else None
