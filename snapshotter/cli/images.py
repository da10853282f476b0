"""`lcow-snapshotter image`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from snapshotter.cli.output import (
    JsonOption,
    RootOption,
    operation,
    print_document,
    print_table,
    size_text,
)
from snapshotter.image import ImportedImage, ImportProgress, import_image
from snapshotter.snapshotter import Snapshotter

app = typer.Typer(help="Container images.", no_args_is_help=True)


@app.callback()
def _images() -> None:
    """Container images."""


@app.command("import")
def import_(
    archive: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE.tar",
            help="What `docker save` or `skopeo copy ... oci-archive:` writes; may be compressed.",
        ),
    ],
    root: RootOption,
    name: Annotated[
        str | None, typer.Option(help="Which image, where the archive holds several.")
    ] = None,
    platform: Annotated[
        str, typer.Option(help="Platform of a multi-platform image.")
    ] = "linux/amd64",
    prefix: Annotated[str, typer.Option(help="Text before every snapshot's name.")] = "",
    reuse_layers: Annotated[
        bool,
        typer.Option(
            "--reuse-layers/--no-reuse-layers",
            help="Clone or link to a layer that another snapshot has.",
        ),
    ] = True,
    json_output: JsonOption = False,
) -> None:
    """Make a committed snapshot of each layer; layers that are there already cost nothing."""
    with operation(json_output=json_output, file=archive):
        with (
            Snapshotter.open(root, reuse_layers=reuse_layers) as snapshotter,
            _progress() as progress,
        ):
            image = import_image(
                snapshotter, archive, name=name, platform=platform, prefix=prefix, progress=progress
            )
        if json_output:
            print_document("image", _document(image))
        else:
            _print(image, archive)


@contextmanager
def _progress() -> Iterator[Callable[[ImportProgress], None] | None]:
    # rich is imported for a terminal alone: it takes longer than a small import.
    import sys

    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("layers")

        def show(progress: ImportProgress) -> None:
            bars.update(
                task,
                description=f"layer {progress.layer} of {progress.layers}",
                completed=progress.done,
                total=progress.size,
            )

        yield show


def _document(image: ImportedImage) -> dict[str, object]:
    config = image.config
    return {
        "names": list(image.names),
        "top": image.top,
        "snapshot": image.snapshot,
        "config": {
            "os": config.os,
            "architecture": config.architecture,
            "env": list(config.env),
            "entrypoint": list(config.entrypoint),
            "cmd": list(config.cmd),
            "working_dir": config.working_dir,
            "user": config.user,
        },
        "layers": [
            {
                "snapshot": layer.snapshot,
                "chain_id": layer.chain_id,
                "diff_id": layer.diff_id,
                "media_type": layer.media_type,
                "size": layer.size,
                "disk_size": layer.disk_size,
                "reused": layer.reused,
                "linked": layer.linked,
            }
            for layer in image.layers
        ],
    }


def _print(image: ImportedImage, archive: Path) -> None:
    typer.echo(f"imported {', '.join(image.names) or archive}")
    print_table(
        ("SNAPSHOT", "STORED", "DISK", ""),
        [
            (
                layer.snapshot,
                size_text(layer.size),
                size_text(layer.disk_size),
                "reused" if layer.reused else "linked" if layer.linked else "new",
            )
            for layer in image.layers
        ],
    )
