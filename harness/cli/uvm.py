"""`lcowlab uvm`: the utility VM image, and commands in a utility VM."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.cachedir import TEMPLATES, cache_directory
from harness.cli.exit_codes import ExitCode
from harness.errors import HarnessError, UsageError
from harness.exportedimage import export_image
from harness.hcs.document import ComputeSystem
from harness.hcs.hcsservice import HcsComputeService
from harness.hcs.windowshost import this_windows
from harness.image.build import ensure_image
from harness.image.demo import ensure_demo_image
from harness.image.flavour import Flavour
from harness.image.rootdisk import ensure_root_disk
from harness.lab import OWNER, Lab, LabConfig
from harness.processes import GuestProcess
from harness.qemu.kvm import AcceleratorChoice
from harness.qemu.templatestore import TemplateStore
from harness.qemu.translate import parity_of, refusal_of

_CHUNK = 64 * 1024

app = typer.Typer(help="Utility VM images and templates; commands in one.", no_args_is_help=True)


@app.command()
def build(
    *,
    kernel: Annotated[
        Path | None, typer.Option(help="A bzImage of your own.", exists=True, dir_okay=False)
    ] = None,
    modules: Annotated[
        Path | None,
        typer.Option(help="Its folder of modules (lib/modules/VERSION).", exists=True),
    ] = None,
    flavour: Annotated[
        Flavour, typer.Option(help="protected: with dm-verity for layers and LUKS for the scratch.")
    ] = Flavour.STANDARD,
    export: Annotated[
        Path | None,
        typer.Option(help="Copy it there for other machines: Windows hosts.", file_okay=False),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Build the image where it is not cached, and say where it is."""
    if (kernel is None) != (modules is None):
        raise UsageError("--kernel and --modules go together: the modules must fit the kernel")
    console = Console(stderr=True)

    def tell(text: str) -> None:
        console.print(f"[dim]{text}[/dim]")

    image = ensure_image(
        progress=tell,
        flavour=flavour,
        kernel=kernel,
        modules=modules,
    )
    if export is not None:
        root = ensure_root_disk(image, progress=tell)
        export_image(image, root, ensure_demo_image(progress=tell), export)
    facts = {
        "schema": "lcowlab.image/1",
        "key": image.key,
        "kernel_version": image.kernel_version,
        "vmlinux": str(image.vmlinux),
        "bzimage": str(image.bzimage),
        "initrd": str(image.initrd),
        "initrd_bytes": image.initrd.stat().st_size,
        "flavour": str(flavour),
    }
    _show(facts, as_json=json_)


