"""How GCS bridge messages look as bytes: frames, and dataclasses as JSON the way Go writes it.

A frame is a header of 16 bytes, little-endian, and a UTF-8 JSON body: u32 type, u32 size (header
included), u64 id. `FrameDecoder` is sans-IO: bytes may be cut anywhere. The host refuses frames
above 64 KiB (hcsshim internal/gcs/prot: MaxMsgSize); the guest takes larger ones, because
upstream's guest does not cap.

A message is a frozen dataclass whose fields are made by `wire`: it gives the JSON name and the
shape. Empty values are left out, as Go's `omitempty` does, unless the field says `always`; unknown
names are ignored; absent or null ones take the shape's empty value. A name that is not there is
looked for in any case, as Go does: hcsshim's two ends spell `CreateInUtilityVm` each in its way.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

HEADER_SIZE = 16
HOST_MAX_FRAME = 0x10000
GUEST_MAX_FRAME = 16 * 1024 * 1024  # a bound for a guest of 256 MiB; an OCI spec is below 1 MiB
_HEADER = struct.Struct("<IIQ")
assert _HEADER.size == HEADER_SIZE

_WIRE = "wire"
_M = TypeVar("_M")


class FrameError(Exception):
    """The peer sent a frame whose size cannot be; nothing after it can be understood."""


class MessageError(Exception):
    """A body that is not the JSON it should be; `path` names the place."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path or 'body'}: {reason}")
        self.path = path


# -- frames --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """One message on the bridge: the type word, the id that pairs answers, the undecoded body."""

    type: int
    id: int
    body: bytes


def encode_frame(frame: Frame) -> bytes:
    """Return the frame's bytes."""
    return _HEADER.pack(frame.type, HEADER_SIZE + len(frame.body), frame.id) + frame.body


