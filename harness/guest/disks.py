"""SCSI disks: found by controller and LUN, mounted, unmounted, and let go.

A controller is found by its host number: on QEMU that is the controller's index, on Hyper-V the
kernel numbers in its own order and the controller's VMBus instance says which it is (hcsshim
internal/guest/storage/scsi). Every wait is bounded: a disk that was just attached may take
milliseconds to appear, and then to open.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from harness.gcs.prot import HResult, MappedVirtualDisk, ScsiDevice, ScsiRefusal
from harness.guest.departures import Departures
from harness.guest.errors import GuestFailure
from harness.guest.mounts import MountTable
from harness.guest.protection import Protection
from harness.guest.system import (
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
    GuestSystem,
)

APPEAR_S = 5.0
"""How long a disk may take to appear and to open."""
_SETTLE_S = 10.0
_POLL_S = 0.003
_OFFLINE = b"offline\n"
_MKFS_S = 240.0
_UNMOUNT_LIMIT = 16  # mounts on one path; more is a loop

_VMBUS = "/sys/bus/vmbus/devices"
_SCSI = "/sys/bus/scsi/devices"
_SCSI_HOSTS = "/sys/class/scsi_host"
# The instance ids that hcsshim gives the controllers 0 to 3 (internal/protocol/guestrequest).
CONTROLLER_IDS = (
    "df6d0690-79e5-55b6-a5ec-c1e2f77f580a",
    "0110f83b-de10-5172-a266-78bca56bf50a",
    "b5d2d8d4-3a75-51bf-945b-3444dc6b8579",
    "305891a9-b251-5dfe-91a2-c25d9212275b",
)

_MAGIC = {"ext4": (1024 + 56, b"\x53\xef"), "xfs": (0, b"XFSB")}
_MKFS = {
    "ext4": ("/sbin/mkfs.ext4", "-q", "-F"),
    "xfs": ("/sbin/mkfs.xfs", "-q", "-f", "-K"),  # -K: discarding blocks of an empty disk is slow
}
_NO_REPLAY = {"ext4": "noload", "xfs": "norecovery"}  # read-only disks cannot replay a journal
_PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)
_NOT_YET = (errno.ENXIO, errno.ENOENT, errno.EBUSY)

_T = TypeVar("_T")


class Disks:
    """Mounts and unmounts the disks that the host attached."""

    def __init__(self, system: GuestSystem, mounts: MountTable) -> None:
        self._system = system
        self._mounts = mounts
        self._protection = Protection(system)
        self._leaving = Departures()

    def add(self, disk: MappedVirtualDisk) -> None:
        """Mount a disk, or link its device for `block_dev`. On failure nothing is left.

        Raises GuestFailure.
        """
        if not disk.mount_path.startswith("/"):
            raise GuestFailure(HResult.INVALID_ARGUMENT, f"mount path {disk.mount_path!r}")
        _check_protection(disk)
        self._leaving.wait(ScsiDevice(disk.controller, disk.lun))
        deadline = time.monotonic() + APPEAR_S
        with self._mounts.claim(disk.mount_path, disk):
            device = self._protection.open(disk, self._device(disk, deadline))
            try:
                if disk.block_dev:
                    self._link(disk, device)
                else:
                    self._mount(disk, device, deadline)
            except BaseException:
                with contextlib.suppress(GuestFailure):
                    self._protection.close(disk.mount_path)
                raise

    def _link(self, disk: MappedVirtualDisk, device: str) -> None:
        self._system.make_dirs(os.path.dirname(disk.mount_path), 0o700)
        self._system.remove_file(disk.mount_path)
        self._system.symlink(disk.mount_path, device)

    def remove(self, disk: MappedVirtualDisk) -> None:
        """Unmount a disk; one that is not mounted is fine. Raises GuestFailure, can be repeated."""
        with self._mounts.release(disk.mount_path):
            if disk.block_dev:
                self._system.remove_file(disk.mount_path)
            else:
                unmount(self._system, disk.mount_path)
            self._protection.close(disk.mount_path)

    def eject(self, device: ScsiDevice) -> None:
        """Have the kernel forget a disk before the host detaches it; one that is gone is fine.

        Raises GuestFailure while it is still mounted.
        """
        self._check_unused(device)
        self._leaving.wait(device)
        self._delete(device)

    def eject_all(self, devices: Sequence[ScsiDevice]) -> tuple[ScsiRefusal, ...]:
        """Have the kernel let disks go together; return those that it keeps, and why.

        When this returns the kernel gives the others no I/O any more. It forgets them behind that,
        one after the other, in 5 to 12 ms each under emulation: an eject or a mount of such a slot
        waits for it, and the host ejects a slot again before it attaches a disk there.
        """
        refusals: list[ScsiRefusal] = []
        leaving: list[ScsiDevice] = []
        for device in devices:
            try:
                self._check_unused(device)
                self._set_offline(device)
                leaving.append(device)
            except GuestFailure as error:
                refusals.append(
                    ScsiRefusal(device.controller, device.lun, error.result, str(error))
                )
        self._leaving.start(leaving, self._delete)
        return tuple(refusals)

    def settle(self) -> None:
        """Return once the kernel has forgotten every disk that was let go; after 10 s anyway."""
        self._leaving.wait_all(_SETTLE_S)

    def _check_unused(self, device: ScsiDevice) -> None:
        if holder := self._mounts.holder_of(device.controller, device.lun):
            raise GuestFailure(
                HResult.INVALID_STATE,
                f"disk {device.controller}:{device.lun} is still mounted at {holder}",
            )

    def _set_offline(self, device: ScsiDevice) -> None:
        """Have the kernel refuse all I/O of a disk; one that is gone is fine. Raises GuestFailure.

        What was written to it has reached the host, which writes it out when it detaches the disk.
        """
        path = self._path(device)
        try:
            if path is not None:
                self._system.write_file(f"{path}/state", _OFFLINE)
        except OSError as error:
            if error.errno not in _GONE:
                raise GuestFailure(HResult.FAIL, f"eject: {error}") from error

    def _delete(self, device: ScsiDevice) -> None:
        """Have the kernel forget a disk; one that is gone is fine. Raises GuestFailure."""
        path = self._path(device)
        if path is None:
            return
        if not self._system.exists(path):
            # Gone, or not discovered yet: a search of its own ends after those that are under way.
            with contextlib.suppress(OSError):
                scan = f"0 0 {device.lun}\n".encode()
                self._system.write_file(
                    f"{_SCSI_HOSTS}/host{self._host(device.controller)}/scan", scan
                )
        try:
            self._system.write_file(f"{path}/delete", b"1\n")
        except OSError as error:
            if error.errno not in _GONE:
                raise GuestFailure(HResult.FAIL, f"eject: {error}") from error

    def _path(self, device: ScsiDevice) -> str | None:
        host = self._host(device.controller)
        return None if host is None else f"{_SCSI}/{host}:0:0:{device.lun}"

    def _host(self, controller: int) -> int | None:
        """Return the number of a controller's SCSI host; None while the kernel has none."""
        if not self._system.exists(_VMBUS):
            return controller
        if controller >= len(CONTROLLER_IDS):
            raise GuestFailure(HResult.INVALID_ARGUMENT, f"SCSI controller {controller}")
        try:
            names = self._system.list_dir(f"{_VMBUS}/{CONTROLLER_IDS[controller]}")
        except FileNotFoundError:
            return None
        hosts = [name[4:] for name in names if name.startswith("host") and name[4:].isdigit()]
        return int(hosts[0]) if hosts else None

    def _device(self, disk: MappedVirtualDisk, deadline: float) -> str:
        """Return the device's path once it can be opened. Raises GuestFailure after 5 s.

        The kernel shows a disk a moment before it lets anybody open it.
        """
        while True:
            name = self._device_name(disk)
            if name is not None and self._system.exists(f"/dev/{name}"):
                device = f"/dev/{name}"
                with contextlib.suppress(OSError):  # told by its use
                    _retry(partial(self._system.read_at, device, 0, 1), deadline)
                return device
            if time.monotonic() >= deadline:
                where = f"controller {disk.controller}, LUN {disk.lun}"
                if disk.partition:
                    where += f", partition {disk.partition}"
                raise GuestFailure(
                    HResult.NOT_FOUND, f"no disk at {where} after {APPEAR_S:g} s: is it attached?"
                )
            time.sleep(_POLL_S)

    def _device_name(self, disk: MappedVirtualDisk) -> str | None:
        host = self._host(disk.controller)
        if host is None:
            return None
        block = f"{_SCSI}/{host}:0:0:{disk.lun}/block"
        try:
            # A missing directory and an empty one both mean: not yet.
            names = self._system.list_dir(block)
            if not names:
                return None
            if not disk.partition:
                return names[0]
            partition = f"{names[0]}{disk.partition}"
            return partition if partition in self._system.list_dir(f"{block}/{names[0]}") else None
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _mount(self, disk: MappedVirtualDisk, device: str, deadline: float) -> None:
        present = self._file_system(device)
        wanted = disk.filesystem or present
        if wanted is None:
            raise GuestFailure(
                HResult.FAIL, f"{device} has no ext4 or xfs file system, and none was asked for"
            )
        if disk.ensure_filesystem and wanted != present:
            self._format(device, wanted)
        created = self._system.make_dirs(disk.mount_path, 0o700)
        try:
            self._mount_at(disk, device, wanted, deadline)
        except OSError as error:
            if created:
                self._system.remove_dir(disk.mount_path)
            raise GuestFailure(
                HResult.FAIL, f"{device} ({wanted}) at {disk.mount_path}: {error.strerror}"
            ) from error

    def _mount_at(self, disk: MappedVirtualDisk, device: str, kind: str, deadline: float) -> None:
        path = disk.mount_path
        flags = MS_RDONLY if disk.read_only else 0
        data = _NO_REPLAY.get(kind, "") if disk.read_only else ""
        _retry(lambda: self._system.mount(device, path, kind, flags, data), deadline)
        try:
            for option in disk.options:
                if propagation := _PROPAGATION.get(option):
                    self._system.mount("", path, "", propagation, "")
        except OSError:
            self._system.unmount(path)
            raise

    def _file_system(self, device: str) -> str | None:
        for kind, (offset, magic) in _MAGIC.items():
            if self._system.read_at(device, offset, len(magic)) == magic:
                return kind
        return None

    def _format(self, device: str, kind: str) -> None:
        if kind not in _MKFS:
            raise GuestFailure(HResult.NOT_IMPLEMENTED, f"cannot make a {kind} file system")
        command = [*_MKFS[kind], device]
        result = self._system.run(command, timeout_s=_MKFS_S)
        if result.exit_code:
            raise GuestFailure(
                HResult.FAIL, f"{' '.join(command)}: exit code {result.exit_code}: {result.output}"
            )


