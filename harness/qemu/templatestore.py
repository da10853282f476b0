"""Saved machines in the cache: written once, checked before each use, bounded in size.

::

    <directory>/<key>/memory          the guest's memory; empty where the state holds it
                      state           the devices, or the whole machine
                      template.json   what it depends on, and what the two files were when published
    <directory>/<key>.lock            held by whoever builds it
    <directory>/new-<key>-*  rm-*     under construction; being removed

A template's files never change after it was published: copies map its memory. They are removed by
unlinking, which leaves the copies that run what they have.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from filelock import FileLock, Timeout

from harness.errors import ComputeServiceError, ComputeTimeoutError
from harness.qemu.migration import MemoryKind
from harness.qemu.templatekey import template_key

DEFAULT_LIMIT_BYTES: Final = 4 * 1024**3
_MEMORY: Final = "memory"
_STATE: Final = "state"
_MANIFEST: Final = "template.json"
_BLOCK: Final = 512  # the unit of st_blocks


class DamagedTemplateError(ComputeServiceError):
    """A template that is not what was published: changed, cut, or somebody else's."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"template {path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(slots=True)
class OpenTemplate:
    """A checked template whose files are open, so that it can be removed meanwhile."""

    key: str
    kind: MemoryKind
    memory_fd: int
    state_fd: int

    def close(self) -> None:
        """Close the files; may be repeated."""
        for fd in (self.memory_fd, self.state_fd):
            if fd >= 0:
                os.close(fd)
        self.memory_fd = self.state_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class TemplateInfo:
    """A published template: its name, kind, disk usage in bytes, and last use in Unix time."""

    key: str
    kind: str
    path: Path
    size: int
    used: float


@dataclass(frozen=True, slots=True)
class Draft:
    """Where a template is being built."""

    memory: Path
    state: Path


