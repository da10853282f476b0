from __future__ import annotations

import io
from pathlib import Path

import pytest

from snapshotter import Mount, Snapshotter
from snapshotter.digests import CheckedReader, chain_ids, check_digest, sha256_digest
from snapshotter.errors import (
    DigestMismatchError,
    FailedPreconditionError,
    InvalidArgumentError,
    LayerError,
)
from snapshotter.ext4.reader import Ext4
from snapshotter.layers import LAYER_MEDIA_TYPES, apply_layer
from snapshotter.vhd import FixedVhd
from tests.snapshotter.archives import digest, tar

LAYER = tar({"etc/motd": b"hello", "etc/.wh.gone": b""})


@pytest.mark.parametrize("media_type", [None, *sorted(LAYER_MEDIA_TYPES)])
def test_a_layer_becomes_a_disk_in_the_prepared_snapshot(
    store: Snapshotter, media_type: str | None
) -> None:
    mounts = store.prepare("extract-1 x")
    applied = apply_layer(mounts, io.BytesIO(LAYER), media_type=media_type, diff_id=digest(LAYER))
    assert (applied.diff_id, applied.uncompressed_size) == (digest(LAYER), len(LAYER))
    with FixedVhd.open(Path(mounts[0].source) / "layer.vhd") as disk:
        files = Ext4.open(disk)
        assert files.read("etc/motd") == b"hello"
        assert files.stat("etc/gone").is_whiteout


def test_another_diff_id_leaves_no_disk(store: Snapshotter) -> None:
    mounts = store.prepare("extract-1 x")
    with pytest.raises(DigestMismatchError):
        apply_layer(mounts, io.BytesIO(LAYER), diff_id=digest(b""))
    assert list(Path(mounts[0].source).iterdir()) == []


def test_a_broken_tar_leaves_no_disk(store: Snapshotter) -> None:
    mounts = store.prepare("extract-1 x")
    with pytest.raises(LayerError):
        apply_layer(mounts, io.BytesIO(b"x" * 2000))
    assert list(Path(mounts[0].source).iterdir()) == []


def test_a_layer_is_never_overwritten(store: Snapshotter) -> None:
    mounts = store.prepare("extract-1 x")
    apply_layer(mounts, io.BytesIO(LAYER))
    with pytest.raises(FailedPreconditionError, match="already"):
        apply_layer(mounts, io.BytesIO(LAYER))


def test_an_unknown_media_type_is_refused(store: Snapshotter) -> None:
    mounts = store.prepare("extract-1 x")
    with pytest.raises(InvalidArgumentError, match="no processor for media type"):
        apply_layer(mounts, io.BytesIO(LAYER), media_type="text/plain")


def test_mounts_of_something_else_are_refused(store: Snapshotter) -> None:
    store.view("v")
    for mounts in ([], [Mount("bind", "/x", ("rw",))], store.view("v2"), store.mounts("v") * 2):
        with pytest.raises(InvalidArgumentError):
            apply_layer(mounts, io.BytesIO(LAYER))


def test_chain_ids_are_those_of_the_image_specification() -> None:
    first, second = digest(b"1"), digest(b"2")
    assert list(chain_ids([first, second])) == [first, sha256_digest(f"{first} {second}".encode())]


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:AB", "md5:" + "a" * 32, "sha256:" + "a" * 63]
)
def test_a_malformed_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="no digest"):
        check_digest(text)


def test_a_checked_stream_is_read_to_its_end_and_compared() -> None:
    data = b"0123456789" * 1000
    positions: list[int] = []
    reader = CheckedReader(
        io.BytesIO(data), "it", digest=digest(data), size=len(data), watch=positions.append
    )
    assert reader.read(10) == data[:10]
    reader.finish()
    assert reader.position == len(data)
    assert positions[0] == 10
    for expected, size in ((digest(b""), len(data)), (digest(data), len(data) + 1)):
        with pytest.raises(DigestMismatchError, match="it: expected"):
            CheckedReader(io.BytesIO(data), "it", digest=expected, size=size).finish()
