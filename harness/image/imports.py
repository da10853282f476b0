"""Which modules a Python source may import, read from its syntax tree.

This file is also run as it is by the guest's own CPython, whose standard library may use syntax
that the interpreter running lcowlab does not know: it needs the standard library alone.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported module name; `is_required` if importing the importer fails without it."""

    name: str
    is_required: bool


def imports(source: bytes, *, module: str, is_package: bool) -> list[Imported]:
    """Every module that a source may import, in order: `import a.b` gives `a` and `a.b`.

    `from a import b` gives `a` and, not required, `a.b`, which may be an attribute. Left out are
    the branches for type checkers and for a module run as a program. Raises SyntaxError.
    """
    package = module if is_package else module.rpartition(".")[0]
    found: dict[str, bool] = {}
    for node, is_required in _import_nodes(ast.parse(source).body, is_required=True):
        for name, required in _names(node, package):
            found[name] = found.get(name, False) or (required and is_required)
    return [Imported(name, required) for name, required in found.items()]


def _names(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from ((name, True) for name in with_parents(alias.name))
        return
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        parts = parts[: len(parts) - node.level + 1]
        base = ".".join([*parts, base] if base else parts)
    yield from ((name, True) for name in with_parents(base))
    yield from ((f"{base}.{alias.name}", False) for alias in node.names if alias.name != "*")


def with_parents(name: str) -> list[str]:
    """The packages around a module and the module: `a.b` gives `a` and `a.b`."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _import_nodes(
    body: Iterable[ast.stmt], *, is_required: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom():
                yield node, is_required
            case ast.If(test=test) if _is_never(test):
                yield from _import_nodes(node.orelse, is_required=is_required)
            case ast.ClassDef() | ast.With():
                yield from _import_nodes(node.body, is_required=is_required)
            case _:
                for _, value in ast.iter_fields(node):
                    if isinstance(value, list):
                        inner = [item for item in value if isinstance(item, ast.stmt)]
                        yield from _import_nodes(inner, is_required=False)
                        for item in value:
                            if isinstance(item, (ast.ExceptHandler, ast.match_case)):
                                yield from _import_nodes(item.body, is_required=False)


def _is_never(test: ast.expr) -> bool:
    """Tell `TYPE_CHECKING` and `__name__ == "__main__"`, which are false in an imported module."""
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
        case ast.Compare(left=ast.Name(id="__name__")):
            return True
    return False


def _answer() -> None:
    """Read lines of file, module, "1" for a package; write one line of imports for each.

    A required module's name has a leading "!".
    """
    for line in sys.stdin.read().splitlines():
        path, module, is_package = line.split("\t")
        with open(path, "rb") as file:
            found = imports(file.read(), module=module, is_package=is_package == "1")
        sys.stdout.write(" ".join(("!" if i.is_required else "") + i.name for i in found) + "\n")


if __name__ == "__main__":
    _answer()
