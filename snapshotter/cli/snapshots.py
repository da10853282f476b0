"""`lcow-snapshotter snapshots`."""

from __future__ import annotations

from collections.abc import Sequence
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
from snapshotter.metastore.model import Info
from snapshotter.mounts import Mount
from snapshotter.snapshotter import SharedDisk, Snapshotter

app = typer.Typer(help="Snapshots of a store.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Key of the snapshot.")]
ParentOption = Annotated[str, typer.Option(help="Name of a committed snapshot.")]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="May be repeated.")
]


@app.command("ls")
def list_(
    root: RootOption,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="FILTER", help="containerd filter; any of several fits."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """List snapshots."""
    with operation(json_output=json_output), _existing(root) as snapshotter:
        infos = list(snapshotter.walk(*filters or ()))
        if json_output:
            print_document("snapshots", {"snapshots": [_info_document(info) for info in infos]})
        else:
            print_table(
                ("KEY", "PARENT", "KIND"),
                [(info.name, info.parent, info.kind.word) for info in infos],
            )


@app.command()
def prepare(
    key: KeyArgument,
    root: RootOption,
    parent: ParentOption = "",
    label: LabelOption = None,
    scratch_location: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Allow the location label to name it; may be repeated."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Make an active snapshot, with a scratch disk, and print its mounts."""
    labels = _labels(label)
    with (
        operation(json_output=json_output),
        Snapshotter.open(root, scratch_locations=scratch_location or ()) as snapshotter,
    ):
        _print_mounts(key, snapshotter.prepare(key, parent, labels=labels), json_output=json_output)


@app.command()
def view(
    key: KeyArgument,
    root: RootOption,
    parent: ParentOption = "",
    label: LabelOption = None,
    json_output: JsonOption = False,
) -> None:
    """Make a read-only view of a committed snapshot and print its mounts."""
    labels = _labels(label)
    with operation(json_output=json_output), Snapshotter.open(root) as snapshotter:
        _print_mounts(key, snapshotter.view(key, parent, labels=labels), json_output=json_output)


@app.command()
def commit(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the committed snapshot.")],
    key: KeyArgument,
    root: RootOption,
    parent: Annotated[str, typer.Option(help="Parent of one that was prepared without.")] = "",
    label: LabelOption = None,
    json_output: JsonOption = False,
) -> None:
    """Turn an active snapshot into a committed one."""
    labels = _labels(label)
    with operation(json_output=json_output), _existing(root) as snapshotter:
        snapshotter.commit(name, key, labels=labels, parent=parent)
        if json_output:
            print_document("snapshot", {"snapshot": _info_document(snapshotter.stat(name))})
        else:
            typer.echo(name)


@app.command("rm")
def remove(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys, children first.")],
    root: RootOption,
    json_output: JsonOption = False,
) -> None:
    """Remove snapshots; a shared scratch disk stays until the last snapshot that uses it."""
    with operation(json_output=json_output), _existing(root) as snapshotter:
        for key in keys:
            snapshotter.remove(key)
            if not json_output:
                typer.echo(key)
        if json_output:
            print_document("removed", {"removed": keys})


@app.command()
def info(
    key: KeyArgument,
    root: RootOption,
    sharing: Annotated[
        bool, typer.Option("--sharing", help="Show who uses the same scratch disk.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Show one snapshot."""
    with operation(json_output=json_output), _existing(root) as snapshotter:
        found = snapshotter.stat(key)
        disk = snapshotter.shared_disk(key) if sharing else None
        if json_output:
            document: dict[str, object] = {"snapshot": _info_document(found)}
            if sharing:
                document["scratch"] = None if disk is None else _disk_document(disk)
            print_document("snapshot", document)
            return
        _print_pairs(
            [
                ("key", found.name),
                ("kind", found.kind.word),
                ("parent", found.parent or "-"),
                ("created", found.created.isoformat()),
                ("updated", found.updated.isoformat()),
                *((f"label {name}", value) for name, value in sorted(found.labels.items())),
            ]
        )
        if sharing:
            _print_sharing(disk)


@app.command()
def mounts(key: KeyArgument, root: RootOption, json_output: JsonOption = False) -> None:
    """Print the mounts of an active snapshot or a view."""
    with operation(json_output=json_output), _existing(root) as snapshotter:
        _print_mounts(key, snapshotter.mounts(key), json_output=json_output)


@app.command()
def usage(key: KeyArgument, root: RootOption, json_output: JsonOption = False) -> None:
    """Show the disk space of a snapshot, its parents not counted."""
    with operation(json_output=json_output), _existing(root) as snapshotter:
        used = snapshotter.usage(key)
        if json_output:
            print_document("usage", {"key": key, "size": used.size, "inodes": used.inodes})
        else:
            typer.echo(f"{size_text(used.size)}  {used.inodes} inodes")


def _existing(root: Path) -> Snapshotter:
    return Snapshotter.open(root, create=False)


def _labels(texts: Sequence[str] | None) -> dict[str, str]:
    labels = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--label")
        labels[name] = value
    return labels


def _info_document(info: Info) -> dict[str, object]:
    return {
        "key": info.name,
        "kind": info.kind.word,
        "parent": info.parent,
        "labels": dict(info.labels),
        "created": info.created.isoformat(),
        "updated": info.updated.isoformat(),
    }


def _disk_document(disk: SharedDisk) -> dict[str, object]:
    return {
        "path": str(disk.path),
        "size": disk.size,
        "allocated": disk.allocated,
        "holders": [
            {"key": holder.key, "kind": holder.kind.word, "owner": holder.owner}
            for holder in disk.holders
        ],
    }


def _print_sharing(disk: SharedDisk | None) -> None:
    if disk is None:
        typer.echo("scratch  none")
        return
    _print_pairs(
        [
            ("scratch", str(disk.path)),
            ("size", f"{size_text(disk.size)}, {size_text(disk.allocated)} allocated"),
            *(
                ("owner" if holder.owner else "sharer", f"{holder.key} ({holder.kind.word})")
                for holder in disk.holders
            ),
        ]
    )


def _print_mounts(key: str, found: Sequence[Mount], *, json_output: bool) -> None:
    if json_output:
        listed = [
            {"type": mount.type, "source": mount.source, "options": list(mount.options)}
            for mount in found
        ]
        print_document("mounts", {"key": key, "mounts": listed})
        return
    for mount in found:
        _print_pairs(
            [("type", mount.type), ("source", mount.source)]
            + [("option", option) for option in mount.options]
        )


def _print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name.ljust(width)}  {value}")
