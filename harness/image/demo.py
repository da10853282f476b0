"""A small container image made from the distribution's busybox, with every hard case of a layer.

Three layers: the first is a root file system; the second replaces, whites out (`.wh.<name>`) and
makes a directory opaque (`.wh..wh..opq`); the third adds a hard link, extended attributes, device
nodes, a FIFO, a set-user-ID file and long names. The same package gives the same bytes. Sources:
OCI image-spec layer.md and image-layout.md; moby image/spec/v1.3.md for the docker-archive.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import zstandard

from harness.cachedir import IMAGES, cache_directory
from harness.errors import ImageBuildError, MissingProgramError
from harness.image.cache import ArtifactCache, Progress
from harness.image.initrd import applets
from harness.image.packages import Apt, Package, unpack
from harness.image.sources import builder_digest
from harness.image.tree import PackageTree

ArchiveForm = Literal["docker", "oci"]
"""`docker`: what `docker save` writes; `oci`: an OCI image layout, its layers compressed."""

DEMO_NAME = "lcowlab-demo:latest"
DEMO_ENVIRONMENT = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LCOWLAB_DEMO=1", "HOME=/root")
DEMO_COMMAND = ("/bin/sh", "-c", "cat /etc/motd")
DEMO_MOTD = "hello from the lcowlab demo image\n"

_MTIME = 1_700_000_000
_CREATED = "2023-11-14T22:13:20Z"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_PACKAGE = "busybox-static"
_KIND = "demo"
_FILE_NAMES: Mapping[ArchiveForm, str] = {"docker": "demo-docker.tar", "oci": "demo-oci.tar"}


def ensure_demo_image(
    *, progress: Progress | None = None, form: ArchiveForm = "docker", apt: Apt | None = None
) -> Path:
    """A tar archive of the demo image, from the cache or built now; both forms are made at once.

    Raises ImageBuildError, MissingProgramError.
    """
    return _demo(progress, apt or Apt()) / _FILE_NAMES[form]


def _demo(progress: Progress | None, apt: Apt) -> Path:
    cache = ArtifactCache(cache_directory(IMAGES), progress=progress)
    code = builder_digest()
    latest = _record("latest", code)
    try:
        state = _record(apt.fingerprint(), code)
        known = cache.recall(state)
        if known is not None:
            return known[_KIND]
        package = apt.require([_PACKAGE])[_PACKAGE]
    except (ImageBuildError, MissingProgramError) as error:
        known = cache.recall(latest)
        if known is None:
            raise
        cache.warn(f"using the demo image of an earlier state of this machine: {error}")
        return known[_KIND]
    key = _record(package.version, package.sha256, code)

    def build(folder: Path, scratch: Path) -> None:
        cache.report("making the demo container image")
        _write(folder, scratch, package, apt, cache.root / "deb")

    path = cache.entry(_KIND, key, build)
    cache.remember([state, latest], {_KIND: key})
    return path


def _record(*parts: str) -> str:
    return _hex("\0".join([_KIND, *parts]).encode())[:32]


def _write(folder: Path, scratch: Path, package: Package, apt: Apt, debs: Path) -> None:
    unpack(apt.download([package], debs)[package.name], scratch)
    tree = PackageTree()
    tree.add(package, scratch)
    busybox = tree.read("/bin/busybox")
    if busybox is None:
        raise ImageBuildError(f"{package.file_name} has no busybox")
    layers = [_root_layer(busybox, applets(tree)), _changes_layer(), _special_layer()]
    config = _config(layers)
    (folder / _FILE_NAMES["docker"]).write_bytes(docker_archive(config, layers))
    (folder / _FILE_NAMES["oci"]).write_bytes(oci_archive(config, layers))


@dataclass
class _Layer:
    """A layer tar being written: parents are the caller's business, owner is root."""

    _out: io.BytesIO = field(default_factory=io.BytesIO)
    _tar: tarfile.TarFile = field(init=False)

    def __post_init__(self) -> None:
        self._tar = tarfile.TarFile(fileobj=self._out, mode="w", format=tarfile.PAX_FORMAT)

    def directory(self, path: str, *, mode: int = 0o755) -> None:
        self._add(path, tarfile.DIRTYPE, mode=mode)

    def file(
        self,
        path: str,
        content: bytes = b"",
        *,
        mode: int = 0o644,
        xattrs: Mapping[str, str] | None = None,
    ) -> None:
        pax = {f"SCHILY.xattr.{name}": value for name, value in (xattrs or {}).items()}
        self._add(path, tarfile.REGTYPE, content=content, mode=mode, pax=pax)

    def symlink(self, path: str, target: str) -> None:
        self._add(path, tarfile.SYMTYPE, mode=0o777, target=target)

    def hard_link(self, path: str, target: str) -> None:
        self._add(path, tarfile.LNKTYPE, target=target)

    def fifo(self, path: str) -> None:
        self._add(path, tarfile.FIFOTYPE)

    def character_device(self, path: str, *, major: int, minor: int) -> None:
        self._add(path, tarfile.CHRTYPE, mode=0o666, device=(major, minor))

    def _add(
        self,
        path: str,
        kind: bytes,
        *,
        content: bytes = b"",
        mode: int = 0o644,
        target: str = "",
        device: tuple[int, int] = (0, 0),
        pax: Mapping[str, str] | None = None,
    ) -> None:
        member = tarfile.TarInfo(path)
        member.type, member.mode, member.mtime, member.linkname = kind, mode, _MTIME, target
        member.size = len(content)
        member.devmajor, member.devminor = device
        member.pax_headers = dict(pax or {})
        self._tar.addfile(member, io.BytesIO(content))

    def finish(self) -> bytes:
        self._tar.close()
        return self._out.getvalue()


