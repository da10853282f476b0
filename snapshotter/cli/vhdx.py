"""`lcow-snapshotter vhdx`: disk files by themselves, without a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from snapshotter.cli import diskfiles, vhdxcheck
from snapshotter.cli.output import JsonOption, operation, print_document, size_text
from snapshotter.cli.progress import progress_bar
from snapshotter.cli.sizes import parse_size
from snapshotter.diskformat import DiskFormat
from snapshotter.errors import InvalidArgumentError
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
PhysicalSectorOption = Annotated[
    int | None,
    typer.Option(metavar="512|4096", help="Physical sector of a VHDX.", show_default="4096"),
]
FixedOption = Annotated[
    bool, typer.Option("--fixed", help="A VHDX in which every block has its place from the start.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


@app.command("create")
def create(
    out: Annotated[Path, typer.Argument(metavar="OUT.vhdx", help="The file to make.")],
    size: Annotated[
        int | None,
        typer.Option(parser=parse_size, metavar="SIZE", help="Size of the disk: 512M, 20G, 64T."),
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option(
            metavar="PARENT.vhdx", help="Make a differencing disk that starts as this disk is."
        ),
    ] = None,
    fixed: FixedOption = False,
    block_size: BlockSizeOption = None,
    logical_sector: SectorOption = None,
    physical_sector: PhysicalSectorOption = None,
    json_output: JsonOption = False,
) -> None:
    """Make an empty disk of a size, or a differencing one of its parent's size."""
    if (size is None) == (parent is None):
        raise typer.BadParameter("say --size, or --parent, whose size the disk gets")
    if parent is not None and (fixed or logical_sector or physical_sector):
        raise typer.BadParameter("a differencing disk is never fixed and has its parent's sectors")
    with operation(json_output=json_output, file=parent):
        from snapshotter.vhdx import create_child, create_vhdx, inspect_vhdx

        if parent is not None:
            create_child(out, parent, block_size=block_size)
        elif size is not None:
            create_vhdx(
                out,
                size,
                block_size=block_size or MIB,
                logical_sector_size=logical_sector or 512,
                physical_sector_size=physical_sector or 4096,
                fixed=fixed,
            )
        made, _ = inspect_vhdx(out)
        if json_output:
            print_document(
                "vhdx-create",
                {
                    "path": str(out),
                    "parent": None if parent is None else str(parent),
                    "size": made.size,
                    "file_size": made.file_size,
                },
            )
        else:
            below = "" if parent is None else f" on top of {parent}"
            typer.echo(
                f"{out}: {size_text(made.size)} disk in a file of"
                f" {size_text(made.file_size)}{below}"
            )


@app.command("info")
def info(file: FileArgument, json_output: JsonOption = False) -> None:
    """Show what a VHDX file says about itself and its parents."""
    with operation(json_output=json_output, file=file):
        from snapshotter.vhdx import inspect_vhdx

        found, links = inspect_vhdx(file)
        facts = dataclasses.asdict(found)
        facts["blocks"] = {state.name.lower(): count for state, count in facts["blocks"].items()}
        document: dict[str, object] = {
            name: value if isinstance(value, int | str | dict) else str(value)
            for name, value in facts.items()
        }
        if links is not None:
            document["parent"] = {
                "parent_linkage": str(links.linkage),
                **({} if links.linkage2 is None else {"parent_linkage2": str(links.linkage2)}),
                **links.paths,
            }
            document.update(_chain(file))
        if json_output:
            print_document("vhdx", {"path": str(file), **document})
        else:
            _print_facts(document)


def _chain(file: Path) -> dict[str, object]:
    """The files below a differencing disk, or what is wrong with them."""
    from snapshotter.errors import StorageError
    from snapshotter.vhdx import resolve_chain

    try:
        return {"chain": [str(below.path) for below in resolve_chain(file)]}
    except StorageError as error:
        return {"chain_problem": str(error)}


