"""The serial console of a virtual machine, read from its named pipe.

The pipe exists only while the machine runs and is closed by a reset: until the machine has ended it
is opened again and again. Windows says "not found" before the start and "busy" (231) around a
reset; both mean later.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import BinaryIO, Final

from harness.hcs.consoletail import Tail
from harness.hcs.panic import PanicScanner

_RETRY_S: Final = 0.1
_CHUNK: Final = 4096
_ENDING_S: Final = 2.0

OpenPipe = Callable[[str], BinaryIO]
"""Opens a named pipe; `read` of what it returns gives what is there, b"" at its end."""


def open_pipe(name: str) -> BinaryIO:
    """Return a named pipe, opened for reading without a buffer. Raises OSError."""
    return open(name, "rb", buffering=0)


class SerialConsole(threading.Thread):
    """Keeps the last output of a console, and tells of a kernel's end in it (`on_panic`)."""

    def __init__(self, pipe: str, open_pipe: OpenPipe, on_panic: Callable[[str], None]) -> None:
        super().__init__(name=f"console {pipe}", daemon=True)
        self._pipe = pipe
        self._open = open_pipe
        self._on_panic = on_panic
        self._tail = Tail()
        self._scanner = PanicScanner()
        self._ending = threading.Event()

    def run(self) -> None:
        """Read until `finish` was called and the pipe is closed."""
        while True:
            with contextlib.suppress(OSError), self._open(self._pipe) as pipe:
                while data := pipe.read(_CHUNK):
                    self._take(data)
            if self._ending.wait(_RETRY_S):
                break
        if (message := self._scanner.finish()) is not None:
            self._on_panic(message)

    def finish(self) -> None:
        """Take what is left and end; the machine must have ended. May be repeated."""
        self._ending.set()
        if self.is_alive():
            self.join(_ENDING_S)

    def text(self) -> str:
        """Return what is kept: the last 64 KiB."""
        return self._tail.text()

    def _take(self, data: bytes) -> None:
        self._tail.add(data)
        if (message := self._scanner.feed(data)) is not None:
            self._on_panic(message)
