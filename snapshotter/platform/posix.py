"""Linux, and what behaves alike."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Final

_DIRECTORY_MODE: Final = 0o700
_NOT_EMPTY: Final = (errno.ENOTEMPTY, errno.EEXIST)
_FICLONE: Final = 0x40049409
"""ioctl_ficlone(2): _IOW(0x94, 9, int)."""
_KEEP_PATH: Final = frozenset({"ext4", "xfs"})


class PosixPlatform:
    """POSIX calls; open files hinder neither renames nor removals there."""

    link_fix: Final = "use a file system with symbolic links"
    sparse_disks: Final = True

    def long(self, path: Path) -> Path:
        """The path itself."""
        return path

    def fold(self, path: str) -> str:
        """The path without `.`, `..` and doubled slashes."""
        return os.path.normpath(path)

    def make_directory(self, path: Path) -> None:
        """Make one directory with mode 0700."""
        path.mkdir(mode=_DIRECTORY_MODE)

    def names(self, directory: Path) -> list[str]:
        """The names in a directory."""
        return os.listdir(directory)  # noqa: PTH208 (names are what is asked for)

    def exists(self, path: Path) -> bool:
        """Whether something has that name."""
        return os.path.lexists(path)

    def rename(self, source: Path, target: Path) -> None:
        """Move to a name that nothing has."""
        source.rename(target)

    def replace(self, source: Path, target: Path) -> None:
        """Move over whatever file has the name."""
        source.replace(target)

    def remove_tree(self, path: Path) -> None:
        """Delete a directory and all in it."""
        try:
            path.rmdir()  # one call for an empty one, which many are
        except OSError as error:
            if error.errno not in _NOT_EMPTY:
                raise
            shutil.rmtree(path)

    def symlink(self, link: Path, target: Path) -> None:
        """Make a symbolic link."""
        link.symlink_to(target)

    def hard_link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        target.hardlink_to(source)

    def reflink(self, source: Path, target: Path) -> None:
        """Clone by FICLONE: Btrfs, XFS, bcachefs, overlayfs on one of them."""
        if sys.platform == "linux":
            import fcntl

            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with source.open("rb") as reader:
                descriptor = os.open(target, flags, 0o644)
                try:
                    fcntl.ioctl(descriptor, _FICLONE, reader.fileno())
                except BaseException:
                    with contextlib.suppress(OSError):
                        target.unlink()
                    raise
                finally:
                    os.close(descriptor)
        else:
            raise OSError(errno.ENOTSUP, "files are cloned on Linux and Windows alone", str(target))

    def free_space(self, path: Path) -> int:
        """Bytes that are left to write."""
        return shutil.disk_usage(path).free

    def flush_names(self, directory: Path) -> None:
        """Flush the directory itself."""
        if sys.platform != "win32":
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def file_flush_keeps_path(self, directory: Path) -> bool:
        """True on ext4, with and without a journal, and XFS (tests/snapshotter/test_power_cut.py).

        Their journals keep the order of names, and ext4 without one writes the parents of a file
        whose entry is new (ext4_sync_parent).
        """
        return _file_system(directory) in _KEEP_PATH

    def may_pass(self, error: OSError) -> bool:
        """Never: what is busy here (a mount point) does not pass within a moment."""
        return False


def _file_system(directory: Path) -> str:
    """The name of the file system that a directory is in; "" where that cannot be found out.

    proc_pid_mountinfo(5): the third field is the device, and the type follows a lone `-`.
    """
    if sys.platform != "win32":
        try:
            device = directory.stat().st_dev
            mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in mounts:
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1]
    return ""
