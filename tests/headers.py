"""mingw-w64's headers as an independent word on prototypes, structures and constants.

They are read as text, since a compiler for Windows would be one more thing to install. Alignment
is that of the platform's C compiler, the same on 64-bit Windows and Linux for these types.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

HEADERS = Path("/usr/share/mingw-w64/include")
needs_headers = pytest.mark.skipif(
    not HEADERS.is_dir(), reason="mingw-w64's headers are not installed (mingw-w64-common)"
)

_TOKEN = re.compile(r"\w+|[{};*\[\]]")


def prototype(name: str, *headers: str) -> tuple[str, list[str]]:
    """The C types of a function's result and arguments, pointers with their stars."""
    declaration = re.compile(rf"(\w+)\s+(?:WINAPI|APIENTRY)\s+{name}\s*\(([^)]*)\)")
    for header in headers:
        found = declaration.search(_text(header))
        if found is not None:
            result, arguments = found.groups()
            return result, [_argument(each) for each in arguments.split(",")]
    pytest.fail(f"no header declares {name}")


def constant(name: str, *headers: str) -> int:
    """The value of a macro or an enumerator."""
    for header in headers:
        found = re.search(
            rf"^\s*(?:#define\s+{name}\s|{name}\s*=)(?:[^\w\n]|__MSABI_LONG|DWORD)*(\w+)",
            _text(header),
            re.MULTILINE,
        )
        if found is not None:
            return int(found[1].rstrip("L"), 0)
    pytest.fail(f"no header has {name}")


def structure(name: str, header: str, types: Mapping[str, Any]) -> type[ctypes.Structure]:
    """The structure as ctypes lays it out; `types` are those of its fields, by their C names."""
    start = re.search(rf"struct _{name}\s*{{", _text(header))
    assert start is not None, name
    text = re.sub(r"^\s*#.*$", "", _text(header)[start.end() :], flags=re.MULTILINE)
    built: type[ctypes.Structure] = _members(iter(_TOKEN.findall(text)), types, union=False)
    return built


def layout(kind: type[ctypes.Structure | ctypes.Union]) -> dict[str, tuple[int, int]]:
    """Offset and size of each field, those of nested structures by dotted names, and of all."""
    found: dict[str, tuple[int, int]] = {"": (0, ctypes.sizeof(kind))}
    for name, member, *_ in kind._fields_:
        at = getattr(kind, name)
        found[name] = (at.offset, at.size)
        if isinstance(member, type) and issubclass(member, ctypes.Structure | ctypes.Union):
            inner = layout(member)
            del inner[""]
            for inside, (offset, size) in inner.items():
                found[f"{name}.{inside}"] = (at.offset + offset, size)
    return found


def _members(tokens: Any, types: Mapping[str, Any], *, union: bool) -> Any:  # noqa: ANN401
    fields: list[tuple[str, Any]] = []
    for token in tokens:
        if token == "}":
            break
        kind: Any
        words = [token]
        if token == "__C89_NAMELESS":
            words = [next(tokens)]
        if words[0] in ("struct", "union"):
            assert next(tokens) == "{"
            kind = _members(tokens, types, union=words[0] == "union")
            words = []
        else:
            kind = None
        while (token := next(tokens)) != ";":
            words.append(token)
        if kind is None:
            kind = types[words.pop(0)]
        if words[0] == "*":
            kind = ctypes.c_void_p
            words.pop(0)
        if words[1:2] == ["["]:
            kind = kind * int(words[2])
        fields.append((words[0], kind))
    return type("Found", (ctypes.Union if union else ctypes.Structure,), {"_fields_": fields})


def _argument(text: str) -> str:
    words = [word for word in text.replace("*", " * ").split() if word != "const"]
    return words[0] + "*" * words.count("*")


@functools.cache
def _text(header: str) -> str:
    text = (HEADERS / header).read_text(errors="replace")
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
