"""`lcow-snapshotter vhdx check`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snapshotter.cli.output import ExitCode, JsonOption, operation, print_document, printable

if TYPE_CHECKING:
    from snapshotter.vhdx import Finding


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE.vhdx", help="The disk file.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what can be without losing anything.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Check every structure of a VHDX and the chain of its parents; exit 1 where any is wrong."""
    with operation(json_output=json_output, file=file):
        from snapshotter.vhdx import check_vhdx, repair_vhdx

        repaired: Sequence[Finding] = ()
        left: Sequence[Finding] = ()
        if repair:
            done = repair_vhdx(file)
            repaired, left = done.repaired, done.left
        else:
            left = check_vhdx(file)
        if not left:
            left = _check_chain(file)
        if json_output:
            print_document(
                "vhdx-check",
                {
                    "path": str(file),
                    "ok": not left,
                    "findings": [dataclasses.asdict(finding) for finding in left],
                    "repaired": [dataclasses.asdict(finding) for finding in repaired],
                },
            )
        else:
            _print(file, repaired, left)
    if left:
        raise typer.Exit(ExitCode.FAILED)


def _check_chain(file: Path) -> list[Finding]:
    """What is wrong with the parents of a file that is sound itself."""
    from snapshotter.errors import VhdxCorruptError, VhdxError
    from snapshotter.vhdx import Finding, resolve_chain

    try:
        resolve_chain(file)
    except VhdxCorruptError as error:
        found = Finding(
            error.structure, error.section, error.offset, str(error.value), str(error), False
        )
    except VhdxError as error:
        found = Finding("parent locator", "2.6.2.6", None, "", str(error), False)
    else:
        return []
    return [found]


def _print(file: Path, repaired: Sequence[Finding], left: Sequence[Finding]) -> None:
    for word, findings in (("repaired", repaired), ("wrong", left)):
        for finding in findings:
            typer.echo(f"{word}: {_text(finding)}")
    if not left:
        typer.echo(f"{file}: {'sound now' if repaired else 'sound'}")
    elif any(finding.repairable for finding in left):
        typer.echo(f"{file}: {_count(left)}; vhdx check --repair puts right what it can")
    else:
        typer.echo(f"{file}: {_count(left)}; restore it from a copy, or recreate it")


def _count(findings: Sequence[Finding]) -> str:
    return "1 finding" if len(findings) == 1 else f"{len(findings)} findings"


def _text(finding: Finding) -> str:
    """What is wrong, and where, once: what an error said of itself begins with that."""
    where = "" if finding.offset is None else f" at {finding.offset:#x}"
    whole = finding.message
    if not whole.startswith(finding.structure):
        whole = f"{finding.structure}{where}: {whole}"
    return printable(whole)
