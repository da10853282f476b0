"""What commands print: a JSON document, or text; and how their errors end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from snapshotter.errors import AlreadyExistsError, SnapshotterError, UnavailableError

RootOption = Annotated[
    Path,
    typer.Option(
        "--root", metavar="DIR", envvar="LCOW_SNAPSHOTTER_ROOT", help="Directory of the store."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

SCHEMA_PREFIX: Final = "lcow-snapshotter"


class ExitCode(IntEnum):
    """How a command ends; `USAGE` is Typer's own."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INFRASTRUCTURE = 3
    INTERRUPTED = 130


def print_document(kind: str, document: Mapping[str, object]) -> None:
    """Print a JSON document whose `schema` says what it is."""
    whole = {"schema": f"{SCHEMA_PREFIX}.{kind}/1", **document}
    typer.echo(json.dumps(whole, indent=2, ensure_ascii=True))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, never cut: whoever pipes them needs all of it."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Return `text` with escapes for what would steer a terminal or begin a new line."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python keeps it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def size_text(size: int) -> str:
    """A number of bytes for people."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


@contextmanager
def operation(
    *,
    json_output: bool,
    file: Path | None = None,
    interrupted: str = "nothing half-made was left",
) -> Iterator[None]:
    """Run a command's body: whatever it raises becomes one line and an exit code.

    `file` is what the command reads; errors about its content name it. `interrupted` is what to
    say after Ctrl-C.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us has gone (`| head`): no error, but nothing may be flushed there later.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(ExitCode.FAILED) from None
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {interrupted}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except UnavailableError as error:
        _fail(error, ExitCode.INFRASTRUCTURE, file=None, json_output=json_output)
    except AlreadyExistsError as error:  # about what was to be made
        _fail(error, ExitCode.FAILED, file=None, json_output=json_output)
    except (SnapshotterError, FileNotFoundError) as error:
        _fail(error, ExitCode.FAILED, file=file, json_output=json_output)
    except OSError as error:
        _fail(error, ExitCode.INFRASTRUCTURE, file=None, json_output=json_output)


def _fail(error: Exception, code: ExitCode, *, file: Path | None, json_output: bool) -> None:
    message = " ".join(_message(error).split())
    if file is not None and str(file) not in message:
        message = f"{file}: {message}"
    typer.echo(f"lcow-snapshotter: {printable(message)}", err=True)
    if json_output:
        kind = type(error).__name__
        print_document("error", {"error": {"kind": kind, "message": message, "exit_code": code}})
    raise typer.Exit(code) from None


def _message(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"there is no file {error.filename}; check the path"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system'}: {error.strerror}"
    return str(error)
