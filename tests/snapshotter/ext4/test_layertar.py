"""A layer tar becomes an ext4 whose tree is the tar's, with whiteouts in overlayfs' form."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import pytest
import zstandard

from snapshotter.ext4.layertar import convert_layer
from snapshotter.units import MIB
from snapshotter.vhd import FOOTER_SIZE, parse_footer
from tests.snapshotter.ext4.layers import (
    BLK,
    CHR,
    DIR,
    FIFO,
    LNK,
    SYM,
    convert,
    converted,
    files_of,
    member,
    tar,
)
from tests.snapshotter.ext4.oracles import debugfs

OPAQUE = {"trusted.overlay.opaque": b"y"}


def test_every_type_of_member_arrives(tmp_path: Path) -> None:
    files = converted(
        tmp_path,
        member("etc", kind=DIR, mode=0o750, uid=1000, gid=2000, mtime=1_600_000_000),
        member("etc/passwd", b"root:x:0:0\n", mode=0o600, uid=70_000, gid=80_000, mtime=-5),
        member("etc/empty"),
        member("etc/fast", kind=SYM, link="passwd"),
        member("etc/slow", kind=SYM, link="x" * 300),
        member("etc/hard", kind=LNK, link="etc/passwd"),
        member("dev/console", kind=CHR, device=(5, 1), mode=0o620),
        member("dev/sda300", kind=BLK, device=(259, 300)),
        member("run/pipe", kind=FIFO),
    )
    etc = files.stat("/etc")
    assert (etc.mode, etc.uid, etc.gid, etc.links) == (0o040750, 1000, 2000, 2)
    assert etc.mtime_ns == 1_600_000_000 * 10**9
    passwd = files.stat("/etc/passwd")
    assert (passwd.mode, passwd.uid, passwd.gid, passwd.links) == (0o100600, 70_000, 80_000, 2)
    assert passwd.mtime_ns == -5 * 10**9
    assert files.read("/etc/passwd") == b"root:x:0:0\n"
    assert files.read("/etc/empty") == b""
    assert files.readlink("/etc/fast") == "passwd"
    assert files.readlink("/etc/slow") == "x" * 300
    assert files.stat("/etc/hard").inode == passwd.inode
    assert files.stat("/dev/console").device == (5, 1)
    assert files.stat("/dev/sda300").device == (259, 300)
    assert files.stat("/run/pipe").mode == 0o010644
    assert sorted(files.listdir("/")) == ["dev", "etc", "lost+found", "run"]


@pytest.mark.parametrize("length", [1, 59, 60, 61, 4095])
def test_symlinks_of_any_length_arrive(tmp_path: Path, length: int) -> None:
    files = converted(tmp_path, member("link", kind=SYM, link="t" * length))
    assert files.readlink("link") == "t" * length


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 512 * 1024 - 511, 512 * 1024, 3 * MIB + 1])
def test_files_of_any_size_arrive(tmp_path: Path, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    files = converted(tmp_path, member("a", b"first"), member("f", data[:size]), member("z", b"!"))
    assert files.read("f") == data[:size]
    assert (files.read("a"), files.read("z")) == (b"first", b"!")


def test_names_split_over_the_prefix_field_arrive(tmp_path: Path) -> None:
    name = "/".join(["directory" * 4] * 4) + "/" + "f" * 90
    target = tmp_path / "layer.vhd"
    convert(tar(member(name, b"deep"), form=tarfile.USTAR_FORMAT), target)
    assert files_of(target).read(name) == b"deep"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_links_arrive(tmp_path: Path, form: int) -> None:
    name = "/".join(["directory" * 4] * 8) + "/" + "n" * 255
    members = [
        member(name, b"long"),
        member("hard", kind=LNK, link=name),
        member("soft" * 40, kind=SYM, link="s" * 200),
    ]
    target = tmp_path / "layer.vhd"
    convert(tar(*members, form=form), target)
    files = files_of(target)
    assert files.read(name) == files.read("hard") == b"long"
    assert files.readlink("soft" * 40) == "s" * 200


def test_pax_gives_fractions_of_seconds_and_large_owners(tmp_path: Path) -> None:
    files = converted(
        tmp_path,
        member("after", mtime=1_700_000_000.25, uid=3_000_000_000, gid=4_000_000_000),
        member("before", mtime=-1.5),
        member("far", mtime=5_000_000_000.5),
    )
    after = files.stat("after")
    assert after.mtime_ns == 1_700_000_000_250_000_000
    assert (after.uid, after.gid) == (3_000_000_000, 4_000_000_000)
    assert files.stat("before").mtime_ns == -1_500_000_000
    assert files.stat("far").mtime_ns == 5_000_000_000_500_000_000


def test_names_of_any_bytes_arrive(tmp_path: Path) -> None:
    names = [
        "hällo",
        "日本",
        "raw\udcff\udc80",
        "new\nline",
        "back\\slash",
        " space ",
        ".hidden",
        "a..b",
    ]
    files = converted(
        tmp_path, *(member(name, name.encode(errors="surrogateescape")) for name in names)
    )
    for name in names:
        assert files.read(name) == name.encode(errors="surrogateescape")


def test_dotted_prefixes_and_doubled_slashes_are_only_spelling(tmp_path: Path) -> None:
    files = converted(
        tmp_path,
        member("./", kind=DIR, mode=0o711, uid=5),
        member("./usr//bin/./tool", b"x"),
        member("./usr/lib/", kind=DIR, mode=0o700),
        member("link", kind=LNK, link="./usr/bin/tool"),
    )
    assert files.stat("/").mode == 0o040711
    assert files.stat("/").uid == 5
    assert files.stat("/usr/lib").mode == 0o040700
    assert files.stat("/usr/bin/tool").links == 2


def test_missing_parents_look_like_the_directory_above_them(tmp_path: Path) -> None:
    files = converted(
        tmp_path,
        member("srv", kind=DIR, mode=0o2770, uid=12, gid=34, mtime=99),
        member("srv/a/b/file", b"x", uid=1),
    )
    for path in ("srv/a", "srv/a/b"):
        made = files.stat(path)
        assert (made.mode, made.uid, made.gid) == (0o042770, 12, 34)
        assert made.mtime_ns == 99 * 10**9
    assert files.stat("srv").links == 3


def test_xattrs_arrive_in_the_inode_and_in_a_block(tmp_path: Path) -> None:
    xattrs = {
        "user.small": "1",
        "user.empty": "",
        "security.capability": "c" * 20,
        "user.large": "v" * 3000,
        "trusted.t": "t" * 50,
    }
    target = tmp_path / "layer.vhd"
    convert(tar(member("f", b"x", xattrs=xattrs), member("d", kind=DIR, xattrs=xattrs)), target)
    files = files_of(target)
    expected = {name: value.encode() for name, value in xattrs.items()}
    assert files.xattrs("f") == expected
    assert files.xattrs("d") == expected
    assert "user.small" in debugfs(target.with_suffix(".ext4"), "ea_list /f")


def test_posix_acls_come_back_in_the_form_of_the_system_calls(tmp_path: Path) -> None:
    no_id = 0xFFFF_FFFF
    entries = [
        (1, 6, no_id),
        (2, 4, 1000),
        (4, 4, no_id),
        (8, 2, 50),
        (16, 6, no_id),
        (32, 4, no_id),
    ]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    name = "system.posix_acl_access"
    files = converted(tmp_path, member("f", xattrs={name: acl.decode("utf-8", "surrogateescape")}))
    assert files.xattrs("f") == {name: acl}


def test_xattrs_that_ext4_has_no_name_for_are_left_out_and_named(tmp_path: Path) -> None:
    target = tmp_path / "layer.vhd"
    result = convert(
        tar(member("f", xattrs={"com.apple.provenance": "x", "user.kept": "y"})), target
    )
    assert result.ignored_xattrs == ("com.apple.provenance",)
    assert files_of(target).xattrs("f") == {"user.kept": b"y"}


def test_the_last_member_of_a_name_wins(tmp_path: Path) -> None:
    files = converted(
        tmp_path,
        member("f", b"old" * 5000),
        member("linked", kind=LNK, link="f"),
        member("f", b"new"),
        member("was-file", b"x" * 9000),
        member("was-file", kind=SYM, link="f"),
        member("was-dir/below/file", b"gone" * 3000),
        member("was-dir", b"now a file"),
        member("d", kind=DIR, mode=0o700, xattrs={"user.a": "1", "user.b": "1"}),
        member("d/kept", b"kept"),
        member("d", kind=DIR, mode=0o755, xattrs={"user.b": "2"}),
    )
    assert files.read("f") == b"new"
    assert files.read("linked") == b"old" * 5000
    assert files.stat("linked").links == 1
    assert files.readlink("was-file") == "f"
    assert files.read("was-dir") == b"now a file"
    assert files.read("d/kept") == b"kept"
    assert files.stat("d").mode == 0o040755
    assert files.xattrs("d") == {"user.a": b"1", "user.b": b"2"}


def test_the_blocks_of_replaced_files_are_free(tmp_path: Path) -> None:
    once, twice = tmp_path / "once.vhd", tmp_path / "twice.vhd"
    convert(tar(member("f", b"x" * MIB)), once)
    convert(tar(member("f", b"y" * MIB), member("f", b"x" * MIB)), twice)
    free = files_of(twice).superblock.free_blocks_count
    assert free - files_of(once).superblock.free_blocks_count == MIB // 4096


def test_hard_links_may_lead_to_symlinks_devices_and_themselves(tmp_path: Path) -> None:
    files = converted(
        tmp_path,
        member("soft", kind=SYM, link="nowhere"),
        member("soft2", kind=LNK, link="soft"),
        member("null", kind=CHR, device=(1, 3)),
        member("null2", kind=LNK, link="null"),
        member("null2", kind=LNK, link="null2"),
        member("d/file", b"kept"),
        member("d", kind=LNK, link="d/file"),
    )
    assert files.readlink("soft2") == "nowhere"
    assert files.stat("null2").device == (1, 3)
    assert files.stat("null").links == 2
    assert files.read("d") == b"kept"
    assert files.stat("d").links == 1


def test_whiteouts_become_devices_of_number_zero(tmp_path: Path) -> None:
    files = converted(tmp_path, member("etc/.wh.gone"), member("etc/.wh..hidden"))
    assert sorted(files.listdir("etc")) == [".hidden", "gone"]
    assert files.stat("etc/gone").is_whiteout
    assert files.stat("etc/gone").mode == 0o020000


def test_opaque_marks_become_an_xattr(tmp_path: Path) -> None:
    files = converted(
        tmp_path,
        member("d/.wh..wh..opq"),
        member("d", kind=DIR, mode=0o711, xattrs={"user.x": "1"}),
        member(".wh..wh..opq"),
    )
    assert files.xattrs("d") == {**OPAQUE, "user.x": b"1"}
    assert files.listdir("d") == []
    assert files.xattrs("/") == OPAQUE


def test_a_whiteout_hides_lower_layers_but_nothing_of_its_own(tmp_path: Path) -> None:
    files = converted(
        tmp_path,
        member("first-file", b"1"),
        member(".wh.first-file"),
        member(".wh.then-file"),
        member("then-file", b"2"),
        member("first-dir/f", b"3"),
        member(".wh.first-dir"),
        member(".wh.then-dir"),
        member("then-dir", kind=DIR),
        member(".wh.made"),
        member("made/f", b"4"),
    )
    assert files.read("first-file") == b"1"
    assert files.read("then-file") == b"2"
    assert files.read("first-dir/f") == b"3"
    assert files.read("made/f") == b"4"
    for directory in ("first-dir", "then-dir", "made"):
        assert files.xattrs(directory) == OPAQUE


def test_the_bookkeeping_of_aufs_is_left_out(tmp_path: Path) -> None:
    files = converted(
        tmp_path,
        member(".wh..wh.plnk", kind=DIR),
        member(".wh..wh.plnk/123.456", b"data" * 2000),
        member("f", b"x"),
        member(".wh..wh.aufs"),
    )
    assert sorted(files.listdir("/")) == ["f", "lost+found"]
    assert files.read("f") == b"x"


def test_an_empty_tar_is_an_empty_file_system(tmp_path: Path) -> None:
    files = converted(tmp_path)
    assert files.listdir("/") == ["lost+found"]


def test_a_tar_without_its_end_mark_is_whole(tmp_path: Path) -> None:
    raw = tar(member("f", b"x"))[: 2 * 512]
    result = convert(raw, tmp_path / "layer.vhd")
    assert result.entries == 1


def test_large_directories_span_blocks(tmp_path: Path) -> None:
    names = [f"{number:05}-{'n' * (number % 97)}" for number in range(5000)]
    files = converted(tmp_path, *(member(f"d/{name}") for name in names))
    assert sorted(files.listdir("d")) == sorted(names)


def test_more_inodes_than_a_group_holds(tmp_path: Path) -> None:
    files = converted(tmp_path, *(member(f"{number % 10}/{number}") for number in range(33_000)))
    assert sum(len(files.listdir(str(number))) for number in range(10)) == 33_000


def test_the_digest_covers_the_whole_uncompressed_stream(tmp_path: Path) -> None:
    raw = tar(member("f", b"x" * 700_000)) + bytes(10_240) + b"after the end"
    forms = [raw, gzip.compress(raw, 1), zstandard.compress(raw)]
    results = []
    for number, form in enumerate(forms):
        results.append(convert(form, tmp_path / f"{number}.vhd"))
    assert results[0].diff_id == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert results[0].uncompressed_size == len(raw)
    assert results[1] == results[2] == results[0]
    assert (tmp_path / "1.vhd").read_bytes() == (tmp_path / "0.vhd").read_bytes()


def test_the_same_tar_gives_the_same_bytes(tmp_path: Path) -> None:
    raw = tar(member("f", b"x", mtime=5, xattrs={"user.a": "1" * 200}), member("d", kind=DIR))
    first, second = tmp_path / "first.vhd", tmp_path / "second.vhd"
    assert convert(raw, first) == convert(raw, second)
    assert first.read_bytes() == second.read_bytes()
    convert(raw + bytes(512), second)
    assert first.read_bytes() != second.read_bytes()


def test_the_file_ends_in_the_footer_of_a_fixed_vhd(tmp_path: Path) -> None:
    target = tmp_path / "layer.vhd"
    result = convert(tar(member("f", b"x")), target)
    raw = target.read_bytes()
    assert len(raw) == result.disk_size + FOOTER_SIZE
    assert parse_footer(raw[-FOOTER_SIZE:]).current_size == result.disk_size


def test_progress_counts_uncompressed_bytes(tmp_path: Path) -> None:
    raw = tar(member("f", b"x" * 3 * MIB))
    seen: list[int] = []
    stream = io.BytesIO(gzip.compress(raw, 1))
    convert_layer(stream, tmp_path / "layer.vhd", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == len(raw)
    assert len(seen) > 3


def test_directories_with_more_children_than_links_can_count(tmp_path: Path) -> None:
    target = tmp_path / "layer.vhd"
    folders = (member(f"d/{number}", kind=DIR) for number in range(65_000))
    convert(tar(*folders, form=tarfile.USTAR_FORMAT), target)
    files = files_of(target)
    assert files.stat("d").links == 1
    assert len(files.listdir("d")) == 65_000
