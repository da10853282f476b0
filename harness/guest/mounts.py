"""Which disk and which overlay is mounted where, and what an overlay stands on.

The kernel would let go of a disk below a mounted overlay, and the overlay would fail later: the
table refuses that, as hcsshim's hostMounts does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from harness.gcs.prot import HResult, MappedVirtualDisk
from harness.guest.errors import GuestFailure


@dataclass(frozen=True, slots=True)
class _Mount:
    disk: MappedVirtualDisk | None
    below: tuple[str, ...]  # paths that this mount needs


class MountTable:
    """Mounts made for the host, by path. One change of a path at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mounts: dict[str, _Mount] = {}  # made, or being made
        self._changing: set[str] = set()

    @contextmanager
    def claim(
        self, path: str, disk: MappedVirtualDisk | None, below: Sequence[str] = ()
    ) -> Iterator[None]:
        """Note a mount if the body, which makes it, succeeds.

        Raises GuestFailure if something is mounted there or what it stands on is being unmounted.
        """
        path = os.path.normpath(path)
        needs = tuple(os.path.normpath(need) for need in below)
        with self._lock:
            if path in self._mounts:
                raise GuestFailure(
                    HResult.SYSTEM_ALREADY_EXISTS, f"something is mounted at {path} already"
                )
            self._begin(path)
            if going := [at for at in self._changing if any(_is_in(need, at) for need in needs)]:
                self._changing.remove(path)
                raise GuestFailure(HResult.INVALID_STATE, f"{going[0]} is being changed")
            self._mounts[path] = _Mount(disk, needs)
        try:
            yield
        except BaseException:
            with self._lock:
                del self._mounts[path]
            raise
        finally:
            with self._lock:
                self._changing.remove(path)

    @contextmanager
    def release(self, path: str) -> Iterator[None]:
        """Forget a mount if the body, which unmounts it, succeeds. Raises GuestFailure if used."""
        path = os.path.normpath(path)
        with self._lock:
            if users := self._users_of(path):
                raise GuestFailure(HResult.INVALID_STATE, f"{path} is in use by {users[0]}")
            self._begin(path)
        try:
            yield
            with self._lock:
                self._mounts.pop(path, None)
        finally:
            with self._lock:
                self._changing.remove(path)

    def users_of(self, path: str) -> Sequence[str]:
        """Return the mounts that need `path` or something in it."""
        with self._lock:
            return self._users_of(os.path.normpath(path))

    def holder_of(self, controller: int, lun: int) -> str | None:
        """Return where a disk is mounted, if it is."""
        with self._lock:
            for path, mount in self._mounts.items():
                disk = mount.disk
                if disk is not None and (disk.controller, disk.lun) == (controller, lun):
                    return path
        return None

    def _users_of(self, path: str) -> list[str]:
        return [
            at
            for at, mount in self._mounts.items()
            if any(_is_in(need, path) for need in mount.below)
        ]

    def _begin(self, path: str) -> None:
        if path in self._changing:
            raise GuestFailure(HResult.INVALID_STATE, f"{path} is being changed")
        self._changing.add(path)


def _is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
