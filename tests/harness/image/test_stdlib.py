"""The standard library closure over the distribution's own CPython. Oracle: that interpreter."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.errors import ImageBuildError
from harness.image.distribution import ProgramPackages
from harness.image.imports import Imported
from harness.image.packages import Apt
from harness.image.stdlib import GuestCommand, GuestPython
from harness.image.userland import Userland


def wanted(*names: str) -> list[Imported]:
    return [Imported(name, True) for name in names]


@pytest.fixture(scope="module")
def python(userland: Userland, archive: tuple[Apt, ProgramPackages]) -> GuestPython:
    return GuestPython(userland.tree, archive[1].python)


@pytest.fixture(scope="module")
def command(userland: Userland, python: GuestPython) -> GuestCommand:
    files = [userland.tree.find(path) for path in userland.libraries([python.program])]
    return GuestCommand(userland.tree, python, sorted({f.source.parent for f in files if f}))


def test_the_closure_holds_what_an_import_really_loads(
    python: GuestPython, command: GuestCommand
) -> None:
    closure = python.closure(wanted("subprocess", "logging"), command=command)
    argv = command.argv("import subprocess, logging, sys; print(*sys.modules)")
    ran = subprocess.run(
        argv, env=command.environment(), capture_output=True, text=True, check=True
    )
    builtin = command.builtin_modules()
    extensions = {file.path.rpartition("/")[2].split(".")[0] for file in closure.extensions}
    loaded = {name for name in ran.stdout.split() if name not in builtin and python.find(name)}
    assert loaded <= closure.sources.keys() | extensions


def test_large_packages_behind_optional_imports_stay_out(
    python: GuestPython, command: GuestCommand
) -> None:
    closure = python.closure(wanted("shutil", "subprocess", "uuid"), command=command)
    assert not closure.sources.keys() & {"tarfile", "zipfile", "asyncio", "ssl", "unittest"}
    assert sum(f.source.stat().st_size for f in closure.sources.values()) < 3_000_000


def test_a_package_that_is_asked_for_is_there(python: GuestPython, command: GuestCommand) -> None:
    assert "tarfile" in python.closure(wanted("tarfile"), command=command).sources


def test_an_optional_module_that_does_not_exist_is_no_error(
    python: GuestPython, command: GuestCommand
) -> None:
    closure = python.closure([Imported("numpy", False)], command=command)
    assert "numpy" not in closure.sources


def test_extension_modules_are_part_of_it(python: GuestPython, command: GuestCommand) -> None:
    extensions = python.closure(wanted("ctypes"), command=command).extensions
    assert any("_ctypes." in file.path for file in extensions)


def test_a_module_that_does_not_exist_is_an_error(
    python: GuestPython, command: GuestCommand
) -> None:
    with pytest.raises(ImageBuildError, match="has no numpy"):
        python.closure(wanted("numpy"), command=command)


def test_bytecode_is_the_guests_own(command: GuestCommand, tmp_path: Path) -> None:
    source = tmp_path / "agent.py"
    source.write_text("ANSWER = 6 * 7\n")
    out = tmp_path / "out"
    out.mkdir()
    (first,) = command.compile([(source, "/usr/lib/lcowlab/agent.py")], out)
    (again,) = command.compile([(source, "/usr/lib/lcowlab/agent.py")], out)
    assert first == again
    assert first[:2] != b"\0\0"
    assert first[2:8] == b"\r\n\x01\0\0\0"
    assert b"/usr/lib/lcowlab/agent.py" in first
    assert str(tmp_path).encode() not in first


def test_a_syntax_error_in_the_agent_is_reported(command: GuestCommand, tmp_path: Path) -> None:
    source = tmp_path / "agent.py"
    source.write_text("def broken(:\n")
    with pytest.raises(ImageBuildError, match="SyntaxError"):
        command.compile([(source, "/agent.py")], tmp_path)
