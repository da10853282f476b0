"""The log of the service: one JSON document a line."""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime
from typing import TextIO

from snapshotter.rpc.calls import call_fields

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
    """Writes to a stream; threads wait for each other to write, but not to format."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._writing = threading.Lock()
        self.setFormatter(JsonFormatter())

    def createLock(self) -> None:  # noqa: N802, the library's name
        """Have no lock around `emit`."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, at once."""
        try:
            line = f"{self.format(record)}\n"
            with self._writing:
                self._stream.write(line)
                self._stream.flush()
        except Exception:  # noqa: BLE001, a log that fails must not fail the call
            self.handleError(record)


def log_to(stream: TextIO, *, level: str) -> None:
    """Send the log of this package to a stream; `level` is debug, info, warning or error."""
    logger = logging.getLogger("snapshotter")
    logger.handlers[:] = [LineHandler(stream)]
    logger.setLevel(level.upper())
    logger.propagate = False
    # What no line says need not be found out for each (Python's logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
