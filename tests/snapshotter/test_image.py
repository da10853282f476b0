"""Importing images of every form."""

from __future__ import annotations

import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter import ImportProgress, Snapshotter, import_image
from snapshotter.digests import chain_ids
from snapshotter.errors import (
    ImageError,
)
from tests.snapshotter.archives import (
    OCI,
    Image,
    Layout,
    Members,
    compress,
    content,
    digest,
    docker_members,
    image,
    link,
    tar,
    write,
)
from tests.snapshotter.imported import TWO, check_two


@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
def test_a_docker_archive(store: Snapshotter, tmp_path: Path, how: str) -> None:
    archive = write(tmp_path / "i.tar", docker_members(TWO, how=how))
    imported = import_image(store, archive)
    check_two(store, imported)
    assert imported.names == ("demo:latest",)


@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
def test_an_oci_layout(store: Snapshotter, tmp_path: Path, how: str) -> None:
    layout = Layout()
    named = {"annotations": {"org.opencontainers.image.ref.name": "v1"}}
    archive = write(tmp_path / "i.tar", layout.finish(layout.manifest(TWO, how=how, more=named)))
    imported = import_image(store, archive)
    check_two(store, imported)
    assert imported.names == ("v1",)


def test_the_configuration_comes_along(store: Snapshotter, tmp_path: Path) -> None:
    config = import_image(store, write(tmp_path / "i.tar", docker_members(TWO))).config
    assert (config.env, config.working_dir, config.user) == (("PATH=/bin",), "/srv", "1000")
    assert config.argv == ("/bin/sh", "-c", "true")


