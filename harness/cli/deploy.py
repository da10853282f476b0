"""`lcowlab bundle` and `lcowlab deploy`: what a host needs, in one folder, and on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from harness.cli.held import HeldHost, on_held_hosts
from harness.cli.options import HostsArgument, InventoryOption, PythonOption
from harness.hosts.bundle import PARTS, Bundle, push_files
from harness.hosts.deploy import deploy_wheels
from harness.remote.deadline import Deadline

PURPOSE: Final = "deploy"

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
    python: Annotated[
        Path | None, typer.Option(help="A full layout of CPython: .nupkg, zip or folder.")
    ] = None,
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
    python: PythonOption = "",
    timeout: TimeoutOption = 3600.0,
) -> None:
    """Copy to hosts what they do not have of a bundle."""
    bundle = Bundle.open(folder)

    def work(host: HeldHost) -> None:
        pushed = push_files(
            host.winrm,
            host.root,
            host.scripts,
            bundle,
            files=bundle.files,
            deadline=Deadline.after(timeout),
            report=typer.echo,
        )
        typer.echo(f"{host.name}: {len(pushed.copied)} copied, {pushed.kept} there already")

    on_held_hosts(inventory, hosts, work, purpose=PURPOSE, python=python, timeout_s=timeout)


def deploy(
    hosts: HostsArgument,
    *,
    bundle: Annotated[Path, typer.Option(help="A bundle with wheels.")],
    module: Annotated[
        list[str] | None, typer.Option(help="A module to import beside the native ones.")
    ] = None,
    inventory: InventoryOption = None,
    python: PythonOption = "",
    timeout: TimeoutOption = 3600.0,
) -> None:
    """Bring our packages to hosts, and prove that every native module imports there."""
    opened = Bundle.open(bundle)

    def work(host: HeldHost) -> None:
        done = deploy_wheels(
            host.winrm,
            host.root,
            host.scripts,
            opened,
            deadline=Deadline.after(timeout),
            report=typer.echo,
            imports=tuple(module or ()),
        )
        state = "deployed" if done.new else "was deployed already"
        typer.echo(
            f"{host.name}: {done.name} {state}, {len(done.pushed.copied)} wheels copied, "
            f"{len(done.modules)} modules import"
        )

    on_held_hosts(inventory, hosts, work, purpose=PURPOSE, python=python, timeout_s=timeout)
