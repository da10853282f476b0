"""Secrets are struck out of whatever leaves this process: logs, output, reports, journals.

A `Scrubber` works by value: a text that passes through it loses every known secret, in the shapes
in which one travels (plain, quoted for a URL, JSON, XML or Python, base64 alone or after a user).
`KNOWN` is the process's one: whoever fetches a password tells it, whoever writes something down
asks it. It is process-wide as logging is, and for the same reason: what must not leak passes
through libraries that know nothing of us.

A secret of fewer than four characters is not struck out: it would take every text apart, and
guards nothing.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import logging
import sys
import threading
import traceback
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, TextIO
from xml.sax.saxutils import escape

SHOWN: Final = "********"
_SHORTEST: Final = 4


class Scrubber:
    """Knows secrets and strikes them out of texts; used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._needles: tuple[str, ...] = ()

    def add(self, secret: str, *, user: str = "") -> None:
        """Know one more secret; `user` also covers HTTP's Basic header."""
        if len(secret) < _SHORTEST:
            return
        shapes = _shapes(secret)
        if user:
            shapes |= {_base64(f"{user}:{secret}")}
        with self._lock:
            # The longest first: a shape may hold a shorter one.
            self._needles = tuple(sorted({*self._needles, *shapes}, key=len, reverse=True))

    def forget(self) -> None:
        """Know no secret any more: for tests, which have many."""
        with self._lock:
            self._needles = ()

    def scrub(self, text: str) -> str:
        """Return `text` without any known secret."""
        for needle in self._needles:
            if needle in text:
                text = text.replace(needle, SHOWN)
        return text

    def scrub_record(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return a log record whose message and traceback were scrubbed."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            return record  # a wrong call of a logger: logging itself reports it
        scrubbed = self.scrub(message)
        if scrubbed != message:
            record.msg, record.args = scrubbed, ()
        if record.exc_info and record.exc_info[0] is not None:
            told = record.exc_text or logging.Formatter().formatException(record.exc_info)
            # Formatters take a text that is there for the traceback.
            record.exc_text = self.scrub(told)
        return record


KNOWN: Final = Scrubber()
"""What this process has fetched."""


def scrub(text: str) -> str:
    """Return `text` without any secret that this process has fetched."""
    return KNOWN.scrub(text)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _shapes(secret: str) -> set[str]:
    return {
        secret,
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        html.escape(secret),
        escape(secret),
        repr(secret)[1:-1],
        _base64(secret),
        base64.b64encode(secret.encode("utf-16-le")).decode(),  # PowerShell's -EncodedCommand
    }


class _Stream:
    """A text stream that scrubs what is written; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(scrub(text))

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def scrubbed_process() -> Iterator[None]:
    """Scrub what this process logs, prints, and says when it fails; undone with the context.

    A secret that is printed in several pieces is not seen: nothing of ours does that.
    """
    factory = logging.getLogRecordFactory()

    def make(*arguments: object, **options: object) -> logging.LogRecord:
        return KNOWN.scrub_record(factory(*arguments, **options))

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        said = "".join(traceback.format_exception(kind, error, trace))
        with contextlib.suppress(OSError, ValueError):
            before[1].write(scrub(said))

    before = (sys.stdout, sys.stderr)
    hook = sys.excepthook
    logging.setLogRecordFactory(make)
    sys.stdout, sys.stderr = _Stream(before[0]), _Stream(before[1])
    sys.excepthook = tell
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        sys.stdout, sys.stderr = before
        # The interpreter asks it after everything else: that of a failing main stays scrubbed.
        if sys.exc_info()[0] is None:
            sys.excepthook = hook
