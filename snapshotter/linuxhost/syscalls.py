"""mount(2), umount2(2) and the kernel's list of mounts. Raises OSError, naming the path."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import ctypes
import os
import re
import threading
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Final

_CLONE_FS: Final = 0x200  # <linux/sched.h>: a current directory of one's own
_DETACH: Final = 2  # MNT_DETACH
_NO_FOLLOW: Final = 8  # UMOUNT_NOFOLLOW
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_MAX_DATA: Final = 4095  # a page, with its final NUL

_libc = ctypes.CDLL(None, use_errno=True)


class MountFlag(IntFlag):
    """Flags of mount(2) (<linux/mount.h>)."""

    READ_ONLY = 1
    NO_SUID = 2
    NO_DEV = 4
    NO_EXEC = 8
    REMOUNT = 32
    BIND = 4096
    RECURSIVE = 16384


NO_FLAGS: Final = MountFlag(0)


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line of /proc/self/mountinfo; `device` is (major, minor)."""

    path: Path
    kind: str
    source: str
    device: tuple[int, int]


def mount(
    source: str,
    target: Path,
    *,
    kind: str = "",
    flags: MountFlag = NO_FLAGS,
    data: str = "",
    directory: Path | None = None,
) -> None:
    """Mount `source` at `target`; relative names in `data` start at `directory`.

    Overlayfs takes at most a page of `data`: relative names are how 128 layers fit.
    """
    if len(os.fsencode(data)) > _MAX_DATA:
        raise OSError(f"options of {len(data)} bytes are more than mount(2) takes: {target}")
    if directory is None:
        _mount(source, target, kind, flags, data)
        return
    failures: list[OSError] = []

    def run(directory: Path) -> None:
        # This thread alone changes directory, and it ends here.
        try:
            _check(_libc.unshare(_CLONE_FS), directory)
            os.chdir(directory)
            _mount(source, target, kind, flags, data)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=run, args=(directory,), name="mount")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def unmount(path: Path, *, lazily: bool = False) -> None:
    """Take away what is mounted at `path`; `lazily`, it goes once nobody uses it any more."""
    flags = _NO_FOLLOW | (_DETACH if lazily else 0)
    _check(_libc.umount2(os.fsencode(path), flags), path)


def mounts_below(directory: Path) -> list[MountPoint]:
    """What is mounted strictly below `directory`, the latest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        # proc_pid_mountinfo(5): optional fields end with a lone dash.
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        path = Path(_unescape(fields[4]))
        if directory in path.parents:
            kind, source, *_ = right.split(" ")
            major, _, minor = fields[2].partition(":")
            found.append(MountPoint(path, kind, _unescape(source), (int(major), int(minor))))
    return found[::-1]


def _mount(source: str, target: Path, kind: str, flags: MountFlag, data: str) -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(data) or None,
    )
    _check(result, target)


def _check(result: int, path: Path) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)
