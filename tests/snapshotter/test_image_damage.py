"""Importing images with every kind of damage, and imports that are cut off."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter import ImportProgress, Snapshotter, import_image
from snapshotter.errors import (
    DigestMismatchError,
    ImageError,
    InvalidArgumentError,
    LayerError,
    UnavailableError,
)
from snapshotter.imagearchive import ImageArchive
from tests.snapshotter.archives import (
    OCI,
    Image,
    Layout,
    Members,
    content,
    digest,
    docker_members,
    image,
    link,
    tar,
    write,
)
from tests.snapshotter.imported import TWO, check_two, nothing_is_half_made

REPOSITORY = Path(__file__).parents[2]


def test_a_layer_that_is_not_what_the_configuration_says(
    store: Snapshotter, tmp_path: Path
) -> None:
    members = docker_members(TWO)
    names = json.loads(content(members, "manifest.json"))[0]["Layers"]
    members[names[1]] = image("evil").layers[0]
    with pytest.raises(DigestMismatchError) as caught:
        import_image(store, write(tmp_path / "i.tar", members))
    assert caught.value.expected == TWO.diff_ids[1]
    assert caught.value.actual == digest(image("evil").layers[0])
    # The first layer is whole and stays; of the second nothing does.
    assert [info.name for info in store.walk()] == TWO.diff_ids[:1]
    assert nothing_is_half_made(store)


def test_a_blob_that_does_not_have_its_digest(store: Snapshotter, tmp_path: Path) -> None:
    layout = Layout()
    members = layout.finish(layout.manifest(image("x"), how="gzip"))
    for name, data in members.items():
        if isinstance(data, bytes) and data[:2] == b"\x1f\x8b":
            # Another time stamp in the gzip header: the same tar, which its diff ID cannot tell.
            members[name] = data[:4] + b"\x07" + data[5:]
    with pytest.raises(DigestMismatchError, match="blobs/sha256"):
        import_image(store, write(tmp_path / "i.tar", members))
    assert list(store.walk()) == []


@pytest.mark.parametrize("what", ["config", "manifest"])
def test_a_changed_configuration_or_manifest(store: Snapshotter, tmp_path: Path, what: str) -> None:
    layout = Layout()
    manifest = layout.manifest(TWO)
    members = layout.finish(manifest)
    name = str(manifest["digest"]) if what == "manifest" else digest(TWO.config)
    name = "blobs/" + name.replace(":", "/")
    members[name] = content(members, name).replace(b" ", b"\t", 1)
    with pytest.raises(DigestMismatchError, match="blobs/sha256"):
        import_image(store, write(tmp_path / "i.tar", members))


def test_a_damaged_gzip_layer_is_reported_by_its_digest(store: Snapshotter, tmp_path: Path) -> None:
    layout = Layout()
    members = layout.finish(layout.manifest(image("x"), how="gzip"))
    for name, data in members.items():
        if isinstance(data, bytes) and data[:2] == b"\x1f\x8b":
            members[name] = data[:20] + bytes([data[20] ^ 0xFF]) + data[21:]
    with pytest.raises(DigestMismatchError, match="blobs/sha256"):
        import_image(store, write(tmp_path / "i.tar", members))
    assert list(store.walk()) == []


def test_an_archive_that_was_cut_off(store: Snapshotter, tmp_path: Path) -> None:
    members = docker_members(Image((tar({"big": os.urandom(100_000)}),)))
    ordered = {"manifest.json": members.pop("manifest.json")}
    ordered.update(sorted(members.items(), key=lambda item: len(content(members, item[0]))))
    archive = write(tmp_path / "i.tar", ordered)
    os.truncate(archive, archive.stat().st_size - 60_000)
    with pytest.raises((DigestMismatchError, LayerError, ImageError)):
        import_image(store, archive)
    assert list(store.walk()) == []


@pytest.mark.parametrize("data", [b"", b"not a tar at all" * 100, b"\x1f\x8b broken gzip"])
def test_what_is_no_archive_is_refused(store: Snapshotter, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "i.tar").write_bytes(data)
    with pytest.raises(ImageError, match=r"i\.tar"):
        import_image(store, tmp_path / "i.tar")


def test_an_archive_that_is_not_there(store: Snapshotter, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no image archive"):
        import_image(store, tmp_path / "none.tar")


def test_another_platform_is_refused_by_name(store: Snapshotter, tmp_path: Path) -> None:
    archive = write(tmp_path / "i.tar", docker_members(image("x", architecture="arm64")))
    with pytest.raises(ImageError, match="linux/arm64, not for linux/amd64"):
        import_image(store, archive)


def test_a_layer_type_that_is_no_tar_is_refused_before_any_work(
    store: Snapshotter, tmp_path: Path
) -> None:
    layout = Layout()
    manifest = layout.manifest(TWO, how="gzip")
    name = "blobs/" + str(manifest["digest"]).replace(":", "/")
    text = content(layout.members, name).replace(b"tar+gzip", b"tar+encrypted")
    archive = write(tmp_path / "i.tar", layout.finish(layout.blob(text, f"{OCI}.manifest.v1+json")))
    with pytest.raises(InvalidArgumentError, match="encrypted"):
        import_image(store, archive)
    assert list(store.walk()) == []


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        (b"{", "not JSON"),
        (b"{}", "not a JSON list"),
        (b"[]", "no image"),
        (b"[1]", "not a JSON object"),
        (b'[{"Layers":[]}]', "Config is missing"),
        (b'[{"Config":"../../etc/passwd","Layers":[]}]', "missing in"),
        (b'[{"Config":"loop","Layers":[]}]', "loop of links"),
        (b'[{"Config":"config","Layers":[]}]', "0 layers, its configuration 2"),
        (b'[{"Config":"config","Layers":["x","y"]}]', "x is missing in"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_broken_manifest_is_refused_saying_what_is_wrong(
    store: Snapshotter, tmp_path: Path, manifest: bytes, problem: str
) -> None:
    members: Members = {"manifest.json": manifest, "config": TWO.config, "loop": link("loop")}
    with pytest.raises(ImageError, match=problem):
        import_image(store, write(tmp_path / "i.tar", members))


def test_a_layer_whose_disk_vanished_says_what_to_do(store: Snapshotter, tmp_path: Path) -> None:
    archive = write(tmp_path / "i.tar", docker_members(TWO))
    imported = import_image(store, archive)
    (store.directory(imported.top) / "layer.vhd").unlink()
    with pytest.raises(UnavailableError, match="remove the snapshot and import the image again"):
        import_image(store, archive)


def test_an_interrupted_import_leaves_nothing_half_made(store: Snapshotter, tmp_path: Path) -> None:
    def interrupt(progress: ImportProgress) -> None:
        if progress.layer == 2:
            raise KeyboardInterrupt

    archive = write(tmp_path / "i.tar", docker_members(TWO))
    with pytest.raises(KeyboardInterrupt):
        import_image(store, archive, progress=interrupt)
    assert [info.name for info in store.walk()] == TWO.diff_ids[:1]
    assert nothing_is_half_made(store)
    check_two(store, import_image(store, archive))


SLOW_IMPORT = """
import sys, time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from snapshotter import Snapshotter, import_image

