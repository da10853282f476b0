"""What stands between a disk and its mount: dm-verity for a layer, LUKS for a scratch.

::

    layer:    /dev/sdX ─> verity ─> /dev/mapper/dm-verity-scsi-contr0-lun1-p0-<root digest>
    scratch:  /dev/sdX ─> integrity ─> crypt ─> /dev/mapper/dm-crypt-scsi-contr0-lun2-p0

An encrypted disk is formatted anew at every mount, with a key that never leaves the guest: what was
on it is lost with the mount (hcsshim internal/guest/storage/crypt). Sharers share the one mount,
which is the host's to count. What was put up at a path is taken down there, whatever the request
says: hcsshim's host leaves `Encrypted` out when it unmounts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from dataclasses import dataclass

from harness.gcs.prot import DeviceVerityInfo, HResult, MappedVirtualDisk
from harness.guest.errors import GuestFailure
from harness.guest.system import GuestSystem

_CRYPTSETUP = "/sbin/cryptsetup"
_CONTROL = "/dev/mapper/control"
_KEYS = "/run/lcowlab/keys"
_KEY_SIZE = 1024
_FORMAT = (
    *("--batch-mode", "--type", "luks2", "--cipher", "aes-xts-plain64", "--sector-size", "4096"),
    # Without a wipe nothing that was never written can be read: no file system does.
    *("--integrity", "hmac-sha256", "--integrity-no-wipe"),
    # The key is random and long: there is nothing to slow a guesser down for.
    *("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"),
)
_OPEN = ("--integrity-no-journal", "--persistent")
_COMMAND_S = 120.0
_AGAIN_S = 0.5
_NO_DEVICE = 4  # cryptsetup(8): wrong device specified
_BUSY_S = 2.0
_POLL_S = 0.01
_HEAD = 4096  # bytes that a search for file systems reads
_SECTOR = 512
_VERITY_VERSION = 1


@dataclass(frozen=True, slots=True)
class _Mapping:
    name: str
    encrypted: bool


class Protection:
    """Puts the devices up that a disk is mounted through, and takes them down again."""

    def __init__(self, system: GuestSystem) -> None:
        self._system = system
        self._lock = threading.Lock()
        self._mappings: dict[str, _Mapping] = {}  # by mount path

    def open(self, disk: MappedVirtualDisk, device: str) -> str:
        """Return the device to mount at `disk.mount_path`. On failure nothing is left.

        Raises GuestFailure, FILE_CORRUPT where the disk is not what the root digest stands for.
        """
        where = f"scsi-contr{disk.controller}-lun{disk.lun}-p{disk.partition}"
        if disk.encrypted:
            mapping = _Mapping(f"dm-crypt-{where}", encrypted=True)
            self._need(_CRYPTSETUP, "encrypt disks")
            path = self._encrypt(device, mapping.name)
        elif disk.verity is not None:
            mapping = _Mapping(f"dm-verity-{where}-{disk.verity.root_digest}", encrypted=False)
            self._need(_CONTROL, "verify layers")
            path = self._verify(device, mapping.name, disk.verity)
        else:
            return device
        with self._lock:
            self._mappings[os.path.normpath(disk.mount_path)] = mapping
        return path

    def close(self, mount_path: str) -> None:
        """Take down what stands below a path that is unmounted. Raises GuestFailure; repeatable."""
        path = os.path.normpath(mount_path)
        with self._lock:
            mapping = self._mappings.get(path)
        if mapping is None:
            return
        if mapping.encrypted:
            self._close_encrypted(mapping.name)
        else:
            self._remove(mapping.name)
        with self._lock:
            self._mappings.pop(path, None)

    def _need(self, path: str, what: str) -> None:
        if not self._system.exists(path):
            raise GuestFailure(
                HResult.NOT_IMPLEMENTED,
                f"this utility VM's image cannot {what} (no {path}): boot the protected flavour",
            )

    # -- LUKS ------------------------------------------------------------------------------------

    def _encrypt(self, device: str, name: str) -> str:
        key = f"{_KEYS}/{name}"
        self._system.make_dirs(_KEYS, 0o700)
        self._system.write_file(key, os.urandom(_KEY_SIZE))
        try:
            for again in (True, False):
                try:
                    self._cryptsetup("luksFormat", *_FORMAT, "--key-file", key, device)
                    self._cryptsetup("luksOpen", *_OPEN, "--key-file", key, device, name)
                    break
                except GuestFailure:
                    with contextlib.suppress(GuestFailure):
                        self._close_encrypted(name)
                    if not again:
                        raise
                    time.sleep(_AGAIN_S)
        finally:
            self._system.remove_file(key)
        path = f"/dev/mapper/{name}"
        try:
            self._system.write_file(path, bytes(_HEAD))
        except OSError:
            with contextlib.suppress(GuestFailure):
                self._close_encrypted(name)
            raise
        return path

    def _close_encrypted(self, name: str) -> None:
        result = self._system.run([_CRYPTSETUP, "luksClose", name], timeout_s=_COMMAND_S)
        if result.exit_code not in (0, _NO_DEVICE):
            raise GuestFailure(
                HResult.FAIL, f"cryptsetup luksClose {name}: {result.output.strip()}"
            )

    def _cryptsetup(self, command: str, *arguments: str) -> None:
        result = self._system.run([_CRYPTSETUP, command, *arguments], timeout_s=_COMMAND_S)
        if result.exit_code:
            raise GuestFailure(
                HResult.FAIL,
                f"cryptsetup {command} {arguments[-1]}: exit code {result.exit_code}: "
                f"{result.output.strip()}",
            )

    # -- dm-verity -------------------------------------------------------------------------------

    def _verify(self, device: str, name: str, verity: DeviceVerityInfo) -> str:
        try:
            path = self._system.map_device(
                name,
                kind="verity",
                sectors=verity.ext4_size // _SECTOR,
                parameters=_verity_table(device, verity),
            )
        except OSError as error:
            raise GuestFailure(
                HResult.FAIL, f"dm-verity over {device}: {error.strerror}; is the tree there?"
            ) from error
        try:
            # The kernel compares a block with the tree, and the tree with the digest, when the
            # block is read: a mount would tell it as nothing but "Input/output error".
            self._system.read_at(path, 0, _HEAD)
        except OSError as error:
            self._remove(name)
            raise GuestFailure(
                HResult.FILE_CORRUPT,
                f"{device} is not what the root digest {verity.root_digest} stands for "
                f"(dm-verity: {error.strerror}): it was changed, or the digest is another layer's",
            ) from error
        return path

    def _remove(self, name: str) -> None:
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                self._system.unmap_device(name)
            except OSError as error:
                # A reader of block devices may have it open for a moment after the unmount.
                if error.errno == errno.EBUSY and time.monotonic() < deadline:
                    time.sleep(_POLL_S)
                    continue
                raise GuestFailure(HResult.FAIL, f"{name}: {error.strerror}") from error
            return


def _verity_table(device: str, verity: DeviceVerityInfo) -> str:
    """Return the parameters of a verity target whose tree follows the file system.

    Linux Documentation/admin-guide/device-mapper/verity.rst. Raises GuestFailure.
    """
    size, block = verity.ext4_size, verity.block_size
    words = (verity.algorithm, verity.root_digest, verity.salt or "-")
    if verity.version != _VERITY_VERSION or block < _SECTOR or size <= 0 or size % block:
        raise GuestFailure(
            HResult.INVALID_ARGUMENT,
            f"dm-verity version {verity.version} of {size} bytes in blocks of {block}",
        )
    if not verity.algorithm or not verity.root_digest or any(" " in word for word in words):
        raise GuestFailure(HResult.INVALID_ARGUMENT, f"dm-verity of {' '.join(words)!r}")
    blocks = size // block
    first = blocks + (1 if verity.super_block else 0)
    return f"1 {device} {device} {block} {block} {blocks} {first} {' '.join(words)}"
