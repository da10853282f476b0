"""The two halves that the SCSI manager needs of a utility VM: its compute service and its guest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.gcs.guest import GuestClient
from harness.gcs.prot import MappedVirtualDisk
from harness.hcs.document import attach_request, detach_request
from harness.hcs.service import ComputeService
from harness.scsi import MountConfig, Slot


class ServiceScsiHost:
    """The host half of the SCSI manager: disks come and go through the compute service."""

    def __init__(self, service: ComputeService, system_id: str) -> None:
        self._service = service
        self._system_id = system_id

    def attach(self, slot: Slot, path: Path, *, read_only: bool) -> None:
        """Give the virtual machine a disk."""
        request = attach_request(slot.controller, slot.lun, str(path), read_only=read_only)
        self._service.modify(self._system_id, request)

    def detach(self, slots: Sequence[Slot]) -> None:
        """Take disks away, waiting once for all."""
        requests = [detach_request(slot.controller, slot.lun) for slot in slots]
        self._service.modify_batch(self._system_id, requests)

    def attached(self) -> frozenset[Slot]:
        """Return the slots in which the virtual machine really has a disk."""
        disks = self._service.properties(self._system_id).disks
        return frozenset(Slot(disk.controller, disk.lun) for disk in disks)


class BridgeScsiGuest:
    """The guest half of the SCSI manager: mounts and ejects through the GCS bridge."""

    def __init__(self, guest: GuestClient) -> None:
        self._guest = guest

    def mount(self, slot: Slot, config: MountConfig, guest_path: str) -> None:
        """Mount a disk's partition at `guest_path`."""
        self._guest.mount_disk(mapped_disk(slot, config, guest_path))

    def unmount(self, slot: Slot, config: MountConfig, guest_path: str) -> None:
        """Undo `mount`; the request says exactly what the mount said."""
        self._guest.unmount_disk(mapped_disk(slot, config, guest_path))

    def eject(self, slot: Slot) -> None:
        """Make the guest let go of a disk before the host takes it away (hcsshim #551)."""
        self._guest.eject_disk(controller=slot.controller, lun=slot.lun)

    def eject_all(self, slots: Sequence[Slot]) -> Mapping[Slot, BaseException]:
        """Make the guest let go of disks together; return which it did not."""
        refused = self._guest.eject_disks([(slot.controller, slot.lun) for slot in slots])
        return {Slot(*where): error for where, error in refused.items()}


def mapped_disk(slot: Slot, config: MountConfig, guest_path: str) -> MappedVirtualDisk:
    """Return the guest's settings for a disk that is mounted as `config` says."""
    return MappedVirtualDisk(
        mount_path=guest_path,
        controller=slot.controller,
        lun=slot.lun,
        partition=config.partition,
        read_only=config.read_only,
        encrypted=config.encrypted,
        options=config.options,
        block_dev=config.block_device,
        ensure_filesystem=config.ensure_filesystem,
        filesystem=config.filesystem,
        verity=config.verity,
    )
