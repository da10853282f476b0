"""A tar stream taken apart: headers for later, file data at once.

Sans-IO: chunks of any length go in; out come the pieces of file data, padded to whole blocks, in
the order in which the image holds them, and the headers of the members. A piece is a view into the
chunk, so it has to be written before the chunk's memory is used again. Memory is bounded as long
as the caller takes the members whenever a batch is due.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from snapshotter.errors import LayerError
from snapshotter.ext4 import pax
from snapshotter.ext4.format import BLOCK_SIZE
from snapshotter.ext4.sparse import (
    FrontMap,
    OldMap,
    is_sparse,
    pax_map,
    plan_sparse,
    sparse_name,
)
from snapshotter.ext4.tarheader import (
    HEADER_ONLY,
    HEADER_SIZE,
    REGULAR,
    SIZE_FIELD,
    RawMembers,
    display_name,
    parse_number,
)
from snapshotter.units import MIB

_MAX_EXTENDED: Final = 1 * MIB
_TYPE_AT: Final = 156
_PAX_NEXT: Final = frozenset(b"xX")  # X: the same by Solaris
_PAX_GLOBAL, _GNU_NAME, _GNU_LINK = b"gLK"
_EXTENDED: Final = _PAX_NEXT | {_PAX_GLOBAL, _GNU_NAME, _GNU_LINK}
# A global header that renames or resizes every member makes no sense.
_NEVER_GLOBAL: Final = frozenset({b"path", b"linkpath", b"size"})
_KNOWN: Final = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"})
_MAX_GLOBALS: Final = 64  # each is kept once a member
_BATCH: Final = 4096  # headers decoded at once
_MAX_BATCH_EXTENDED: Final = 4 * MIB
_GNU_SPARSE: Final = b"S"[0]
_SPARSE_MAP: Final = -1  # in the place of a type: a block of a sparse file's map
_ZERO_HEADER: Final = bytes(HEADER_SIZE)
_ZEROS: Final = memoryview(bytes(BLOCK_SIZE))
_PADDING: Final = [_ZEROS[:length] for length in range(BLOCK_SIZE)]


class TarScanner:
    """Takes chunks of a tar by `feed`, gives members by `take`; `finish` says whether it ended."""

    def __init__(
        self, *, first_block: int, end_block: int, max_file: int, max_metadata: int
    ) -> None:
        """File data goes to blocks from `first_block` on and has to end before `end_block`.

        `max_file` and `max_metadata` are bytes: of one file, and of all headers together.
        """
        self.next_block = first_block
        self.ended = False
        self._end_block = end_block
        self._max_file = max_file
        self._metadata_left = max_metadata
        self._members = RawMembers()
        self._overrides: dict[bytes, bytes] = {}
        self._globals: dict[bytes, bytes] = {}
        self._header = b""  # the start of a header that the last chunk cut
        self._need = 0  # bytes still to come of the current data
        self._padding = _PADDING[0]  # goes after the current file
        self._skip = 0  # bytes that fill up the tar's own block
        self._extended: bytearray | None = None  # the current data, where it is no file
        self._extended_type = 0
        self._map: OldMap | FrontMap | None = None  # of the current member, until it is complete
        self._map_blocks = 0
        self._data_left = 0  # of a sparse member, map included
        self._parts: deque[tuple[int, int]] = deque()  # (zeros, data) of a sparse file to come
        self._zeros_first = 0
        self._next_extended = 0  # bytes for the next member
        self._extended_size = 0  # bytes in the current batch
        self._lone_zero = False
        self._seen_any = False

    @property
    def batch_is_due(self) -> bool:
        """True where enough has come together for one call of `take`."""
        return len(self._members.headers) >= _BATCH or self._extended_size >= _MAX_BATCH_EXTENDED

    def take(self) -> RawMembers:
        """Return the members since the last call."""
        self._metadata_left -= len(self._members.headers) * HEADER_SIZE
        taken, self._members = self._members, RawMembers()
        self._extended_size = 0
        return taken

    def feed(self, chunk: memoryview) -> list[memoryview]:
        """Return the file data in `chunk`, the next bytes of the tar.

        What follows the end of the archive is ignored. Raises LayerError.
        """
        pieces: list[memoryview] = []
        place = 0
        while place < len(chunk) and not self.ended:
            place = self._resume(chunk, place, pieces)
            if self._need or self._skip or place >= len(chunk):
                break
            if self._header:
                step = HEADER_SIZE - len(self._header)
                self._header += chunk[place : place + step]
                if len(self._header) < HEADER_SIZE:
                    break
                header, self._header = self._header, b""
                self._begin(header)
                place += step
            else:
                place = self._scan(chunk, place, pieces)
        return pieces

    def finish(self) -> None:
        """Check that the tar ended between two members. Raises LayerError."""
        if self.ended:
            return
        if self._need or self._skip or self._header.strip(b"\0") or self._overrides:
            entry = None
            if self._members.headers and self._extended is None and not self._header:
                index = len(self._members.headers) - 1
                entry = display_name(
                    self._members.headers[index], self._members.overrides.get(index, {})
                )
            raise LayerError("the tar is cut short: fetch the layer again", entry=entry)
        if not self._seen_any:
            raise LayerError("the stream is empty: not even an empty tar")

    def _resume(self, chunk: memoryview, place: int, pieces: list[memoryview]) -> int:
        """Go on with data and padding that an earlier chunk, or a cut header, has begun."""
        while self._need and place < len(chunk):
            part = chunk[place : place + self._need]
            self._need -= len(part)
            place += len(part)
            if self._extended is not None:
                self._extended += part
                if not self._need:
                    self._end_extended()
                continue
            if self._zeros_first:
                _add_zeros(pieces, self._zeros_first)
                self._zeros_first = 0
            pieces.append(part)
            if self._need:
                continue
            if self._parts:
                self._zeros_first, self._need = self._parts.popleft()
            elif self._padding:
                pieces.append(self._padding)
        if not self._need and self._skip:
            step = min(self._skip, len(chunk) - place)
            self._skip -= step
            place += step
        return place

    def _scan(self, chunk: memoryview, place: int, pieces: list[memoryview]) -> int:
        """Take whole headers, and whole small files after them, as long as they last."""
        length = len(chunk)
        self._seen_any = self._seen_any or place < length
        members = self._members
        headers, sizes, blocks = members.headers, members.sizes, members.blocks
        add_piece = pieces.append
        while place + HEADER_SIZE <= length:
            header = chunk[place : place + HEADER_SIZE].tobytes()
            place += HEADER_SIZE
            if header[_TYPE_AT] == 0x30 and not self._overrides and not self._globals:
                # The common case, spelled out: a plain file without extended header.
                try:
                    size = int(header[SIZE_FIELD].rstrip(b"\0"), 8)
                except ValueError:
                    size = -1
                end = place + size
                if 0 <= size <= self._max_file and end <= length and not self._lone_zero:
                    headers.append(header)
                    sizes.append(size)
                    blocks.append(self.next_block)
                    if size:
                        add_piece(chunk[place:end])
                        if size % BLOCK_SIZE:
                            add_piece(_PADDING[-size % BLOCK_SIZE])
                        self._advance(size, header)
                    place = end + (-size % HEADER_SIZE)
                    if place > length:
                        self._skip = place - length
                        return length
                    continue
            self._begin(header)
            if self.ended:
                return length
            if self._need or self._skip:
                place = self._resume(chunk, place, pieces)
                if self._need or self._skip:
                    return length
        self._header = chunk[place:].tobytes()
        return length

    def _begin(self, header: bytes) -> None:
        """Note one header, and what of its data is to come."""
        if header == _ZERO_HEADER:
            self.ended = self._lone_zero
            self._lone_zero = True
            if self.ended and self._overrides:
                raise LayerError("the tar ends after an extended header without its member")
            return
        if self._lone_zero:
            raise LayerError("data after a block of zeros: not a tar, or a damaged one")
        kind = header[_TYPE_AT]
        if kind in _EXTENDED:
            self._begin_extended(header, kind)
            return
        overrides: Mapping[bytes, bytes] = {**self._globals, **self._overrides}
        self._overrides = {}
        self._next_extended = 0
        sparse = kind == _GNU_SPARSE or (bool(overrides) and is_sparse(overrides))
        if sparse and (own_name := sparse_name(overrides)):
            overrides = {**overrides, b"path": own_name}
        name = display_name(header, overrides)
        size = 0
        if kind in REGULAR or kind == _GNU_SPARSE:
            size = self._size(header, name)
            if overrides.get(b"size"):
                try:
                    size = pax.parse_decimal(overrides[b"size"])
                except ValueError as error:
                    raise LayerError(f"size: {error}", entry=name) from None
            if size > self._max_file:
                raise LayerError(f"a file of {size} bytes: over {self._max_file}", entry=name)
        elif sparse:
            raise LayerError(f"a sparse member of type {chr(kind)!r}", entry=name)
        elif kind not in HEADER_ONLY:
            raise LayerError(f"members of type {chr(kind)!r} are not handled", entry=name)
        members = self._members
        if overrides:
            members.overrides[len(members.headers)] = overrides
        members.headers.append(header)
        members.sizes.append(size)
        members.blocks.append(self.next_block)
        self._extended = None
        if sparse:
            self._begin_sparse(header, overrides, size)
            return
        self._need = size
        self._skip = -size % HEADER_SIZE
        self._padding = _PADDING[-size % BLOCK_SIZE]
        self._advance(size, header)

    def _begin_sparse(self, header: bytes, overrides: Mapping[bytes, bytes], size: int) -> None:
        self._data_left = size
        self._map_blocks = 0
        try:
            old = header[_TYPE_AT] == _GNU_SPARSE
            self._map = OldMap(header) if old else pax_map(overrides)
        except ValueError as error:
            raise self._sparse_error(error) from None
        self._go_on_sparse()

    def _go_on_sparse(self) -> None:
        """Ask for the next block of the map, or for the data where the map is complete."""
        found, members = self._map, self._members
        assert found is not None
        if not found.complete:
            self._map_blocks += 1
            self._metadata_left -= HEADER_SIZE
            if self._map_blocks * HEADER_SIZE > _MAX_EXTENDED or self._metadata_left < 0:
                raise self._sparse_error(f"a map of over {_MAX_EXTENDED} bytes")
            self._extended, self._extended_type = bytearray(), _SPARSE_MAP
            self._need = HEADER_SIZE
            self._skip = 0
            return
        self._map = None
        try:
            plan = plan_sparse(found.fragments, found.size, first_block=self.next_block)
        except ValueError as error:
            raise self._sparse_error(error) from None
        in_front = self._map_blocks * HEADER_SIZE if isinstance(found, FrontMap) else 0
        if plan.stored != self._data_left - in_front:
            raise self._sparse_error(
                f"its map tells of {plan.stored} bytes, its header of {self._data_left - in_front}"
            )
        index = len(members.headers) - 1
        members.sizes[index] = plan.size
        members.extents[index] = plan.extents
        self._parts.extend(plan.parts)
        self._zeros_first, self._need = self._parts.popleft() if self._parts else (0, 0)
        self._skip = -plan.stored % HEADER_SIZE
        self._padding = _PADDING[plan.zeros_after]
        self._advance(plan.blocks * BLOCK_SIZE, members.headers[index])

    def _sparse_error(self, problem: object) -> LayerError:
        index = len(self._members.headers) - 1
        name = display_name(self._members.headers[index], self._members.overrides.get(index, {}))
        return LayerError(f"sparse file: {problem}", entry=name)

    def _advance(self, size: int, header: bytes) -> None:
        self.next_block += -(-size // BLOCK_SIZE)
        if self.next_block > self._end_block:
            raise LayerError(
                f"the layer needs a disk of more than {self._end_block * BLOCK_SIZE} bytes",
                entry=display_name(header, {}),
            )

    def _size(self, header: bytes, name: str) -> int:
        try:
            size = parse_number(header[SIZE_FIELD])
        except ValueError as error:
            raise LayerError(f"size: {error}", entry=name) from None
        if size < 0:
            raise LayerError(f"a size of {size} bytes", entry=name)
        return size

    def _begin_extended(self, header: bytes, kind: int) -> None:
        size = self._size(header, "extended header")
        self._next_extended += size
        if self._next_extended > _MAX_EXTENDED:
            raise LayerError(f"extended headers of one member: over {_MAX_EXTENDED} bytes")
        self._extended_size += size + HEADER_SIZE
        self._metadata_left -= size + HEADER_SIZE
        if self._metadata_left < 0:
            raise LayerError("the headers of the layer are larger than the limit for them")
        self._members.extended.append(header)
        self._extended = bytearray()
        self._extended_type = kind
        self._need = size
        self._skip = -size % HEADER_SIZE
        if not size:
            self._end_extended()

    def _end_extended(self) -> None:
        raw, self._extended = bytes(self._extended or b""), None
        if self._extended_type == _SPARSE_MAP:
            assert self._map is not None
            try:
                self._map.add(raw)
            except ValueError as error:
                raise self._sparse_error(error) from None
            self._go_on_sparse()
            return
        if self._extended_type == _GNU_NAME:
            self._overrides[b"path"] = raw.split(b"\0", 1)[0]
        elif self._extended_type == _GNU_LINK:
            self._overrides[b"linkpath"] = raw.split(b"\0", 1)[0]
        else:
            try:
                records = pax.parse_records(raw)
            except ValueError as error:
                raise LayerError(str(error)) from None
            known = {key: value for key, value in records.items() if _is_known(key)}
            if self._extended_type != _PAX_GLOBAL:
                self._overrides.update(known)
                return
            for key in known.keys() - _NEVER_GLOBAL:
                self._globals[key] = known[key]
            if len(self._globals) > _MAX_GLOBALS:
                raise LayerError(f"more than {_MAX_GLOBALS} records in global headers")


def _add_zeros(pieces: list[memoryview], count: int) -> None:
    while count > 0:  # less than two blocks
        pieces.append(_ZEROS[:count])
        count -= BLOCK_SIZE


def _is_known(key: bytes) -> bool:
    return key in _KNOWN or key.startswith((pax.XATTR_PREFIX, pax.SPARSE_PREFIX))
