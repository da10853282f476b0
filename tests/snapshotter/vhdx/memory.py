"""A file in memory: sparse, so that disks of any size fit, and easy to damage."""

from __future__ import annotations

from collections.abc import Callable

from snapshotter.blockio import DiskContent
from snapshotter.crc32c import crc32c

PAGE = 4096


class MemoryFile:
    """A `BlockFile` that keeps only the pages written to."""

    def __init__(self, size: int = 0) -> None:
        self._pages: dict[int, bytearray] = {}
        self._size = size

    @classmethod
    def of(cls, content: DiskContent) -> MemoryFile:
        file = cls(content.size)
        for offset, data in content.pieces:
            file.write_at(offset, data)
        return file

    def become(self, other: MemoryFile) -> None:
        """Take the content of another file."""
        self._pages = {number: bytearray(page) for number, page in other._pages.items()}
        self._size = other._size

    @property
    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self._size - offset))
        end = offset + length
        result = bytearray(length)
        wanted = range(offset // PAGE, -(-end // PAGE))
        numbers = (
            [number for number in self._pages if number in wanted]
            if len(wanted) > len(self._pages)
            else [number for number in wanted if number in self._pages]
        )
        for number in numbers:
            start = number * PAGE
            low, high = max(start, offset), min(start + PAGE, end)
            result[low - offset : high - offset] = self._pages[number][low - start : high - start]
        return bytes(result)

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        self._size = max(self._size, offset + len(view))
        while view:
            number, within = divmod(offset, PAGE)
            count = min(PAGE - within, len(view))
            page = self._pages.setdefault(number, bytearray(PAGE))
            page[within : within + count] = view[:count]
            offset, view = offset + count, view[count:]

    def write_zeros(self, offset: int, length: int) -> None:
        assert offset + length <= self._size
        while length:
            count = min(PAGE - offset % PAGE, length)
            if count == PAGE:
                self._pages.pop(offset // PAGE, None)
            elif offset // PAGE in self._pages:
                self.write_at(offset, bytes(count))
            offset, length = offset + count, length - count

    def truncate(self, size: int) -> None:
        for number in [number for number in self._pages if number * PAGE >= size]:
            del self._pages[number]
        last = self._pages.get(size // PAGE)
        if last is not None:
            last[size % PAGE :] = bytes(PAGE - size % PAGE)
        self._size = size

    def flush(self) -> None:
        pass

    def damage(self, offset: int, change: Callable[[bytes], bytes], length: int = 1) -> None:
        """Replace bytes in place."""
        self.write_at(offset, change(self.read_at(offset, length)))

    def reseal(self, offset: int, length: int) -> None:
        """Recompute the CRC-32C in bytes 4 to 7 of a structure, after its fields were changed."""
        raw = bytearray(self.read_at(offset, length))
        raw[4:8] = bytes(4)
        self.write_at(offset + 4, crc32c(bytes(raw)).to_bytes(4, "little"))

    def content(self) -> DiskContent:
        return DiskContent(
            self._size,
            tuple(
                (number * PAGE, bytes(self._pages[number][: self._size - number * PAGE]))
                for number in sorted(self._pages)
            ),
        )
