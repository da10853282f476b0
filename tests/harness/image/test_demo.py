"""The demo container image. Oracles: tarfile, and the digests that the formats carry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from harness.image.demo import DEMO_COMMAND, ensure_demo_image
from harness.image.userland import Userland


def members(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: member for member in tar}


def content(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def docker(userland: Userland) -> bytes:
    return ensure_demo_image().read_bytes()


@pytest.fixture(scope="module")
def config(docker: bytes) -> dict[str, Any]:
    (manifest,) = json.loads(content(docker, "manifest.json"))
    parsed: dict[str, Any] = json.loads(content(docker, manifest["Config"]))
    return parsed


@pytest.fixture(scope="module")
def layers(docker: bytes) -> list[bytes]:
    (manifest,) = json.loads(content(docker, "manifest.json"))
    return [content(docker, name) for name in manifest["Layers"]]


def test_the_config_names_its_layers_by_their_content(
    config: dict[str, Any], layers: list[bytes]
) -> None:
    assert config["rootfs"]["diff_ids"] == [digest(layer) for layer in layers]
    assert config["config"]["Cmd"] == list(DEMO_COMMAND)
    assert any(variable.startswith("PATH=") for variable in config["config"]["Env"])


def test_the_first_layer_is_a_root_file_system(layers: list[bytes]) -> None:
    root = members(layers[0])
    assert root["bin/busybox"].mode == 0o755
    wanted = "sh df cat ls sleep sync dd sha256sum stat readlink id env".split()  # noqa: SIM905 - a list of words
    assert {root[f"bin/{name}"].linkname for name in wanted} == {"busybox"}


def test_the_second_layer_removes_by_whiteout_and_opaque_directory(layers: list[bytes]) -> None:
    below, changes = members(layers[0]), members(layers[1])
    assert "etc/removed.conf" in below
    assert changes["etc/.wh.removed.conf"].size == 0
    assert "opt/data/old" in below
    assert changes["opt/data/.wh..wh..opq"].size == 0


def test_the_third_layer_has_every_special_kind(layers: list[bytes]) -> None:
    special = members(layers[2])
    assert special["opt/special/linked"].islnk()
    assert special["opt/special/null"].ischr()
    assert (special["opt/special/null"].devmajor, special["opt/special/null"].devminor) == (1, 3)
    assert special["opt/special/fifo"].isfifo()
    assert special["opt/special/set-user-id"].mode == 0o4755
    attributes = special["opt/special/attributes"].pax_headers
    assert attributes["SCHILY.xattr.user.lcowlab"] == "demo"
    assert max(len(name) for name in special) > 155


def test_the_oci_layout_holds_the_same_image(userland: Userland, config: dict[str, Any]) -> None:
    layout = ensure_demo_image(form="oci").read_bytes()
    assert json.loads(content(layout, "oci-layout")) == {"imageLayoutVersion": "1.0.0"}

    def blob(descriptor: dict[str, Any]) -> bytes:
        data = content(layout, "blobs/sha256/" + descriptor["digest"].removeprefix("sha256:"))
        assert digest(data) == descriptor["digest"]
        assert len(data) == descriptor["size"]
        return data

    (entry,) = json.loads(content(layout, "index.json"))["manifests"]
    manifest = json.loads(blob(entry))
    assert json.loads(blob(manifest["config"])) == config
    plain, gzipped, zstd = (blob(descriptor) for descriptor in manifest["layers"])
    unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(zstd)
    diff_ids = [digest(plain), digest(gzip.decompress(gzipped)), digest(unpacked)]
    assert diff_ids == config["rootfs"]["diff_ids"]


def test_the_same_package_gives_the_same_bytes(docker: bytes, private_cache: Path) -> None:
    again = ensure_demo_image()
    assert again.is_relative_to(private_cache)
    assert again.read_bytes() == docker