def _check_protection(disk: MappedVirtualDisk) -> None:
    """Refuse what would lose data, or protect nothing, before anything is written."""
    refusal = ""
    if disk.encrypted and (disk.read_only or disk.block_dev or disk.verity):
        refusal = "an encrypted disk is formatted at its mount: it can be neither read-only, nor a"
        refusal += " block device, nor verified"
    elif disk.encrypted and not (disk.ensure_filesystem and disk.filesystem):
        refusal = "an encrypted disk is formatted at its mount: say with which file system"
    elif disk.encrypted and disk.filesystem == "ext4":
        # Measured: mke2fs reads what was never written, which has no valid tag, and fails.
        refusal = (
            "ext4 cannot be made on an encrypted disk, whose blocks are not wiped: ask for xfs"
        )
    elif disk.verity is not None and not disk.read_only:
        refusal = "dm-verity is for read-only disks"
    if refusal:
        raise GuestFailure(HResult.INVALID_ARGUMENT, refusal)


def unmount(system: GuestSystem, path: str) -> None:
    """Unmount everything at `path` and remove the directory if it is empty; missing is fine.

    A directory whose unmount failed is never touched: removing it would delete what is on the
    disk (microsoft/opengcs#131). Raises GuestFailure.
    """
    for _ in range(_UNMOUNT_LIMIT):
        try:
            system.unmount(path)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            if error.errno == errno.EINVAL:  # nothing is mounted there any more
                system.remove_dir(path)
                return
            code = HResult.INVALID_STATE if error.errno == errno.EBUSY else HResult.FAIL
            raise GuestFailure(code, f"unmount of {path}: {error.strerror}") from error
    raise GuestFailure(HResult.FAIL, f"{path} is still mounted after {_UNMOUNT_LIMIT} unmounts")


def _retry(action: Callable[[], _T], deadline: float) -> _T:
    """Return what `action` returns; a device that was hot-added may not open at once."""
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno not in _NOT_YET or time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_S)
