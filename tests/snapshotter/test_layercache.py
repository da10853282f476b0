"""A layer unpacked twice is a clone or a link, verified first."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter import Mount, Snapshotter, import_image
from snapshotter.digests import sha256_digest
from snapshotter.layers import apply_layer
from snapshotter.platform import Platform
from tests.fakes.ntfs import FakeNtfs, NtfsPlatform
from tests.snapshotter.archives import digest, docker_members, image, tar, write

LAYER = tar({"etc/motd": b"hello" * 1000, "etc/.wh.gone": b""})
NOTHING = io.BytesIO()


def unpack(store: Snapshotter, key: str, stream: io.BytesIO | None = None) -> Path:
    mounts = store.prepare(f"extract-{key} x")
    applied = apply_layer(
        mounts,
        stream if stream is not None else io.BytesIO(LAYER),
        diff_id=digest(LAYER),
        reuse=store.layers,
    )
    assert (applied.diff_id, applied.uncompressed_size) == (digest(LAYER), len(LAYER))
    store.commit(key, f"extract-{key} x")
    return Path(mounts[0].source) / "layer.vhd"


def noted(store: Snapshotter) -> None:
    assert store.layers is not None
    store.layers.close()


def test_a_layer_unpacked_twice_is_read_once_and_stored_once(store: Snapshotter) -> None:
    first = unpack(store, "a")
    second = unpack(store, "b", NOTHING)  # an empty stream is no tar: it is not looked at
    assert second.read_bytes() == first.read_bytes()
    assert second.samefile(first) or second.stat().st_ino != first.stat().st_ino
    assert [path.name for path in second.parent.iterdir()] == ["layer.vhd"]


def test_on_refs_the_second_is_a_clone_of_its_own(tmp_path: Path) -> None:
    platform = NtfsPlatform(FakeNtfs(refs=True))
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        first, second = unpack(store, "a"), unpack(store, "b", NOTHING)
        assert not second.samefile(first)
        assert second.read_bytes() == first.read_bytes()


def test_on_ntfs_the_second_is_a_hard_link(tmp_path: Path) -> None:
    with Snapshotter.open(tmp_path, durable=False, platform=NtfsPlatform(FakeNtfs())) as store:
        assert unpack(store, "b", None).samefile(unpack(store, "a", NOTHING))


def test_the_first_may_go(store: Snapshotter) -> None:
    expected = unpack(store, "a").read_bytes()
    second = unpack(store, "b", NOTHING)
    store.remove("a")
    assert second.read_bytes() == expected


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "hint"])
def test_what_is_not_what_was_written_is_converted_anew(store: Snapshotter, damage: str) -> None:
    first = unpack(store, "a")
    noted(store)
    expected = first.read_bytes()
    if damage == "flip":
        changed = bytearray(expected)
        changed[5000] ^= 1
        first.write_bytes(changed)
    elif damage == "cut":
        first.write_bytes(expected[:-512])
    elif damage == "gone":
        store.remove("a")
    else:
        for hint in (store.root / "layers").iterdir():
            hint.write_bytes(hint.read_bytes()[:40])
    second = unpack(store, "b")
    assert second.read_bytes() == expected
    third = unpack(store, "c", NOTHING)  # and the new one is remembered
    assert third.read_bytes() == expected


@pytest.mark.parametrize("name", ["snapshot", "size", "diff_id", "ignored_xattrs"])
@pytest.mark.parametrize("value", [None, "../../etc", -1, [], {}])
def test_a_hint_of_another_shape_is_none(store: Snapshotter, name: str, value: object) -> None:
    unpack(store, "a")
    noted(store)
    (hint,) = (store.root / "layers").iterdir()
    hint.write_text(json.dumps(json.loads(hint.read_text()) | {name: value}))
    assert unpack(store, "b").is_file()


def test_a_blob_is_known_by_its_own_digest_as_well(store: Snapshotter) -> None:
    blob = sha256_digest(b"the compressed bytes")
    mounts: list[list[Mount]] = [store.prepare(f"extract-{n} x") for n in range(2)]
    first = apply_layer(mounts[0], io.BytesIO(LAYER), blob=blob, reuse=store.layers)
    assert apply_layer(mounts[1], NOTHING, blob=blob, reuse=store.layers) == first


def test_the_option_off_converts_every_time(tmp_path: Path) -> None:
    with Snapshotter.open(tmp_path, durable=False, reuse_layers=False) as store:
        assert store.layers is None
        first, second = unpack(store, "a"), unpack(store, "b")
        assert not second.samefile(first)
        assert not (tmp_path / "layers").exists()


def test_cleanup_forgets_what_is_gone(store: Snapshotter) -> None:
    unpack(store, "a")
    noted(store)
    assert len(list((store.root / "layers").iterdir())) == 1
    store.remove("a")
    store.cleanup()
    assert list((store.root / "layers").iterdir()) == []


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write(tmp_path / "i.tar", docker_members(image("a", "b")))


@pytest.fixture
def two_imports(tmp_path: Path, archive: Path, platform: Platform) -> Iterator[Snapshotter]:
    with Snapshotter.open(tmp_path / "root", durable=False, platform=platform) as store:
        first = import_image(store, archive, prefix="ns1/1/")
        second = import_image(store, archive, prefix="ns2/1/")
        assert [layer.linked for layer in first.layers] == [False, False]
        assert [layer.linked for layer in second.layers] == [True, True]
        assert not any(layer.reused for layer in second.layers)
        yield store


def test_an_image_imported_for_another_namespace_costs_links(two_imports: Snapshotter) -> None:
    infos = list(two_imports.walk())
    assert len(infos) == 4
    disks = [two_imports.directory(info.name) / "layer.vhd" for info in infos]
    assert len({disk.read_bytes() for disk in disks}) == 2