def _print_facts(document: Mapping[str, object]) -> None:
    width = max(map(len, document))
    for name, value in document.items():
        if name == "blocks" and isinstance(value, dict):
            value = ", ".join(f"{count} {state}" for state, count in value.items())
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {text}" for key, text in value.items())
        elif isinstance(value, list):
            value = " on ".join(value)
        typer.echo(f"{name.ljust(width)}  {value}")


app.command("check")(vhdxcheck.check)


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
    physical_sector: PhysicalSectorOption = None,
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
        if fixed or block_size or logical_sector or physical_sector:
            options = VhdxOptions(
                fixed=fixed,
                block_size=block_size or MIB,
                logical_sector_size=logical_sector or 512,
                physical_sector_size=physical_sector or 4096,
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


@app.command("replay")
def replay(file: FileArgument, json_output: JsonOption = False) -> None:
    """Replay the log of a disk that was not closed cleanly, in the file."""
    with operation(json_output=json_output, file=file):
        from snapshotter.vhdx import replay_log

        found = replay_log(file)
        entries = found.replayed_entries
        if json_output:
            print_document(
                "vhdx-replay",
                {"path": str(file), "was_dirty": found.log_dirty, "replayed_entries": entries},
            )
        elif found.log_dirty:
            typer.echo(f"{file}: replayed {entries} log {'entry' if entries == 1 else 'entries'}")
        else:
            typer.echo(f"{file}: the log is clean, nothing to replay")


@app.command("resize")
def resize(
    file: FileArgument,
    size: Annotated[int, typer.Argument(parser=parse_size, metavar="SIZE", help="512M, 20G, 64T.")],
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Agree to lose what lies behind a smaller size.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Give a disk another size; file systems in it stay as they are."""
    with operation(json_output=json_output, file=file):
        from snapshotter.vhdx import inspect_vhdx, resize_vhdx

        before, _ = inspect_vhdx(file)
        resize_vhdx(file, size, shrink=shrink)
        if json_output:
            print_document(
                "vhdx-resize", {"path": str(file), "old_size": before.size, "size": size}
            )
        else:
            typer.echo(f"{file}: {size_text(before.size)} before, {size_text(size)} now")


@app.command("merge")
def merge(
    file: Annotated[Path, typer.Argument(metavar="CHILD.vhdx", help="A differencing disk.")],
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.vhdx",
            help="Write all of the chain to a new file; nothing else is changed.",
        ),
    ] = None,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Merge a differencing disk into its parent.

    The parent then reads as the child did; other children of it can no longer be read. The
    child's file stays and may be removed.
    """
    if force and into is None:
        raise typer.BadParameter("--force is for --into")
    left = "nothing half-made was left"
    if into is None:
        left = f"{file} reads as before: merge it again to end what was begun"
    with operation(json_output=json_output, file=file, interrupted=left):
        from snapshotter.vhdx import inspect_vhdx, merge_child

        with progress_bar(f"merging {file.name}") as progress:
            if into is None:
                target = Path(merge_child(file, progress=progress))
            else:
                target = into
                _flatten(file, into, overwrite=force, progress=progress)
        size = inspect_vhdx(target)[0].size
        if json_output:
            print_document("vhdx-merge", {"path": str(target), "child": str(file), "size": size})
        elif into is None:
            typer.echo(f"{target}: reads as {file} did; {file} may be removed")
        else:
            typer.echo(f"{target}: {size_text(size)} disk without a parent")


def _flatten(
    file: Path, into: Path, *, overwrite: bool, progress: Callable[[int, int], None] | None
) -> None:
    from snapshotter.convert import VhdxOptions, write_disk
    from snapshotter.vhdx import open_chain

    with open_chain(file) as chain:
        found = chain.top.info()
        if not found.has_parent:
            raise InvalidArgumentError(f"{file} has no parent; copy it with vhdx convert")
        options = VhdxOptions(
            block_size=found.block_size,
            logical_sector_size=found.logical_sector_size,
            physical_sector_size=found.physical_sector_size,
        )
        write_disk(
            chain,
            into,
            target_format=DiskFormat.VHDX,
            vhdx=options,
            overwrite=overwrite,
            progress=progress,
        )


app.command("ls")(diskfiles.list_)
app.command("cat")(diskfiles.cat)
