"""The parent locator, [MS-VHDX] 2.6.2.6: how a differencing disk names the disk below it.

A table of keys and values in UTF-16LE without terminators; offsets count from the start of the
item. For the one known type, VHDX, `ParentLinks` says what the keys mean.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Self
from uuid import UUID

from snapshotter.errors import InvalidArgumentError, VhdxCorruptError, VhdxUnsupportedError
from snapshotter.units import MIB

VHDX_LOCATOR: Final = UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")

LINKAGE: Final = "parent_linkage"
LINKAGE2: Final = "parent_linkage2"
RELATIVE_PATH: Final = "relative_path"
VOLUME_PATH: Final = "volume_path"
ABSOLUTE_PATH: Final = "absolute_win32_path"

PATH_KEYS: Final = (RELATIVE_PATH, VOLUME_PATH, ABSOLUTE_PATH)
"""The keys with a path to the parent, in the order in which they are tried."""

_MAX_SIZE = MIB  # of any metadata item
_MAX_TEXT = 0xFFFF  # length fields have 16 bits


@dataclass(frozen=True, slots=True)
class ParentLocator:
    """A parent locator item as keys and values, [MS-VHDX] 2.6.2.6.1 and 2.6.2.6.2."""

    HEADER: ClassVar = struct.Struct("<16sHH")
    ENTRY: ClassVar = struct.Struct("<IIHH")

    values: Mapping[str, str]
    type_id: UUID = field(default=VHDX_LOCATOR)

    def pack(self) -> bytes:
        """Return the item: header, entries, then each key followed by its value.

        Raises InvalidArgumentError for a text that is empty, too long or no Unicode, and for an
        item longer than 1 MiB.
        """
        entries: list[bytes] = []
        texts: list[bytes] = []
        at = self.HEADER.size + self.ENTRY.size * len(self.values)
        for pair in self.values.items():
            key, value = (_encode(text) for text in pair)
            entries.append(self.ENTRY.pack(at, at + len(key), len(key), len(value)))
            texts += [key, value]
            at += len(key) + len(value)
            if at > _MAX_SIZE:
                raise InvalidArgumentError("a parent locator has at most 1 MiB")
        header = self.HEADER.pack(self.type_id.bytes_le, 0, len(self.values))
        return b"".join((header, *entries, *texts))

    @classmethod
    def unpack(cls, raw: bytes, *, at: int) -> Self:
        """Decode the item found at file offset `at`.

        Raises VhdxCorruptError, VhdxUnsupportedError for another type of locator.
        """
        if len(raw) < cls.HEADER.size:
            raise _corrupt("parent locator", f"{len(raw)} bytes long", at)
        type_id, _reserved, count = cls.HEADER.unpack_from(raw)
        if UUID(bytes_le=type_id) != VHDX_LOCATOR:
            raise VhdxUnsupportedError(
                f"parent locator type {UUID(bytes_le=type_id)} at {at:#x}: only VHDX parents are"
                " known"
            )
        if cls.HEADER.size + count * cls.ENTRY.size > len(raw):
            raise _corrupt("parent locator KeyValueCount", count, at + 18)
        values: dict[str, str] = {}
        room = len(raw)
        for start in range(cls.HEADER.size, cls.HEADER.size + count * cls.ENTRY.size, 12):
            key_at, value_at, key_length, value_length = cls.ENTRY.unpack_from(raw, start)
            # Many entries may point at one long text: what they decode to stays below the item.
            room -= key_length + value_length
            if room < 0:
                raise _corrupt("parent locator", "entries longer than the item", at + start)
            key = _decode(raw, key_at, key_length, at=at, field_at=start)
            if key in values:
                raise _corrupt("parent locator key", f"{key!r} is listed twice", at + start)
            values[key] = _decode(raw, value_at, value_length, at=at, field_at=start + 4)
        return cls(values)


assert ParentLocator.HEADER.size == 20
assert ParentLocator.ENTRY.size == 12


@dataclass(frozen=True, slots=True)
class ParentLinks:
    """What a VHDX parent locator says, [MS-VHDX] 2.6.2.6.3.

    `linkage` is the parent's DataWriteGuid when the child was made; `linkage2` is the one that the
    parent gets while a merge into it is under way, where there was one. `paths` are the values of
    `PATH_KEYS` that are there, as they were written: Windows paths.
    """

    linkage: UUID
    paths: Mapping[str, str]
    linkage2: UUID | None = None

    def locator(self) -> ParentLocator:
        """Return the keys and values."""
        values = {LINKAGE: _guid_text(self.linkage)}
        if self.linkage2 is not None:
            values[LINKAGE2] = _guid_text(self.linkage2)
        return ParentLocator({**values, **self.paths})

    @classmethod
    def of(cls, locator: ParentLocator, *, at: int) -> Self:
        """Return what `locator`, found at file offset `at`, says; other keys do not matter.

        Raises VhdxCorruptError where parent_linkage or every path is missing, or a GUID is none.
        """
        values = locator.values
        linkage, linkage2 = (_guid(values, key, at=at) for key in (LINKAGE, LINKAGE2))
        if linkage is None:
            raise _corrupt("parent locator", f"no {LINKAGE}", at, section="2.6.2.6.3")
        paths = {key: values[key] for key in PATH_KEYS if key in values}
        if not paths:
            raise _corrupt("parent locator", "no path", at, section="2.6.2.6.3")
        return cls(linkage, paths, linkage2)

    def accepts(self, data_write_guid: UUID) -> bool:
        """Return whether a file with this DataWriteGuid is the parent in the state that counts."""
        return data_write_guid in (self.linkage, self.linkage2)

    def tried(self) -> Iterator[tuple[str, str]]:
        """Yield (key, path) in the order in which they are tried."""
        for key in PATH_KEYS:
            if key in self.paths:
                yield key, self.paths[key]


def _guid_text(guid: UUID) -> str:
    return f"{{{guid}}}"


def _guid(values: Mapping[str, str], key: str, *, at: int) -> UUID | None:
    text = values.get(key)
    if text is None:
        return None
    bare = text[1:-1] if text.startswith("{") and text.endswith("}") else text
    try:
        guid = UUID(bare)
    except ValueError:
        guid = None
    if guid is None or str(guid) != bare.lower():  # UUID() takes other spellings too
        raise _corrupt(key, f"{text[:80]!r} is no GUID", at, section="2.6.2.6.3")
    return guid


def _encode(text: str) -> bytes:
    try:
        raw = text.encode("utf-16-le")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"no Unicode text: {text!r}") from error
    if not raw or len(raw) > _MAX_TEXT or "\0" in text:
        raise InvalidArgumentError(
            f"a text of {len(raw)} bytes is empty, too long or has a NUL: {text[:80]!r}"
        )
    return raw


def _decode(raw: bytes, start: int, length: int, *, at: int, field_at: int) -> str:
    where = at + field_at
    if start < ParentLocator.HEADER.size or start + length > len(raw):
        raise _corrupt("parent locator offset", f"{start:#x} + {length}", where)
    try:
        text = raw[start : start + length].decode("utf-16-le")
    except UnicodeDecodeError:
        raise _corrupt("parent locator text", "not UTF-16", where) from None
    if not text or "\0" in text:
        raise _corrupt("parent locator text", f"{text[:80]!r}", where)
    return text


def _corrupt(
    structure: str, value: object, offset: int, *, section: str = "2.6.2.6"
) -> VhdxCorruptError:
    return VhdxCorruptError(structure, value, section=section, offset=offset)
