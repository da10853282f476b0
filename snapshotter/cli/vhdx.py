"""`lcow-snapshotter vhdx`: disk files by themselves, without a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from snapshotter.cli import diskfiles
from snapshotter.cli.output import JsonOption, operation, print_document, size_text
from snapshotter.cli.progress import progress_bar
from snapshotter.cli.sizes import parse_size
from snapshotter.diskformat import DiskFormat
from snapshotter.units import MIB

# The disk formats bring numpy, so each command imports what it needs: `--help` stays quick.

app = typer.Typer(help="Make, check, convert and look into disk files.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE.vhdx", help="The disk file.")]
BlockSizeOption = Annotated[
    int | None,
    typer.Option(
        parser=parse_size,
        metavar="SIZE",
        help="Payload block of a VHDX, 1M to 256M.",
        show_default="1M",
    ),
]
SectorOption = Annotated[
    int | None,
    typer.Option(metavar="512|4096", help="Logical sector of a VHDX.", show_default="512"),
]
FixedOption = Annotated[
    bool, typer.Option("--fixed", help="A VHDX in which every block has its place from the start.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


@app.command("create")
def create(
    out: Annotated[Path, typer.Argument(metavar="OUT.vhdx", help="The file to make.")],
    size: Annotated[
        int, typer.Option(parser=parse_size, metavar="SIZE", help="Size of the disk: 512M, 20G.")
    ],
    block_size: BlockSizeOption = None,
    logical_sector: SectorOption = None,
    json_output: JsonOption = False,
) -> None:
    """Make an empty disk."""
    with operation(json_output=json_output):
        from snapshotter.vhdx import create_vhdx

        create_vhdx(
            out, size, block_size=block_size or MIB, logical_sector_size=logical_sector or 512
        )
        _report_created(out, size, json_output=json_output)


def _report_created(out: Path, size: int, *, json_output: bool) -> None:
    file_size = out.stat().st_size
    if json_output:
        print_document("vhdx-create", {"path": str(out), "size": size, "file_size": file_size})
    else:
        typer.echo(f"{out}: {size_text(size)} disk in a file of {size_text(file_size)}")


@app.command("info")
def info(file: FileArgument, json_output: JsonOption = False) -> None:
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
        else:
            _print_facts(document)


def _print_facts(document: Mapping[str, object]) -> None:
    width = max(map(len, document))
    for name, value in document.items():
        if isinstance(value, dict):
            value = ", ".join(f"{count} {state}" for state, count in value.items())
        typer.echo(f"{name.ljust(width)}  {value}")


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A raw disk, VHDX or fixed VHD.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to make.")],
    from_: Annotated[
        DiskFormat | None,
        typer.Option("--from", help="Format of IN.", show_default="what its bytes show"),
    ] = None,
    to: Annotated[
        DiskFormat | None,
        typer.Option("--to", help="Format of OUT.", show_default="what its suffix says"),
    ] = None,
    fixed: FixedOption = False,
    block_size: BlockSizeOption = None,
    logical_sector: SectorOption = None,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Copy a disk to a new file of another format; IN is not changed.

    Logs are replayed in memory, a differencing VHDX is flattened together with its parents,
    zeros take no room.
    """
    with operation(json_output=json_output, file=source):
        from snapshotter.convert import VhdxOptions, convert_disk

        options = None
        if fixed or block_size is not None or logical_sector is not None:
            options = VhdxOptions(
                fixed=fixed,
                block_size=block_size or MIB,
                logical_sector_size=logical_sector or 512,
            )
        with progress_bar(f"converting {source.name}") as progress:
            made = convert_disk(
                source,
                out,
                source_format=from_,
                target_format=to,
                vhdx=options,
                overwrite=force,
                progress=progress,
            )
        if json_output:
            print_document(
                "vhdx-convert",
                {
                    "path": str(made.target),
                    "format": str(made.target_format),
                    "size": made.disk_size,
                    "file_size": made.file_size,
                    "stored": made.stored,
                },
            )
        else:
            typer.echo(
                f"{out}: {size_text(made.disk_size)} disk as {made.target_format},"
                f" {size_text(made.stored)} of data"
            )


app.command("ls")(diskfiles.list_)
app.command("cat")(diskfiles.cat)
