"""Proof that utility VMs work on this machine, for whoever runs it: one is made and taken down.

It boots, gets a scratch disk attached and mounted, gives it back, and ends; then the audit looks
for what is left. Provisioning runs it on each host through the host agent, so that it is the
identity of the tests that is proved, not the one that logs on by WinRM.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from harness.hosts.onhost.agent import identity
from harness.image.build import find_image
from harness.lab import Lab, LabConfig, native_backend
from harness.qemu.hostfacts import QEMU_PROGRAM
from harness.scsi import MountConfig
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB

_EXT4: Final = MountConfig(ensure_filesystem=True, filesystem="ext4")


@dataclass(frozen=True, slots=True)
class SmokeResult:
    """What one utility VM showed; times in seconds, `user` is whom it ran as."""

    user: str
    backend: str
    origin: str
    boot_s: float
    environment: Mapping[str, str]


def choose_backend(asked: str, image: Path | None) -> str:
    """Return the backend that `auto` means here: `hcs` on Windows, else `qemu` if it is set up.

    Set up is QEMU on the PATH and an image, given or built before; without them it is `model`.
    """
    native = native_backend()
    if asked != "auto":
        return asked
    if native == "qemu" and not (shutil.which(QEMU_PROGRAM) and (image or find_image())):
        return "model"
    return native


def smoke(folder: Path, *, backend: str = "auto", image: Path | None = None) -> SmokeResult:
    """Make a utility VM with a disk and take it down; `folder` is for its files.

    Raises HarnessError for whatever does not work; LeakError for what is left behind.
    """
    config = LabConfig(
        backend=choose_backend(backend, image),
        root=folder,
        memory_mib=512,
        image=image,
        cold=image is not None,  # a saved machine of an image that was pushed serves nobody else
    )
    with Lab.open(config) as lab:
        lab.check_disks()
        lab.begin("smoke")
        disk = lab.directory / "smoke.vhdx"
        ScratchTemplate.build(GIB).write(disk)
        with lab.boot_uvm() as vm:
            with vm.scsi.acquire(disk, holder="smoke", mount=_EXT4):
                pass
            origin, boot_s = vm.origin, vm.boot_s
        disk.unlink()
        lab.require_clean()
        return SmokeResult(
            user=str(identity()["user"]),
            backend=lab.backend,
            origin=origin,
            boot_s=round(boot_s, 3),
            environment=lab.environment(),
        )


def report(folder: str, backend: str, image: str) -> dict[str, Any]:
    """Return `smoke`'s result as JSON values, for the script that provisioning sends.

    `image` is the folder of an exported utility VM image, "" for none.
    """
    if "LCOWLAB_PRETEND_HOST" in os.environ:
        # Image and saved machines are those of the machine behind it, not of its pretended disk.
        for name in ("HOME", "TMPDIR", "TEMP"):
            os.environ.pop(name, None)
    return asdict(smoke(Path(folder), backend=backend, image=Path(image) if image else None))
