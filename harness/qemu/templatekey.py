"""What a template depends on: everything that must be the same for a copy to run.

A copy on another machine type, with other memory, another processor or one device more fails, or
hangs. The key is made of the machine's whole command line, of the files that it names and of the
host.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from harness.hcs.document import ComputeSystem
from harness.qemu.hostfacts import HostFacts
from harness.qemu.kvm import Accelerator
from harness.qemu.migration import MemoryKind
from harness.qemu.translate import Descriptors, plan_launch

SCHEMA: Final = "lcowlab.template/1"
_NOBODY: Final = Descriptors(0, 0, 0, 0)
# Measured anew by each process, and a few kHz off each time.
_TSC_OPTION: Final = re.compile(r" ?tsc_early_khz=\d+")
_CPU_FIELDS: Final = ("model name", "stepping", "microcode", "flags")


def template_facts(
    document: ComputeSystem, host: HostFacts, *, kernel: str | None, memory: MemoryKind
) -> Mapping[str, Any]:
    """Return what the template of a document depends on. Raises as `plan_launch`, and OSError."""
    plan = plan_launch(document, host, _NOBODY, system_id="", runtime_id="", kernel=kernel)
    arguments = [_TSC_OPTION.sub("", argument) for argument in plan.argv]
    return {
        "schema": SCHEMA,
        "memory": str(memory),
        "qemu": host.version,
        # A file is itself by whatever path.
        "arguments": [_identity(each) if each.startswith("/") else each for each in arguments],
        "accelerator": str(host.accelerator),
        "tsc_mhz": None if host.tsc_khz is None else round(host.tsc_khz / 1000),
        # An emulated processor is QEMU's own; a real one is this machine's.
        "processor": _processor() if host.accelerator is not Accelerator.TCG else None,
    }


def template_key(facts: Mapping[str, Any]) -> str:
    """Return the name of a template with these facts: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _identity(path: str) -> list[int]:
    """Return what changes when a file's content does: hashing a kernel takes longer than a copy."""
    found = os.stat(path)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def _processor() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return [platform.processor()]
    first = text.partition("\n\n")[0]
    lines = (line.partition(":") for line in first.splitlines())
    return [value.strip() for name, _, value in lines if name.strip() in _CPU_FIELDS]
