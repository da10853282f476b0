"""Scratch disks outside the root, and the template file there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    SnapshotterError,
)
from snapshotter.ext4.format import Superblock
from snapshotter.ext4.mkfs import format_ext4
from snapshotter.labels import LOCATION, MAX_SIZE, OWNER_KEY, REUSE_SCRATCH, SIZE_GB
from snapshotter.platform import Platform
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB
from snapshotter.vhdx import VhdxDisk, emit_vhdx, write_content

JOURNAL_MIB = 8


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    return tmp_path / "fast"


@pytest.fixture
def here(tmp_path: Path, fast: Path, platform: Platform) -> Iterator[Snapshotter]:
    with Snapshotter.open(
        tmp_path / "root",
        durable=False,
        platform=platform,
        scratch_locations=[fast],
        default_scratch_size=GIB,
    ) as snapshotter:
        yield snapshotter


def disk(store: Snapshotter, key: str) -> Path:
    shared = store.shared_disk(key)
    assert shared is not None
    return shared.path


def test_a_location_is_created_with_its_template(here: Snapshotter, fast: Path) -> None:
    here.prepare("a", labels={LOCATION: str(fast / "deep/er")})
    assert disk(here, "a").is_relative_to(fast / "deep/er")
    with VhdxDisk.open(fast / "deep/er/scratch_1.vhdx") as made:
        assert made.size == GIB


def test_a_template_that_somebody_put_there_is_what_disks_are_made_of(
    here: Snapshotter, fast: Path
) -> None:
    fast.mkdir()
    content = format_ext4(GIB, journal_mib=JOURNAL_MIB, label="special")
    write_content(fast / "scratch_1.vhdx", emit_vhdx(content))
    for key in ("a", "b"):
        here.prepare(key, labels={LOCATION: str(fast)})
    with VhdxDisk.open(disk(here, "a")) as one, VhdxDisk.open(disk(here, "b")) as other:
        assert one.info().disk_id != other.info().disk_id
        for each in (one, other):
            assert Superblock.unpack(each.read_at(1024, 1024)).label.rstrip(b"\0") == b"special"
            for offset, data in content.pieces:
                assert each.read_at(offset, len(data)) == data


def test_a_template_changed_meanwhile_is_verified_again(here: Snapshotter, fast: Path) -> None:
    here.prepare("a", labels={LOCATION: str(fast)})
    (fast / "scratch_1.vhdx").write_bytes(b"no disk at all")
    with pytest.raises(FailedPreconditionError, match=r"scratch_1.vhdx cannot be trusted"):
        here.prepare("b", labels={LOCATION: str(fast)})
    (fast / "scratch_1.vhdx").unlink()
    here.prepare("b", labels={LOCATION: str(fast)})


def broken_templates() -> dict[str, bytes | ScratchTemplate]:
    return {
        "an empty file": b"",
        "text": b"trust me" * 1000,
        "another size": ScratchTemplate.build(2 * GIB),
    }


@pytest.mark.parametrize("name", broken_templates())
def test_what_is_no_template_is_refused_and_left_alone(
    here: Snapshotter, fast: Path, name: str
) -> None:
    fast.mkdir()
    content = broken_templates()[name]
    path = fast / "scratch_1.vhdx"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.write(path)
    before = path.read_bytes()
    with pytest.raises(FailedPreconditionError, match="cannot be trusted"):
        here.prepare("a", labels={LOCATION: str(fast)})
    assert path.read_bytes() == before
    with pytest.raises(NotFoundError):
        here.stat("a")


def test_a_blank_disk_is_no_template(here: Snapshotter, fast: Path) -> None:
    fast.mkdir()
    template = ScratchTemplate.build(GIB)
    template.write(fast / "scratch_1.vhdx")
    with VhdxDisk.open(fast / "scratch_1.vhdx") as whole:
        ((start, _), *_) = list(whole.allocated_ranges())
        assert start == 0
    raw = bytearray((fast / "scratch_1.vhdx").read_bytes())
    at = raw.index(b"\x53\xef", 4 << 20)  # the superblock's magic number
    raw[at : at + 2] = b"\0\0"
    (fast / "scratch_1.vhdx").write_bytes(raw)
    with pytest.raises(FailedPreconditionError, match="cannot be trusted"):
        here.prepare("a", labels={LOCATION: str(fast)})


def test_a_link_in_the_place_of_a_template_is_refused(
    here: Snapshotter, fast: Path, tmp_path: Path
) -> None:
    fast.mkdir()
    ScratchTemplate.build(GIB).write(tmp_path / "elsewhere.vhdx")
    (fast / "scratch_1.vhdx").symlink_to(tmp_path / "elsewhere.vhdx")
    with pytest.raises(FailedPreconditionError, match="no regular file"):
        here.prepare("a", labels={LOCATION: str(fast)})


def test_a_link_below_the_allowed_directory_is_not_followed(
    here: Snapshotter, fast: Path, tmp_path: Path
) -> None:
    fast.mkdir()
    (tmp_path / "secret").mkdir()
    (fast / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidArgumentError, match="symbolic link"):
        here.prepare("a", labels={LOCATION: str(fast / "out/deeper")})
    assert list((tmp_path / "secret").iterdir()) == []


@pytest.mark.parametrize("text", ["{fast}/../other", "{fast}er", "fast", "", "{fast}/x/../../y"])
def test_a_location_outside_the_allowed_ones_is_refused(
    here: Snapshotter, fast: Path, text: str
) -> None:
    wanted = text.format(fast=fast)
    if not wanted:
        here.prepare("a", labels={LOCATION: wanted})  # an empty label is no label
        return
    with pytest.raises(InvalidArgumentError, match="not inside an allowed"):
        here.prepare("a", labels={LOCATION: wanted})


def test_two_spellings_of_one_place_cost_no_disk(tmp_path: Path, platform: Platform) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    keys = ("real", "alias")
    for key in keys:
        with Snapshotter.open(
            tmp_path / "root",
            durable=False,
            platform=platform,
            default_scratch_size=GIB,
            scratch_locations=[tmp_path / key],
        ) as store:
            store.prepare(key, labels={LOCATION: str(tmp_path / key)})
    with Snapshotter.open(tmp_path / "root", durable=False, platform=platform) as store:
        store.cleanup()
        assert [disk(store, key).is_file() for key in keys] == [True, True]


def test_a_sharer_may_not_get_more_than_its_maximum(here: Snapshotter) -> None:
    here.prepare("pod", labels={SIZE_GB: "2"})
    share = {REUSE_SCRATCH: "true", OWNER_KEY: "pod"}
    here.prepare("c1", labels={**share, MAX_SIZE: str(2 * GIB)})
    with pytest.raises(InvalidArgumentError, match="max-size"):
        here.prepare("c2", labels={**share, MAX_SIZE: str(GIB)})


def test_no_error_of_a_template_is_of_another_kind(here: Snapshotter, fast: Path) -> None:
    fast.mkdir()
    (fast / "scratch_1.vhdx").mkdir()
    with pytest.raises(SnapshotterError):
        here.prepare("a", labels={LOCATION: str(fast)})
