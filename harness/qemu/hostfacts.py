"""What a document's translation depends on and the document does not say: facts of this host."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.errors import ComputeServiceError, MissingProgramError
from harness.qemu.kvm import Accelerator, AcceleratorChoice, choose_accelerator
from harness.qemu.tsc import measure_tsc_khz

QEMU_PROGRAM: Final = "qemu-system-x86_64"
SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_QUERY_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Facts of this host: a plain value, so that translation is testable without QEMU."""

    qemu: str
    """Path of the program."""
    version: str
    """Such as `7.2.22`."""
    accelerator: Accelerator
    accelerator_reason: str = ""
    tsc_khz: int | None = None
    pvh: bool = True
    """QEMU has pvh.bin, which it needs to boot an ELF vmlinux."""
    sandbox: bool = True
    """QEMU and the kernel have seccomp."""


def find_qemu(program: str = QEMU_PROGRAM) -> str:
    """Return QEMU's path. Raises MissingProgramError with the command that installs it."""
    found = shutil.which(program)
    if found is None:
        raise MissingProgramError(program, install="apt install qemu-system-x86")
    return found


def read_host_facts(*, program: str = QEMU_PROGRAM, accelerator: AcceleratorChoice) -> HostFacts:
    """Return the facts of this host.

    Raises MissingProgramError without QEMU, ComputeServiceError when QEMU does not run or the
    accelerator asked for does not function.
    """
    qemu = find_qemu(program)
    banner = _query(qemu, "--version")
    match = re.search(r"version (\d+(?:\.\d+)*)", banner)
    if match is None:
        raise ComputeServiceError(f"{qemu} --version says {banner.strip()[:200]!r}")
    # -L help lists the data directories; an unknown option before it fails, which tells of seccomp.
    try:
        directories = _query(qemu, "-sandbox", SANDBOX, "-L", "help")
        sandbox = _kernel_has_seccomp()
    except ComputeServiceError:
        directories = _query(qemu, "-L", "help")
        sandbox = False
    chosen, reason = choose_accelerator(accelerator, qemu=qemu, version=match[1])
    return HostFacts(
        qemu=qemu,
        version=match[1],
        accelerator=chosen,
        accelerator_reason=reason,
        tsc_khz=measure_tsc_khz(),
        pvh=any((Path(line) / "pvh.bin").is_file() for line in directories.splitlines() if line),
        sandbox=sandbox,
    )


def _kernel_has_seccomp() -> bool:
    try:
        return "\nSeccomp:" in Path("/proc/self/status").read_text("utf-8", "replace")
    except OSError:
        return False


def _query(*command: str) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_QUERY_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ComputeServiceError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip()
        raise ComputeServiceError(f"{' '.join(command)}: exit code {done.returncode}: {output}")
    return done.stdout
