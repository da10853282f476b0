"""Metadata of an open file in memory: BAT and sector bitmaps, page by page, with what changed.

Changes stay here until the log has them on disk, [MS-VHDX] 2.3; readers see them at once.
"""

from __future__ import annotations

from typing import Final

from snapshotter.blockio import BlockReader
from snapshotter.errors import VhdxCorruptError
from snapshotter.units import KIB
from snapshotter.vhdx.log import SECTOR

PAGE_SIZE: Final = 64 * KIB
_CACHED_PAGES = 256


class MetadataPages:
    """A cache of `file` in pages of 64 KiB, keyed by file offset // 64 KiB.

    `pages` may be read by those who are in a hurry; what is missing there comes from `load`.
    Changes are tracked in log sectors of 4 KiB; changed pages are never dropped.
    """

    def __init__(self, file: BlockReader) -> None:
        self._file = file
        self.pages: dict[int, bytearray] = {}
        self._changed: set[int] = set()

    def load(self, number: int) -> bytearray:
        """Return a page. Raises VhdxCorruptError where the file is too short."""
        page = self.pages.get(number)
        if page is None:
            if len(self.pages) >= _CACHED_PAGES:
                self._drop_one()
            raw = self._file.read_at(number * PAGE_SIZE, PAGE_SIZE)
            if len(raw) < PAGE_SIZE:  # regions are checked at open: the file shrank since
                raise VhdxCorruptError(
                    "metadata page",
                    "the file ends inside",
                    section="2.2",
                    offset=number * PAGE_SIZE,
                )
            page = self.pages[number] = bytearray(raw)
        return page

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at a file offset."""
        result = bytearray()
        while length:
            number, within = divmod(offset, PAGE_SIZE)
            count = min(length, PAGE_SIZE - within)
            result += self.load(number)[within : within + count]
            offset, length = offset + count, length - count
        return bytes(result)

    def write(self, offset: int, data: bytes) -> None:
        """Change bytes at a file offset, in memory."""
        start = 0
        while start < len(data):
            number, within = divmod(offset + start, PAGE_SIZE)
            count = min(len(data) - start, PAGE_SIZE - within)
            self.load(number)[within : within + count] = data[start : start + count]
            first = (offset + start) // SECTOR
            self._changed.update(range(first, (offset + start + count - 1) // SECTOR + 1))
            start += count

    @property
    def changed_sectors(self) -> int:
        """How many log sectors differ from the file."""
        return len(self._changed)

    def changes(self) -> list[tuple[int, bytes]]:
        """Return (file offset, 4 KiB) of every changed sector, ascending."""
        found: list[tuple[int, bytes]] = []
        for sector in sorted(self._changed):
            number, within = divmod(sector * SECTOR, PAGE_SIZE)
            found.append((sector * SECTOR, bytes(self.pages[number][within : within + SECTOR])))
        return found

    def settled(self) -> None:
        """Say that the file has every change."""
        self._changed.clear()

    def forget(self, offset: int, length: int) -> None:
        """Drop what is cached of a stretch of the file that is written past this cache."""
        for number in range(offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)):
            self.pages.pop(number, None)
        first, end = offset // SECTOR, -(-(offset + length) // SECTOR)
        self._changed = {sector for sector in self._changed if not first <= sector < end}

    def lay_over(self, offset: int, raw: bytes) -> bytes:
        """Return `raw`, read from the file at `offset`, with the changes that lie in it."""
        first, end = offset // SECTOR, -(-(offset + len(raw)) // SECTOR)
        hits = [sector for sector in self._changed if first <= sector < end]
        if not hits:
            return raw
        merged = bytearray(raw)
        for sector in hits:
            number, within = divmod(sector * SECTOR, PAGE_SIZE)
            at = sector * SECTOR - offset
            new = self.pages[number][within : within + SECTOR]
            low, high = max(0, at), min(len(raw), at + SECTOR)
            merged[low:high] = new[low - at : high - at]
        return bytes(merged)

    def _drop_one(self) -> None:
        per_page = PAGE_SIZE // SECTOR
        kept = {sector // per_page for sector in self._changed}
        for number in self.pages:
            if number not in kept:
                del self.pages[number]
                return
