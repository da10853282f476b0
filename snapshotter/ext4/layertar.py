"""An OCI layer as a disk: tar, gzipped, zstd-compressed or plain, to ext4 in a fixed VHD.

One pass over the stream, in bounded memory for its content: file data goes to the image while it
arrives, names and headers are kept until the end. The same tar gives the same bytes every time.
Source of the semantics: hcsshim ext4/tar2ext4 with ConvertWhiteout and AppendVhdFooter.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from snapshotter.compression import gains_from_a_thread, open_stream
from snapshotter.errors import DigestMismatchError, InvalidArgumentError, LayerError
from snapshotter.ext4.format import BLOCK_SIZE
from snapshotter.ext4.hashing import HashedChunks
from snapshotter.ext4.imagefile import ImageFile
from snapshotter.ext4.layertree import LayerTree
from snapshotter.ext4.tarheader import decode_members
from snapshotter.ext4.tarscan import TarScanner
from snapshotter.ext4.verity import VerityTree, write_verity
from snapshotter.ext4.writer import FIRST_DATA_BLOCK, MAX_DISK_BLOCKS, write_metadata
from snapshotter.units import GIB, KIB, MIB
from snapshotter.vhd import fixed_footer

_CHUNK: Final = 512 * KIB  # larger ones leave the processor's cache and are slower
_NAMESPACE: Final = uuids.UUID("9a5c1a1e-3f0b-5c0e-8f57-7a0d4f6f1d2b")


@dataclass(frozen=True, slots=True)
class ConversionLimits:
    """What a layer may cost. A hostile one is refused before it costs more."""

    max_disk: int = 128 * GIB
    max_file: int = 128 * GIB
    max_entries: int = 500_000  # with which a conversion stays below 150 MiB of memory
    max_metadata: int = 2 * GIB  # tar headers, extended ones included
    max_held: int = 64 * MIB  # names, link targets, distinct xattrs: they stay in memory
    max_stream: int = 256 * GIB  # uncompressed, what follows the end of the tar included

    def __post_init__(self) -> None:
        if not 0 < self.max_disk <= MAX_DISK_BLOCKS * BLOCK_SIZE:
            raise InvalidArgumentError(f"max_disk {self.max_disk}: give 1 byte to 128 GiB")
        if min(self.max_file, self.max_entries, self.max_metadata, self.max_stream) < 0:
            raise InvalidArgumentError("a limit below zero")


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """A layer that is on disk now."""

    diff_id: str  # "sha256:..." of the whole uncompressed stream, what follows the tar included
    uncompressed_size: int
    disk_size: int  # of the ext4 and its dm-verity tree; the file has 512 bytes more
    entries: int
    ignored_xattrs: tuple[str, ...]  # names in namespaces that ext4 does not have
    verity: VerityTree | None = None


def convert_layer(
    stream: BinaryIO,
    target: Path,
    *,
    limits: ConversionLimits | None = None,
    progress: Callable[[int], None] | None = None,
    durable: bool = True,
    checksums: bool = False,
    verity: bool = False,
    read_ahead: bool | None = None,
    cancel: Callable[[], object] | None = None,
    diff_id: str | None = None,
) -> ConvertedLayer:
    """Write the layer in `stream` to `target` and return what it is.

    `stream` is read to its end, with `read_ahead` by a thread where that gains: for streams
    whose reads never wait for anybody, or which `cancel` makes fail, from any thread; and the
    default for those that can seek. `progress` is told
    the uncompressed bytes so far. `durable` means that it survives a power cut from then on. Where
    a `diff_id` is given, the uncompressed stream must have it. On failure nothing is left and a
    `target` that was there before is untouched.
    Raises LayerError, DigestMismatchError, UnavailableError.
    """
    limits = limits or ConversionLimits()
    with ImageFile.create(target, durable=durable) as image:
        conversion = _Conversion(image, limits, checksums=checksums, verity=verity)
        opened = open_stream(stream)
        may = stream.seekable() if read_ahead is None else read_ahead
        ahead = may and gains_from_a_thread(opened)
        result = conversion.run(opened, progress, ahead=ahead, cancel=cancel)
        if diff_id is not None and result.diff_id != diff_id:
            raise DigestMismatchError(
                "uncompressed layer tar", expected=diff_id, actual=result.diff_id
            )
        image.publish()
    return result


class _Conversion:
    def __init__(
        self, image: ImageFile, limits: ConversionLimits, *, checksums: bool, verity: bool
    ) -> None:
        self._image = image
        self._limits = limits
        self._checksums = checksums
        self._verity = verity
        self._max_blocks = limits.max_disk // BLOCK_SIZE
        self._scanner = TarScanner(
            first_block=FIRST_DATA_BLOCK,
            end_block=self._max_blocks,
            max_file=limits.max_file,
            max_metadata=limits.max_metadata,
        )
        self._tree = LayerTree(max_held=limits.max_held)

    def run(
        self,
        stream: BinaryIO,
        progress: Callable[[int], None] | None,
        *,
        ahead: bool,
        cancel: Callable[[], object] | None,
    ) -> ConvertedLayer:
        image, scanner = self._image, self._scanner
        image.start_at(FIRST_DATA_BLOCK)
        done = 0
        with HashedChunks(stream, _CHUNK, ahead=ahead, cancel=cancel) as chunks:
            for chunk in chunks:
                done += len(chunk)
                if done > self._limits.max_stream:
                    raise LayerError(f"more than {self._limits.max_stream} bytes uncompressed")
                if not scanner.ended:
                    image.write_pieces(scanner.feed(chunk))
                    if scanner.batch_is_due:
                        self._collect()
                if progress:
                    progress(done)
            scanner.finish()
            self._collect()
            diff_id = f"sha256:{chunks.hexdigest()}"
        image.block = scanner.next_block
        blocks = write_metadata(
            image,
            self._tree,
            uuid=uuids.uuid5(_NAMESPACE, f"ext4 {diff_id}"),
            max_blocks=self._max_blocks,
            checksums=self._checksums,
        )
        size = blocks * BLOCK_SIZE
        image.truncate(size)
        tree = None
        if self._verity:
            tree = write_verity(image, size, uuid=uuids.uuid5(_NAMESPACE, f"verity {diff_id}"))
            size += tree.size
        unique_id = uuids.uuid5(_NAMESPACE, f"vhd {diff_id}")
        image.write_at(size, fixed_footer(size, unique_id=unique_id, timestamp=0))
        return ConvertedLayer(
            diff_id,
            uncompressed_size=done,
            disk_size=size,
            entries=self._tree.count,
            ignored_xattrs=tuple(dict.fromkeys(self._tree.ignored_xattrs)),
            verity=tree,
        )

    def _collect(self) -> None:
        """Move members from the scanner to the tree."""
        members = decode_members(self._scanner.take())
        if self._tree.count + len(members) > self._limits.max_entries:
            raise LayerError(f"more than {self._limits.max_entries} entries")
        self._tree.add(members)
