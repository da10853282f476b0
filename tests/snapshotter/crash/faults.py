"""Named moments of a store's work on directories, and a platform that dies at one of them.

Every state that a crash can leave lies between two of these calls. The transaction's COMMIT falls
between the last flush and whatever comes next: `flush-scratches` ends a Prepare with a disk of its
own, `flush-snapshots` a Commit, and where nothing is flushed COMMIT comes right after
`make-snapshot`, `publish-snapshot` or `retire-snapshot`. The seam is the platform that a store is
opened with, so that it costs nothing where nobody wants to die.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from snapshotter.platform import Platform

POINTS = (
    "make-snapshot",
    "stage-snapshot",
    "stage-scratch",
    "publish-scratch",
    "link",
    "publish-snapshot",
    "flush-scratches",
    "flush-snapshots",
    "retire-scratch",
    "retire-snapshot",
    "delete",
)
_NUMBER = re.compile("[1-9][0-9]*")


@dataclass
class Fault:
    """Die `before` or `after` the `nth` time that the point is reached."""

    point: str
    when: str
    nth: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `point:when:nth`."""
        point, when, nth = text.split(":")
        assert point in POINTS
        assert when in ("before", "after")
        return cls(point, when, int(nth))

    def __str__(self) -> str:
        return f"{self.point}:{self.when}:{self.nth}"


class DyingPlatform:
    """Another platform, up to the fault; then SIGKILL."""

    def __init__(self, platform: Platform, fault: Fault) -> None:
        self._platform = platform
        self._fault = fault
        self._reached = 0

    @property
    def link_fix(self) -> str:
        return self._platform.link_fix

    @property
    def sparse_disks(self) -> bool:
        return self._platform.sparse_disks

    def long(self, path: Path) -> Path:
        return self._platform.long(path)

    def fold(self, path: str) -> str:
        return self._platform.fold(path)

    def names(self, directory: Path) -> list[str]:
        return self._platform.names(directory)

    def exists(self, path: Path) -> bool:
        return self._platform.exists(path)

    def replace(self, source: Path, target: Path) -> None:
        self._platform.replace(source, target)

    def hard_link(self, source: Path, target: Path) -> None:
        self._platform.hard_link(source, target)

    def reflink(self, source: Path, target: Path) -> None:
        self._platform.reflink(source, target)

    def free_space(self, path: Path) -> int:
        return self._platform.free_space(path)

    def file_flush_keeps_path(self, directory: Path) -> bool:
        return False  # so that every point is reached, whatever the file system

    def may_pass(self, error: OSError) -> bool:
        return self._platform.may_pass(error)

    def make_directory(self, path: Path) -> None:
        point = ""
        if path.name.startswith("new-"):
            point = f"stage-{_kind(path)}"
        elif path.parent.name == "snapshots" and _NUMBER.fullmatch(path.name):
            point = "make-snapshot"
        dies = self._reach(point, "before")
        self._platform.make_directory(path)
        self._reach(point, "after", dies=dies)

    def rename(self, source: Path, target: Path) -> None:
        point = ""
        if source.name.startswith("new-") and _NUMBER.fullmatch(target.name):
            point = f"publish-{_kind(source)}"
        elif _NUMBER.fullmatch(source.name) and target.name == f"rm-{source.name}":
            point = f"retire-{_kind(source)}"
        dies = self._reach(point, "before")
        self._platform.rename(source, target)
        self._reach(point, "after", dies=dies)

    def symlink(self, link: Path, target: Path) -> None:
        point = "link" if link.name == "sandbox.vhdx" else ""
        dies = self._reach(point, "before")
        self._platform.symlink(link, target)
        self._reach(point, "after", dies=dies)

    def remove_tree(self, path: Path) -> None:
        dies = self._reach("delete", "before")
        self._platform.remove_tree(path)
        self._reach("delete", "after", dies=dies)

    def flush_names(self, directory: Path) -> None:
        point = {"scratch": "flush-scratches", "snapshots": "flush-snapshots"}.get(
            directory.name, ""
        )
        dies = self._reach(point, "before")
        self._platform.flush_names(directory)
        self._reach(point, "after", dies=dies)

    def _reach(self, point: str, when: str, *, dies: bool = False) -> bool:
        if when == "before" and point == self._fault.point:
            self._reached += 1
            dies = self._reached == self._fault.nth
        if dies and when == self._fault.when:
            os.kill(os.getpid(), signal.SIGKILL)
        return dies


def _kind(path: Path) -> str:
    return "scratch" if path.parent.name == "scratch" else "snapshot"
