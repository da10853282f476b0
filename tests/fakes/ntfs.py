"""A volume that behaves as NTFS (or ReFS) does, on top of a Linux directory.

It stands in for kernel32 below the real `WindowsPlatform`. What it refuses, Windows refuses:

- renaming or deleting a file that anybody has open (32), or a directory that contains one (5).
  Open are the files that this process really has open, found in /proc, and those held by `hold`;
- a symbolic link without privilege or developer mode (1314);
- paths of 260 characters, or directories of 248, in the plain spelling (206);
- a name that differs from an existing one in case alone: it is the same name.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from snapshotter.platform import winerror
from snapshotter.platform.kernel32 import (
    CREATE_NEW,
    GENERIC_WRITE,
    MOVEFILE_REPLACE_EXISTING,
    SYMBOLIC_LINK_FLAG_ALLOW_UNPRIVILEGED_CREATE,
)
from snapshotter.platform.windows import WindowsPlatform
from snapshotter.platform.winerror import windows_error

_MAX_PATH = 260
_MAX_DIRECTORY = 248
_CODES = {
    errno.ENOENT: winerror.FILE_NOT_FOUND,
    errno.ENOTDIR: winerror.PATH_NOT_FOUND,
    errno.EEXIST: winerror.ALREADY_EXISTS,
    errno.ENOTEMPTY: winerror.DIR_NOT_EMPTY,
    errno.EXDEV: winerror.NOT_SAME_DEVICE,
    errno.ENOSPC: winerror.DISK_FULL,
    errno.EISDIR: winerror.ACCESS_DENIED,
    errno.EPERM: winerror.ACCESS_DENIED,
    errno.EACCES: winerror.ACCESS_DENIED,
    errno.EBUSY: winerror.SHARING_VIOLATION,
}


@dataclass
class FakeNtfs:
    """The kernel32 of such a volume. `privileged` and `developer_mode` decide about links."""

    privileged: bool = True
    developer_mode: bool = False
    refs: bool = False
    knows_unprivileged_flag: bool = True
    drive: tuple[Path, Path] | None = None
    """A path that this volume alone knows, and where it really is: Linux finds nothing there."""
    calls: list[str] = field(default_factory=list)
    _held: list[Path] = field(default_factory=list)
    _protected: set[Path] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def hold(self, path: Path) -> Iterator[None]:
        """Have a file or directory open in another process, not shared for deletion."""
        held = self.find(path).resolve()
        with self._lock:
            self._held.append(held)
        try:
            yield
        finally:
            with self._lock:
                self._held.remove(held)

    def protect(self, path: Path) -> None:
        """Write-protect a file (FILE_ATTRIBUTE_READONLY)."""
        self._protected.add(path)

    def find(self, path: Path) -> Path:
        """The path as it is on disk: names that differ in case alone are one name."""
        if self.drive is not None and path.is_relative_to(self.drive[0]):
            path = self.drive[1] / path.relative_to(self.drive[0])
        found = Path(path.anchor)
        for part in path.parts[1:]:
            child = found / part
            if not os.path.lexists(child):
                folded = part.casefold()
                try:
                    same = [name for name in os.listdir(found) if name.casefold() == folded]
                except OSError:
                    same = []
                child = found / (same[0] if same else part)
            found = child
        return found

    # -- kernel32

    def create_directory(self, path: str) -> None:
        target = self._take(path, _MAX_DIRECTORY)
        with _translated(path):
            target.mkdir(mode=0o700)

    def move_file(self, source: str, target: str, flags: int) -> None:
        old, new = self._take(source), self._take(target)
        self._refuse_open(old, source)
        if os.path.lexists(new) and new != old:
            if not flags & MOVEFILE_REPLACE_EXISTING:
                raise windows_error(winerror.ALREADY_EXISTS, target)
            if new.is_dir():
                raise windows_error(winerror.ACCESS_DENIED, target)
            self._refuse_open(new, target)
        with _translated(source):
            old.rename(new)

    def delete_file(self, path: str) -> None:
        target = self._take(path)
        self._refuse_open(target, path)
        if target in self._protected:
            raise windows_error(winerror.ACCESS_DENIED, path)
        with _translated(path):
            target.unlink()

    def remove_directory(self, path: str) -> None:
        target = self._take(path)
        self._refuse_open(target, path)
        with _translated(path):
            target.rmdir()

    def set_attributes(self, path: str, attributes: int) -> None:
        del attributes
        self._protected.discard(self._take(path))

    def create_symbolic_link(self, link: str, target: str, flags: int) -> None:
        self.calls.append(f"symlink {flags}")
        unprivileged = bool(flags & SYMBOLIC_LINK_FLAG_ALLOW_UNPRIVILEGED_CREATE)
        if unprivileged and not self.knows_unprivileged_flag:
            raise windows_error(winerror.INVALID_PARAMETER, link)
        if not self.privileged and not (self.developer_mode and unprivileged):
            raise windows_error(winerror.PRIVILEGE_NOT_HELD, link)
        place = self._take(link)
        with _translated(link):
            place.symlink_to(self.find(Path(_plain(target))))

    def create_hard_link(self, link: str, target: str) -> None:
        place, existing = self._take(link), self._take(target)
        with _translated(link):
            place.hardlink_to(existing)

    def free_bytes(self, directory: str) -> int:
        with _translated(directory):
            return shutil.disk_usage(self._take(directory)).free

    def cluster_size(self, directory: str) -> int:
        with _translated(directory):
            os.stat(self._take(directory))
        return 4096

    def create_file(self, path: str, access: int, share: int, disposition: int) -> int:
        del share
        flags = os.O_RDWR if access & GENERIC_WRITE else os.O_RDONLY
        flags |= os.O_CREAT | os.O_EXCL if disposition == CREATE_NEW else 0
        with _translated(path):
            return os.open(self._take(path), flags, 0o600)

    def close_handle(self, handle: int) -> None:
        os.close(handle)

    def set_file_size(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def duplicate_extents(
        self, target: int, source: int, *, source_offset: int, target_offset: int, length: int
    ) -> None:
        if not self.refs:
            raise windows_error(winerror.INVALID_FUNCTION, "")
        if any(value % 4096 for value in (source_offset, target_offset, length)):
            raise windows_error(winerror.INVALID_PARAMETER, "")
        if length >= 4 << 30:
            raise windows_error(winerror.INVALID_PARAMETER, "")
        end = os.fstat(target).st_size
        data = os.pread(source, length, source_offset)
        os.pwrite(target, data[: max(0, end - target_offset)], target_offset)

    # -- inside

    def _take(self, path: str, limit: int = _MAX_PATH) -> Path:
        if not path.startswith("\\\\?\\") and len(path) >= limit:
            raise windows_error(winerror.FILENAME_EXCED_RANGE, path)
        return self.find(Path(_plain(path)))

    def _refuse_open(self, path: Path, name: str) -> None:
        whole = path.parent.resolve() / path.name
        with self._lock:
            opened = [*self._held, *_open_files()]
        if whole in opened:
            raise windows_error(winerror.SHARING_VIOLATION, name)
        if any(held.is_relative_to(whole) for held in opened):
            raise windows_error(winerror.ACCESS_DENIED, name)


class NtfsPlatform(WindowsPlatform):
    """The Windows platform on a fake volume, whose paths Linux opens in the plain spelling."""

    def __init__(self, kernel: FakeNtfs) -> None:
        super().__init__(kernel)
        self.kernel = kernel

    def long(self, path: Path) -> Path:
        return self.kernel.find(path)


def _plain(path: str) -> str:
    return path.removeprefix("\\\\?\\").replace("\\", "/")


def _open_files() -> list[Path]:
    opened = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # closed meanwhile, or our own listing
        if target.startswith("/"):
            opened.append(Path(target))
    return opened


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if winerror.winerror_of(error) is not None:
            raise
        code = _CODES.get(error.errno or 0, winerror.INVALID_FUNCTION)
        raise windows_error(code, path) from error
