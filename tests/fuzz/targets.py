"""What is fuzzed: a maker of inputs, what is done with one, and which errors are answers."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.gcs.codec import (
    Frame,
    FrameDecoder,
    FrameError,
    MessageError,
    decode_body,
    encode_frame,
    from_json,
)
from harness.gcs.mux import MuxEndpoint, MuxRole, MuxViolationError
from harness.gcs.prot import Create, ExecuteProcess, ModifySettings
from harness.hcs.document import ComputeSystem, lcow_document
from snapshotter.blockio import DiskContent
from snapshotter.bolt import BoltFile
from snapshotter.bolt.containerd import snapshots
from snapshotter.crc32c import crc32c
from snapshotter.errors import SnapshotterError
from snapshotter.ext4.layertar import ConversionLimits, convert_layer
from snapshotter.ext4.mkfs import format_ext4
from snapshotter.ext4.reader import Ext4
from snapshotter.filters import Filters
from snapshotter.imagearchive import ImageArchive
from snapshotter.units import GIB, KIB, MIB
from snapshotter.vhd import FOOTER_SIZE, fixed_footer, parse_footer
from snapshotter.vhdx import VhdxDisk, emit_vhdx
from tests.fuzz.mutation import mutate
from tests.snapshotter.bolt.golden import golden_database
from tests.snapshotter.vhdx.memory import MemoryFile


@dataclass(frozen=True)
class Target:
    """`make` gives an input for a seed, `run` uses it, `allowed` are the errors it may raise."""

    make: Callable[[random.Random], Any]
    run: Callable[[Any], object]
    allowed: tuple[type[Exception], ...] = (SnapshotterError,)


def _mutated_pieces(content: DiskContent, rng: random.Random) -> DiskContent:
    pieces = list(content.pieces)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(pieces))
        offset, data = pieces[at]
        pieces[at] = (offset, mutate(data, rng)[: len(data)])
    return replace(content, pieces=tuple(pieces))


# Checksummed VHDX structures: (offset, length, signature); [MS-VHDX] 2.2.
_CHECKED = ((64 * KIB, 4 * KIB), (128 * KIB, 4 * KIB), (192 * KIB, 64 * KIB), (256 * KIB, 64 * KIB))


def _vhdx(_: Path) -> Target:
    seed = emit_vhdx(format_ext4(GIB))

    def make(rng: random.Random) -> MemoryFile:
        file = MemoryFile.of(_mutated_pieces(seed, rng))
        if rng.random() < 0.8:  # else every mutation dies at its checksum
            for offset, length in _CHECKED:
                raw = bytearray(file.read_at(offset, length))
                raw[4:8] = bytes(4)
                file.write_at(offset + 4, crc32c(bytes(raw)).to_bytes(4, "little"))
        if rng.random() < 0.05:
            file.truncate(rng.randrange(file.size))
        return file

    def run(file: MemoryFile) -> None:
        with VhdxDisk.load(file) as disk:
            disk.info()
            for count, (offset, length) in enumerate(disk.allocated_ranges()):
                disk.read_at(offset, min(length, 64 * KIB))
                if count > 64:
                    break
            disk.read_at(max(0, disk.size - 512), 512)

    return Target(make, run)


def _ext4(_: Path) -> Target:
    plain, checked = format_ext4(GIB, checksums=False), format_ext4(GIB)

    def make(rng: random.Random) -> MemoryFile:
        return MemoryFile.of(_mutated_pieces(plain if rng.random() < 0.8 else checked, rng))

    def run(file: MemoryFile) -> None:
        files = Ext4.open(file)
        for count, (path, found) in enumerate(files.walk()):
            files.xattrs(path)
            if found.is_file:
                files.read(path, length=64 * KIB)
            if count > 256:
                break

    return Target(make, run)


def _sample_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        kinds = (
            ("d", tarfile.DIRTYPE, ""),
            ("d/file", tarfile.REGTYPE, ""),
            ("d/" + "long" * 40, tarfile.REGTYPE, ""),
            ("d/link", tarfile.SYMTYPE, "file"),
            ("d/hard", tarfile.LNKTYPE, "d/file"),
            ("d/null", tarfile.CHRTYPE, ""),
            ("d/.wh.gone", tarfile.REGTYPE, ""),
            ("d/.wh..wh..opq", tarfile.REGTYPE, ""),
        )
        for name, kind, link in kinds:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.pax_headers = {"SCHILY.xattr.user.a": "b", "mtime": "1.5"}
            data = b"content" * 100 if kind == tarfile.REGTYPE and ".wh." not in name else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _layer(directory: Path) -> Target:
    seed = _sample_tar()
    target = directory / "layer.vhd"
    limits = ConversionLimits(max_disk=64 * MIB, max_file=MIB, max_entries=1000, max_stream=MIB)

    def make(rng: random.Random) -> bytes:
        data = bytearray(mutate(seed, rng))
        if rng.random() < 0.8:
            for at in range(0, len(data) - 511, 512):  # headers, or data that is harmed harmlessly
                if data[at + 257 : at + 262] == b"ustar":
                    data[at + 148 : at + 156] = b" " * 8
                    data[at + 148 : at + 156] = b"%06o\0 " % (sum(data[at : at + 512]) & 0o777777)
        return bytes(data)

    def run(data: bytes) -> None:
        target.unlink(missing_ok=True)
        convert_layer(io.BytesIO(data), target, limits=limits)

    return Target(make, run)


def _image(directory: Path) -> Target:
    layer = _sample_tar()
    out = io.BytesIO()
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": []}})
    manifest = json.dumps([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": ["l/layer.tar"]}])
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in (
            ("manifest.json", manifest.encode()),
            ("c.json", config.encode()),
            ("l/layer.tar", layer),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    seed = out.getvalue()
    path = directory / "image.tar"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        with ImageArchive.open(path, spool_directory=directory) as archive:
            archive.image()

    return Target(lambda rng: mutate(seed, rng), run)


def _footer(_: Path) -> Target:
    import uuid

    seed = fixed_footer(GIB, unique_id=uuid.UUID(int=7), timestamp=0)
    assert len(seed) == FOOTER_SIZE
    return Target(lambda rng: mutate(seed, rng)[:FOOTER_SIZE], parse_footer)


def _filters(_: Path) -> Target:
    alphabet = 'namekindparentlabels.=!~,"/| \\x\n\u00e9'

    def make(rng: random.Random) -> str:
        words = ("kind==active", 'labels."a/b"~=/x+/', 'parent!=""', "name==k8s.io/1/sha256:ab")
        text = ",".join(rng.sample(words, rng.randint(1, 3)))
        for _ in range(rng.randint(0, 6)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(alphabet) + text[at + rng.randint(0, 2) :]
        return text

    return Target(make, lambda text: Filters.parse(text).where())


def _gcs(_: Path) -> Target:
    bodies = (
        {"ContainerId": "c", "Request": {"RequestType": "Add", "ResourceType": "CombinedLayers"}},
        {"ContainerId": "c", "Settings": {"ProcessParameters": '{"CommandArgs":["a"]}'}},
        {"ContainerId": "c", "ContainerConfig": '{"OciSpecification":{}}'},
    )
    seeds = [
        encode_frame(Frame(0x10100A01, number, json.dumps(body).encode()))
        for number, body in enumerate(bodies)
    ]

    def run(data: bytes) -> None:
        decoder = FrameDecoder(max_frame=64 * KIB)
        for at in range(0, len(data), 7):
            for frame in decoder.feed(data[at : at + 7]):
                body = decode_body(frame.body)
                for kind in (ModifySettings, ExecuteProcess, Create):
                    from_json(kind, body)

    return Target(
        lambda rng: mutate(b"".join(rng.choices(seeds, k=3)), rng), run, (FrameError, MessageError)
    )


def _mux(_: Path) -> Target:
    def make(rng: random.Random) -> bytes:
        guest = MuxEndpoint(MuxRole.GUEST)
        for port in range(rng.randint(1, 4)):
            guest.dial(port)
        return mutate(guest.data_to_send() * rng.randint(1, 3) + rng.randbytes(32), rng)

    def run(data: bytes) -> None:
        host = MuxEndpoint(MuxRole.HOST)
        for at in range(0, len(data), 5):
            host.receive(data[at : at + 5])
            host.data_to_send()

    return Target(make, run, (MuxViolationError,))


def _document(_: Path) -> Target:
    seed = json.dumps(
        lcow_document(owner="o", kernel="/k", initrd="/i", serial_pipe="console").to_json()
    ).encode()

    def run(data: bytes) -> None:
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(raw, dict):
            ComputeSystem.from_json(raw).to_json()

    return Target(lambda rng: mutate(seed, rng), run, (UsageError,))


def _bolt(_: Path) -> Target:
    seed = golden_database()

    def run(data: bytes) -> None:
        file = BoltFile.load(data)
        for _ in snapshots(file):
            pass

    return Target(lambda rng: mutate(seed, rng), run)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "vhdx": _vhdx,
    "ext4": _ext4,
    "layer": _layer,
    "image": _image,
    "footer": _footer,
    "filters": _filters,
    "gcs": _gcs,
    "mux": _mux,
    "document": _document,
    "bolt": _bolt,
}
