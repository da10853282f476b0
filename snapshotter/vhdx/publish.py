"""Making a file atomically: it appears whole under its name, or not at all."""

from __future__ import annotations

import enum
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from snapshotter.blockio import BlockFile, DiskContent, LocalBlockFile
from snapshotter.errors import AlreadyExistsError, UnavailableError
from snapshotter.platform.patience import discard_file, patiently
from snapshotter.units import MIB
from snapshotter.vhdx.format import IDENTIFIER_AREA

_CLOSE_ON_EXEC: int = getattr(os, "O_CLOEXEC", 0)
_ZEROS: Final = memoryview(bytes(MIB))


class Allocation(enum.Enum):
    """How a file holds what reads as zeros."""

    SPARSE = "sparse"  # as holes, where the file system has them
    DENSE = "dense"  # written out: for NTFS, where some Windows versions refuse sparse disks


def write_content(
    path: str | os.PathLike[str],
    content: DiskContent,
    *,
    durable: bool = True,
    overwrite: bool = False,
    allocation: Allocation = Allocation.SPARSE,
) -> None:
    """Store `content` as a new file at `path`, as `staged_file` does."""
    with staged_file(path, durable=durable, overwrite=overwrite) as file:
        fill(file, content, allocation)


@contextmanager
def staged_file(
    path: str | os.PathLike[str], *, durable: bool = True, overwrite: bool = False
) -> Iterator[LocalBlockFile]:
    """Give an empty file to fill, which becomes `path` when the block ends without an exception.

    Until then it has a temporary name beside it (`.NAME.<hex>.tmp`, left only by a process that
    was killed), so that nobody sees half of it; after any exception, an interrupt too, no part of
    it is left. `durable` returns only when file and name would survive a power cut.

    Raises AlreadyExistsError where `path` exists (unless `overwrite`), UnavailableError where the
    system refuses: disk full, no such directory, no permission.
    """
    target = Path(path)
    if not overwrite and os.path.lexists(target):
        raise AlreadyExistsError(f"{target} exists already; remove it or choose another name")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        file = _create(temporary, target)
        try:
            yield file
            if durable:
                file.flush()
        finally:
            file.close()
        if overwrite:
            patiently(lambda: temporary.replace(target))
        else:
            _rename_without_overwrite(temporary, target)
        if durable:
            _flush_directory(target.parent)
    except FileExistsError as error:
        raise AlreadyExistsError(
            f"{target} exists already; remove it or choose another name"
        ) from error
    except OSError as error:
        raise UnavailableError(f"cannot write {target}: {error.strerror}") from error
    finally:
        discard_file(temporary)  # it is gone where it has become `path`


if sys.platform == "win32":

    def _create(temporary: Path, target: Path) -> LocalBlockFile:
        """Return the new, empty file `temporary`; errors name the one that was asked for."""
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        file = LocalBlockFile.open(temporary, writable=True)
        file.path = target
        return file

else:

    def _create(temporary: Path, target: Path) -> LocalBlockFile:
        """Return the new, empty file `temporary`; errors name the one that was asked for."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return LocalBlockFile(os.open(temporary, flags, 0o644), target)


def write_new(
    path: Path,
    content: DiskContent,
    *,
    durable: bool,
    allocation: Allocation = Allocation.SPARSE,
) -> None:
    """Store `content` as the new file `path`, in a folder that nobody reads yet.

    Readers could see it half written, so this is for staged folders: no temporary name, no rename.
    `durable` flushes the content, not the name. On failure nothing is left. Raises
    AlreadyExistsError, UnavailableError.
    """
    create_new(path, lambda file: fill(file, content, allocation), durable=durable)


def create_new(path: Path, write: Callable[[LocalBlockFile], None], *, durable: bool) -> None:
    """Have `write` fill the new, empty file `path`, as `write_new` does.

    After any exception the file is gone again.
    """
    try:
        file = _create(path, path)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path} exists already") from error
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror}") from error
    try:
        try:
            write(file)
            if durable:
                file.flush()
        finally:
            file.close()
    except BaseException:
        discard_file(path)
        raise


def fill(file: LocalBlockFile, content: DiskContent, allocation: Allocation) -> None:
    """Store `content` in an empty file. Raises UnavailableError."""
    if allocation is Allocation.DENSE:
        _write_out(file, content)
        return
    file.truncate(content.size)
    for offset, data in content.pieces:
        file.write_at(offset, data)


def _write_out(file: LocalBlockFile, content: DiskContent) -> None:
    parts: list[bytes | memoryview] = []
    end = 0
    for offset, data in (*content.pieces, (content.size, b"")):
        while end < offset:  # gathered by the system: no copy of the zeros is made here
            parts.append(_ZEROS[: offset - end])
            end += len(parts[-1])
        parts.append(data)
        end += len(data)
    file.write_from(0, parts)


def write_into(file: BlockFile, content: DiskContent) -> None:
    """Store `content`, a whole VHDX, in an empty `file` that has no name to rename, durably.

    The file identifier goes last, behind a flush: until it is there a cut leaves no VHDX, and with
    it all of one. Raises UnavailableError.
    """
    identifier = [piece for piece in content.pieces if piece[0] < IDENTIFIER_AREA]
    file.truncate(0)
    file.truncate(content.size)
    for offset, data in content.pieces[len(identifier) :]:
        file.write_at(offset, data)
    file.flush()
    for offset, data in identifier:
        file.write_at(offset, data)
    file.flush()


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
