"""The log of the service: one JSON document a line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TextIO

from snapshotter.rpc.calls import call_fields


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
        return json.dumps(line)


def log_to(stream: TextIO, *, level: str) -> None:
    """Send the log of this package to a stream; `level` is debug, info, warning or error."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("snapshotter")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
