"""The log of the service: in order, whole, and at once where it matters."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from snapshotter.rpc.logs import LineHandler

_DEADLINE_S = 20.0


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def handler(stream: io.StringIO) -> Iterator[LineHandler]:
    with contextlib.closing(LineHandler(stream)) as handler:
        yield handler


def record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("snapshotter.test", level, __file__, 1, text, (), None)


def messages(stream: io.StringIO) -> list[str]:
    return [json.loads(line)["message"] for line in stream.getvalue().splitlines()]


def until_written(stream: io.StringIO, count: int) -> list[str]:
    deadline = time.monotonic() + _DEADLINE_S
    while len(found := messages(stream)) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} lines"
        time.sleep(0.005)
    return found


def test_lines_come_by_themselves_and_in_order(handler: LineHandler, stream: io.StringIO) -> None:
    texts = [str(number) for number in range(50)]
    for text in texts:
        handler.handle(record(text))
    assert until_written(stream, 50) == texts
    handler.handle(record("later"))  # the thread goes on
    assert until_written(stream, 51) == [*texts, "later"]


def test_a_warning_is_there_at_once_with_what_came_before_it(
    handler: LineHandler, stream: io.StringIO
) -> None:
    handler.handle(record("before"))
    handler.handle(record("warning", logging.WARNING))
    assert messages(stream) == ["before", "warning"]


def test_what_waits_is_written_by_the_end_and_what_comes_late_as_well(
    stream: io.StringIO,
) -> None:
    handler = LineHandler(stream)
    handler.handle(record("last"))
    handler.close()
    assert messages(stream) == ["last"]
    assert "log" not in {thread.name for thread in threading.enumerate()}
    handler.handle(record("late"))
    assert messages(stream) == ["last", "late"]


def test_threads_lose_no_line(stream: io.StringIO) -> None:
    with contextlib.closing(LineHandler(stream)) as handler:

        def work(name: str) -> None:
            for number in range(500):
                level = logging.WARNING if number % 50 == 0 else logging.INFO
                handler.handle(record(f"{name}{number}", level))

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = messages(stream)
    for name in "abcd":
        mine = [text for text in found if text.startswith(name)]
        assert mine == [f"{name}{number}" for number in range(500)]


class SlowStream(io.StringIO):
    """Takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.takes = threading.Event()

    def write(self, text: str) -> int:
        self.takes.wait(_DEADLINE_S)
        return super().write(text)


def test_a_stream_that_takes_nothing_holds_up_who_writes_much() -> None:
    """Else the lines would fill the memory."""
    stream = SlowStream()
    done = threading.Event()
    with contextlib.closing(LineHandler(stream)) as handler:

        def work() -> None:
            for number in range(5000):
                handler.handle(record(str(number)))
            done.set()

        writer = threading.Thread(target=work)
        writer.start()
        assert not done.wait(0.3)
        stream.takes.set()
        writer.join()
    assert messages(stream) == [str(number) for number in range(5000)]


def test_a_stream_that_is_gone_fails_no_call(stream: io.StringIO) -> None:
    with contextlib.closing(LineHandler(stream)) as handler:
        stream.close()
        handler.handle(record("to nobody", logging.ERROR))
