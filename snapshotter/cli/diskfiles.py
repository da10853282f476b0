"""`lcow-snapshotter vhdx ls` and `cat`: the files of the ext4 in a disk, without a VM."""

from __future__ import annotations

import base64
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from snapshotter.cli.output import JsonOption, operation, print_document, print_table, printable
from snapshotter.errors import Ext4UnsupportedError

if TYPE_CHECKING:
    from snapshotter.ext4.reader import Ext4

_EPOCH: Final = datetime(1970, 1, 1)

DiskArgument = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="A VHDX, a fixed VHD such as layer.vhd, or a raw disk."),
]


def list_(
    file: DiskArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A directory or file in it.")] = "/",
    json_output: JsonOption = False,
) -> None:
    """List a directory of the ext4 in a disk file, times in UTC."""
    with operation(json_output=json_output, file=file), _file_system(file) as ext4:
        entries = list(_entries(ext4, path))
        if json_output:
            for entry, below in zip(entries, _paths(ext4, path), strict=True):
                entry["xattrs"] = _xattrs(ext4, below)
            print_document("ls", {"path": path, "entries": entries})
        else:
            print_table(
                ("MODE", "OWNER", "SIZE", "MODIFIED", "NAME"),
                [_line(entry) for entry in entries],
            )


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
    """The ext4 of a whole disk of any kind, a differencing VHDX with its parents included."""
    from snapshotter.diskfile import open_disk
    from snapshotter.ext4.reader import Ext4

    with open_disk(file) as disk:
        ext4 = Ext4.open(disk)
        if ext4.needs_recovery:
            typer.echo(
                f"{printable(str(file))}: the journal waits to be replayed, so that some of this is"
                " older than the last changes; let a guest mount and unmount it first",
                err=True,
            )
        yield ext4


def _paths(ext4: Ext4, path: str) -> list[str]:
    """The files of a directory by name, or the one file that the path means."""
    if ext4.stat(path).is_directory:
        return [f"{path.rstrip('/')}/{name}" for name in sorted(ext4.listdir(path))]
    return [path]


def _xattrs(ext4: Ext4, path: str) -> dict[str, str] | None:
    """What `base64` holds of each; None where one is kept in a way that is not read."""
    try:
        found = ext4.xattrs(path)
    except Ext4UnsupportedError:
        return None
    return {name: base64.b64encode(value).decode() for name, value in found.items()}


def _entries(ext4: Ext4, path: str) -> Iterator[dict[str, object]]:
    """What each of these files is."""
    for below in _paths(ext4, path):
        name = path if below == path else below.rpartition("/")[2]
        found = ext4.stat(below)
        entry: dict[str, object] = {
            "name": name,
            "mode": found.mode,
            "uid": found.uid,
            "gid": found.gid,
            "size": found.size,
            "links": found.links,
            "mtime_ns": found.mtime_ns,
            "whiteout": found.is_whiteout,
        }
        if found.device is not None:
            entry["device"] = list(found.device)
        if found.is_symlink:
            entry["target"] = ext4.readlink(below)
        yield entry


def _line(entry: Mapping[str, object]) -> tuple[str, ...]:
    name = printable(str(entry["name"]))
    if "target" in entry:
        name += f" -> {printable(str(entry['target']))}"
    if entry["whiteout"]:
        name += "  (whiteout)"
    mode = stat.filemode(int(str(entry["mode"])))
    size = str(entry["size"])
    if isinstance(device := entry.get("device"), list):
        size = ",".join(map(str, device))
    modified = _EPOCH + timedelta(seconds=int(str(entry["mtime_ns"])) // 10**9)
    return mode, f"{entry['uid']}:{entry['gid']}", size, f"{modified:%Y-%m-%d %H:%M:%S}", name
