"""`lcowlab provision`: from nothing but WinRM to a host that can run utility VMs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.cli.hosts import HostsArgument, InventoryOption, JsonOption, print_json
from harness.errors import UsageError
from harness.hosts.connecting import connect_host
from harness.hosts.hostagent import SYSTEM
from harness.hosts.inventory import Inventory
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.provision import Planned, Provisioner
from harness.hosts.steps import Options


def provision(
    hosts: HostsArgument,
    *,
    inventory: InventoryOption = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would run, and change nothing.")
    ] = False,
    python: Annotated[str, typer.Option(help="Python on the host.")] = "python",
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
    major, dot, minor = least_python.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal()):
        raise UsageError(f"--least-python wants X.Y, such as 3.12, not {least_python!r}")
    known = Inventory.load(inventory)
    documents: list[dict[str, object]] = []
    for name in known.select(hosts):
        host = known.hosts[name]
        options = Options(
            root=ProtectedRoot(host.root),
            port=host.port,
            python=python,
            least_python=(int(major), int(minor)),
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
        documents.append(
            {
                "host": name,
                "ran": outcome.ran,
                "restarts": outcome.restarts,
                "notes": outcome.notes,
                "proofs": outcome.proofs,
            }
        )
        if not json_:
            for step, note in {**outcome.notes, **outcome.proofs}.items():
                typer.echo(f"{name}: {step}: {note}")
            done = f"{len(outcome.ran)} commands, {outcome.restarts} restarts"
            typer.echo(f"{name}: ready ({done if outcome.changed else 'nothing was lacking'})")
    if json_:
        print_json("lcowlab.provision/1", hosts=documents)


def _print_plan(name: str, planned: tuple[Planned, ...]) -> None:
    table = Table("step", "state", "found", title=name)
    for each in planned:
        table.add_row(each.step, each.assessment.state.value, each.assessment.detail)
    Console().print(table)
    for each in planned:
        for action in each.assessment.actions:
            # Whole, as it would run: a table would break the lines.
            typer.echo(action.text)
