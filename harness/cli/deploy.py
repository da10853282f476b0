"""`lcowlab bundle` and `lcowlab deploy`: what a host needs, in one folder, and on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.hosts import HostsArgument, InventoryOption, PythonOption
from harness.hosts.bundle import PARTS, Bundle, push_files
from harness.hosts.connecting import connect_host
from harness.hosts.deploy import deploy_wheels
from harness.hosts.inventory import Inventory
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline

app = typer.Typer(help="One hash-listed folder for hosts without internet.", no_args_is_help=True)

FolderArgument = Annotated[Path, typer.Argument(help="The bundle's folder.")]
TimeoutOption = Annotated[float, typer.Option(help="Seconds for each host.")]


@app.command("create")
def create(
    folder: FolderArgument,
    *,
    wheels: Annotated[
        Path | None,
        typer.Option(help="Folder of wheels: pip download --platform win_amd64 makes one."),
    ] = None,
    python: Annotated[Path | None, typer.Option(help="CPython's installer.")] = None,
    image: Annotated[Path | None, typer.Option(help="The utility VM image's folder.")] = None,
    boot: Annotated[Path | None, typer.Option(help="Boot files of your own.")] = None,
) -> None:
    """Make a bundle: everything is copied and listed with its hash."""
    given = dict(zip(PARTS, (wheels, python, image, boot), strict=True))
    bundle = Bundle.create(folder, {part: path for part, path in given.items() if path})
    typer.echo(f"{folder}: {len(bundle.files)} files")


@app.command("verify")
def verify(folder: FolderArgument) -> None:
    """Say whether a bundle is whole: no file missing, changed or added."""
    bundle = Bundle.open(folder)
    typer.echo(f"{folder}: {len(bundle.files)} files, all as listed")


@app.command("push")
def push(
    folder: FolderArgument,
    hosts: HostsArgument,
    *,
    inventory: InventoryOption = None,
    python: PythonOption = "python",
    timeout: TimeoutOption = 3600.0,
) -> None:
    """Copy to hosts what they do not have of a bundle."""
    bundle = Bundle.open(folder)
    known = Inventory.load(inventory)
    for name in known.select(hosts):
        host = known.hosts[name]
        with connect_host(name, host) as winrm:
            pushed = push_files(
                winrm,
                ProtectedRoot(host.root),
                python,
                bundle,
                files=bundle.files,
                deadline=Deadline.after(timeout),
                report=typer.echo,
            )
        typer.echo(f"{name}: {len(pushed.copied)} copied, {pushed.kept} there already")


def deploy(
    hosts: HostsArgument,
    *,
    bundle: Annotated[Path, typer.Option(help="A bundle with wheels.")],
    module: Annotated[
        list[str] | None, typer.Option(help="A module to import beside the native ones.")
    ] = None,
    inventory: InventoryOption = None,
    python: PythonOption = "python",
    timeout: TimeoutOption = 3600.0,
) -> None:
    """Bring our packages to hosts, and prove that every native module imports there."""
    opened = Bundle.open(bundle)
    known = Inventory.load(inventory)
    for name in known.select(hosts):
        host = known.hosts[name]
        with connect_host(name, host) as winrm:
            done = deploy_wheels(
                winrm,
                ProtectedRoot(host.root),
                python,
                opened,
                deadline=Deadline.after(timeout),
                report=typer.echo,
                imports=tuple(module or ()),
            )
        state = "deployed" if done.new else "was deployed already"
        typer.echo(
            f"{name}: {done.name} {state}, {len(done.pushed.copied)} wheels copied, "
            f"{len(done.modules)} modules import"
        )
