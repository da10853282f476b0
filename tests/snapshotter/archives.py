"""Image archives made for tests, with the mistakes that tests ask for."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

Members = dict[str, bytes | tarfile.TarInfo]
"""What a tar holds, in order."""

OCI = "application/vnd.oci.image"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar(files: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar with these members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def content(members: Members, name: str) -> bytes:
    """The bytes of a regular member."""
    data = members[name]
    assert isinstance(data, bytes)
    return data


def link(target: str, *, hard: bool = False) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    info.linkname = target
    return info


def compress(data: bytes, how: str) -> bytes:
    match how:
        case "gzip":
            return gzip.compress(data)
        case "zstd":
            return zstandard.compress(data)
        case _:
            return data


@dataclass(frozen=True)
class Image:
    """Layers' tars, and a configuration that fits them."""

    layers: tuple[bytes, ...]
    architecture: str = "amd64"
    os: str = "linux"

    @property
    def diff_ids(self) -> list[str]:
        return [digest(layer) for layer in self.layers]

    @property
    def config(self) -> bytes:
        return json.dumps(
            {
                "os": self.os,
                "architecture": self.architecture,
                "config": {
                    "Env": ["PATH=/bin"],
                    "Cmd": ["-c", "true"],
                    "Entrypoint": ["/bin/sh"],
                    "WorkingDir": "/srv",
                    "User": "1000",
                },
                "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
            }
        ).encode()


def image(*contents: str, architecture: str = "amd64") -> Image:
    layers = (tar({f"etc/{text}": text.encode() * 10}) for text in contents)
    return Image(tuple(layers), architecture=architecture)


def docker_members(
    image: Image, *, tags: Sequence[str] = ("demo:latest",), how: str = ""
) -> Members:
    """`docker save` before version 25."""
    config_name = digest(image.config).removeprefix("sha256:") + ".json"
    members: Members = {}
    names = []
    for number, layer in enumerate(image.layers):
        names.append(f"{number}{digest(layer)[10:40]}/layer.tar")
        members[names[-1]] = compress(layer, how)
    members[config_name] = image.config
    entry = {"Config": config_name, "RepoTags": list(tags), "Layers": names}
    members["manifest.json"] = json.dumps([entry]).encode()
    return members


class Layout:
    """An OCI image layout under construction."""

    def __init__(self) -> None:
        self.members: Members = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def blob(self, data: bytes, media_type: str, **more: object) -> dict[str, object]:
        name = digest(data)
        self.members["blobs/" + name.replace(":", "/")] = data
        return {"mediaType": media_type, "digest": name, "size": len(data), **more}

    def manifest(
        self, image: Image, *, how: str = "gzip", more: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        suffix = f"+{how}" if how else ""
        return self.blob(
            json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": f"{OCI}.manifest.v1+json",
                    "config": self.blob(image.config, f"{OCI}.config.v1+json"),
                    "layers": [
                        self.blob(compress(layer, how), f"{OCI}.layer.v1.tar{suffix}")
                        for layer in image.layers
                    ],
                }
            ).encode(),
            f"{OCI}.manifest.v1+json",
            **(more or {}),
        )

    def index(self, *descriptors: Mapping[str, object], **more: object) -> dict[str, object]:
        content = json.dumps({"schemaVersion": 2, "manifests": descriptors}).encode()
        return self.blob(content, f"{OCI}.index.v1+json", **more)

    def finish(self, *descriptors: Mapping[str, object]) -> Members:
        index = {"schemaVersion": 2, "manifests": descriptors}
        return {**self.members, "index.json": json.dumps(index).encode()}


def write(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    path.write_bytes(tar(members))
    return path
