"""Storing the content of a file atomically: it appears whole under its name, or not at all."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from snapshotter.blockio import DiskContent
from snapshotter.errors import AlreadyExistsError, UnavailableError
from snapshotter.platform.patience import patiently

_BINARY: int = getattr(os, "O_BINARY", 0)
_CLOSE_ON_EXEC: int = getattr(os, "O_CLOEXEC", 0)


def write_content(
    path: str | os.PathLike[str],
    content: DiskContent,
    *,
    durable: bool = True,
    overwrite: bool = False,
) -> None:
    """Store `content` as a new file at `path`.

    It is written under a temporary name beside (`.NAME.<hex>.tmp`, left only by a process that was
    killed) and then renamed, so that nobody sees half of it and a failure leaves no part of it.
    What is not in a piece is left to the file system, as a hole where it has holes. `durable`
    returns only when file and name would survive a power cut.

    Raises AlreadyExistsError where `path` exists (unless `overwrite`), UnavailableError where the
    system refuses: disk full, no such directory, no permission.
    """
    target = Path(path)
    if not overwrite and os.path.lexists(target):
        raise AlreadyExistsError(f"{target} exists already")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        _fill(temporary, content, durable=durable)
        if overwrite:
            patiently(lambda: temporary.replace(target))
        else:
            _rename_without_overwrite(temporary, target)
        if durable:
            _flush_directory(target.parent)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{target} exists already") from error
    except OSError as error:
        raise UnavailableError(f"cannot write {target}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _fill(path: Path, content: DiskContent, *, durable: bool) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY | _CLOSE_ON_EXEC
    descriptor = os.open(path, flags, 0o644)
    try:
        os.ftruncate(descriptor, content.size)
        for offset, data in content.pieces:
            os.lseek(descriptor, offset, os.SEEK_SET)  # os.pwrite is not there on Windows
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_without_overwrite(source: Path, target: Path) -> None:
    """Raise FileExistsError where `target` exists, also when it came up a moment ago."""
    if sys.platform == "win32":
        patiently(lambda: source.rename(target))  # never overwrites on Windows
    else:
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:
            # No hard links here (FAT, some network file systems): claim the name, then replace.
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | _CLOSE_ON_EXEC, 0o644))
            try:
                source.replace(target)
            except OSError:
                target.unlink(missing_ok=True)
                raise
        else:
            source.unlink()  # before the directory is flushed


def _flush_directory(path: Path) -> None:
    if sys.platform != "win32":  # there directories cannot be flushed; NTFS journals the rename
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
