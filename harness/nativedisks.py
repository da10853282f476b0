"""Disk files of ours as Windows reads them: what it says must be what we wrote.

A first Windows host shows by this whether a disk that does not attach is the file's fault.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Final

from harness.errors import CheckFailedError, ComputeServiceError
from harness.hcs.virtdisk import NativeDisk, StorageType, Subtype
from harness.hcs.windowshost import InspectDisk
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB, MIB
from snapshotter.vhd import fixed_footer
from snapshotter.vhdx.inspect import inspect_vhdx

_SCRATCH: Final = 20 * GIB  # what containerd asks for
_LAYER: Final = 3 * MIB


def check_native_disks(folder: Path, inspect: InspectDisk) -> None:
    """Write a scratch disk and a layer's disk to `folder`, hold them against Windows, remove them.

    Raises CheckFailedError naming each difference, or why Windows refuses a file.
    """
    scratch, layer = folder / "native.vhdx", folder / "native.vhd"
    try:
        ScratchTemplate.build(_SCRATCH).write(scratch)
        layer.write_bytes(bytes(_LAYER) + fixed_footer(_LAYER, unique_id=uuid.uuid4(), timestamp=0))
        ours, _ = inspect_vhdx(scratch)
        wanted = {
            (scratch, StorageType.VHDX): NativeDisk(
                ours.size, ours.block_size, ours.logical_sector_size, Subtype.DYNAMIC, ours.disk_id
            ),
            (layer, StorageType.VHD): NativeDisk(_LAYER, 0, 512, Subtype.FIXED, None),
        }
        wrong = [
            f"{path.name}: {what}"
            for (path, storage), disk in wanted.items()
            for what in _differences(disk, path, storage, inspect)
        ]
    finally:
        for path in (scratch, layer):
            path.unlink(missing_ok=True)
    if wrong:
        raise CheckFailedError(f"Windows reads our disks otherwise: {'; '.join(wrong)}")


def _differences(
    disk: NativeDisk, path: Path, storage: StorageType, inspect: InspectDisk
) -> list[str]:
    try:
        found = inspect(str(path), storage)
    except ComputeServiceError as error:
        return [str(error)]
    compared = ["size", "sector_size", "subtype"]
    if storage is StorageType.VHDX:
        compared += ["block_size", "identifier"]  # of a fixed VHD both are nobody's business
    return [
        f"{name} {getattr(found, name)}, not {getattr(disk, name)}"
        for name in compared
        if getattr(found, name) != getattr(disk, name)
    ]