class FrameDecoder:
    """Turns a byte stream into frames."""

    def __init__(self, *, max_frame: int) -> None:
        self._max_frame = max_frame
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes. Raises FrameError; unusable afterwards."""
        self._pending += data
        return list(self._complete())

    @property
    def at_boundary(self) -> bool:
        """Whether no frame is half received: an end of the stream here loses nothing."""
        return not self._pending

    def _complete(self) -> Iterator[Frame]:
        at = 0
        try:
            while len(self._pending) - at >= HEADER_SIZE:
                kind, size, ident = _HEADER.unpack_from(self._pending, at)
                if not HEADER_SIZE <= size <= self._max_frame:
                    limits = f"{HEADER_SIZE} to {self._max_frame}"
                    raise FrameError(f"frame {kind:#010x} of {size} bytes, not {limits}")
                if len(self._pending) - at < size:
                    break
                yield Frame(kind, ident, bytes(self._pending[at + HEADER_SIZE : at + size]))
                at += size
        finally:
            del self._pending[:at]


# -- bodies --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """How one value is written and read; `read` raises MessageError with the path it is given."""

    read: Callable[[object, str], object]
    empty: Callable[[], object]
    write: Callable[[Any], object] = lambda value: value


@dataclass(frozen=True, slots=True)
class _Wire:
    name: str
    shape: Shape
    always: bool
    embedded: bool


def wire(name: str, shape: Shape, *, always: bool = False, embedded: bool = False) -> Any:  # noqa: ANN401 - what dataclasses.field returns
    """Return a dataclass field of the JSON name `name`, whose default is the shape's empty value.

    `embedded`: the value is JSON inside a JSON string (hcsshim's AnyInString), never left out.
    """
    metadata = {_WIRE: _Wire(name, shape, always or embedded, embedded)}
    return dataclasses.field(default_factory=shape.empty, metadata=metadata)


def to_json(message: object) -> dict[str, object]:
    """Return a message dataclass as a JSON object."""
    out: dict[str, object] = {}
    for field in dataclasses.fields(message):  # type: ignore[arg-type]  # any message dataclass
        spec: _Wire = field.metadata[_WIRE]
        value = spec.shape.write(getattr(message, field.name))
        if spec.embedded:
            out[spec.name] = dumps(value)
        elif spec.always or value not in (None, False, 0, "", [], {}):
            out[spec.name] = value
    return out


def from_json(kind: type[_M], value: object, path: str = "") -> _M:
    """Return the message that a decoded JSON object means. Raises MessageError."""
    if not isinstance(value, Mapping):
        raise MessageError(path, f"{type(value).__name__} where an object belongs")
    arguments: dict[str, object] = {}
    missing: list[tuple[str, _Wire]] = []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # any message dataclass
        spec: _Wire = field.metadata[_WIRE]
        if spec.name not in value:
            missing.append((field.name, spec))
        elif (raw := value[spec.name]) is not None:
            arguments[field.name] = _read_field(spec, raw, path)
    if missing and len(value) > len(arguments):
        folded = {name.lower(): held for name, held in value.items() if isinstance(name, str)}
        for name, spec in missing:
            if (raw := folded.get(spec.name.lower())) is not None:
                arguments[name] = _read_field(spec, raw, path)
    return kind(**arguments)


def _read_field(spec: _Wire, raw: object, path: str) -> object:
    here = f"{path}.{spec.name}" if path else spec.name
    if spec.embedded and raw != "":
        raw = loads(_read_text(raw, here), here)
    return spec.shape.read(raw, here)


def dumps(value: object) -> str:
    """Return compact JSON text."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def loads(text: str | bytes, path: str = "") -> object:
    """Return what JSON text means. Raises MessageError."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MessageError(path, f"not JSON: {error}") from error
    return value


def encode_body(value: Mapping[str, object]) -> bytes:
    """Return a body as hcsshim's encoder writes it: UTF-8 JSON and a line feed."""
    # A path that is not UTF-8 holds lone surrogates: as \udcXX they are valid JSON.
    return (dumps(value) + "\n").encode("utf-8", "backslashreplace")


def decode_body(body: bytes) -> Mapping[str, object]:
    """Return a body's JSON object. Raises MessageError."""
    value = loads(body)
    if not isinstance(value, Mapping):
        raise MessageError("", f"{type(value).__name__} where an object belongs")
    return value


def _read_text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise MessageError(path, f"{value!r} where text belongs")
    return value


def _read_number(value: object, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise MessageError(path, f"{value!r} where a whole number belongs")
    return value


def _read_flag(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise MessageError(path, f"{value!r} where true or false belongs")
    return value


def _read_list(value: object, path: str) -> list[object]:
    if not isinstance(value, list):
        raise MessageError(path, f"{type(value).__name__} where a list belongs")
    return value


def _read_object(value: object, path: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise MessageError(path, f"{type(value).__name__} where an object belongs")
    return value


def _read_texts(value: object, path: str) -> tuple[str, ...]:
    return tuple(_read_text(v, f"{path}[{i}]") for i, v in enumerate(_read_list(value, path)))


def _read_text_map(value: object, path: str) -> dict[str, str]:
    return {k: _read_text(v, f"{path}.{k}") for k, v in _read_object(value, path).items()}


def _read_size(value: object, path: str) -> int:
    number = _read_number(value, path)
    if not 0 <= number < 1 << 63:
        raise MessageError(path, f"{number} where a size belongs")
    return number


def _read_unsigned(value: object, path: str) -> int:
    number = _read_number(value, path)
    if not 0 <= number <= 0xFFFFFFFF:
        raise MessageError(path, f"{number} where a 32-bit unsigned number belongs")
    return number


TEXT = Shape(_read_text, str)
NUMBER = Shape(_read_unsigned, int)
SIZE = Shape(_read_size, int)
"""Bytes: Go's int64, not negative."""
SIGNED = Shape(_read_number, int)
FLAG = Shape(_read_flag, bool)
TEXTS = Shape(_read_texts, tuple, list)
TEXT_MAP = Shape(_read_text_map, dict)
OBJECT = Shape(_read_object, lambda: None)
"""A JSON object of a schema that is not ours (an OCI specification), or None."""
HRESULT = Shape(
    lambda value, path: _read_number(value, path) & 0xFFFFFFFF,
    int,
    lambda value: value - 2**32 if value >= 2**31 else value,
)
"""An HRESULT: int32 in JSON, unsigned in Python, where constants are written as documented."""


def record(kind: type[_M]) -> Shape:
    """Return the shape of a nested message."""
    return Shape(lambda value, path: from_json(kind, value, path), kind, to_json)


def optional(kind: type[_M]) -> Shape:
    """Return the shape of a nested message that may be absent: None in Python, left out in JSON."""

    def read(value: object, path: str) -> _M:
        return from_json(kind, value, path)

    return Shape(read, lambda: None, lambda value: None if value is None else to_json(value))


def records(kind: type[_M]) -> Shape:
    """Return the shape of a list of nested messages, a tuple in Python."""

    def read(value: object, path: str) -> tuple[_M, ...]:
        items = enumerate(_read_list(value, path))
        return tuple(from_json(kind, item, f"{path}[{i}]") for i, item in items)

    return Shape(read, tuple, lambda value: [to_json(item) for item in value])
