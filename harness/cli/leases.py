"""`lcowlab hosts lease|drain|reset`: who has each host, and what its owner may do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import (
    HostsArgument,
    InventoryOption,
    JsonOption,
    PythonOption,
    print_json,
)
from harness.hosts.connecting import connect_host
from harness.hosts.facts import read_boot
from harness.hosts.hostscripts import HostScripts
from harness.hosts.inventory import Inventory
from harness.hosts.lease import LeaseKeeper, LeaseRecord
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.pythonstep import find_python
from harness.remote.deadline import Deadline
from harness.scrubber import scrub

LeaseVerb = Callable[[LeaseKeeper, Deadline], LeaseRecord]


def add_commands(app: typer.Typer) -> None:
    """Give `hosts` its commands about leases."""
    app.command("lease", help="Show who has each host: free, busy, dirty, cleaning, quarantined.")(
        _plain(lambda keeper, until: keeper.show(deadline=until))
    )
    app.command("drain")(drain)
    app.command(
        "reset", help="Declare hosts free, whatever they were; whoever held one finds it lost."
    )(_plain(lambda keeper, until: keeper.reset(deadline=until)))


def drain(
    hosts: HostsArgument,
    *,
    note: Annotated[str, typer.Option(help="Why; shown to whoever wants the host.")] = "",
    inventory: InventoryOption = None,
    python: PythonOption = "",
    json_: JsonOption = False,
) -> None:
    """Let nobody take hosts any more; whoever has one keeps it until the release."""
    _plain(lambda keeper, until: keeper.drain(scrub(note), deadline=until))(
        hosts, inventory=inventory, python=python, json_=json_
    )


def _plain(verb: LeaseVerb) -> Callable[..., None]:
    """Return the command that does `verb` on hosts and shows what their leases are then."""

    def command(
        hosts: HostsArgument,
        *,
        inventory: InventoryOption = None,
        python: PythonOption = "",
        json_: JsonOption = False,
    ) -> None:
        _print_leases(_with_lease(inventory, hosts, python=python, verb=verb), as_json=json_)

    return command


def _with_lease(
    inventory: Path | None, expression: str, *, python: str, verb: LeaseVerb
) -> list[tuple[str, LeaseRecord]]:
    known = Inventory.load(inventory)
    records = []
    for name in known.select(expression):
        host = known.hosts[name]
        root = ProtectedRoot(host.root)
        deadline = Deadline.after(60)
        with connect_host(name, host) as winrm:
            root.verify(winrm, deadline=deadline)
            found = find_python(winrm, root, python, deadline=deadline)
            boot = read_boot(winrm, deadline=deadline)
            records.append(
                (name, verb(LeaseKeeper(HostScripts(winrm, found), root, boot), deadline))
            )
    return records


def _print_leases(records: list[tuple[str, LeaseRecord]], *, as_json: bool) -> None:
    if as_json:
        print_json(
            "lcowlab.leases/1",
            hosts=[{"host": n, **asdict(r), "state": r.state.value} for n, r in records],
        )
        return
    for name, record in records:
        tail = ", ".join(filter(None, (record.owner, record.purpose, record.note)))
        draining = ", draining" if record.draining else ""
        typer.echo(f"{name}: {record.state.value}{draining}{f' ({tail})' if tail else ''}")
