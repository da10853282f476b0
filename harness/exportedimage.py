"""The utility VM image as a folder that another machine uses: a Windows host builds none itself.

`image.json` names the image and the hash of each file; beside it lie the kernel in both forms, the
root file system as initrd and as disk, its bill of materials, and the demo container image that
scenarios run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Final

from harness.errors import ImageBuildError
from harness.image.build import UvmImage
from harness.image.rootdisk import RootDisk

VARIABLE: Final = "LCOWLAB_IMAGE"
_LIST: Final = "image.json"
_FORMAT: Final = "lcowlab.uvm-image/1"
_DEMO: Final = "demo.tar"
_ROOT: Final = ("root.vhd", "bootstrap.cpio")
_FILES: Final = {
    "vmlinux": "vmlinux",
    "bzimage": "bzimage",
    "initrd": "initrd.cpio",
    "spdx": "image.spdx.json",
}
_NAMES: Final = frozenset({*_FILES.values(), *_ROOT, _DEMO})


def export_image(image: UvmImage, root: RootDisk, demo: Path, folder: Path) -> None:
    """Copy an image, its `root` as a disk and a demo archive to `folder`; its list is written last.

    Raises ImageBuildError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _LIST).unlink(missing_ok=True)
        for part, name in _FILES.items():
            shutil.copyfile(getattr(image, part), folder / name)
        for source, name in ((root.disk, _ROOT[0]), (root.bootstrap, _ROOT[1]), (demo, _DEMO)):
            shutil.copyfile(source, folder / name)
        listed = {
            "format": _FORMAT,
            "key": image.key,
            "kernel_version": image.kernel_version,
            "sha256": {name: _sha256(folder / name) for name in sorted(_NAMES)},
        }
        (folder / _LIST).write_text(json.dumps(listed, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise ImageBuildError(f"cannot export the image to {folder}: {error}") from error


def open_image(folder: Path) -> UvmImage:
    """Return the image in a folder, whole. Raises ImageBuildError saying what is wrong with it."""
    listed = _read_list(folder)
    for name, sha256 in listed["sha256"].items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise ImageBuildError(f"the image in {folder} lacks {name}: {error}") from error
        if found != sha256:
            raise ImageBuildError(f"{folder / name} is damaged: export or push it again")
    return UvmImage(
        **{part: folder / name for part, name in _FILES.items()},
        kernel_version=str(listed["kernel_version"]),
        key=str(listed["key"]),
    )


def root_in(folder: Path) -> RootDisk:
    """Return the root file system of an exported image as a disk."""
    return RootDisk(*(folder / name for name in _ROOT))


def demo_in(folder: Path) -> Path:
    """Return the demo archive of an exported image."""
    return folder / _DEMO


def _read_list(folder: Path) -> dict[str, Any]:
    try:
        listed: dict[str, Any] = json.loads((folder / _LIST).read_bytes())
    except (OSError, ValueError) as error:
        raise ImageBuildError(
            f"there is no utility VM image in {folder} ({error}): on a Linux machine, "
            "`lcowlab uvm build --export DIR` writes one"
        ) from error
    if listed.get("format") != _FORMAT or set(listed.get("sha256", {})) != _NAMES:
        raise ImageBuildError(f"{folder / _LIST} is of another version: export the image again")
    return listed


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
