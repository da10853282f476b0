"""`lcowlab hosts`: which hosts there are, what they are, and what changed on them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from harness.errors import UsageError
from harness.hosts.connecting import connect_host
from harness.hosts.facts import FactsCache, HostFacts, drift, probe_host
from harness.hosts.inventory import Host, Inventory
from harness.remote.deadline import Deadline

app = typer.Typer(help="Windows hosts of the inventory.", no_args_is_help=True)

InventoryOption = Annotated[
    Path | None, typer.Option("--inventory", help="Default: HV_INVENTORY, here, your settings.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
HostsArgument = Annotated[str, typer.Argument(help="Names and tags with and, or, not; all.")]
TimeoutOption = Annotated[float, typer.Option(help="Seconds for each host.")]
GIB = 1 << 30


def print_json(schema: str, **values: object) -> None:
    """Print one JSON document with its schema's name."""
    json.dump({"schema": schema, **values}, sys.stdout, indent=2)
    sys.stdout.write("\n")


@app.command("list")
def list_hosts(
    hosts: HostsArgument = "all", *, inventory: InventoryOption = None, json_: JsonOption = False
) -> None:
    """Show the hosts that an expression selects, and when each was probed last."""
    known = Inventory.load(inventory)
    chosen = known.select(hosts)
    cache = FactsCache.open()
    rows = [(name, known.hosts[name], cache.last(name)) for name in chosen]
    if json_:
        print_json("lcowlab.hosts/1", hosts=[_row(name, host, facts) for name, host, facts in rows])
        return
    table = Table("host", "address", "tags", "slots", "last probe", "Windows")
    for name, host, facts in rows:
        table.add_row(
            name,
            f"{host.address}:{host.port}",
            " ".join(sorted(host.tags)),
            str(host.slots),
            facts.probed if facts else "never",
            f"{facts.build}.{facts.revision}" if facts else "",
        )
    Console().print(table)


def _row(name: str, host: Host, facts: HostFacts | None) -> dict[str, Any]:
    return {
        "name": name,
        "address": host.address,
        "port": host.port,
        "tags": sorted(host.tags),
        "slots": host.slots,
        "probed": facts.probed if facts else None,
        "build": facts.build if facts else None,
    }


@app.command("show")
def show(name: str, *, inventory: InventoryOption = None, json_: JsonOption = False) -> None:
    """Show what the last probe of a host found."""
    known = Inventory.load(inventory)
    (chosen,) = _one(known, name)
    facts = FactsCache.open().last(chosen)
    if facts is None:
        raise UsageError(f"{chosen} was never probed: lcowlab hosts probe {chosen}")
    if json_:
        print_json("lcowlab.hostfacts/1", host=chosen, facts=facts.model_dump(mode="json"))
    else:
        _print_facts(chosen, facts)


def _one(known: Inventory, name: str) -> tuple[str, ...]:
    chosen = known.select(name)
    if len(chosen) != 1:
        raise UsageError(f"{name} selects {len(chosen)} hosts: name one")
    return chosen


def _print_facts(name: str, facts: HostFacts) -> None:
    table = Table(name, "", title=facts.probed)
    table.add_row("Windows", f"{facts.caption}, build {facts.build}.{facts.revision}")
    table.add_row("edition", facts.edition)
    table.add_row("memory", f"{facts.memory // GIB} GiB, {facts.memory_free // GIB} free")
    for letter, disk in facts.disks.items():
        table.add_row(f"disk {letter}", f"{disk.size // GIB} GiB, {disk.free // GIB} free")
    table.add_row("hypervisor", "runs" if facts.hypervisor_present else "does not run")
    table.add_row("features", ", ".join(f"{k}: {v}" for k, v in facts.features.items()))
    table.add_row("services", "; ".join(f"{k}: {v}" for k, v in facts.services.items()))
    table.add_row("restart pending", ", ".join(facts.pending_restart) or "no")
    table.add_row("PowerShell", f"{facts.language_mode}, code integrity {facts.code_integrity}")
    table.add_row("boot", f"{facts.boot.boot_id} since {facts.boot.began}")
    Console().print(table)


@app.command("probe")
def probe(
    hosts: HostsArgument = "all",
    *,
    inventory: InventoryOption = None,
    timeout: TimeoutOption = 120.0,
    json_: JsonOption = False,
) -> None:
    """Read what each host is, and show what changed since its last probe."""
    known = Inventory.load(inventory)
    cache = FactsCache.open()
    documents = []
    for name in known.select(hosts):
        with connect_host(name, known.hosts[name]) as winrm:
            facts = probe_host(winrm, deadline=Deadline.after(timeout))
        before = cache.last(name)
        changes = drift(before, facts) if before else ()
        cache.keep(name, facts)
        documents.append(
            {
                "host": name,
                "facts": facts.model_dump(mode="json"),
                "drift": [each.model_dump() for each in changes],
            }
        )
        if not json_:
            _print_facts(name, facts)
            for change in changes:
                typer.echo(f"{name}: {change.what} was {change.before}, is {change.after}")
    if json_:
        print_json("lcowlab.hostprobe/1", hosts=documents)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of the inventory."""
    json.dump(Inventory.model_json_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")
