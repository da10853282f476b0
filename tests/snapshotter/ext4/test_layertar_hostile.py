"""Layers that are damaged, hostile or too large end in one error, and nothing is left of them."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import InvalidArgumentError, LayerError, UnavailableError
from snapshotter.ext4.layertar import ConversionLimits, convert_layer
from snapshotter.units import GIB, KIB, MIB
from tests.snapshotter.ext4.layers import CHR, DIR, LNK, SYM, convert, member, tar
from tests.snapshotter.ext4.oracles import mounted

Member = tuple[tarfile.TarInfo, bytes]

HOSTILE: dict[str, tuple[list[Member], str]] = {
    "parent": ([member("../up")], r"\.\./up: .*leaves the layer"),
    "inner parent": ([member("a/../../up")], "leaves the layer"),
    "last parent": ([member("a/..", kind=DIR)], "leaves the layer"),
    "absolute": ([member("/etc/passwd")], "/etc/passwd: an absolute name"),
    "long component": ([member("n" * 256)], "256 bytes"),
    "long inner component": ([member("n" * 256 + "/f")], "256 bytes"),
    "long path": ([member("/".join(["n" * 200] * 21))], "Linux allows 4095"),
    "file at root": ([member("./")], "root of the layer"),
    "below a file": ([member("f"), member("f/below")], "f/below: .*not a directory"),
    "below a symlink": (
        [member("link", kind=SYM, link="/etc"), member("link/passwd")],
        "link/passwd: .*not a directory",
    ),
    "link out": ([member("f", kind=LNK, link="../f")], "leaves the layer"),
    "absolute link": ([member("f", kind=LNK, link="/f")], "absolute"),
    "link to nothing": ([member("f", kind=LNK, link="later"), member("later")], "not before it"),
    "link to a directory": ([member("d", kind=DIR), member("f", kind=LNK, link="d")], "not a file"),
    "link to the root": ([member("f", kind=LNK, link=".")], "not before it|not a file"),
    "link through a symlink": (
        [member("d/f"), member("s", kind=SYM, link="d"), member("h", kind=LNK, link="s/f")],
        "not before it",
    ),
    "link to a whiteout": ([member(".wh.f"), member("h", kind=LNK, link="f")], "not a file"),
    "whiteout of nothing": ([member(".wh.")], "whiteout of no name"),
    "whiteout of the parent": ([member("d/.wh...")], "whiteout of no name"),
    "whiteout of itself": ([member("d/.wh..")], "whiteout of no name"),
    "below a whiteout": ([member(".wh.d/f")], "below a whiteout"),
    "empty symlink": ([member("s", kind=SYM)], "symlink"),
    "long symlink": ([member("s", kind=SYM, link="t" * 4096)], "symlink"),
    "lost+found as a file": ([member("lost+found")], "ext4 keeps"),
    "device number": ([member("d", kind=CHR, device=(4096, 0))], "4096:0"),
    "xattrs too large": ([member("f", xattrs={"user.a": "x" * 5000})], "f: xattr user.a"),
    "acl of another version": ([member("f", xattrs={"system.posix_acl_access": "x"})], "f: .*ACL"),
    "unknown type": ([member("f", kind=b"V")], "type 'V'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members_are_refused_by_name(tmp_path: Path, case: str) -> None:
    members, message = HOSTILE[case]
    target = tmp_path / "layer.vhd"
    with pytest.raises(LayerError, match=message):
        convert(tar(*members), target)
    assert os.listdir(tmp_path) == []


def header(name: bytes = b"f", *, size: bytes = b"00000000001\0", kind: bytes = b"0") -> bytes:
    raw = bytearray(512)
    raw[: len(name)] = name
    raw[100:124] = b"0000644\0" * 3
    raw[124:136] = size
    raw[136:148] = b"00000000000\0"
    raw[148:156] = b" " * 8
    raw[156:157] = kind
    raw[257:265] = b"ustar\x0000"
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


RAW: dict[str, bytes] = {
    "nothing": b"",
    "text": b"this is no tar at all\n" * 100,
    "zeros, then data": bytes(512) + header(size=b"00000000000\0") + bytes(1024),
    "no name": header(b"", size=b"00000000000\0") + bytes(1024),
    "a size of letters": header(size=b"0000000000x\0") + bytes(1536),
    "a negative size": header(size=b"\xff" * 12) + bytes(1536),
    "a size of 2^88": header(size=b"\x80" + b"\x7f" * 11) + bytes(1536),
    "a PAX record without length": header(kind=b"x", size=b"00000000005\0") + b"path\n",
    "a PAX length too long": header(kind=b"x", size=b"00000000011\0") + b"99 path=f",
    "a PAX size of letters": header(kind=b"x", size=b"00000000014\0")
    + b"12 size=abc\n".ljust(512, b"\0")
    + header()
    + bytes(1536),
    "a PAX time of letters": header(kind=b"x", size=b"00000000015\0")
    + b"13 mtime=abc\n".ljust(512, b"\0")
    + header()
    + bytes(1536),
    "a NUL in a PAX name": header(kind=b"x", size=b"00000000014\0")
    + b"12 path=a\0b\n".ljust(512, b"\0")
    + header()
    + bytes(1536),
    "an extended header of 1 GiB": header(kind=b"x", size=b"10000000000\0"),
    "an extended header at the end": header(kind=b"L", size=b"00000000002\0")
    + b"f\0".ljust(512, b"\0")
    + bytes(1024),
    "a damaged extended header": bytes([header(kind=b"L")[0] ^ 1])
    + header(kind=b"L")[1:]
    + b"n".ljust(512, b"\0")
    + header()
    + bytes(1536),
    "GNU sparse by PAX": header(kind=b"x", size=b"00000000026\0")
    + b"22 GNU.sparse.major=1\n".ljust(512, b"\0")
    + header()
    + bytes(1536),
}


@pytest.mark.parametrize("case", RAW)
def test_what_is_not_a_tar_is_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(LayerError):
        convert(RAW[case], tmp_path / "layer.vhd")
    assert os.listdir(tmp_path) == []


SAMPLE = tar(
    member("d", kind=DIR),
    member("d/" + "long" * 40, b"x" * 700, xattrs={"user.a": "b"}),
    member("s", kind=SYM, link="t" * 120),
    member("f", b"y" * 5000),
    member("h", kind=LNK, link="f"),
)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, len(SAMPLE) - 1))
def test_a_tar_cut_anywhere_is_an_error_or_ends_between_members(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    target = tmp_path_factory.mktemp("cut") / "layer.vhd"
    try:
        convert(SAMPLE[:cut], target)
    except LayerError:
        assert not target.exists()
    else:
        assert cut % 512 == 0 or not SAMPLE[cut - cut % 512 : cut].strip(b"\0")


@settings(max_examples=150, deadline=None)
@given(
    place=st.integers(0, len(SAMPLE) - 1),
    change=st.binary(min_size=1, max_size=12),
    seal=st.booleans(),
)
def test_damage_anywhere_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: bytes, seal: bool
) -> None:
    raw = bytearray(SAMPLE)
    raw[place : place + len(change)] = change
    if seal:  # a header whose checksum is right again
        start = place - place % 512
        block = raw[start : start + 512]
        block[148:156] = b" " * 8
        raw[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    target = tmp_path_factory.mktemp("damage") / "layer.vhd"
    try:
        convert(bytes(raw), target, limits=ConversionLimits(max_disk=64 * MIB))
    except LayerError:
        assert not target.exists()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ConversionLimits(max_disk=1 * MIB), "big.*disk of more than"),
        (ConversionLimits(max_file=64 * KIB), "big.*over 65536"),
        (ConversionLimits(max_entries=4), "more than 4 entries"),
        (ConversionLimits(max_stream=1 * MIB), "more than 1048576 bytes"),
        (ConversionLimits(max_metadata=1 * KIB), "headers"),
    ],
)
def test_limits_hold(tmp_path: Path, limits: ConversionLimits, message: str) -> None:
    small = [member(f"f{number}" + "n" * 120) for number in range(4)]
    raw = tar(*small, member("big", b"x" * 2 * MIB))
    with pytest.raises(LayerError, match=message):
        convert(raw, tmp_path / "layer.vhd", limits=limits)
    assert os.listdir(tmp_path) == []


def test_the_disk_limit_counts_metadata_too(tmp_path: Path) -> None:
    raw = tar(*(member(f"d{number}", kind=DIR) for number in range(300)))
    with pytest.raises(LayerError, match="needs a disk of"):
        convert(raw, tmp_path / "layer.vhd", limits=ConversionLimits(max_disk=1 * MIB))


def test_limits_beyond_the_format_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="128 GiB"):
        ConversionLimits(max_disk=128 * GIB + 1)
    with pytest.raises(InvalidArgumentError):
        ConversionLimits(max_entries=-1)


def test_too_many_hard_links_are_refused(tmp_path: Path) -> None:
    links = (member(str(number), kind=LNK, link="f") for number in range(65_000))
    with pytest.raises(LayerError, match="65000 hard links"):
        convert(tar(member("f"), *links), tmp_path / "layer.vhd")


def test_a_failure_leaves_the_earlier_target_alone(tmp_path: Path) -> None:
    target = tmp_path / "layer.vhd"
    target.write_bytes(b"earlier")
    with pytest.raises(LayerError):
        convert(SAMPLE[:700], target)
    assert target.read_bytes() == b"earlier"
    convert(SAMPLE, target)
    assert target.read_bytes() != b"earlier"
    assert os.listdir(tmp_path) == ["layer.vhd"]


def test_a_stream_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class _Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        convert_layer(_Broken(), tmp_path / "layer.vhd")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_the_environments_fault(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot create"):
        convert(SAMPLE, tmp_path / "missing" / "layer.vhd")


@pytest.mark.root
def test_a_full_disk_is_the_environments_fault_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "small.raw"
    with disk.open("wb") as file:
        file.truncate(4 * MIB)
    subprocess.run(["mke2fs", "-qF", "-t", "ext4", "-O", "^has_journal", disk], check=True)
    with mounted(disk, tmp_path / "mnt", "rw") as root:
        before = os.listdir(root)
        with pytest.raises(UnavailableError, match="No space left"):
            convert(tar(member("f", os.urandom(8 * MIB))), root / "layer.vhd")
        assert os.listdir(root) == before


def test_extended_headers_without_end_are_refused(tmp_path: Path) -> None:
    record = b"20480 SCHILY.xattr.user.a=".ljust(20479, b"x") + b"\n"
    raw = header(kind=b"x", size=b"%011o\0" % len(record)) + record
    with pytest.raises(LayerError, match="extended headers of one member"):
        convert(raw * 60, tmp_path / "layer.vhd")
