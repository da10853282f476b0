from __future__ import annotations

import json
import shutil
import struct
import subprocess
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import InvalidArgumentError, VhdError
from snapshotter.units import GIB, MIB, TIB
from snapshotter.vhd import FOOTER_SIZE, FixedVhd, Geometry, fixed_footer, parse_footer

ID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
NOON = 1_700_000_000

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="qemu-img is not installed (package qemu-utils)"
)


def footer(size: int = 64 * MIB) -> bytes:
    return fixed_footer(size, unique_id=ID, timestamp=NOON)


def resealed(raw: bytes, offset: int, layout: str, *values: int | bytes) -> bytes:
    """The footer with one field changed and its checksum right."""
    changed = bytearray(raw)
    struct.pack_into(layout, changed, offset, *values)
    changed[64:68] = bytes(4)
    changed[64:68] = struct.pack(">I", ~sum(changed) & 0xFFFF_FFFF)
    return bytes(changed)


@settings(max_examples=60, deadline=None)
@given(
    sectors=st.integers(1, 64 * TIB // 512),
    unique_id=st.uuids(),
    timestamp=st.integers(946_684_800, 946_684_800 + 0xFFFF_FFFF),
)
def test_a_footer_reads_back(sectors: int, unique_id: uuid.UUID, timestamp: int) -> None:
    raw = fixed_footer(sectors * 512, unique_id=unique_id, timestamp=timestamp)
    assert len(raw) == FOOTER_SIZE
    parsed = parse_footer(raw)
    assert parsed.current_size == parsed.original_size == sectors * 512
    assert (parsed.unique_id, parsed.timestamp) == (unique_id, timestamp)
    assert parsed.pack() == raw


def test_the_bytes_are_those_of_the_specification() -> None:
    raw = footer()
    assert raw[:40].hex() == (
        "636f6e6563746978" "00000002" "00010000" "ffffffffffffffff"
        f"{NOON - 946_684_800:08x}" "77696e20" "000a0000" "5769326b"
    )  # fmt: skip
    assert struct.unpack_from(">QQHBBI", raw, 40) == (64 * MIB, 64 * MIB, 963, 8, 17, 2)
    assert raw[68:84] == ID.bytes
    assert not any(raw[84:])


def test_times_before_2000_are_stored_as_2000() -> None:
    assert parse_footer(fixed_footer(512, unique_id=ID, timestamp=0)).timestamp == 946_684_800


@pytest.mark.parametrize(
    ("size", "geometry"),
    [
        (512, Geometry(0, 4, 17)),
        (20 * MIB, Geometry(602, 4, 17)),
        (100 * MIB, Geometry(1003, 12, 17)),
        (240 * MIB, Geometry(990, 16, 31)),
        (265_162_752, Geometry(513, 16, 63)),
        (504 * MIB, Geometry(1024, 16, 63)),
        (20 * GIB, Geometry(41610, 16, 63)),
        (100 * GIB, Geometry(51400, 16, 255)),
        (2 * TIB, Geometry(65535, 16, 255)),
    ],
)
def test_the_geometry_follows_the_appendix(size: int, geometry: Geometry) -> None:
    assert Geometry.of(size) == geometry


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4 * TIB // 512))
def test_the_geometry_never_holds_more_than_the_disk(sectors: int) -> None:
    found = Geometry.of(sectors * 512)
    assert found.cylinders * found.heads * found.sectors_per_track <= sectors
    assert found.cylinders <= 65535
    assert found.heads <= 16


@pytest.mark.parametrize("size", [0, -512, 513, 1 << 63])
def test_sizes_that_are_none_are_refused(size: int) -> None:
    with pytest.raises(InvalidArgumentError):
        fixed_footer(size, unique_id=ID, timestamp=NOON)


def test_a_footer_without_creator_time_and_geometry_is_read() -> None:
    raw = footer()
    for offset, layout in ((24, ">I"), (28, ">I"), (36, ">I"), (56, ">I")):  # as hcsshim's
        raw = resealed(raw, offset, layout, 0)
    parsed = parse_footer(raw)
    assert (parsed.current_size, parsed.geometry) == (64 * MIB, Geometry(0, 0, 0))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "512 bytes"),
        (bytes(512), "no VHD footer"),
        (footer()[:-1], "512 bytes"),
        (footer()[:100] + b"x" + footer()[101:], "checksum"),
        (resealed(footer(), 60, ">I", 3), "dynamic"),
        (resealed(footer(), 60, ">I", 4), "differencing"),
        (resealed(footer(), 60, ">I", 9), "type 9"),
        (resealed(footer(), 12, ">I", 0x20000), "version 2"),
        (resealed(footer(), 48, ">Q", 0), "size of 0"),
        (resealed(footer(), 48, ">Q", 1000), "size of 1000"),
    ],
)
def test_each_broken_footer_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(VhdError, match=message):
        parse_footer(raw)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=512, max_size=512))
def test_noise_is_refused(raw: bytes) -> None:
    with pytest.raises(VhdError):
        parse_footer(raw)


def write_vhd(path: Path, payload: bytes) -> None:
    path.write_bytes(payload + footer(len(payload)))


def test_the_disk_ends_before_the_footer(tmp_path: Path) -> None:
    write_vhd(tmp_path / "layer.vhd", b"ab" * 512)
    with FixedVhd.open(tmp_path / "layer.vhd") as disk:
        assert disk.size == 1024
        assert disk.read_at(0, 5000) == b"ab" * 512
        assert disk.read_at(1021, 2) == b"ba"
        assert disk.read_at(1024, 2) == b""
        with pytest.raises(InvalidArgumentError):
            disk.read_at(-1, 2)


def test_a_truncated_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "layer.vhd").write_bytes(bytes(1024) + footer(2048))
    with pytest.raises(VhdError, match="truncated"):
        FixedVhd.open(tmp_path / "layer.vhd")


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(4096)])
def test_files_without_a_footer_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "layer.vhd").write_bytes(content)
    with pytest.raises(VhdError):
        FixedVhd.open(tmp_path / "layer.vhd")


@needs_qemu
@pytest.mark.parametrize("size", [512, 20 * MIB + 512, 265_162_752, 859_898_368, 20 * GIB, 3 * TIB])
def test_qemu_reads_the_exact_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "layer.vhd"
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(footer(size))
    command = ["qemu-img", "info", "-f", "vpc", "--output", "json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if size > 2040 * GIB:  # the driver's own limit
        assert done.returncode != 0
        return
    assert json.loads(done.stdout)["virtual-size"] == size


@needs_qemu
def test_a_disk_made_by_qemu_is_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    options = "subformat=fixed,force_size=on"
    command = ["qemu-img", "create", "-f", "vpc", "-o", options, str(path), "10M"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    with FixedVhd.open(path) as disk:
        assert disk.size == 10 * MIB
        assert disk.footer.creator == b"qem2"
