"""An image's root file system as a disk, made of its initrd when it is first wanted."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.cachedir import IMAGES, cache_directory
from harness.image.bootstrap import write_bootstrap
from harness.image.build import UvmImage
from harness.image.cache import ArtifactCache, Progress
from harness.image.cpio import Entry, read_entries
from harness.image.sources import builder_digest
from snapshotter.ext4.layertar import convert_layer

_KIND = "rootdisk"
_DISK, _BOOTSTRAP = "root.vhd", "bootstrap.cpio"


@dataclass(frozen=True, slots=True)
class RootDisk:
    """A fixed VHD with a read-only ext4, and the initrd that goes to it.

    A kernel whose disk driver is built in needs no initrd.
    """

    disk: Path
    bootstrap: Path


def ensure_root_disk(image: UvmImage, *, progress: Progress | None = None) -> RootDisk:
    """Return the root of an image as a disk, from the cache or made now.

    Raises ImageBuildError; nothing half-made is left behind.
    """
    cache = ArtifactCache(cache_directory(IMAGES), progress=progress)

    def build(folder: Path, _: Path) -> None:
        cache.report("writing the root disk of the utility VM")
        with image.initrd.open("rb") as archive:
            entries = list(read_entries(archive))
        write_disk(entries, folder / _DISK)
        with (folder / _BOOTSTRAP).open("wb") as out:
            write_bootstrap(out, entries, modules=image.vmlinux.parent / "modules")

    key = hashlib.sha256(f"{image.key}\0{builder_digest()}".encode()).hexdigest()[: len(image.key)]
    folder = cache.entry(_KIND, key, build)
    return RootDisk(folder / _DISK, folder / _BOOTSTRAP)


def write_disk(entries: Iterable[Entry], target: Path) -> None:
    """Write files as a read-only ext4 in a fixed VHD, as a layer of an image is."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            archive.addfile(_member(entry), io.BytesIO(entry.content or b""))
    stream.seek(0)
    convert_layer(stream, target, durable=False)


def _member(entry: Entry) -> tarfile.TarInfo:
    member = tarfile.TarInfo(entry.name)
    member.mode = entry.mode
    if entry.content is not None:
        member.size = len(entry.content)
    elif entry.target is not None:
        member.type, member.linkname = tarfile.SYMTYPE, entry.target
    elif entry.device is not None:
        member.type = tarfile.CHRTYPE
        member.devmajor, member.devminor = entry.device
    else:
        member.type = tarfile.DIRTYPE
    return member
