"""The whole image: concurrent builders, damage, no package lists, a kernel of one's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cachedir import IMAGES, cache_directory
from harness.errors import ImageBuildError
from harness.image.build import UvmImage, ensure_image
from harness.image.packages import Apt
from harness.image.rootdisk import ensure_root_disk
from harness.image.sources import GuestSources
from harness.image.userland import Userland
from tests.harness.image.conftest import PROGRAM

_BUILD = f"""
from harness.image.build import ensure_image
from harness.image.sources import GuestSources
image = ensure_image(progress=print, sources=GuestSources({PROGRAM!r}))
print("KEY", image.key)
"""
_NO_LISTS = Apt(["-o", "Dir::State::lists=/nonexistent"])


@pytest.fixture(scope="module")
def image(userland: Userland) -> UvmImage:
    return ensure_image(sources=GuestSources(PROGRAM))


def test_a_warm_call_costs_less_than_300_ms(image: UvmImage, sources: GuestSources) -> None:
    took = []
    for _ in range(3):
        started = time.process_time()
        assert ensure_image(sources=sources) == image
        took.append(time.process_time() - started)
    assert min(took) < 0.3


def test_the_image_lists_every_package_in_it(image: UvmImage) -> None:
    document = json.loads(image.spdx.read_bytes())
    assert document["spdxVersion"] == "SPDX-2.3"
    names = {package["name"] for package in document["packages"]}
    assert {"lcowlab-uvm", "crun", "busybox-static", "e2fsprogs", "libc6"} <= names
    assert any(name.startswith("linux-image-") for name in names)
    ids = [package["SPDXID"] for package in document["packages"]]
    assert len(set(ids)) == len(ids)
    related = {r["relatedSpdxElement"] for r in document["relationships"]}
    assert related == set(ids)


def test_the_kernel_is_there_in_both_forms(image: UvmImage) -> None:
    assert image.vmlinux.read_bytes()[:4] == b"\x7fELF"
    assert image.bzimage.read_bytes()[0x202:0x206] == b"HdrS"
    assert image.initrd.stat().st_size <= 25_000_000
    assert image.kernel_version[0].isdigit()


def test_the_standard_flavour_has_nothing_of_the_protected_one(image: UvmImage) -> None:
    content = image.initrd.read_bytes()
    for name in (b"dm_crypt.ko", b"xfs.ko", b"sbin/cryptsetup", b"lcowlab/extra"):
        assert name not in content
    assert b"virtio_scsi.ko" in content


def test_the_bootstrap_has_what_leads_to_a_disk_and_no_more(image: UvmImage) -> None:
    content = ensure_root_disk(image).bootstrap.read_bytes()
    for name in (b"virtio_scsi.ko", b"sd_mod.ko", b"hv_storvsc.ko", b"qemu.root", b"hyperv.root"):
        assert name in content
    for name in (b"virtio_console.ko", b"overlay.ko", b"python"):
        assert name not in content


def test_without_package_lists_the_last_image_is_used(
    image: UvmImage, sources: GuestSources
) -> None:
    said: list[str] = []
    assert ensure_image(sources=sources, apt=_NO_LISTS, progress=said.append) == image
    assert any("earlier state" in line and "apt-get update" in line for line in said)


def test_without_lists_or_image_the_error_says_what_to_do(
    private_cache: Path, sources: GuestSources
) -> None:
    with pytest.raises(ImageBuildError, match="apt-get update"):
        ensure_image(sources=sources, apt=_NO_LISTS)


def test_a_kernel_without_modules_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match="both or none"):
        ensure_image(kernel=tmp_path / "bzImage")


def test_a_kernel_of_ones_own_replaces_the_packaged_one(
    private_cache: Path, image: UvmImage, sources: GuestSources
) -> None:
    kernel, modules = image.bzimage, image.bzimage.parent / "modules"
    built = tuple(modules.glob("*.ko"))
    folder = private_cache / "own"
    folder.mkdir()
    for module in built:
        (folder / module.name).write_bytes(module.read_bytes())
    (folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    own = ensure_image(kernel=kernel, modules=folder, sources=sources)
    assert own.vmlinux.read_bytes() == image.vmlinux.read_bytes()
    assert own.key != image.key
    own_modules = own.vmlinux.parent / "modules"
    for name in ("qemu.first", "qemu.later", "hyperv.first", "hyperv.later"):
        assert (own_modules / name).read_text() == (modules / name).read_text()


def test_concurrent_builders_share_one_build_and_damage_is_repaired(
    private_cache: Path, image: UvmImage
) -> None:
    kernel = image.vmlinux.parent
    shutil.copytree(kernel, private_cache / IMAGES / "kernel" / kernel.name)
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", _BUILD],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for _ in range(2)
    ]
    output = [builder.communicate(timeout=120)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], output
    said = "".join(output)
    assert said.count("writing the initrd") == 1
    assert "extracting the kernel" not in said
    assert len({line for line in said.splitlines() if line.startswith("KEY ")}) == 1

    sources = GuestSources(PROGRAM)
    image = ensure_image(sources=sources)
    assert image.initrd.is_relative_to(cache_directory())
    original = image.initrd.read_bytes()
    image.initrd.write_bytes(original[:-1] + b"x")
    notices: list[str] = []
    assert ensure_image(sources=sources, progress=notices.append) == image
    assert image.initrd.read_bytes() == original
    assert any("differs from its SHA-256" in notice for notice in notices)
    leftovers = [p for p in private_cache.glob("*/.*") if p.suffix != ".lock"]
    assert leftovers == []
