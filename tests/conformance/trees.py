"""A directory tree as a value: what two snapshotters show can then be compared."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

OVERLAY_XATTRS = "trusted.overlay."


def tree(top: Path) -> dict[str, tuple[object, ...]]:
    """Relative name to kind, mode, owner, time and content of everything below `top`.

    Files that are one inode have the same first name; directories' times and sizes are left out,
    since removals inside of them count there.
    """
    found: dict[str, tuple[object, ...]] = {}
    first: dict[tuple[int, int], str] = {}
    for folder, directories, files in os.walk(top):
        for name in sorted(directories) + sorted(files):
            path = Path(folder, name)
            relative = str(path.relative_to(top))
            status = path.lstat()
            content: object = None
            same = relative
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                if status.st_nlink > 1:
                    same = first.setdefault((status.st_dev, status.st_ino), relative)
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                content = status.st_rdev
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if not key.startswith(OVERLAY_XATTRS)
            }
            when = None if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
            found[relative] = (
                *(oct(status.st_mode), status.st_uid, status.st_gid, when),
                *(content, same, tuple(sorted(xattrs.items()))),
            )
    return found
