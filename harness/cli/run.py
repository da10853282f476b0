"""`lcowlab run`: scenarios, with a live view, a table, and reports in files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.cli.exit_codes import ExitCode, exit_code_of
from harness.cli.options import InventoryOption, JsonOption, PythonOption
from harness.cli.runhost import HostOptions, run_on_hosts
from harness.errors import UsageError
from harness.exportedimage import VARIABLE
from harness.faults import FaultPlan
from harness.lab import BACKENDS
from harness.qemu.kvm import AcceleratorChoice
from harness.report.document import run_document
from harness.report.events import RunResult
from harness.report.html import write_html
from harness.report.junit import write_junit
from harness.report.live import LiveView, summary_table
from harness.runs.play import check_request, play
from harness.runs.request import Keep, RunRequest
from harness.scenarios.catalogue import CATALOGUE, select

DEFAULT_TAG = "core"
DEFAULT_REPORT = Path("build/report")


def run(
    scenarios: Annotated[
        list[str] | None, typer.Argument(help="Scenario names; tagged core when none is given.")
    ] = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="Every scenario.")] = False,
    tag: Annotated[list[str] | None, typer.Option(help="Scenarios with this tag.")] = None,
    backend: Annotated[str, typer.Option(help=f"One of {', '.join(BACKENDS)}.")] = "auto",
    accelerator: Annotated[
        AcceleratorChoice, typer.Option(help="What QEMU runs guest code with.")
    ] = "auto",
    memory: Annotated[int, typer.Option(min=256, help="Guest memory in MiB.")] = 512,
    processors: Annotated[int, typer.Option(min=1, help="Virtual processors.")] = 2,
    cold: Annotated[
        bool, typer.Option("--cold", help="Boot each utility VM, where it would be a copy.")
    ] = False,
    image: Annotated[
        Path | None,
        typer.Option(
            envvar=VARIABLE,
            help="Folder of an exported utility VM image; hcs needs one.",
            file_okay=False,
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Run everything that often.")] = 1,
    jobs: Annotated[
        int, typer.Option(min=1, help="So many scenarios side by side, each in a lab of its own.")
    ] = 1,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BOUNDARY=SPEC",
            help="What is to fail, such as guest.create=1*ok->error(0x80004005); repeatable.",
        ),
    ] = None,
    keep: Annotated[
        Keep, typer.Option(help="Keep the disks and the store afterwards; the path is printed.")
    ] = Keep.NEVER,
    report: Annotated[
        Path, typer.Option(help="Folder of index.html.", file_okay=False)
    ] = DEFAULT_REPORT,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML there.")] = None,
    json_: JsonOption = False,
    host: Annotated[
        str, typer.Option(metavar="NAME", help="Run on this host of the inventory, as its agent.")
    ] = "",
    hosts: Annotated[
        str,
        typer.Option(metavar="EXPR", help="The same on several, side by side: names, tags, and."),
    ] = "",
    inventory: InventoryOption = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="With --host: our packages, deployed where the host has others."),
    ] = None,
    python: PythonOption = "",
) -> int:
    """Run scenarios on utility VMs and prove that nothing was left behind.

    On this machine, or with --host on a provisioned Windows host: watched from here, reported here.
    """
    chosen = select(
        CATALOGUE,
        names=scenarios or (),
        tags=() if all_ else tuple(tag or ([] if scenarios else [DEFAULT_TAG])),
    )
    console = Console(stderr=True)
    if not chosen:
        console.print("nothing to run: no scenario has that tag (lcowlab scenario list)")
        return ExitCode.NOTHING_RAN
    request = RunRequest(
        scenarios=tuple(scenario.name for scenario in chosen),
        backend=backend,
        accelerator=accelerator,
        memory_mib=memory,
        processors=processors,
        cold=cold,
        repeat=repeat,
        jobs=jobs,
        faults=_faults(fault or ()),
        keep=keep,
    )
    check_request(request)
    there = HostOptions(host, hosts, inventory, bundle, python)
    remote = there.given
    view = LiveView(console)
    try:
        if remote:
            if image is not None and os.environ.get(VARIABLE) != str(image):
                raise UsageError("--image is for this machine: a host has its own (bundle push)")
            result, kept = run_on_hosts(there, request, view=view, console=console)
        else:
            played = play(
                request,
                request.lab(image=image),
                listeners=[view],
                progress=lambda text: console.print(f"[dim]{text}[/dim]"),
            )
            result, kept = played.result, str(played.kept or "")
    finally:
        view.close()
    return _report(result, report=report, junit=junit, json_=json_, kept=kept)


def _report(result: RunResult, *, report: Path, junit: Path | None, json_: bool, kept: str) -> int:
    """Write every report that was asked for and return the exit code."""
    console = Console(stderr=True)
    write_html(result, report / "index.html")
    if junit is not None:
        write_junit(result, junit)
    if json_:
        json.dump(run_document(result), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        Console().print(summary_table(result))
    console.print(f"report: {report / 'index.html'}")
    if kept:
        console.print(f"kept: {kept}")
    return exit_code_of(result)


def _faults(given: Sequence[str]) -> dict[str, str]:
    """Return specifications by boundary. Raises UsageError, FaultSyntaxError."""
    faults: dict[str, str] = {}
    for text in given:
        boundary, separator, spec = text.partition("=")
        if not separator:
            raise UsageError(f"--fault {text}: expected BOUNDARY=SPEC")
        if boundary in faults:
            raise UsageError(f"--fault {boundary} is given twice: join the terms with ->")
        faults[boundary] = spec
    FaultPlan.parse(faults)
    return faults
