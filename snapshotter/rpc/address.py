"""The Unix socket that a server listens on: who may have it, and what is done with an old one.

::

    <socket>        mode 0600: whoever can write to it can make snapshots and disks
    <socket>.lock   held by the server for as long as it lives

A killed server leaves its socket behind. It is replaced only where nobody answers on it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from snapshotter.errors import InvalidArgumentError, UnavailableError

_SCHEME: Final = "unix://"
_UNIX: Final[int] = getattr(socket, "AF_UNIX", 1)
"""Python for Windows does not define it, though Windows has such sockets."""
_MAX_PATH: Final = 107
"""Bytes of sun_path without the final NUL (unix(7))."""
_NO_ACCESS_FOR_OTHERS: Final = 0o177
_PROBE_TIMEOUT_S: Final = 2.0


def socket_path(address: str) -> Path:
    """The path of `unix:///path`. Raises InvalidArgumentError for any other address."""
    path = Path(address.removeprefix(_SCHEME))
    if not address.startswith(_SCHEME) or not path.is_absolute():
        raise InvalidArgumentError(
            f"cannot listen on {address!r}: expected unix:// and an absolute path,"
            " such as unix:///run/lcow-snapshotter.sock"
        )
    if len(os.fsencode(path)) > _MAX_PATH:
        raise InvalidArgumentError(
            f"cannot listen on {address!r}: a Unix socket's path has at most {_MAX_PATH} bytes"
        )
    return path


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold a socket's path: free of an old socket at first, and of ours in the end.

    Raises UnavailableError where another server has it, or something else is there.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"), mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _taken(path) from error
    except OSError as error:
        raise UnavailableError(f"cannot lock {lock.lock_file}: {error.strerror}") from error
    try:
        _remove_stale(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        lock.release()


@contextlib.contextmanager
def private_umask() -> Iterator[None]:
    """Files and sockets that are made meanwhile are for their owner alone.

    The umask is the process's: nothing else should be made meanwhile.
    """
    before = os.umask(_NO_ACCESS_FOR_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UnavailableError(f"{path} is there already and is no socket; use another address")
    with socket.socket(_UNIX) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise UnavailableError(
                f"cannot tell whether a server is alive on {path}: {error}"
            ) from error
    raise _taken(path)


def _taken(path: Path) -> UnavailableError:
    return UnavailableError(f"another server listens on {path}; stop it or use another address")
