"""The platform of this machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from snapshotter.errors import InvalidArgumentError
from snapshotter.platform.posix import PosixPlatform
from snapshotter.platform.protocol import Platform

if TYPE_CHECKING:
    from snapshotter.platform.pipecalls import PipeCalls


def local_platform() -> Platform:
    """The files of the system that this process runs on."""
    if sys.platform == "win32":
        import ctypes

        from snapshotter.platform.kernel32 import Kernel32Dll
        from snapshotter.platform.windows import WindowsPlatform

        library = ctypes.WinDLL("kernel32", use_last_error=True)
        return WindowsPlatform(Kernel32Dll(library, ctypes.get_last_error))
    else:  # noqa: RET505 (mypy takes what follows a return for unreachable on Windows)
        return PosixPlatform()


def local_pipe_calls() -> PipeCalls:
    """What named pipes of this machine are served with. Raises InvalidArgumentError off Windows."""
    if sys.platform == "win32":
        import ctypes

        from snapshotter.platform.pipecalls import PipeCalls

        return PipeCalls(
            ctypes.WinDLL("kernel32", use_last_error=True),
            ctypes.WinDLL("advapi32", use_last_error=True),
            ctypes.get_last_error,
        )
    raise InvalidArgumentError("named pipes are on Windows alone; use a unix:// address here")
