"""`lcowlab provision`: from nothing but WinRM to a host that can run utility VMs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.cli.options import HostsArgument, InventoryOption, JsonOption, print_json
from harness.errors import UsageError
from harness.hosts.bundle import Bundle
from harness.hosts.connecting import connect_host, refuse_in_maintenance
from harness.hosts.facts import FactsCache
from harness.hosts.inventory import Inventory
from harness.hosts.outcome import Outcome, Planned
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.provision import Provisioner
from harness.hosts.pythonlayout import PythonLayout
from harness.hosts.steps import Options
from harness.hosts.systemtask import SYSTEM


def provision(
    hosts: HostsArgument,
    *,
    inventory: InventoryOption = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would run, and change nothing.")
    ] = False,
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle: Python, packages, boot files, no internet.")
    ] = None,
    python_layout: Annotated[
        Path | None, typer.Option(help="CPython to bring: full layout, .nupkg, zip or folder.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The utility VM image's folder, instead of the bundle's.")
    ] = None,
    boot: Annotated[
        Path | None, typer.Option(help="Boot files of your own, instead of the bundle's.")
    ] = None,
    python: Annotated[
        str, typer.Option(help="Python that is on the host; none is brought then.")
    ] = "",
    least_python: Annotated[
        str, typer.Option(metavar="X.Y", help="The oldest Python that will do.")
    ] = "3.12",
    feature_source: Annotated[
        str, typer.Option(help="Path on the host with the files of removed features.")
    ] = "",
    smoke: Annotated[
        str,
        typer.Option(help="Backend of the utility VM that proves a host: auto, or off for none."),
    ] = "auto",
    json_: JsonOption = False,
) -> None:
    """Make hosts ready for utility VMs; restarts them where that is needed.

    A second call finds nothing to do. A call after one that broke off goes on from there.
    """
    least = _version(least_python)
    known = Inventory.load(inventory)
    documents: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="lcowlab-provision-") as scratch:
        supplies, layout = _supplies(
            bundle, python_layout, {"image": image, "boot": boot}, least=least, into=Path(scratch)
        )
        for name in known.select(hosts):
            host = known.hosts[name]
            if not plan:
                refuse_in_maintenance(name, host)
            options = Options(
                root=ProtectedRoot(host.root),
                port=host.port,
                python=python,
                layout=layout,
                bundle=supplies,
                least_python=least,
                feature_source=feature_source,
                agent_user=SYSTEM if host.agent == "SYSTEM" else host.agent,
                smoke=smoke,
            )
            with connect_host(name, host) as winrm:
                provisioner = Provisioner(
                    winrm,
                    options,
                    report=lambda line, name=name: typer.echo(f"{name}: {line}", err=True),  # type: ignore[misc]
                )
                if plan:
                    planned = provisioner.plan()
                    documents.append({"host": name, "plan": [each.document() for each in planned]})
                    if not json_:
                        _print_plan(name, planned)
                    continue
                outcome = provisioner.apply()
            if provisioner.facts is not None:
                FactsCache.open().keep_green(name, provisioner.facts, what="provision")
            documents.append({"host": name, **_document(outcome)})
            if not json_:
                _print_outcome(name, outcome)
    if json_:
        print_json("lcowlab.provision/1", hosts=documents)


def _version(text: str) -> tuple[int, int]:
    major, dot, minor = text.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal()):
        raise UsageError(f"--least-python wants X.Y, such as 3.12, not {text!r}")
    return int(major), int(minor)


def _supplies(
    folder: Path | None,
    python_layout: Path | None,
    parts: Mapping[str, Path | None],
    *,
    least: tuple[int, int],
    into: Path,
) -> tuple[Bundle | None, PythonLayout | None]:
    """Return what is brought: a bundle with the parts given in its place, and a Python."""
    bundle = Bundle.open(folder) if folder is not None else None
    for part, source in parts.items():
        if source is not None:
            bundle = (bundle or Bundle(Path(), ())).with_part(part, source)
    source = python_layout
    if source is None and bundle is not None:
        files = bundle.part("python")
        if len(files) == 1:
            source = bundle.local(files[0])
        elif files:
            source = bundle.folder / "python"
    layout = PythonLayout.open(source, least=least, into=into) if source is not None else None
    return bundle, layout


def _document(outcome: Outcome) -> dict[str, object]:
    return {
        "ran": outcome.ran,
        "restarts": outcome.restarts,
        "notes": outcome.notes,
        "settled": outcome.settled,
        "proofs": outcome.proofs,
    }


def _print_outcome(name: str, outcome: Outcome) -> None:
    for step, note in {**outcome.notes, **outcome.proofs}.items():
        typer.echo(f"{name}: {step}: {note}")
    done = f"{len(outcome.ran)} commands, {outcome.restarts} restarts"
    typer.echo(f"{name}: ready ({done if outcome.changed else 'nothing was lacking'})")


def _print_plan(name: str, planned: tuple[Planned, ...]) -> None:
    table = Table("step", "state", "found", title=name)
    for each in planned:
        table.add_row(each.step, each.assessment.state.value, each.assessment.detail)
    Console().print(table)
    for each in planned:
        for action in each.assessment.actions:
            # Whole, as it would run: a table would break the lines.
            typer.echo(action.text)
