"""An image archive as a file that can be read anywhere, even one that came compressed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO, Final, cast

from snapshotter.compression import open_stream
from snapshotter.errors import ImageError, LayerError, UnavailableError
from snapshotter.units import MIB

_COMPRESSED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
_COPY_SIZE: Final = MIB


def open_seekable(path: Path, spool_directory: Path) -> BinaryIO:
    """`path` open for reading; where it is gzip or zstd, its content in a file without a name.

    That file is in `spool_directory` and gone as soon as it is closed, even by a crash. Raises
    FileNotFoundError, ImageError (damaged), UnavailableError (disk full).
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnavailableError(f"cannot open {path}: {error.strerror}") from error
    try:
        head = file.read(4)
        file.seek(0)
        if not head.startswith(_COMPRESSED):
            return file
        with file:
            return _spooled(file, path, spool_directory)
    except BaseException:
        file.close()
        raise


def _spooled(file: BinaryIO, path: Path, spool_directory: Path) -> BinaryIO:
    # The type differs on Windows, where it is a wrapper of a file.
    spool = cast("BinaryIO", tempfile.TemporaryFile(dir=spool_directory))  # noqa: SIM115 it is handed on
    try:
        shutil.copyfileobj(open_stream(file), spool, _COPY_SIZE)
        spool.seek(0)
    except BaseException as error:
        spool.close()
        if isinstance(error, LayerError):
            raise ImageError(f"{path}: {error}") from error
        if isinstance(error, OSError):
            raise UnavailableError(f"cannot uncompress {path}: {error.strerror}") from error
        raise
    return spool
