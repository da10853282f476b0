"""`lcowlab doctor`: what this machine has, and what to do about what it lacks."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.cli.exit_codes import ExitCode
from harness.errors import HarnessError
from harness.image.build import find_image
from harness.qemu.hostfacts import read_host_facts

_PROGRAMS = {
    "qemu-system-x86_64": "apt-get install qemu-system-x86",
    "qemu-img": "apt-get install qemu-utils",
    "e2fsck": "apt-get install e2fsprogs",
    "dpkg-deb": "apt-get install dpkg",
    "apt-get": "images can only be built on Debian and Ubuntu; elsewhere: uvm build --kernel",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `fix` is empty when it is fine."""

    what: str
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Return what was found on this machine, in the order in which it matters."""
    findings = [Finding("python", platform.python_version())]
    for program, fix in _PROGRAMS.items():
        path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
        findings.append(Finding(program, path or "missing", "" if path else fix))
    try:
        host = read_host_facts(accelerator="auto")
        findings.append(
            Finding("accelerator", f"{host.accelerator.value} ({host.accelerator_reason})")
        )
        findings.append(Finding("QEMU", host.version))
    except HarnessError as error:
        findings.append(Finding("accelerator", "unknown", str(error)))
    try:
        image = find_image()
        found = f"{image.kernel_version} ({image.key})" if image else "not built yet"
        findings.append(Finding("utility VM image", found, "" if image else "lcowlab uvm build"))
    except HarnessError as error:
        findings.append(Finding("utility VM image", "unusable", str(error)))
    return findings


def doctor(
    *, json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False
) -> int:
    """Say whether scenarios can run here, and how to mend what is missing."""
    findings = examine()
    if json_:
        rows = [asdict(finding) for finding in findings]
        json.dump({"schema": "lcowlab.doctor/1", "findings": rows}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        table = Table("what", "found", "what to do")
        for finding in findings:
            table.add_row(finding.what, finding.found, finding.fix)
        Console().print(table)
    lacking = [f for f in findings if f.fix and f.found in ("missing", "unknown", "unusable")]
    return ExitCode.INFRASTRUCTURE if lacking else ExitCode.OK
