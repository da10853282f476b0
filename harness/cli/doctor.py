"""`lcowlab doctor`: what this machine has, or hosts let through, and what to do about the rest."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.cli.exit_codes import ExitCode
from harness.cli.findings import Finding
from harness.cli.hostcheck import examine_host
from harness.cli.options import InventoryOption, PythonOption, TimeoutOption
from harness.errors import HarnessError
from harness.hosts.inventory import Inventory
from harness.image.build import find_image
from harness.qemu.hostfacts import read_host_facts
from harness.remote.deadline import Deadline

_PROGRAMS = {
    "qemu-system-x86_64": "apt-get install qemu-system-x86",
    "qemu-img": "apt-get install qemu-utils",
    "e2fsck": "apt-get install e2fsprogs",
    "dpkg-deb": "apt-get install dpkg",
    "apt-get": "images can only be built on Debian and Ubuntu; elsewhere: uvm build --kernel",
}


def examine() -> list[Finding]:
    """Return what was found on this machine, in the order in which it matters."""
    findings = [Finding("python", platform.python_version())]
    for program, fix in _PROGRAMS.items():
        path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
        findings.append(Finding(program, path or "missing", "" if path else fix, stops=not path))
    try:
        host = read_host_facts(accelerator="auto")
        findings.append(
            Finding("accelerator", f"{host.accelerator.value} ({host.accelerator_reason})")
        )
        findings.append(Finding("QEMU", host.version))
    except HarnessError as error:
        findings.append(Finding("accelerator", "unknown", str(error), stops=True))
    try:
        image = find_image()
        found = f"{image.kernel_version} ({image.key})" if image else "not built yet"
        findings.append(Finding("utility VM image", found, "" if image else "lcowlab uvm build"))
    except HarnessError as error:
        findings.append(Finding("utility VM image", "unusable", str(error), stops=True))
    return findings


def doctor(
    hosts: Annotated[
        str | None,
        typer.Argument(help="Hosts of the inventory: names and tags with and, or, not; all."),
    ] = None,
    *,
    inventory: InventoryOption = None,
    python: PythonOption = "python",
    timeout: TimeoutOption = 120.0,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Say whether scenarios can run here, and how to mend what is missing.

    With HOSTS, look at these instead: whether we reach them, whether an independent client does,
    and what their WinRM lets through. Nothing is changed.
    """
    if hosts is None:
        findings = examine()
    else:
        known = Inventory.load(inventory)
        findings = [
            finding
            for name in known.select(hosts)
            for finding in examine_host(
                name, known.hosts[name], python=python, deadline=Deadline.after(timeout)
            )
        ]
    if json_:
        rows = [asdict(finding) for finding in findings]
        json.dump({"schema": "lcowlab.doctor/1", "findings": rows}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        columns = ("what", "found", "what to do")
        table = Table(*columns) if hosts is None else Table("host", *columns)
        for finding in findings:
            row = (finding.what, finding.found, finding.fix)
            table.add_row(*(row if hosts is None else (finding.host, *row)))
        Console().print(table)
    return ExitCode.INFRASTRUCTURE if any(each.stops for each in findings) else ExitCode.OK
