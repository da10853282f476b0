"""A dm-verity tree after a file system, so that the guest notices any block that changed.

Linux Documentation/admin-guide/device-mapper/verity.rst, and cryptsetup's wiki for the superblock.
The form is hcsshim's (ext4/dmverity): SHA-256, blocks of 4096, a salt of 32 zeros; the superblock
fills the first block after the file system, the tree follows with its top level first.
"""

from __future__ import annotations

import hashlib
import struct
import uuid as uuids
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from snapshotter.blockio import BlockReader
from snapshotter.errors import Ext4CorruptError, Ext4UnsupportedError
from snapshotter.ext4.format import BLOCK_SIZE

SALT: Final = bytes(32)
_DIGEST: Final = 32
_PER_BLOCK: Final = BLOCK_SIZE // _DIGEST
_READ: Final = 128  # blocks at once
_SIGNATURE: Final = b"verity\0\0"
_VERSION, _NORMAL = 1, 1


class VerityFile(Protocol):
    """The image that is protected, and that the tree goes to."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        ...

    def write_at(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`, growing the file."""
        ...


@dataclass(frozen=True, slots=True)
class VerityTree:
    """A tree that is on disk: all that the guest has to know to check the blocks before it."""

    LAYOUT: ClassVar = struct.Struct("<8sII16s32sIIQH6x256s168x")

    root_hash: str  # hex
    hash_offset: int  # of the superblock: where the file system ends
    size: int  # of superblock and tree
    salt: str = SALT.hex()
    algorithm: str = "sha256"


assert VerityTree.LAYOUT.size == 512


def read_verity(file: BlockReader, size: int) -> VerityTree:
    """Return the tree after a file system of `size` bytes; its root hash is that of its top block.

    Nothing else is compared: that is the kernel's work at every read. Raises Ext4CorruptError where
    no tree is, Ext4UnsupportedError for one of another kind than `write_verity` makes.
    """
    raw = file.read_at(size, VerityTree.LAYOUT.size)
    if len(raw) < VerityTree.LAYOUT.size or not raw.startswith(_SIGNATURE):
        raise Ext4CorruptError("dm-verity superblock", "absent", offset=size)
    fields = VerityTree.LAYOUT.unpack(raw)
    _, version, kind, _, name, data_block, hash_block, blocks, salt_size, salt = fields
    algorithm = name.rstrip(b"\0").decode("ascii", "replace")
    found = (version, kind, algorithm, data_block, hash_block, salt[:salt_size])
    if found != (_VERSION, _NORMAL, "sha256", BLOCK_SIZE, BLOCK_SIZE, SALT):
        raise Ext4UnsupportedError(f"a dm-verity tree of another kind: {found}")
    if blocks * BLOCK_SIZE != size:
        raise Ext4CorruptError("dm-verity superblock", f"{blocks} blocks", offset=size)
    (root,) = _digests(file, size + BLOCK_SIZE, 1)
    return VerityTree(root.hex(), size, (1 + sum(_levels(blocks))) * BLOCK_SIZE)


def write_verity(file: VerityFile, size: int, *, uuid: uuids.UUID) -> VerityTree:
    """Protect the first `size` bytes, whole blocks of 4096, by a tree after them.

    The digests go to the file as they come, so memory stays small. Raises what `file` raises.
    """
    blocks = size // BLOCK_SIZE
    levels = _levels(blocks)
    superblock = VerityTree.LAYOUT.pack(
        _SIGNATURE,
        _VERSION,
        _NORMAL,
        uuid.bytes,
        b"sha256",
        BLOCK_SIZE,
        BLOCK_SIZE,
        blocks,
        len(SALT),
        SALT,
    )
    file.write_at(size, superblock.ljust(BLOCK_SIZE, b"\0"))
    source, count = 0, blocks
    for depth, length in enumerate(levels):
        place = size + BLOCK_SIZE * (1 + sum(levels[depth + 1 :]))
        for number, digests in enumerate(_digests(file, source, count)):
            data = digests.ljust(-(-len(digests) // BLOCK_SIZE) * BLOCK_SIZE, b"\0")
            file.write_at(place + number * _READ * _DIGEST, data)
        source, count = place, length
    (root,) = _digests(file, source, 1)
    return VerityTree(root.hex(), size, (1 + sum(levels)) * BLOCK_SIZE)


def _levels(blocks: int) -> list[int]:
    """Return the blocks of each level of the tree over so many blocks, from the bottom."""
    levels = [-(-blocks // _PER_BLOCK)]
    while levels[-1] > 1:
        levels.append(-(-levels[-1] // _PER_BLOCK))
    return levels


def _digests(file: BlockReader | VerityFile, offset: int, count: int) -> Iterator[bytes]:
    """Yield the digests of `count` blocks, those of `_READ` at a time."""
    salted = hashlib.sha256(SALT)
    for start in range(0, count, _READ):
        part = min(_READ, count - start)
        raw = memoryview(file.read_at(offset + start * BLOCK_SIZE, part * BLOCK_SIZE))
        digests = []
        for at in range(0, len(raw), BLOCK_SIZE):
            one = salted.copy()
            one.update(raw[at : at + BLOCK_SIZE])
            digests.append(one.digest())
        yield b"".join(digests)


assert _READ * _DIGEST % BLOCK_SIZE == 0
