"""How the disks of a place are made: cloned, sparse, or written out, as its file system allows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Self

from snapshotter.errors import UnavailableError
from snapshotter.platform import Platform
from snapshotter.scratch.reflink import ReflinkSource
from snapshotter.scratch.refs import NamedSource
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.shelf import Shelf
from snapshotter.vhdx import Allocation

_log = logging.getLogger(__name__)


def allocation_of(platform: Platform) -> Allocation:
    """How disk files are written that are no clones."""
    return Allocation.SPARSE if platform.sparse_disks else Allocation.DENSE


class DiskMaker:
    """Makes disks of one template for one place. Clones share a file that lives as long as this."""

    def __init__(
        self,
        template: ScratchTemplate,
        allocation: Allocation,
        source: ReflinkSource | NamedSource | None,
    ) -> None:
        self._template = template
        self._allocation = allocation
        self._source = source

    @classmethod
    def open(cls, template: ScratchTemplate, shelf: Shelf, platform: Platform) -> Self:
        """Return the maker for disks of `template` in the file system of `shelf`.

        Whether files can share blocks there is tried now.
        """
        source: ReflinkSource | NamedSource | None = None
        try:
            if platform.sparse_disks:
                source = ReflinkSource.open(platform.long(shelf.path), template)
            else:  # Windows, whose files have names
                source = NamedSource.open(shelf, template, platform)
        except UnavailableError as error:
            # A disk takes less room than what it would be cloned from: it may well fit.
            _log.warning("disks in %s are no clones: %s", shelf.path, error)
        _log.debug("%d bytes in %s: clones: %s", template.size, shelf.path, source is not None)
        return cls(template, allocation_of(platform), source)

    def make(self, path: Path, *, durable: bool) -> None:
        """Store a new disk at `path`, in a folder that is published as a whole later.

        Raises AlreadyExistsError, UnavailableError; on failure nothing is left there.
        """
        # Where no clone can be made after all (`path` is on another file system, or this one has
        # no room for its records), writing tells whether there is a reason to give up.
        if self._source is None or not self._source.write_staged(path, durable=durable):
            self._template.write_staged(path, durable=durable, allocation=self._allocation)
