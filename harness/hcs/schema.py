"""Maps dataclasses to the JSON of the HCS schema and back, with Go's `omitempty` rules.

A class of the schema is a frozen dataclass. The JSON name of a field is its name in PascalCase
(`owner` is `Owner`), or the one given by `json_name("SizeInMB")`. Every class has a field `extra`:
what a document holds and the class does not know is kept there and written out again.

hcsshim declares every field `omitempty`, so that false, 0, "", null, empty lists and empty maps are
never sent, whereas a present object is sent even when it is empty (`{}`).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from harness.errors import UsageError

T = TypeVar("T")

_EXTRA = "extra"
_JSON_NAME = "json_name"


def json_name(name: str) -> dict[str, str]:
    """Return the metadata of a dataclass field with an explicit JSON name."""
    return {_JSON_NAME: name}


def encode(value: object) -> dict[str, Any]:
    """Return the JSON object of a schema class, empty values left out."""
    out: dict[str, Any] = {}
    for name, (key, _) in _shape(value.__class__).items():
        plain = _plain(getattr(value, name))
        present = dataclasses.is_dataclass(getattr(value, name))
        if present or plain not in (None, False, 0, "", [], {}):
            out[key] = plain
    out.update(getattr(value, _EXTRA))
    return out


def decode(cls: type[T], raw: object, *, at: str = "") -> T:
    """Return an instance of `cls` from a JSON object; `at` is its path, for errors.

    Raises UsageError naming the path of a value of a wrong type. Unknown fields go to `extra`.
    """
    if not isinstance(raw, Mapping):
        raise UsageError(f"{at or cls.__name__}: an object is needed, not {_kind(raw)}")
    values: dict[str, Any] = {}
    known = set()
    for name, (key, hint) in _shape(cls).items():
        known.add(key)
        if raw.get(key) is not None:
            path = f"{at}.{key}" if at else key
            values[name] = _typed(hint, raw[key], path)
    values[_EXTRA] = {field: item for field, item in raw.items() if field not in known}
    return cls(**values)


def unknown_fields(value: object, *, at: str = "") -> Iterator[str]:
    """Yield the path of every field that a document held and its class does not know."""
    for key in getattr(value, _EXTRA):
        yield f"{at}.{key}" if at else key
    for name, (key, _) in _shape(value.__class__).items():
        path = f"{at}.{key}" if at else key
        item = getattr(value, name)
        if isinstance(item, Mapping):
            children = [(f"{path}.{name}", child) for name, child in item.items()]
        elif isinstance(item, tuple):
            children = [(f"{path}[{index}]", child) for index, child in enumerate(item)]
        else:
            children = [(path, item)]
        for child_path, child in children:
            if dataclasses.is_dataclass(child):
                yield from unknown_fields(child, at=child_path)


def _shape(cls: Any) -> dict[str, tuple[str, Any]]:  # noqa: ANN401 - a class of the schema
    """Return field name -> (JSON name, type), `extra` left out."""
    return _read_shape(cls)


@functools.cache
def _read_shape(cls: type[Any]) -> dict[str, tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    return {
        item.name: (item.metadata.get(_JSON_NAME) or _pascal(item.name), hints[item.name])
        for item in dataclasses.fields(cls)
        if item.name != _EXTRA
    }


def _pascal(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _plain(value: object) -> Any:  # noqa: ANN401 - the JSON edge
    if dataclasses.is_dataclass(value):
        return encode(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _typed(hint: Any, raw: Any, at: str) -> Any:  # noqa: ANN401 - the JSON edge
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _typed(next(arg for arg in args if arg is not types.NoneType), raw, at)
    if origin is tuple:
        if not isinstance(raw, list | tuple):
            raise UsageError(f"{at}: a list is needed, not {_kind(raw)}")
        return tuple(_typed(args[0], item, f"{at}[{index}]") for index, item in enumerate(raw))
    if origin is not None:  # Mapping[str, X]
        if not isinstance(raw, Mapping):
            raise UsageError(f"{at}: an object is needed, not {_kind(raw)}")
        return {str(key): _typed(args[1], item, f"{at}.{key}") for key, item in raw.items()}
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), raw, at=at)
    if hint in (object, Any):
        return raw
    if issubclass(hint, enum.Enum):
        try:
            return hint(raw)
        except ValueError:
            choices = ", ".join(str(item.value) for item in hint)
            raise UsageError(f"{at}: {raw!r} is none of {choices}") from None
    if not isinstance(raw, hint) or (hint is int and isinstance(raw, bool)):
        raise UsageError(f"{at}: {hint.__name__} is needed, not {_kind(raw)}")
    return raw


def _kind(raw: object) -> str:
    return f"{type(raw).__name__} {raw!r}"[:80]