def wait(progress):
    if progress.layer == 2:
        print("half", flush=True)
        time.sleep(60)

with Snapshotter.open(sys.argv[1]) as store:
    import_image(store, Path(sys.argv[2]), progress=wait)
"""


def test_a_killed_import_is_swept_and_a_living_one_is_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    archive = write(tmp_path / "i.tar", docker_members(TWO))
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT, str(root), str(archive)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as importer:
        assert importer.stdout is not None
        assert importer.stdout.readline() == b"half\n"
        with Snapshotter.open(root) as store:
            active = [info.name for info in store.walk("kind==active")]
            assert len(active) == 1
            importer.kill()
            importer.wait()
            time.sleep(0.05)
            store.cleanup()
            assert nothing_is_half_made(store)
            check_two(store, import_image(store, archive))


# -- any archive

DOCKER_MANIFEST = [{"Config": "config", "RepoTags": ["a:b"], "Layers": ["l0", "l1"]}]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["", "l0", "sha256:x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("digest"), inner),
    max_leaves=3,
)


def with_junk(draw: Callable[..., Any], value: object) -> object:
    """`value` with one node replaced by junk, or left out."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 4)):
        if isinstance(value, list):
            at = draw(st.integers(0, len(value) - 1))
            return [*value[:at], with_junk(draw, value[at]), *value[at + 1 :]]
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 4)) == 0:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: with_junk(draw, value[key])}
    return draw(JUNK)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_its_documents_say_an_archive_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("junk", numbered=True)
    layout = Layout()
    if data.draw(st.booleans()):
        documents: dict[str, object] = {
            "manifest.json": DOCKER_MANIFEST,
            "config": json.loads(TWO.config),
        }
    else:
        manifest = layout.manifest(TWO)
        members = layout.finish(layout.index(manifest), manifest)
        documents = {
            name: json.loads(content(members, name)) for name in ("index.json", "oci-layout")
        }
    broken = data.draw(st.sampled_from(sorted(documents)))
    documents[broken] = with_junk(data.draw, documents[broken])
    files: Members = {name: json.dumps(value).encode() for name, value in documents.items()}
    files = {"l0": TWO.layers[0], "l1": TWO.layers[1], **layout.members, **files}
    archive = write(folder / "i.tar", files)
    with (
        ImageArchive.open(archive, spool_directory=folder) as opened,
        contextlib.suppress(ImageError),
    ):
        opened.image()