def _root_layer(busybox: bytes, names: Sequence[str]) -> bytes:
    layer = _Layer()
    for path in ("bin", "dev", "etc", "home", "opt", "opt/data", "proc", "root", "sys", "var"):
        layer.directory(path)
    layer.directory("tmp", mode=0o1777)
    layer.file("bin/busybox", busybox, mode=0o755)
    for name in names:
        layer.symlink(f"bin/{name}", "busybox")
    layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    layer.file("etc/group", b"root:x:0:\n")
    layer.file("etc/motd", b"this text is replaced by the second layer\n")
    layer.file("etc/removed.conf", b"this file is whited out by the second layer\n")
    layer.file("opt/data/old", b"hidden by the opaque directory of the second layer\n")
    return layer.finish()


def _changes_layer() -> bytes:
    layer = _Layer()
    layer.directory("etc")
    layer.file("etc/.wh.removed.conf")
    layer.file("etc/motd", DEMO_MOTD.encode())
    layer.directory("opt")
    layer.directory("opt/data")
    layer.file("opt/data/.wh..wh..opq")
    layer.file("opt/data/new", b"the only file left in here\n")
    return layer.finish()


def _special_layer() -> bytes:
    long_name = "/".join(["opt/special", "a-folder-with-a-long-name" * 3, "n" * 120])
    layer = _Layer()
    layer.directory("opt/special")
    layer.file("opt/special/original", b"one inode, two names\n")
    layer.hard_link("opt/special/linked", "opt/special/original")
    layer.file(
        "opt/special/attributes",
        b"has extended attributes\n",
        xattrs={"user.lcowlab": "demo", "user.lcowlab.unicode": "gr\u00fc\u00df dich"},
    )
    layer.file("opt/special/set-user-id", b"#!/bin/sh\n", mode=0o4755)
    layer.character_device("opt/special/null", major=1, minor=3)
    layer.fifo("opt/special/fifo")
    layer.symlink("opt/special/dangling", "/nowhere/at/all")
    layer.directory(long_name.rpartition("/")[0])
    layer.file(long_name, b"needs a PAX path record\n")
    return layer.finish()


def _config(layers: Sequence[bytes]) -> bytes:
    steps = ("busybox root file system", "replace and remove", "special files")
    return _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": _CREATED,
            "config": {
                "Cmd": list(DEMO_COMMAND),
                "Env": list(DEMO_ENVIRONMENT),
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
            "history": [{"created": _CREATED, "created_by": step} for step in steps],
        }
    )


def docker_archive(config: bytes, layers: Sequence[bytes]) -> bytes:
    """The tar that `docker save` would write for one image; `layers` are uncompressed tars."""
    names = [f"{_hex(layer)}/layer.tar" for layer in layers]
    config_name = f"{_hex(config)}.json"
    manifest = [{"Config": config_name, "RepoTags": [DEMO_NAME], "Layers": names}]
    members = {
        **dict(zip(names, layers, strict=True)),
        config_name: config,
        "manifest.json": _json(manifest),
    }
    return _archive(members)


def oci_archive(config: bytes, layers: Sequence[bytes]) -> bytes:
    """The tar of an OCI image layout for one image: layers plain, gzip and zstd in turn."""
    forms: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
        ("", bytes),
        ("+gzip", lambda data: gzip.compress(data, mtime=0)),
        ("+zstd", zstandard.ZstdCompressor().compress),
    )
    blobs: dict[str, bytes] = {}

    def stored(data: bytes, media_type: str) -> dict[str, object]:
        blobs[f"blobs/sha256/{_hex(data)}"] = data
        return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}

    chosen = (forms[i % len(forms)] for i in range(len(layers)))
    described = [
        stored(compress(layer), _OCI_LAYER + suffix)
        for layer, (suffix, compress) in zip(layers, chosen, strict=True)
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": _OCI_MANIFEST,
        "config": stored(config, _OCI_CONFIG),
        "layers": described,
    }
    entry = stored(_json(manifest), _OCI_MANIFEST)
    entry["platform"] = {"architecture": "amd64", "os": "linux"}
    entry["annotations"] = {"org.opencontainers.image.ref.name": DEMO_NAME.partition(":")[2]}
    index = {"schemaVersion": 2, "mediaType": _OCI_INDEX, "manifests": [entry]}
    layout = {"imageLayoutVersion": "1.0.0"}
    return _archive({"oci-layout": _json(layout), "index.json": _json(index), **blobs})


def _archive(members: Mapping[str, bytes]) -> bytes:
    layer = _Layer()
    folders = {
        parent.as_posix() for name in members for parent in Path(name).parents if parent.name
    }
    for folder in sorted(folders):
        layer.directory(folder)
    for name, content in members.items():
        layer.file(name, content)
    return layer.finish()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(data: bytes) -> str:
    return f"sha256:{_hex(data)}"
