"""`lcowlab uvm`: the utility VM image, and commands in a utility VM."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.cachedir import cache_directory
from harness.errors import UsageError
from harness.image.build import ensure_image
from harness.lab import Lab, LabConfig
from harness.qemu.kvm import AcceleratorChoice

app = typer.Typer(help="Build utility VM images; run commands in one.", no_args_is_help=True)


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
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Build the image where it is not cached, and say where it is."""
    if (kernel is None) != (modules is None):
        raise UsageError("--kernel and --modules go together: the modules must fit the kernel")
    console = Console(stderr=True)
    image = ensure_image(
        progress=lambda text: console.print(f"[dim]{text}[/dim]"), kernel=kernel, modules=modules
    )
    facts = {
        "schema": "lcowlab.image/1",
        "key": image.key,
        "kernel_version": image.kernel_version,
        "vmlinux": str(image.vmlinux),
        "bzimage": str(image.bzimage),
        "initrd": str(image.initrd),
        "initrd_bytes": image.initrd.stat().st_size,
    }
    if json_:
        json.dump(facts, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        for name, value in facts.items():
            console.print(f"{name:>14}  {value}", highlight=False)


@app.command("exec", context_settings={"ignore_unknown_options": True})
def exec_(
    command: Annotated[list[str], typer.Argument(help="What to run, after --.")],
    *,
    accelerator: Annotated[
        AcceleratorChoice, typer.Option(help="What QEMU runs guest code with.")
    ] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Boot a utility VM, run one command in it, relay its output and exit with its code."""
    with Lab.open(LabConfig(accelerator=accelerator)) as lab:
        vm = lab.boot_uvm()
        done = vm.processes.start(command).wait()
        vm.close()
    if json_:
        facts = {
            "schema": "lcowlab.exec/1",
            "ready_ms": round(vm.boot_s * 1000, 1),
            "from": "cold",
            "exit_code": done.exit_code,
            "stdout": done.stdout.decode(errors="replace"),
            "stderr": done.stderr.decode(errors="replace"),
        }
        json.dump(facts, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.buffer.write(done.stdout)
        sys.stderr.buffer.write(done.stderr)
        sys.stdout.flush()
    return done.exit_code


@app.command()
def clean() -> None:
    """Remove everything cached in your cache directory: images, verdicts, kept labs."""
    directory = cache_directory()
    if directory.exists():
        shutil.rmtree(directory)
        Console(stderr=True).print(f"removed {directory}")
