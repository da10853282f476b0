"""The log of the service: one JSON document a line."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Final, TextIO

from snapshotter.rpc.calls import call_fields

_GATHER_S: Final = 0.02
"""How long lines gather."""

_MOST: Final = 1000
"""Lines that may wait; where the stream takes them too slowly, callers wait for it from then on."""

_encode = json.JSONEncoder(check_circular=False).encode


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`, and the fields of a call."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **call_fields(record),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return _encode(line)


class LineHandler(logging.Handler):
    """Writes lines to a stream: of what is no warning a moment later, many at once.

    A call then neither waits for the log nor keeps others from the interpreter with it. A warning
    is written before `emit` returns, and all lines before it with it; so is everything when the
    handler is flushed or closed, as `logging` does at the end of a process. A killed one may lose
    the lines of its last `_GATHER_S`.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._writing = threading.Lock()
        self._waiting: deque[logging.LogRecord] = deque()
        self._wake = threading.Event()
        self._closed = False
        self.setFormatter(JsonFormatter())
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def createLock(self) -> None:  # noqa: N802, the library's name
        """Have no lock around `emit`."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line soon, or at once."""
        self._waiting.append(record)
        if record.levelno >= logging.WARNING or self._closed or len(self._waiting) >= _MOST:
            self.flush()
        elif not self._wake.is_set():
            self._wake.set()

    def flush(self) -> None:
        """Write the lines of what was emitted so far."""
        with self._writing:
            lines = []
            while self._waiting:
                record = self._waiting.popleft()
                try:
                    lines.append(f"{self.format(record)}\n")
                except Exception:  # noqa: BLE001, a log that fails must not fail the call
                    self.handleError(record)
            try:
                self._stream.write("".join(lines))
                self._stream.flush()
            except (OSError, ValueError):
                pass  # nobody reads it any more, or the process has closed it

    def close(self) -> None:
        """Write what waits, and end the thread; what is emitted later is written at once."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        self.flush()
        super().close()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            if not self._closed:
                time.sleep(_GATHER_S)
                self.flush()


def log_to(stream: TextIO, *, level: str) -> None:
    """Send the log of this package to a stream; `level` is debug, info, warning or error."""
    logger = logging.getLogger("snapshotter")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    logger.addHandler(LineHandler(stream))
    logger.setLevel(level.upper())
    logger.propagate = False
    # What no line says need not be found out for each (Python's logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