def test_docker_save_since_version_25_is_both_at_once(store: Snapshotter, tmp_path: Path) -> None:
    layout = Layout()
    members = layout.finish(layout.manifest(TWO, how=""))
    entry = {
        "Config": "blobs/" + digest(TWO.config).replace(":", "/"),
        "RepoTags": ["demo:v25"],
        "Layers": ["blobs/" + name.replace(":", "/") for name in TWO.diff_ids],
        "LayerSources": {
            name: {"mediaType": f"{OCI}.layer.v1.tar", "digest": name} for name in TWO.diff_ids
        },
    }
    members["manifest.json"] = json.dumps([entry]).encode()
    imported = import_image(store, write(tmp_path / "i.tar", members))
    check_two(store, imported)
    assert imported.names == ("demo:v25",)


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_an_archive_may_be_compressed_as_a_whole(
    store: Snapshotter, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "i.tar.z"
    path.write_bytes(compress(tar(docker_members(TWO)), how))
    check_two(store, import_image(store, path))


def test_layers_that_are_links_to_others_are_followed(store: Snapshotter, tmp_path: Path) -> None:
    # Old versions of `docker save` store a layer that occurs twice as a symbolic link.
    same = Image((TWO.layers[0], TWO.layers[0], TWO.layers[0]))
    (name,) = json.loads(content(docker_members(Image(same.layers[:1])), "manifest.json"))[0][
        "Layers"
    ]
    members: Members = {
        name: same.layers[0],
        "b/layer.tar": link(f"../{name}"),
        "c/layer.tar": link(name, hard=True),
        "config.json": same.config,
        "manifest.json": json.dumps(
            [
                {
                    "Config": "config.json",
                    "RepoTags": None,
                    "Layers": [name, "b/layer.tar", "c/layer.tar"],
                }
            ]
        ).encode(),
    }
    imported = import_image(store, write(tmp_path / "i.tar", members))
    assert [layer.snapshot for layer in imported.layers] == list(chain_ids(same.diff_ids))


def test_of_two_members_with_one_name_the_last_counts(store: Snapshotter, tmp_path: Path) -> None:
    members = docker_members(TWO)
    path = tmp_path / "i.tar"
    with tarfile.open(path, "w") as archive:
        for name in members:
            archive.addfile(tarfile.TarInfo(name))
    with path.open("r+b") as file:
        file.seek(512 * len(members))
        file.write(tar(members))
    check_two(store, import_image(store, path))


def test_names_may_begin_with_a_dot(store: Snapshotter, tmp_path: Path) -> None:
    members = {f"./{name}": data for name, data in docker_members(TWO).items()}
    check_two(store, import_image(store, write(tmp_path / "i.tar", members)))


def test_a_nested_index_gives_the_platform(store: Snapshotter, tmp_path: Path) -> None:
    layout = Layout()
    arm = image("arm", architecture="arm64")

    def on(architecture: str, **more: str) -> dict[str, object]:
        return {"platform": {"os": "linux", "architecture": architecture, **more}}

    attestation: dict[str, object] = {
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"}
    }
    index = layout.index(
        layout.manifest(image("v3"), more=on("amd64", variant="v3")),
        layout.manifest(arm, more=on("arm64")),
        layout.manifest(TWO, more=on("amd64")),
        layout.manifest(image("provenance"), more=on("unknown") | attestation),
    )
    archive = write(tmp_path / "i.tar", layout.finish(layout.index(index)))
    check_two(store, import_image(store, archive))
    imported = import_image(store, archive, platform="linux/arm64")
    assert imported.config.architecture == "arm64"


def test_an_index_may_name_platforms_that_were_not_saved(
    store: Snapshotter, tmp_path: Path
) -> None:
    layout = Layout()
    kept = layout.manifest(TWO)
    gone = {**kept, "digest": digest(b"elsewhere")}
    archive = write(tmp_path / "i.tar", layout.finish(layout.index(gone, kept)))
    check_two(store, import_image(store, archive))


def test_one_of_several_images_is_chosen_by_name(store: Snapshotter, tmp_path: Path) -> None:
    members = docker_members(TWO, tags=["r.example/a/two:v1", "two:v2"])
    other = docker_members(image("other"), tags=["other:latest"])
    entries = [
        *json.loads(content(members, "manifest.json")),
        *json.loads(content(other, "manifest.json")),
    ]
    members = {**other, **members, "manifest.json": json.dumps(entries).encode()}
    archive = write(tmp_path / "i.tar", members)
    with pytest.raises(ImageError, match=r"several images.*two:v2.*other:latest.*choose one"):
        import_image(store, archive)
    with pytest.raises(ImageError, match="no image called 'none'"):
        import_image(store, archive, name="none")
    for name in ("two:v2", "a/two:v1", "r.example/a/two:v1"):
        check_two(store, import_image(store, archive, name=name))
    assert len(import_image(store, archive, name="other").layers) == 1


def test_one_image_under_two_names_is_one(store: Snapshotter, tmp_path: Path) -> None:
    layout = Layout()
    manifest = layout.manifest(TWO)
    descriptors = [
        {**manifest, "annotations": {"io.containerd.image.name": name}} for name in ("a:1", "b:2")
    ]
    imported = import_image(store, write(tmp_path / "i.tar", layout.finish(*descriptors)))
    check_two(store, imported)
    assert imported.names == ("a:1", "b:2")


# -- reuse


def test_an_image_given_twice_costs_nothing(store: Snapshotter, tmp_path: Path) -> None:
    archive = write(tmp_path / "i.tar", docker_members(TWO))
    first = import_image(store, archive)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("layer.vhd")}
    again = import_image(store, archive)
    assert [layer.reused for layer in first.layers] == [False, False]
    assert [layer.reused for layer in again.layers] == [True, True]
    assert again.top == first.top
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("layer.vhd")} == before


def test_images_share_the_layers_they_have_in_common(store: Snapshotter, tmp_path: Path) -> None:
    import_image(store, write(tmp_path / "a.tar", docker_members(TWO)))
    more = Image((TWO.layers[0], image("three").layers[0]))
    imported = import_image(store, write(tmp_path / "b.tar", docker_members(more)))
    assert [layer.reused for layer in imported.layers] == [True, False]


def test_several_importers_at_once_make_each_layer_once(store: Snapshotter, tmp_path: Path) -> None:
    archive = write(tmp_path / "i.tar", docker_members(TWO))
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: import_image(store, archive), range(4)))
    for imported in images:
        check_two(store, imported)
    made = [layer for imported in images for layer in imported.layers if not layer.reused]
    assert len(made) == 2


def test_a_prefix_goes_before_every_name(store: Snapshotter, tmp_path: Path) -> None:
    archive = write(tmp_path / "i.tar", docker_members(TWO))
    imported = import_image(store, archive, prefix="k8s.io/1/")
    assert imported.snapshot == f"k8s.io/1/{imported.top}"
    store.prepare("k8s.io/2/c", imported.snapshot)


def test_progress_ends_at_the_size_of_each_layer(store: Snapshotter, tmp_path: Path) -> None:
    seen: list[ImportProgress] = []
    import_image(store, write(tmp_path / "i.tar", docker_members(TWO)), progress=seen.append)
    for number in (1, 2):
        (*_, last) = [report for report in seen if report.layer == number]
        assert (last.done, last.layers) == (last.size, 2)