@app.command()
def leftovers(
    *,
    owner: Annotated[str, typer.Option(help="How the owner's tag begins.")] = OWNER,
    remove: Annotated[bool, typer.Option("--remove", help="End them.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Show this Windows host's utility VMs of ours; they belong to nobody once no run is under way.

    Exit code 6 where there are some, and they stay.
    """
    service = HcsComputeService(this_windows())
    found = service.leftovers(owner)
    for system in found if remove else ():
        service.remove_leftover(system.id)
    facts = {
        "schema": "lcowlab.leftovers/1",
        "removed": remove,
        "systems": [
            {"id": each.id, "owner": each.owner, "state": each.state.value} for each in found
        ],
    }
    _show(facts, as_json=json_)
    return ExitCode.LEAK if found and not remove else ExitCode.OK


@app.command()
def template(
    *,
    accelerator: Annotated[
        AcceleratorChoice, typer.Option(help="What QEMU runs guest code with.")
    ] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Save a booted utility VM, of which all others become copies, and prove that by one copy."""
    console = Console(stderr=True)
    config = LabConfig(accelerator=accelerator)
    with Lab.open(config, progress=lambda text: console.print(f"[dim]{text}[/dim]")) as lab:
        made = lab.prepare_template()
    store = TemplateStore(cache_directory(TEMPLATES))
    found = next(item for item in store.templates() if item.key == made.key)
    facts = {
        "schema": "lcowlab.template/1",
        "key": made.key,
        "memory": str(made.kind),
        "built": made.built,
        "seconds": round(made.seconds, 3),
        "path": str(found.path),
        "bytes": found.size,
    }
    _show(facts, as_json=json_)


@app.command("exec", context_settings={"ignore_unknown_options": True})
def exec_(
    command: Annotated[list[str], typer.Argument(help="What to run, after --.")],
    *,
    accelerator: Annotated[
        AcceleratorChoice, typer.Option(help="What QEMU runs guest code with.")
    ] = "auto",
    cold: Annotated[
        bool, typer.Option("--cold", help="Boot it, instead of copying a saved one.")
    ] = False,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Collect the output and print one JSON document at the end."),
    ] = False,
) -> int:
    """Run one command in a new utility VM, relay its streams, and exit with its code.

    Standard input is relayed unless it is a terminal.
    """
    relayed = not sys.stdin.isatty()
    sinks = None if json_ else {"stdout": _writer(1), "stderr": _writer(2)}
    with Lab.open(LabConfig(accelerator=accelerator, cold=cold)) as lab:
        vm = lab.boot_uvm()
        process = vm.processes.start(command, with_stdin=relayed, sinks=sinks)
        if relayed:
            threading.Thread(target=_relay_input, args=(process,), daemon=True).start()
        done = process.wait(timeout_s=None)
        vm.close()
    if json_:
        facts = {
            "schema": "lcowlab.exec/1",
            "ready_ms": round(vm.boot_s * 1000, 1),
            "from": vm.origin,
            "exit_code": done.exit_code,
            "stdout": done.stdout.decode(errors="replace"),
            "stderr": done.stderr.decode(errors="replace"),
        }
        _show(facts, as_json=True)
    return done.exit_code


def _writer(fd: int) -> Callable[[bytes], None]:
    """Return a sink that writes at once to one of our own streams."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write


def _relay_input(process: GuestProcess) -> None:
    # The process may end, or close its input, before ours ends.
    with contextlib.suppress(OSError, HarnessError):
        while data := os.read(0, _CHUNK):
            process.write_stdin(data)
    process.close_stdin()


@app.command()
def parity(
    document: Annotated[
        Path, typer.Argument(help="A ComputeSystem document; - reads standard input.")
    ],
    *,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Say what QEMU does not honour in an HCS document as Hyper-V does.

    The exit code is 1 for a document that QEMU cannot run at all.
    """
    try:
        text = sys.stdin.read() if str(document) == "-" else document.read_text("utf-8")
        system = ComputeSystem.from_json(json.loads(text))
    except (OSError, ValueError) as error:
        raise UsageError(f"{document}: {error}") from error
    items = parity_of(system)
    refusal = refusal_of(system)
    if json_:
        facts = {
            "schema": "lcowlab.parity/1",
            "runs": refusal is None,
            "refusal": refusal,
            "fields": [
                {"field": item.field, "treatment": str(item.treatment), "reason": item.reason}
                for item in items
            ],
        }
        _show(facts, as_json=True)
    else:
        table = Table("field", "on QEMU", "why")
        for item in items:
            table.add_row(item.field, str(item.treatment), item.reason)
        Console().print(table)
        if refusal is not None:
            Console(stderr=True).print(f"QEMU cannot run it: {refusal}", highlight=False)
    return ExitCode.OK if refusal is None else ExitCode.FAILED


def _show(facts: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        json.dump(facts, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    console = Console(stderr=True)
    for name, value in facts.items():
        console.print(f"{name:>14}  {value}", highlight=False)


@app.command()
def clean() -> None:
    """Remove everything cached in your cache directory: images, verdicts, kept labs."""
    directory = cache_directory()
    if directory.exists():
        shutil.rmtree(directory)
        Console(stderr=True).print(f"removed {directory}")
