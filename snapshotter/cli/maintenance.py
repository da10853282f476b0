"""`lcow-snapshotter fsck`, `backup`, `restore` and `import-bolt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snapshotter.cli.output import (
    ExitCode,
    JsonOption,
    RootOption,
    operation,
    print_document,
    print_table,
)

app = typer.Typer()


@app.command()
def fsck(
    root: RootOption,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list, whatever else is said.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Look for what should not be in a store; exit code 1 where something is left to be done."""
    from snapshotter.fsck import check

    with operation(json_output=json_output):
        report = check(root, repair=repair and not dry_run)
        if json_output:
            print_document(
                "fsck",
                {
                    "root": str(report.root),
                    "in_use": report.in_use,
                    "clean": report.clean,
                    "findings": [
                        {
                            "problem": found.problem,
                            "subject": found.subject,
                            "explanation": found.explanation,
                            "remedy": found.remedy,
                            "outcome": found.outcome,
                        }
                        for found in report.findings
                    ],
                },
            )
        elif report.findings:
            print_table(
                ("PROBLEM", "OUTCOME", "WHAT", "REMEDY"),
                [
                    (
                        *(found.problem, found.outcome),
                        f"{found.subject}: {found.explanation}",
                        found.remedy,
                    )
                    for found in report.findings
                ],
            )
        else:
            typer.echo("nothing found")
        if report.in_use and not json_output:
            typer.echo("another process has the store open", err=True)
    if not report.clean:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def backup(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new file.")],
    root: RootOption,
    json_output: JsonOption = False,
) -> None:
    """Copy the metadata of a store, which may be in use, to a file."""
    from snapshotter.backup import back_up

    with operation(json_output=json_output):
        back_up(root, out)
        size = out.stat().st_size
        if json_output:
            print_document("backup", {"path": str(out), "size": size})
        else:
            typer.echo(f"{out}: {size} bytes")


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `backup` wrote.")],
    root: RootOption,
    json_output: JsonOption = False,
) -> None:
    """Put a backup in the place of a store's metadata, which is kept beside it.

    Snapshots made since the backup are gone with the next use of the store.
    """
    from snapshotter.backup import restore as put_back

    with operation(json_output=json_output):
        kept = put_back(source, root)
        if json_output:
            print_document("restore", {"kept": None if kept is None else str(kept)})
        else:
            typer.echo("restored" if kept is None else f"restored; {kept} is the former metadata")


@app.command("import-bolt")
def import_bolt(
    metadata: Annotated[
        Path,
        typer.Argument(
            metavar="METADATA.db",
            help="In containerd's root, under io.containerd.snapshotter.v1.windows-lcow.",
        ),
    ],
    root: RootOption,
    json_output: JsonOption = False,
) -> None:
    """Adopt the snapshots of containerd's own lcow plugin; stop containerd first."""
    from snapshotter.boltimport import import_bolt as adopt

    with operation(json_output=json_output, file=metadata):
        adopted = adopt(metadata, root)
        if json_output:
            print_document(
                "adopted",
                {
                    "snapshots": adopted.snapshots,
                    "scratches": adopted.scratches,
                    "sharers": adopted.sharers,
                    "problems": list(adopted.problems),
                },
            )
            return
        for problem in adopted.problems:
            typer.echo(problem, err=True)
        typer.echo(
            f"adopted {adopted.snapshots} snapshots, {adopted.sharers} of them sharers, and"
            f" {adopted.scratches} scratch disks"
        )