class TemplateStore:
    """The templates in one directory; any number of processes may use it at the same time."""

    def __init__(self, directory: Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.directory = directory
        self._limit = limit_bytes

    def open(self, facts: Mapping[str, Any]) -> OpenTemplate | None:
        """Return the template with these facts, or None where there is none.

        Raises DamagedTemplateError.
        """
        key = template_key(facts)
        path = self.directory / key
        opened = OpenTemplate(key, MemoryKind(facts["memory"]), -1, -1)
        try:
            manifest = json.loads((path / _MANIFEST).read_text("utf-8"))
            # QEMU before 8.2 opens even private memory for writing.
            opened.memory_fd = os.open(path / _MEMORY, os.O_RDWR)
            opened.state_fd = os.open(path / _STATE, os.O_RDONLY)
            _check(path, manifest, facts, opened)
            os.utime(path / _MANIFEST)
        except FileNotFoundError as error:
            opened.close()
            if path.exists():
                raise DamagedTemplateError(path, f"{error.filename} is missing") from error
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            opened.close()
            raise DamagedTemplateError(path, str(error)) from error
        except BaseException:
            opened.close()
            raise
        return opened

    @contextlib.contextmanager
    def building(self, facts: Mapping[str, Any], *, timeout_s: float) -> Iterator[Draft | None]:
        """Yield where to build a template, which is published at the end, or None if it is there.

        One builder at a time: another one's template is waited for. What a dead builder left is
        removed, and so are the templates that were not used for longest, beyond the limit. Raises
        ComputeTimeoutError, ComputeServiceError (the directory cannot be written).
        """
        key = template_key(facts)
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = FileLock(self.directory / f"{key}.lock")
            lock.acquire(timeout=timeout_s)
        except Timeout as error:
            raise ComputeTimeoutError(
                f"another process has been building template {key} for {timeout_s:.0f} s"
            ) from error
        except OSError as error:
            raise ComputeServiceError(f"no templates in {self.directory}: {error}") from error
        with lock:
            for left in self.directory.glob(f"new-{key}-*"):
                shutil.rmtree(left, ignore_errors=True)
            if self._is_good(facts):
                yield None
                return
            folder = Path(tempfile.mkdtemp(prefix=f"new-{key}-", dir=self.directory))
            try:
                draft = Draft(folder / _MEMORY, folder / _STATE)
                for path in (draft.memory, draft.state):
                    path.touch(mode=0o600)
                yield draft
                self._publish(folder, key, facts)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def remove(self, key: str) -> None:
        """Remove a template; one that is gone is fine. Copies that run keep what they map."""
        with contextlib.suppress(FileNotFoundError):
            doomed = tempfile.mkdtemp(prefix="rm-", dir=self.directory)
            with contextlib.suppress(OSError):
                (self.directory / key).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def templates(self) -> list[TemplateInfo]:
        """Return what is there, the one used last first."""
        found = []
        for manifest in self.directory.glob(f"*/{_MANIFEST}"):
            if manifest.parent.name.startswith(("new-", "rm-")):
                continue
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                kind = json.loads(manifest.read_text("utf-8"))["facts"]["memory"]
                size = sum(_disk_usage(file.stat()) for file in manifest.parent.iterdir())
                used = manifest.stat().st_mtime
                found.append(TemplateInfo(manifest.parent.name, kind, manifest.parent, size, used))
        return sorted(found, key=lambda item: item.used, reverse=True)

    def _is_good(self, facts: Mapping[str, Any]) -> bool:
        try:
            opened = self.open(facts)
        except DamagedTemplateError:
            return False
        if opened is None:
            return False
        opened.close()
        return True

    def _publish(self, folder: Path, key: str, facts: Mapping[str, Any]) -> None:
        seals = {}
        for name in (_MEMORY, _STATE):
            fd = os.open(folder / name, os.O_RDWR)
            try:
                os.fsync(fd)  # the host may crash, and the template is trusted after that
            finally:
                os.close(fd)
            seals[name] = _seal(os.stat(folder / name))
        state = hashlib.sha256((folder / _STATE).read_bytes()).hexdigest()
        manifest = {"facts": facts, "files": seals, "state_sha256": state}
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
        self.remove(key)
        folder.rename(self.directory / key)
        self._evict(keep=key)

    def _evict(self, *, keep: str) -> None:
        for doomed in self.directory.glob("rm-*"):
            shutil.rmtree(doomed, ignore_errors=True)
        total = 0
        for info in self.templates():
            total += info.size
            if total > self._limit and info.key != keep:
                self.remove(info.key)


def _check(
    path: Path, manifest: Mapping[str, Any], facts: Mapping[str, Any], opened: OpenTemplate
) -> None:
    if manifest["facts"] != facts:
        raise DamagedTemplateError(path, "it was made of something else")
    for name, fd in ((_MEMORY, opened.memory_fd), (_STATE, opened.state_fd)):
        found = os.fstat(fd)
        if sys.platform != "win32" and found.st_uid != os.getuid():
            raise DamagedTemplateError(path, f"{name} belongs to user {found.st_uid}")
        if _seal(found) != manifest["files"][name]:
            raise DamagedTemplateError(path, f"{name} was changed after it was published")
    # The devices alone are small; a whole machine is trusted to its size and times.
    if opened.kind is MemoryKind.FILE:
        state = os.read(opened.state_fd, os.fstat(opened.state_fd).st_size)
        os.lseek(opened.state_fd, 0, os.SEEK_SET)
        if hashlib.sha256(state).hexdigest() != manifest["state_sha256"]:
            raise DamagedTemplateError(path, "state has another content than when published")


def _seal(found: os.stat_result) -> list[int]:
    """Return what no change of a file's content leaves as it is."""
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def _disk_usage(found: os.stat_result) -> int:
    """Return the bytes that a sparse file takes on the disk."""
    if sys.platform != "win32":
        return _BLOCK * found.st_blocks
    else:  # noqa: RET505 - mypy understands platforms in this form only
        return found.st_size
