"""The command `lcow-snapshotter vhdx` as the tests call it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from snapshotter.cli.app import app
from snapshotter.units import MIB
from snapshotter.vhdx import (
    VhdxDisk,
    create_child,
    create_vhdx,
    open_chain,
)

COMMAND = [sys.executable, "-c", "from snapshotter.cli import main; main()"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["vhdx", *map(str, arguments)])


def document(*arguments: str | Path, schema: str, code: int = 0) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == code, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    assert value["schema"] == f"lcow-snapshotter.{schema}/1"
    return value


def failure(*arguments: str | Path, code: int = 1) -> str:
    """The one line that a command that fails prints."""
    done = run(*arguments)
    assert done.exit_code == code, (done.stdout, done.stderr)
    assert done.stderr.startswith("lcow-snapshotter: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    return done.stderr


def chain(folder: Path) -> tuple[Path, Path, bytes]:
    base, child = folder / "base.vhdx", folder / "child.vhdx"
    create_vhdx(base, 8 * MIB)
    with VhdxDisk.open(base, writable=True) as disk:
        disk.write_at(0, b"base" * MIB)
    create_child(child, base)
    with open_chain(child, writable=True) as opened:
        opened.top.write_at(MIB + 100, b"child")
        return base, child, opened.read_at(0, 8 * MIB)
