"""`lcowlab hosts`: which hosts there are, what they are, and what changed on them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from harness.cli import leases
from harness.cli.hostcheck import probe_rows
from harness.cli.options import (
    HostsArgument,
    InventoryOption,
    JsonOption,
    TimeoutOption,
    print_json,
)
from harness.errors import UsageError
from harness.hosts.connecting import connect_host
from harness.hosts.facts import FactsCache, Green, HostFacts, drift, probe_host
from harness.hosts.inventory import FILE_NAME, VARIABLE, Host, Inventory
from harness.remote.deadline import Deadline
from harness.remote.probe import probe as probe_winrm

app = typer.Typer(help="Windows hosts of the inventory.", no_args_is_help=True)

GIB = 1 << 30


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
    green = FactsCache.open().green(chosen)
    if json_:
        print_json(
            "lcowlab.hostfacts/1",
            host=chosen,
            facts=facts.model_dump(mode="json"),
            **_since_green(green, facts),
        )
    else:
        _print_facts(chosen, facts)
        _print_since_green(chosen, green, facts)


def _since_green(green: Green | None, facts: HostFacts) -> dict[str, object]:
    """Return when the last green run was, and what changed since; None where there was none."""
    if green is None:
        return {"green": None, "drift_since_green": None}
    return {
        "green": {"what": green.what, "at": green.facts.probed},
        "drift_since_green": [each.model_dump() for each in drift(green.facts, facts)],
    }


def _print_since_green(name: str, green: Green | None, facts: HostFacts) -> None:
    if green is None:
        typer.echo(f"{name}: no green run yet")
        return
    changes = drift(green.facts, facts)
    typer.echo(f"{name}: last green {green.facts.probed} ({green.what}), {len(changes)} changes")
    for change in changes:
        typer.echo(f"{name}: since green: {change.what} was {change.before}, is {change.after}")


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
    python: Annotated[str, typer.Option(help="Python on the host.")] = "python",
    timeout: TimeoutOption = 120.0,
    json_: JsonOption = False,
) -> None:
    """Read what each host is and lets through, and show what changed since its last probe."""
    known = Inventory.load(inventory)
    cache = FactsCache.open()
    documents = []
    for name in known.select(hosts):
        with connect_host(name, known.hosts[name]) as winrm:
            deadline = Deadline.after(timeout)
            facts = probe_host(winrm, deadline=deadline)
            passage = probe_winrm(winrm, deadline=deadline, python=python)
        before = cache.last(name)
        changes = drift(before, facts) if before else ()
        cache.keep(name, facts)
        documents.append(
            {
                "host": name,
                "facts": facts.model_dump(mode="json"),
                "drift": [each.model_dump() for each in changes],
                "winrm": {**dict(probe_rows(passage)), "problems": passage.problems},
                **_since_green(cache.green(name), facts),
            }
        )
        if not json_:
            _print_facts(name, facts)
            for what, found in probe_rows(passage):
                typer.echo(f"{name}: WinRM {what}: {found}")
            for problem in passage.problems:
                typer.echo(f"{name}: {problem}")
            for change in changes:
                typer.echo(f"{name}: {change.what} was {change.before}, is {change.after}")
            _print_since_green(name, cache.green(name), facts)
    if json_:
        print_json("lcowlab.hostprobe/1", hosts=documents)


@app.command("add")
def add(
    name: str,
    address: str,
    *,
    user: Annotated[str, typer.Option(help="DOMAIN\\user, user@REALM or a local user.")],
    password_env: Annotated[str, typer.Option(help="The variable that holds the password.")],
    port: Annotated[int, typer.Option()] = 5986,
    auth: Annotated[str, typer.Option(help="negotiate, ntlm, kerberos, basic, credssp.")] = (
        "negotiate"
    ),
    tls: Annotated[str, typer.Option(help="verify, pin:sha256:HEX, or off.")] = "verify",
    tag: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    inventory: InventoryOption = None,
) -> None:
    """Write a host into the inventory; the file keeps all else that is in it."""
    file = inventory or Path(os.environ.get(VARIABLE) or FILE_NAME)
    before = file.read_text("utf-8") if file.exists() else ""
    lines = ["", f"[hosts.{json.dumps(name)}]"]
    values = {"address": address, "port": port, "user": user, "auth": auth, "tls": tls}
    # A JSON string without DEL is a TOML basic string, and so are numbers and lists.
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines.append(f"password = {{ env = {json.dumps(password_env)} }}")
    if tag:
        lines.append(f"tags = {json.dumps(tag)}")
    text = before.rstrip() + "\n".join(["", *lines, ""]) if before else "\n".join([*lines[1:], ""])
    Inventory.parse(text, source=f"{file} with {name}")
    beside = file.with_name(f"{file.name}.{os.getpid()}.new")
    beside.write_text(text, "utf-8")
    beside.replace(file)
    typer.echo(f"{name} is in {file}: lcowlab hosts probe {name}")


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of the inventory."""
    json.dump(Inventory.model_json_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")


leases.add_commands(app)
