"""A root disk for the model's guests: what their operating system has, as files on a real disk."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import io
import tarfile
from pathlib import Path
from typing import Final

from harness.guest.disks import CONTROLLER_IDS
from harness.model.applets import APPLETS
from harness.model.files import FileSystem, Kind, Node, directory
from snapshotter.ext4.layertar import convert_layer

INIT: Final = "/init"
HOST_NUMBERS: Final = (2, 0, 3, 1)
"""What the guest's kernel calls the controllers 0 to 3: in its own order, as on Hyper-V."""
_FOLDERS: Final = (
    "bin", "dev", "etc", "proc", "root", "run", "run/mounts", "run/mounts/scsi", "sbin", "sys",
    "sys/bus", "sys/bus/scsi", "sys/bus/scsi/devices", "sys/bus/vmbus", "sys/bus/vmbus/devices",
    *(
        f"sys/bus/vmbus/devices/{CONTROLLER_IDS[controller]}{host}"
        for controller, number in enumerate(HOST_NUMBERS)
        for host in ("", f"/host{number}")
    ),
    "tmp", "usr", "usr/bin", "var",
)  # fmt: skip
_PROGRAMS: Final = ("busybox", "sh", *APPLETS)


def root_files() -> FileSystem:
    """Return the root file system of a guest that has it in memory."""
    files = FileSystem(directory(), name="rootfs")
    for folder in _FOLDERS:
        files.put(f"/{folder}", directory())
    for name in _PROGRAMS:
        files.put(f"/bin/{name}", Node(Kind.FILE, 0o755))
    return files


def folders_of(mount_point: str) -> FileSystem:
    """Return an empty file system with the folders that the root has at a mount point."""
    files = FileSystem(directory(), name=mount_point)
    prefix = mount_point.lstrip("/") + "/"
    for folder in _FOLDERS:
        if folder.startswith(prefix):
            files.put("/" + folder.removeprefix(prefix), directory())
    return files


def write_root_disk(target: Path) -> None:
    """Write the same root file system, and an init, as a fixed VHD."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for folder in _FOLDERS:
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for path in (INIT.lstrip("/"), *(f"bin/{name}" for name in _PROGRAMS)):
            member = tarfile.TarInfo(path)
            member.mode = 0o755
            archive.addfile(member)
    stream.seek(0)
    convert_layer(stream, target, durable=False)
