"""Mounting what a snapshotter in linux-host mode returned, as containerd's mount.All does."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from snapshotter.errors import InvalidArgumentError, UnavailableError
from snapshotter.linuxhost.syscalls import NO_FLAGS, MountFlag, mount, unmount
from snapshotter.mounts import Mount

_FLAGS: Final = {
    "ro": MountFlag.READ_ONLY,
    "rw": NO_FLAGS,
    "bind": MountFlag.BIND,
    "rbind": MountFlag.BIND | MountFlag.RECURSIVE,
    "nosuid": MountFlag.NO_SUID,
    "nodev": MountFlag.NO_DEV,
    "noexec": MountFlag.NO_EXEC,
}
_LOWER: Final = "lowerdir="


@contextlib.contextmanager
def mounted(mounts: Sequence[Mount], target: Path) -> Iterator[Path]:
    """Yield `target`, a directory, with the mounts of one snapshot on it; unmounted afterwards.

    Raises InvalidArgumentError for mounts that Linux has no words for, UnavailableError.
    """
    done = 0
    try:
        try:
            for item in mounts:
                _mount(item, target)
                done += 1
        except OSError as error:
            raise UnavailableError(f"cannot mount {target}: {error.strerror}") from error
        yield target
    finally:
        for _ in range(done):
            unmount(target)


def _mount(item: Mount, target: Path) -> None:
    if item.type not in ("bind", "overlay"):
        raise InvalidArgumentError(f"Linux cannot mount {item.type}: serve with linux-host mounts")
    flags = NO_FLAGS
    data: list[str] = []
    directory = None
    for option in item.options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option.startswith(_LOWER):
            lower = option.removeprefix(_LOWER).split(":")
            directory = Path(os.path.commonpath([os.path.dirname(path) for path in lower]))
            data.append(_LOWER + ":".join(os.path.relpath(path, directory) for path in lower))
        else:
            data.append(option)
    mount(
        item.source,
        target,
        kind="" if item.type == "bind" else item.type,
        flags=flags,
        data=",".join(data),
        directory=directory,
    )
    if flags & MountFlag.BIND and flags & MountFlag.READ_ONLY:
        # A bind mount takes its other flags only when it is mounted again.
        again = flags & ~MountFlag.RECURSIVE | MountFlag.REMOUNT
        try:
            mount("none", target, flags=again)
        except OSError:
            unmount(target)
            raise
