"""Which file of a kernel this QEMU boots: an ELF vmlinux needs its option ROM pvh.bin."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from harness.errors import ComputeServiceError
from harness.hcs.document import ComputeSystem
from harness.qemu.hostfacts import HostFacts

_ELF: Final = b"\x7fELF"


def bootable_kernel(document: ComputeSystem, host: HostFacts) -> str | None:
    """Return the bzImage beside an ELF kernel where this QEMU cannot boot ELF, else None."""
    machine = document.virtual_machine
    boot = machine.chipset.linux_kernel_direct if machine and machine.chipset else None
    if boot is None or host.pvh:
        return None
    kernel = Path(boot.kernel_file_path)
    try:
        with kernel.open("rb") as file:
            is_elf = file.read(len(_ELF)) == _ELF
    except OSError:
        return None  # QEMU says what is wrong with it
    if not is_elf:
        return None
    for name in ("bzimage", "bzImage", "vmlinuz"):
        if (kernel.parent / name).is_file():
            return str(kernel.parent / name)
    raise ComputeServiceError(
        f"this QEMU has no pvh.bin, which it needs to boot {kernel}: give it a bzImage"
    )
