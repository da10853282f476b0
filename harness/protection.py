"""Layers that the guest verifies and scratch disks that it encrypts, as the host asks for them."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.gcs.prot import DeviceVerityInfo
from snapshotter.blockio import LocalBlockFile
from snapshotter.ext4.format import BLOCK_SIZE
from snapshotter.ext4.reader import Ext4
from snapshotter.ext4.verity import VerityTree, read_verity, write_verity
from snapshotter.vhd import FOOTER_SIZE, FixedVhd, fixed_footer

ENCRYPTED_FILE_SYSTEM = "xfs"
"""What hcsshim puts on an encrypted scratch."""


@dataclass(frozen=True, slots=True)
class DiskProtection:
    """What a container asks for: `verity` by the canonical path of a layer's file."""

    encrypted_scratch: bool = False
    verity: Mapping[Path, DeviceVerityInfo] = field(default_factory=dict)


UNPROTECTED = DiskProtection()


def verity_of(layer: Path) -> DeviceVerityInfo:
    """Return what the guest has to be told of the tree in a layer's VHD (hcsshim
    internal/uvm `ReadVeritySuperBlock`).

    The root digest is the file's own: who does not trust the file compares it with one from
    elsewhere. Raises Ext4Error, VhdError, FileNotFoundError.
    """
    with FixedVhd.open(layer) as disk:
        size = Ext4.open(disk).superblock.blocks_count * BLOCK_SIZE
        return _info(read_verity(disk, size))


def add_verity(layer: Path, target: Path) -> DeviceVerityInfo:
    """Write a copy of a layer's VHD with a dm-verity tree, and return what to tell the guest.

    Raises Ext4Error, VhdError, UnavailableError, OSError.
    """
    with FixedVhd.open(layer) as disk:
        size = Ext4.open(disk).superblock.blocks_count * BLOCK_SIZE
        identity = uuid.uuid5(disk.footer.unique_id, "dm-verity")
    shutil.copyfile(layer, target)
    with LocalBlockFile.open(target, writable=True) as file:
        file.write_at(size, bytes(FOOTER_SIZE))  # the tree comes where the footer was
        tree = write_verity(file, size, uuid=identity)
        end = size + tree.size
        file.write_at(end, fixed_footer(end, unique_id=identity, timestamp=0))
    return _info(tree)


def _info(tree: VerityTree) -> DeviceVerityInfo:
    return DeviceVerityInfo(
        ext4_size=tree.hash_offset,
        version=1,
        algorithm=tree.algorithm,
        super_block=True,
        root_digest=tree.root_hash,
        salt=tree.salt,
        block_size=BLOCK_SIZE,
    )
