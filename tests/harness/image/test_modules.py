"""Kernel modules: dependency order, compression, what is built in."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from harness.errors import ImageBuildError
from harness.image.modules import HYPERV, QEMU, ModuleInfo, ModuleTree


def module(depends: str = "", softdep: str = "") -> bytes:
    """An ELF file with nothing but a .modinfo section."""
    strings = [f"depends={depends}", "license=GPL"]
    if softdep:
        strings.append(f"softdep={softdep}")
    info = b"".join(s.encode() + b"\0" for s in strings)
    names = b"\0.modinfo\0.shstrtab\0"
    headers = 64 + len(info) + len(names)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    start = struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, headers, 0, 64, 0, 0, 64, 3, 2)

    def section(name: int, kind: int, at: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 1, 0)

    table = bytes(64) + section(1, 1, 64, len(info)) + section(10, 3, 64 + len(info), len(names))
    return ident + start + info + names + table


def tree(folder: Path, modules: dict[str, bytes], builtin: str = "") -> ModuleTree:
    kernel = folder / "kernel" / "drivers"
    kernel.mkdir(parents=True)
    for name, content in modules.items():
        (kernel / name).write_bytes(content)
    (folder / "modules.builtin").write_text(builtin)
    return ModuleTree([folder])


def test_dependencies_come_first_and_once(tmp_path: Path) -> None:
    found = tree(
        tmp_path,
        {
            "top.ko": module("left,right"),
            "left.ko": module("bottom"),
            "right.ko": module("bottom"),
            "bottom.ko": module(),
        },
    )
    assert found.load_order(["top", "left"]) == ["bottom", "left", "right", "top"]


def test_what_is_loaded_already_is_left_out(tmp_path: Path) -> None:
    found = tree(tmp_path, {"a.ko": module("b"), "b.ko": module("c"), "c.ko": module()})
    assert found.load_order(["a"], loaded=["c", "b"]) == ["a"]


def test_dashes_and_underscores_are_the_same(tmp_path: Path) -> None:
    found = tree(tmp_path, {"virtio-rng.ko": module("rng_core"), "rng-core.ko": module()})
    assert found.load_order(["virtio_rng"]) == ["rng_core", "virtio_rng"]


def test_what_is_built_in_is_not_loaded(tmp_path: Path) -> None:
    found = tree(tmp_path, {"a.ko": module("ext4")}, builtin="kernel/fs/ext4/ext4.ko\n")
    assert found.load_order(["ext4", "a"]) == ["a"]


def test_a_soft_dependency_is_loaded_before_if_it_is_there(tmp_path: Path) -> None:
    wanted = module(softdep="pre: crc32c gone post: after")
    found = tree(tmp_path, {"ext4.ko": wanted, "crc32c.ko": module(), "after.ko": module()})
    assert found.load_order(["ext4"]) == ["crc32c", "ext4"]


def test_a_missing_dependency_names_who_needs_it(tmp_path: Path) -> None:
    found = tree(tmp_path, {"a.ko": module("gone")})
    with pytest.raises(ImageBuildError, match="module gone, which a needs, is not in"):
        found.load_order(["a"])


def test_a_dependency_cycle_ends(tmp_path: Path) -> None:
    found = tree(tmp_path, {"a.ko": module("b"), "b.ko": module("a")})
    assert sorted(found.load_order(["a"])) == ["a", "b"]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".ko", bytes), (".ko.xz", lzma.compress), (".ko.zst", zstandard.ZstdCompressor().compress)],
)
def test_every_compression_is_read(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    found = tree(tmp_path, {f"a{suffix}": compress(module("")), "ignored.txt": b""})
    assert found.read("a") == module("")
    assert found.load_order(["a"]) == ["a"]


def test_a_damaged_module_is_named(tmp_path: Path) -> None:
    found = tree(tmp_path, {"a.ko.xz": b"no xz", "b.ko": b"no ELF"})
    with pytest.raises(ImageBuildError, match=r"a\.ko\.xz is damaged"):
        found.read("a")
    with pytest.raises(ImageBuildError, match=r"b\.ko: .*ELF"):
        found.load_order(["b"])


def test_modinfo_keeps_the_order_of_the_dependencies() -> None:
    assert ModuleInfo.parse(module("b,a-c")).depends == ("b", "a_c")


def test_the_sets_open_the_way_to_the_host_first() -> None:
    assert QEMU.first == ("virtio_pci", "virtio_console")
    assert HYPERV.first == ("hv_vmbus", "vsock", "hv_sock")
