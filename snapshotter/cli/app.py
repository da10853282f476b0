"""`lcow-snapshotter`: all commands in one tree.

Exit codes: 0 done, 1 the operation failed, 2 usage, 3 the environment failed (disk full, store
locked), 130 interrupted.
"""

from __future__ import annotations

import io
import sys

import typer

from snapshotter.cli import disks, images, maintenance, serve, snapshots, vhdx

app = typer.Typer(
    name="lcow-snapshotter",
    help="Snapshots, layers and scratch disks for Linux containers on Windows (LCOW).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(images.app, name="image")
app.add_typer(snapshots.app, name="snapshots")
app.add_typer(disks.scratch, name="scratch")
app.add_typer(disks.layer, name="layer")
app.add_typer(vhdx.app, name="vhdx")
app.add_typer(maintenance.app)
app.command()(serve.serve)


def main() -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names in a disk may be any bytes; they go out as they are.
        sys.stdout.reconfigure(errors="surrogateescape")
    app()
