"""Deleting what is retired: at once, or a moment later by a thread of its own.

Deleting can take longer than all the rest of a removal, and keeps everybody else out of the parent
directory meanwhile (ext4 gives blocks back to the disk with its lock held). Nobody needs to wait
for it. Directories that are deleted later are moved into one of their own first, so that only its
lock is taken. All their names begin with `rm-`: the next recovery deletes those that a killed
process still had to.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from snapshotter.platform import Platform
from snapshotter.shelf import discard

_GATHER_S: Final = 1.0
"""How long the thread lets directories gather: removals come in bursts."""

_MOST: Final = 1000
"""Directories that may wait; whoever retires more deletes by himself, as fast as he retires."""


class Deletion:
    """Deletes directories, `later` or before the call returns."""

    def __init__(self, platform: Platform, *, later: bool) -> None:
        self._platform = platform
        self._later = later
        self._changed = threading.Condition()
        self._waiting: list[Path] = []
        self._deleting = False
        self._hurry = False
        self._thread: threading.Thread | None = None

    def delete(self, paths: Iterable[Path]) -> None:
        """Delete directories. What cannot be deleted is logged, and stays for the next recovery."""
        if self._later:
            with self._changed:
                if len(self._waiting) < _MOST:
                    was_idle = not self._waiting
                    self._waiting += paths
                    if self._thread is None:
                        self._thread = threading.Thread(
                            target=self._run, name="deletion", daemon=True
                        )
                        self._thread.start()
                    elif was_idle:
                        self._changed.notify_all()
                    return
        discard(self._platform, paths)

    def finish(self) -> bool:
        """Return when nothing waits any more, and whether something did."""
        with self._changed:
            pending = bool(self._waiting) or self._deleting
            self._hurry = pending
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting and not self._deleting)
            self._hurry = False
        return pending

    def close(self) -> None:
        """Delete what waits, and end the thread; from now on `delete` does it at once."""
        self._later = False
        self.finish()
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        mine = threading.current_thread()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._thread is not mine)
                if not self._waiting:
                    return
                self._changed.wait_for(lambda: self._hurry, _GATHER_S)
                paths, self._waiting = self._waiting, []
                self._deleting = True
            try:
                discard(self._platform, self._heaped(paths))
            finally:
                with self._changed:
                    self._deleting = False
                    self._changed.notify_all()

    def _heaped(self, paths: list[Path]) -> list[Path]:
        """The directories that hold those of `paths` now, and those that could not be moved."""
        heaps: dict[Path, Path] = {}
        left: list[Path] = []
        for path in paths:
            try:
                if path.parent not in heaps:
                    heap = path.with_name(f"rm-heap-{secrets.token_hex(4)}")
                    self._platform.make_directory(heap)
                    heaps[path.parent] = heap
                self._platform.rename(path, heaps[path.parent] / path.name)
            except OSError:
                left.append(path)  # in use, or gone: `discard` says what there is to say
        return [*heaps.values(), *left]
