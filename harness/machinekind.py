"""Which utility VM is wanted: what its image has, and what it boots from."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from harness.image.flavour import Flavour


class RootSource(enum.StrEnum):
    """Where a utility VM's root file system is."""

    INITRD = "initrd"
    """In memory, unpacked by the kernel."""
    DISK = "disk"
    """On a read-only VHD in the reserved SCSI slot (hcsshim's `rootfs.vhd`)."""


@dataclass(frozen=True, slots=True)
class MachineKind:
    """A kind of utility VM; the default is the smallest, which templates are made of."""

    flavour: Flavour = Flavour.STANDARD
    root: RootSource = RootSource.INITRD
    writable: bool = False
    """Whether /etc and /var of a root disk can be written to, in memory (hcsshim's `-w`)."""


STANDARD_MACHINE = MachineKind()
