"""`lcow-snapshotter scratch` and `layer`: disks of the store's kinds, without a store."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated

import typer

from snapshotter.cli.output import JsonOption, operation, print_document, size_text
from snapshotter.cli.progress import progress_bar
from snapshotter.errors import AlreadyExistsError, InvalidArgumentError
from snapshotter.labels import check_scratch_size
from snapshotter.platform import local_platform
from snapshotter.units import GIB

# The disk formats bring numpy, so each command imports what it needs: `--help` and every
# command that touches no disk stay quick.

scratch = typer.Typer(help="Scratch disks.", no_args_is_help=True)
layer = typer.Typer(help="Layer disks.", no_args_is_help=True)


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
    grow_to_gb: Annotated[
        int | None,
        typer.Option(help="Size in GiB to which it may be grown later, mounted or not.", min=1),
    ] = None,
    label: Annotated[str, typer.Option(help="Label of the ext4, 16 bytes at most.")] = "scratch",
    fs_uuid: Annotated[
        str | None,
        typer.Option("--uuid", help="UUID of the ext4.", show_default="a random one"),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Make a formatted, empty scratch disk."""
    with operation(json_output=json_output):
        from snapshotter.scratch.maker import allocation_of
        from snapshotter.scratch.template import ScratchTemplate

        size = check_scratch_size(size_gb * GIB)
        grow_to = None if grow_to_gb is None else grow_to_gb * GIB
        template = ScratchTemplate.build(
            size, journal_mib=journal_mib, grow_to=grow_to, label=label, fs_uuid=_uuid(fs_uuid)
        )
        template.write(out, allocation=allocation_of(local_platform()))
        file_size = out.stat().st_size
        if json_output:
            print_document("scratch", {"path": str(out), "size": size, "file_size": file_size})
        else:
            typer.echo(f"{out}: {size_text(size)} disk in a file of {size_text(file_size)}")


def _uuid(text: str | None) -> uuid.UUID | None:
    try:
        return None if text is None else uuid.UUID(text)
    except ValueError:
        raise InvalidArgumentError(f"--uuid {text}: give 32 hexadecimal digits") from None


@layer.command("import")
def import_(
    tar: Annotated[Path, typer.Argument(metavar="LAYER.tar[.gz|.zst]", help="The layer's tar.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.vhd", help="The file to make.")],
    diff_id: Annotated[
        str | None, typer.Option(help="Digest that the uncompressed tar must have.")
    ] = None,
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Checksums of all metadata.")
    ] = False,
    verity: Annotated[
        bool, typer.Option("--verity", help="Append a dm-verity tree; its root hash is printed.")
    ] = False,
    max_disk_gb: Annotated[
        int, typer.Option(help="Refuse a layer that needs more.", min=1, max=128)
    ] = 128,
    max_entries: Annotated[
        int, typer.Option(help="Refuse a layer of more members; memory grows with them.", min=1)
    ] = 500_000,
    json_output: JsonOption = False,
) -> None:
    """Convert a layer's tar to a layer disk."""
    with operation(json_output=json_output, file=tar):
        from snapshotter.ext4.layertar import ConversionLimits, convert_layer

        if out.exists():
            raise AlreadyExistsError(f"{out} exists already; remove it or choose another name")
        limits = ConversionLimits(max_disk=max_disk_gb * GIB, max_entries=max_entries)
        with tar.open("rb") as stream, progress_bar(f"converting {tar.name}") as progress:
            converted = convert_layer(
                stream,
                out,
                limits=limits,
                # How long the tar is uncompressed nobody knows before its end.
                progress=None if progress is None else lambda done: progress(done, 0),
                checksums=checksums,
                verity=verity,
                diff_id=diff_id,
            )
        root_hash = converted.verity.root_hash if converted.verity else None
        if json_output:
            print_document(
                "layer",
                {
                    "path": str(out),
                    "diff_id": converted.diff_id,
                    "uncompressed_size": converted.uncompressed_size,
                    "disk_size": converted.disk_size,
                    "entries": converted.entries,
                    "ignored_xattrs": list(converted.ignored_xattrs),
                    "verity_root_hash": root_hash,
                },
            )
        else:
            typer.echo(f"{out}: {converted.entries} entries, diff ID {converted.diff_id}")
            if root_hash is not None:
                typer.echo(f"dm-verity root hash {root_hash}")
