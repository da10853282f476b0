"""Which modules a source imports."""

from __future__ import annotations

import pytest

from harness.image.imports import imports


def found(source: str, *, module: str = "pkg.mod", is_package: bool = False) -> dict[str, bool]:
    result = imports(source.encode(), module=module, is_package=is_package)
    return {item.name: item.is_required for item in result}


def test_a_dotted_import_needs_its_parents() -> None:
    assert found("import a.b.c") == {"a": True, "a.b": True, "a.b.c": True}


def test_what_is_imported_from_a_package_may_be_a_module() -> None:
    assert found("from a import b, c") == {"a": True, "a.b": False, "a.c": False}
    assert found("from a import *") == {"a": True}


@pytest.mark.parametrize(
    ("source", "is_package", "expected"),
    [
        ("from . import x", False, {"pkg": True, "pkg.x": False}),
        ("from .y import x", False, {"pkg": True, "pkg.y": True, "pkg.y.x": False}),
        ("from .y import x", True, {"pkg": True, "pkg.mod": True, "pkg.mod.y": True}),
        ("from .. import x", True, {"pkg": True, "pkg.x": False}),
    ],
)
def test_relative_imports_are_resolved(
    source: str,
    is_package: bool,
    expected: dict[str, bool],
) -> None:
    assert expected.items() <= found(source, is_package=is_package).items()


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n import a",
        "async def f():\n import a",
        "try:\n import a\nexcept ImportError:\n a = None",
        "try:\n pass\nexcept ImportError:\n import a",
        "if x:\n import a",
        "if x:\n pass\nelse:\n import a",
        "for x in y:\n import a",
        "match x:\n case 1:\n  import a",
        "class C:\n def f(self):\n  with x:\n   import a",
    ],
)
def test_conditional_and_late_imports_are_not_required(source: str) -> None:
    assert found(source) == {"a": False}


@pytest.mark.parametrize("source", ["class C:\n import a", "with x:\n import a"])
def test_what_always_runs_is_required(source: str) -> None:
    assert found(source) == {"a": True}


@pytest.mark.parametrize(
    "source",
    [
        "if TYPE_CHECKING:\n import a",
        "if typing.TYPE_CHECKING:\n import a",
        "if __name__ == '__main__':\n import a",
    ],
)
def test_what_never_runs_in_an_imported_module_is_left_out(source: str) -> None:
    assert found(source) == {}
    assert found(source + "\nelse:\n import b") == {"b": True}


def test_an_import_that_is_required_once_is_required() -> None:
    assert found("try:\n import a\nexcept ImportError: pass\nimport a") == {"a": True}
