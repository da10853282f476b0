"""A stream is read and hashed beside the work on it, in bounded memory, and no thread stays."""

from __future__ import annotations

import hashlib
import io
import os
import random
import threading
from typing import cast

import pytest

from snapshotter.errors import LayerError
from snapshotter.ext4.hashing import HashedChunks

CHUNK = 4096
CONTENT = random.Random(3).randbytes(50 * CHUNK + 17)

both_ways = pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])


class Source(io.RawIOBase):
    """A stream that counts what was read, gives odd parts, and may fail at a place."""

    def __init__(self, content: bytes, *, fail_at: int | None = None) -> None:
        self._content = io.BytesIO(content)
        self._fail_at = fail_at
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if self._fail_at is not None and self.position >= self._fail_at:
            raise LayerError("the stream is damaged")
        part = self._content.read(min(len(buffer), 1500))
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)


def chunks_of(source: Source, *, ahead: bool) -> HashedChunks:
    return HashedChunks(cast("io.BufferedReader", source), CHUNK, ahead=ahead)


def layer_threads() -> list[str]:
    # Exactly these names: a store that another test keeps open has a thread of a like one.
    names = ("layer-reader", "layer-digest")
    return [thread.name for thread in threading.enumerate() if thread.name in names]


@both_ways
@pytest.mark.parametrize("size", [0, 1, CHUNK, 3 * CHUNK, len(CONTENT)])
def test_all_of_a_stream_comes_in_order_and_is_hashed(size: int, *, ahead: bool) -> None:
    content = CONTENT[:size]
    with chunks_of(Source(content), ahead=ahead) as chunks:
        taken = [bytes(chunk) for chunk in chunks]
        assert chunks.hexdigest() == hashlib.sha256(content).hexdigest()
    assert b"".join(taken) == content
    assert all(len(chunk) == CHUNK for chunk in taken[:-1])
    assert layer_threads() == []


@both_ways
def test_an_error_of_the_stream_comes_after_what_was_read_before_it(*, ahead: bool) -> None:
    taken: list[int] = []

    def read() -> None:
        with chunks_of(Source(CONTENT, fail_at=3 * CHUNK), ahead=ahead) as chunks:
            taken.extend(len(chunk) for chunk in chunks)

    with pytest.raises(LayerError, match="damaged"):
        read()
    assert sum(taken) >= 2 * CHUNK
    assert layer_threads() == []


@both_ways
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whoever_gives_up_leaves_no_thread_behind(
    error: type[BaseException], *, ahead: bool
) -> None:
    def give_up() -> None:
        with chunks_of(Source(CONTENT), ahead=ahead) as chunks:
            for _ in chunks:
                raise error

    with pytest.raises(error):
        give_up()
    assert layer_threads() == []


@pytest.mark.parametrize("takes", [0, 5])
def test_a_reader_waits_for_whoever_is_slow_and_leaves_their_chunk_alone(takes: int) -> None:
    source = Source(os.urandom(CHUNK) * 1000)
    with chunks_of(source, ahead=True) as chunks:
        held = iter(chunks)
        for _ in range(takes):
            next(held)
        chunk = next(held)
        before = bytes(chunk)
        for _ in range(50):  # as long as it still reads
            position = source.position
            threading.Event().wait(0.01)
            if source.position == position:
                break
        assert source.position <= (takes + 8) * CHUNK
        assert bytes(chunk) == before
    assert layer_threads() == []


def test_a_read_that_waits_for_somebody_is_cancelled_by_whoever_gives_up() -> None:
    cancelled = threading.Event()

    class Stalled(Source):
        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            if self.position < CHUNK:
                return super().readinto(buffer)
            cancelled.wait()
            raise LayerError("cancelled")

    def give_up() -> None:
        stream = cast("io.BufferedReader", Stalled(CONTENT))
        with HashedChunks(stream, CHUNK, ahead=True, cancel=cancelled.set) as chunks:
            for _ in chunks:
                raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        give_up()
    assert layer_threads() == []


def test_a_stream_that_came_to_its_end_is_not_cancelled() -> None:
    cancelled: list[bool] = []
    stream = cast("io.BufferedReader", Source(CONTENT))
    with HashedChunks(stream, CHUNK, ahead=True, cancel=lambda: cancelled.append(True)) as chunks:
        assert sum(len(chunk) for chunk in chunks) == len(CONTENT)
    assert cancelled == []
