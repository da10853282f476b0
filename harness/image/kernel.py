"""A bzImage and the vmlinux inside it.

QEMU starts an uncompressed vmlinux through its PVH entry 0.2 to 0.3 s sooner than the bzImage under
emulation, and hcsshim's KernelDirect takes a vmlinux. Source: Linux
Documentation/arch/x86/boot.rst, "The Linux/x86 Boot Protocol"; payload_offset since protocol 2.08.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from harness.errors import ImageBuildError
from harness.image.elf import ELF_MAGIC

_SECTOR = 512
_HEADER_MAGIC = b"HdrS"
_MIN_PROTOCOL = 0x0208
_SIZE_SUFFIX = 4
"""Every payload but a gzip one is followed by its uncompressed size; gzip's own trailer ends so."""
_MAX_VMLINUX = 1 << 30

_LZ4_LEGACY_MAGIC = 0x184C2102
_LZ4_MIN_MATCH = 4


@dataclass(frozen=True, slots=True)
class BzImage:
    """A parsed bzImage: its release (`uname -r`) and the compressed kernel in it."""

    release: str
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> BzImage:
        """Read the boot protocol header. Raises ImageBuildError for anything else."""
        if data[0x202:0x206] != _HEADER_MAGIC:
            raise ImageBuildError("the kernel is no x86 bzImage: its boot header is missing")
        (protocol,) = struct.unpack_from("<H", data, 0x206)
        if protocol < _MIN_PROTOCOL:
            raise ImageBuildError(f"the kernel's boot protocol {protocol:#06x} is older than 2.08")
        setup_sectors = data[0x1F1] or 4  # 0 means 4, for the oldest loaders
        offset, length = struct.unpack_from("<II", data, 0x248)
        start = (setup_sectors + 1) * _SECTOR + offset
        if length <= _SIZE_SUFFIX or start + length > len(data):
            raise ImageBuildError(f"the kernel is cut short: {len(data)} bytes")
        (version_at,) = struct.unpack_from("<H", data, 0x20E)
        version = data[version_at + 0x200 :].split(b"\0", 1)[0] if version_at else b""
        release = version.split(b" ", 1)[0].decode("ascii", "replace")
        return cls(release or "unknown", data[start : start + length])

    def vmlinux(self) -> bytes:
        """The uncompressed ELF kernel. Raises ImageBuildError."""
        known = (entry for entry in _DECOMPRESSORS if self.payload.startswith(entry.magic))
        compression = next(known, None)
        if compression is None:
            raise ImageBuildError(
                f"the kernel's payload starts with {self.payload[:6].hex(' ')}: no compression that"
                " can be read here (gzip, xz, lzma, lz4, zstd, bzip2)"
            )
        try:
            image = compression.decompress(self.payload)
        except (ValueError, EOFError, IndexError, struct.error) as error:
            raise ImageBuildError(
                f"the kernel's {compression.name} payload is damaged: {error}"
            ) from error
        except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError) as error:
            raise ImageBuildError(
                f"the kernel's {compression.name} payload is damaged: {error}"
            ) from error
        name = compression.name
        expected = int.from_bytes(self.payload[-_SIZE_SUFFIX:], "little")
        if len(image) != expected:
            raise ImageBuildError(
                f"the kernel's {name} payload gave {len(image)} bytes instead of {expected}"
            )
        if image[:4] != ELF_MAGIC:
            raise ImageBuildError(f"the kernel's {name} payload holds no ELF file")
        return image


def decompress_lz4_legacy(data: bytes) -> bytes:
    """The content of an LZ4 "legacy" frame: a magic, then blocks of a 32-bit size and data.

    A size that exceeds what is left ends the frame (the kernel appends the uncompressed size).
    Takes 0.6 s for a 53 MB kernel. Raises ValueError. Source: lz4_Frame_format.md, "Legacy frame";
    lz4_Block_format.md.
    """
    if len(data) < 8 or int.from_bytes(data[:4], "little") != _LZ4_LEGACY_MAGIC:
        raise ValueError("no LZ4 legacy magic")
    blocks: list[bytes] = []
    at = 4
    while at + 4 < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if size > len(data) - at - 4:
            break
        blocks.append(_lz4_block(data[at + 4 : at + 4 + size]))
        at += 4 + size
    return b"".join(blocks)


def _lz4_block(source: bytes) -> bytes:
    out = bytearray()
    at, end = 0, len(source)
    while at < end:
        token = source[at]
        at += 1
        length = token >> 4
        if length == 15:
            while True:
                more = source[at]
                at += 1
                length += more
                if more != 255:
                    break
        if length:
            out += source[at : at + length]
            at += length
        if at >= end:
            break  # the last sequence is literals alone
        distance = source[at] | source[at + 1] << 8
        at += 2
        length = token & 15
        if length == 15:
            while True:
                more = source[at]
                at += 1
                length += more
                if more != 255:
                    break
        length += _LZ4_MIN_MATCH
        start = len(out) - distance
        if distance == 0 or start < 0:
            raise ValueError(f"LZ4 match {distance} bytes back in {len(out)} bytes")
        if distance >= length:
            out += out[start : start + length]
        else:  # overlapping: the pattern repeats
            out += (out[start:] * (length // distance + 1))[:length]
    if at != end:
        raise ValueError("LZ4 block ends inside a literal")
    return bytes(out)


def _gunzip(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, _MAX_VMLINUX)


def _unxz(data: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)


def _unlzma(data: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data)


def _bunzip2(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data)


def _unzstd(data: bytes) -> bytes:
    # The kernel is packed with --ultra -22: a window of 128 MiB, more than the default allows.
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    return decompressor.decompressobj().decompress(data)


@dataclass(frozen=True, slots=True)
class _Compression:
    magic: bytes
    name: str
    decompress: Callable[[bytes], bytes]


_DECOMPRESSORS = (
    _Compression(b"\x1f\x8b", "gzip", _gunzip),
    _Compression(b"\xfd7zXZ\0", "xz", _unxz),
    _Compression(_LZ4_LEGACY_MAGIC.to_bytes(4, "little"), "lz4", decompress_lz4_legacy),
    _Compression(b"\x28\xb5\x2f\xfd", "zstd", _unzstd),
    _Compression(b"BZh", "bzip2", _bunzip2),
    _Compression(b"\x5d\0\0", "lzma", _unlzma),
)
