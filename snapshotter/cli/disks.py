"""`lcow-snapshotter scratch`, `layer` and `vhdx`: disk files by themselves, without a store."""

from __future__ import annotations

import base64
import dataclasses
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snapshotter.cli.output import (
    JsonOption,
    operation,
    print_document,
    print_table,
    size_text,
)
from snapshotter.errors import AlreadyExistsError, DigestMismatchError
from snapshotter.labels import check_scratch_size
from snapshotter.units import GIB

if TYPE_CHECKING:
    from snapshotter.ext4.reader import Ext4

# The disk formats bring numpy, so each command imports what it needs: `--help` and every
# command that touches no disk stay quick.

scratch = typer.Typer(help="Scratch disks.", no_args_is_help=True)
layer = typer.Typer(help="Layer disks.", no_args_is_help=True)
vhdx = typer.Typer(help="Look into disk files.", no_args_is_help=True)

_VHDX_SIGNATURE = b"vhdxfile"

DiskArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A VHDX, or a fixed VHD such as layer.vhd.")
]


@scratch.callback()
def _scratch() -> None:
    """Scratch disks."""


@layer.callback()
def _layer() -> None:
    """Layer disks."""


@scratch.command("create")
def create(
    out: Annotated[Path, typer.Argument(metavar="OUT.vhdx", help="The file to make.")],
    size_gb: Annotated[int, typer.Option(help="Size of the disk in GiB.", min=1)] = 20,
    journal_mib: Annotated[
        int, typer.Option(help="ext4 journal in MiB; upstream's scratch has none.", min=0)
    ] = 0,
    json_output: JsonOption = False,
) -> None:
    """Make a formatted, empty scratch disk."""
    with operation(json_output=json_output):
        from snapshotter.scratch.template import ScratchTemplate

        size = check_scratch_size(size_gb * GIB)
        ScratchTemplate.build(size, journal_mib=journal_mib).write(out)
        file_size = out.stat().st_size
        if json_output:
            print_document("scratch", {"path": str(out), "size": size, "file_size": file_size})
        else:
            typer.echo(f"{out}: {size_text(size)} disk in a file of {size_text(file_size)}")


@layer.command("import")
def import_(
    tar: Annotated[Path, typer.Argument(metavar="LAYER.tar[.gz|.zst]", help="The layer's tar.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.vhd", help="The file to make.")],
    diff_id: Annotated[
        str | None, typer.Option(help="Digest that the uncompressed tar must have.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Convert a layer's tar to a layer disk."""
    with operation(json_output=json_output, file=tar):
        from snapshotter.ext4.layertar import convert_layer

        if out.exists():
            raise AlreadyExistsError(f"{out} exists already; remove it or choose another name")
        with tar.open("rb") as stream:
            converted = convert_layer(stream, out)
        if diff_id is not None and converted.diff_id != diff_id:
            out.unlink()
            raise DigestMismatchError(str(tar), expected=diff_id, actual=converted.diff_id)
        if json_output:
            print_document(
                "layer",
                {
                    "path": str(out),
                    "diff_id": converted.diff_id,
                    "uncompressed_size": converted.uncompressed_size,
                    "disk_size": converted.disk_size,
                    "entries": converted.entries,
                },
            )
        else:
            typer.echo(f"{out}: {converted.entries} entries, diff ID {converted.diff_id}")


@vhdx.command("info")
def info(
    file: Annotated[Path, typer.Argument(metavar="FILE.vhdx", help="The disk file.")],
    json_output: JsonOption = False,
) -> None:
    """Show what a VHDX file says about itself."""
    with operation(json_output=json_output, file=file):
        from snapshotter.vhdx import VhdxDisk

        with VhdxDisk.open(file) as disk:
            facts = dataclasses.asdict(disk.info())
        facts["blocks"] = {state.name.lower(): count for state, count in facts["blocks"].items()}
        document = {
            name: value if isinstance(value, int | str | dict) else str(value)
            for name, value in facts.items()
        }
        if json_output:
            print_document("vhdx", {"path": str(file), **document})
            return
        width = max(map(len, document))
        for name, value in document.items():
            if isinstance(value, dict):
                value = ", ".join(f"{count} {state}" for state, count in value.items())
            typer.echo(f"{name.ljust(width)}  {value}")


@vhdx.command("ls")
def list_(
    file: DiskArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A directory or file in it.")] = "/",
    json_output: JsonOption = False,
) -> None:
    """List a directory of the ext4 in a disk file."""
    with operation(json_output=json_output, file=file), _file_system(file) as ext4:
        entries = list(_entries(ext4, path))
        if json_output:
            print_document("ls", {"path": path, "entries": entries})
        else:
            print_table(
                ("MODE", "OWNER", "SIZE", "NAME"),
                [_line(entry) for entry in entries],
            )


@vhdx.command("cat")
def cat(
    file: DiskArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file in it.")],
    json_output: JsonOption = False,
) -> None:
    """Write a file of the ext4 in a disk file to standard output."""
    with operation(json_output=json_output, file=file), _file_system(file) as ext4:
        if json_output:
            content = ext4.read(path)
            encoded = base64.b64encode(content).decode()
            print_document("cat", {"path": path, "size": len(content), "base64": encoded})
        else:
            for part in ext4.read_parts(path):
                sys.stdout.buffer.write(part)


@contextmanager
def _file_system(file: Path) -> Iterator[Ext4]:
    """The ext4 of a whole disk, VHDX or fixed VHD."""
    from snapshotter.ext4.reader import Ext4
    from snapshotter.vhd import FixedVhd
    from snapshotter.vhdx import VhdxDisk

    with file.open("rb") as head:
        is_vhdx = head.read(len(_VHDX_SIGNATURE)) == _VHDX_SIGNATURE
    if is_vhdx:
        with VhdxDisk.open(file) as disk:
            yield Ext4.open(disk)
    else:
        with FixedVhd.open(file) as fixed:
            yield Ext4.open(fixed)


def _entries(ext4: Ext4, path: str) -> Iterator[dict[str, object]]:
    """The files of a directory by name, or the one file that the path means."""
    if ext4.stat(path).is_directory:
        paths = [(name, f"{path.rstrip('/')}/{name}") for name in sorted(ext4.listdir(path))]
    else:
        paths = [(path, path)]
    for name, below in paths:
        found = ext4.stat(below)
        entry: dict[str, object] = {
            "name": name,
            "mode": found.mode,
            "uid": found.uid,
            "gid": found.gid,
            "size": found.size,
            "whiteout": found.is_whiteout,
        }
        if found.is_symlink:
            entry["target"] = ext4.readlink(below)
        yield entry


def _line(entry: Mapping[str, object]) -> tuple[str, ...]:
    name = str(entry["name"])
    if "target" in entry:
        name += f" -> {entry['target']}"
    if entry["whiteout"]:
        name += "  (whiteout)"
    mode = stat.filemode(int(str(entry["mode"])))
    return mode, f"{entry['uid']}:{entry['gid']}", str(entry["size"]), name
