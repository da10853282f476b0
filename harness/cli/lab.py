"""`lcowlab lab`: hosts to develop with, by Vagrant or pretended on loopback."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.cachedir import cache_directory
from harness.cli.exit_codes import ExitCode
from harness.devlab.inventoryfile import check_replaceable, remove_inventory, write_inventory
from harness.devlab.local import LocalLab
from harness.devlab.machines import HostStatus
from harness.devlab.vagrant import Vagrant
from harness.errors import UsageError
from harness.hosts.connecting import connect_host
from harness.hosts.inventory import FILE_NAME, Inventory
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM

app = typer.Typer(help="Hosts to develop with: by Vagrant, or pretended.", no_args_is_help=True)
snapshots = typer.Typer(help="Snapshots of machines.", no_args_is_help=True)
app.add_typer(snapshots, name="snapshot")

_FOLDER = "devlab"

InventoryOption = Annotated[Path, typer.Option(help="The inventory that is written.")]
PathOption = Annotated[Path, typer.Option(help="The folder of the Vagrantfile.")]
Names = Annotated[list[str] | None, typer.Argument(help="Machines; all where none is named.")]


@app.command()
def up(
    names: Names = None,
    *,
    provider: Annotated[
        str | None, typer.Option(help="libvirt, hyperv, vmware_desktop or virtualbox.")
    ] = None,
    local: Annotated[
        int | None, typer.Option(metavar="N", help="N pretend hosts on loopback, no Windows.")
    ] = None,
    inventory: InventoryOption = Path(FILE_NAME),
    path: PathOption = Path(),
) -> None:
    """Start hosts and write the inventory that reaches them."""
    if local is not None:
        if names or provider:
            raise UsageError("--local goes with neither names nor --provider")
        hosts = [host.name for host in _local().up(local, inventory=inventory)]
    else:
        check_replaceable(inventory)
        entries = Vagrant(path).up(names or [], provider=provider)
        write_inventory(inventory, entries)
        hosts = [entry.name for entry in entries]
    typer.echo(f"up: {', '.join(hosts)}; inventory {inventory}")


@app.command()
def down(
    names: Names = None,
    *,
    destroy: Annotated[
        bool, typer.Option("--destroy", help="Remove Vagrant's machines with their disks.")
    ] = False,
    inventory: InventoryOption = Path(FILE_NAME),
    path: PathOption = Path(),
) -> None:
    """End the pretend hosts and remove what they left; shut Vagrant's machines down."""
    pretend = _local()
    ended = []
    if pretend.exists and not names:
        pretend.down()
        ended.append("pretend hosts")
    vagrant = Vagrant(path)
    if vagrant.exists or names:
        if destroy:
            vagrant.destroy(names or [])
        else:
            vagrant.halt(names or [])
        if not names:
            remove_inventory(inventory)
        ended.append("Vagrant's machines")
    typer.echo(f"down: {' and '.join(ended) or 'nothing was up'}")


@app.command()
def status(
    *,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    path: PathOption = Path(),
) -> int:
    """Show every host of the lab; exit code 3 where a pretend host has died."""
    pretend = _local()
    hosts: list[HostStatus] = []
    if pretend.exists:
        hosts.extend(pretend.status())
    vagrant = Vagrant(path)
    if vagrant.exists:
        hosts.extend(vagrant.status())
    if json_:
        rows = [asdict(host) for host in hosts]
        json.dump({"schema": "lcowlab.lab/1", "hosts": rows}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif hosts:
        table = Table("host", "address", "state")
        for host in hosts:
            table.add_row(host.name, host.address, host.state)
        Console().print(table)
    else:
        typer.echo("nothing is up: lcowlab lab up, or lcowlab lab up --local 2")
    died = any(host.state == "dead" for host in hosts)
    return ExitCode.INFRASTRUCTURE if died else ExitCode.OK


@app.command(context_settings={"ignore_unknown_options": True})
def ssh(
    name: Annotated[str, typer.Argument(help="The host.")],
    command: Annotated[
        list[str] | None, typer.Argument(help="A command, run over WinRM; none: a terminal.")
    ] = None,
    *,
    timeout: Annotated[float, typer.Option(help="Seconds that the command may take.")] = 300.0,
    inventory: InventoryOption = Path(FILE_NAME),
    path: PathOption = Path(),
) -> int:
    """Run a command on a host of the lab and exit with its code, or open a terminal."""
    if not command:
        pretend = _local()
        if pretend.exists and name in [host.name for host in pretend.status()]:
            raise UsageError(f"a pretend host has no terminal: lcowlab lab ssh {name} COMMAND…")
        return Vagrant(path).terminal(name)
    with _connect(name, inventory) as host:
        done = host.run(command, deadline=Deadline.after(timeout))
    sys.stdout.buffer.write(done.stdout)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(done.stderr)
    sys.stderr.buffer.flush()
    return done.exit_code


@snapshots.command("save")
def save(name: str, snapshot: str, *, path: PathOption = Path()) -> None:
    """Save the state of a machine under a name."""
    Vagrant(path).save_snapshot(name, snapshot)


@snapshots.command("restore")
def restore(name: str, snapshot: str, *, path: PathOption = Path()) -> None:
    """Bring a machine back to a snapshot."""
    Vagrant(path).restore_snapshot(name, snapshot)


@snapshots.command("delete")
def delete(name: str, snapshot: str, *, path: PathOption = Path()) -> None:
    """Delete a snapshot."""
    Vagrant(path).delete_snapshot(name, snapshot)


@snapshots.command("list")
def list_(name: str, *, path: PathOption = Path()) -> None:
    """List the snapshots of a machine."""
    typer.echo(Vagrant(path).list_snapshots(name).rstrip())


def _local() -> LocalLab:
    return LocalLab(cache_directory(_FOLDER))


def _connect(name: str, path: Path) -> WinRM:
    hosts = Inventory.load(path).hosts
    if name not in hosts:
        raise UsageError(f"no host {name} in {path}; there are {', '.join(hosts) or 'none'}")
    return connect_host(name, hosts[name])
