"""Message classes from a description in Python: no protoc, no generated files.

Generated code demands the protobuf version that it was generated with; descriptors built at run
time work with any. The classes live in a pool of their own, so that another library's copy of
the same .proto files in this process does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol, cast

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    empty_pb2,
    field_mask_pb2,
    message_factory,
    timestamp_pb2,
)

_KNOWN: Final = (any_pb2, empty_pb2, field_mask_pb2, timestamp_pb2)


class Message(Protocol):
    """What every message has; its fields are attributes, which only the message class knows."""

    def SerializeToString(self) -> bytes:  # noqa: N802, protobuf's name
        """The message in protobuf's encoding."""
        ...

    def __getattr__(self, name: str) -> Any: ...  # noqa: ANN401, a field of any type


class MessageClass(Protocol):
    """A class of messages."""

    def __call__(self, **fields: object) -> Message:
        """A message with these fields."""
        ...

    def FromString(self, data: bytes) -> Message:  # noqa: N802, protobuf's name
        """Decode a message."""
        ...


class Scalar(Enum):
    """Types of a field that are no messages."""

    STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
    BYTES = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
    BOOL = descriptor_pb2.FieldDescriptorProto.TYPE_BOOL
    INT32 = descriptor_pb2.FieldDescriptorProto.TYPE_INT32
    INT64 = descriptor_pb2.FieldDescriptorProto.TYPE_INT64


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `type` is a scalar, or the full name of a message or an enum.

    A `string_map` is a `map<string, type>`.
    """

    number: int
    name: str
    type: Scalar | str = Scalar.STRING
    repeated: bool = False
    string_map: bool = False
    enum: bool = False


@dataclass(frozen=True, slots=True)
class Package:
    """A .proto file: messages with their fields, enums with their values from 0."""

    name: str
    messages: Mapping[str, Sequence[Field]]
    enums: Mapping[str, Sequence[str]] | None = None


class Messages:
    """The message classes of some packages, each of which may use those before it."""

    def __init__(self, *packages: Package) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        known = []
        for module in _KNOWN:
            self._pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
            known.append(module.DESCRIPTOR.name)
        for package in packages:
            file = _file(package, known)
            self._pool.AddSerializedFile(file.SerializeToString())
            known.append(file.name)

    def get(self, full_name: str) -> MessageClass:
        """The class of `package.Message`. Raises KeyError."""
        descriptor = self._pool.FindMessageTypeByName(full_name)
        return cast("MessageClass", message_factory.GetMessageClass(descriptor))


def _file(package: Package, dependencies: Sequence[str]) -> Any:  # noqa: ANN401, untyped library
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package.name.replace('.', '/')}.proto",
        package=package.name,
        syntax="proto3",
        dependency=dependencies,
    )
    for name, values in (package.enums or {}).items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in package.messages.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add(message, f".{package.name}.{name}", field)
    return file


def _add(message: Any, full_name: str, field: Field) -> None:  # noqa: ANN401, untyped library
    if field.string_map:
        entry = message.nested_type.add(name=f"{field.name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add(entry, "", Field(1, "key"))
        _add(entry, "", Field(2, "value", field.type))
        _add(
            message, "", Field(field.number, field.name, f"{full_name}.{entry.name}", repeated=True)
        )
        return
    kind = descriptor_pb2.FieldDescriptorProto
    added = message.field.add(name=field.name, number=field.number)
    added.label = kind.LABEL_REPEATED if field.repeated else kind.LABEL_OPTIONAL
    if isinstance(field.type, Scalar):
        added.type = field.type.value
    else:
        added.type = kind.TYPE_ENUM if field.enum else kind.TYPE_MESSAGE
        added.type_name = f".{field.type.removeprefix('.')}"
