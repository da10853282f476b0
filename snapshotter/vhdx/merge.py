"""Merging a differencing disk into its parent, so that a crash at any moment loses nothing.

What the child holds is written over the parent, which then reads as the child does. The order::

    1  the child's locator names two states of the parent: the present one, and the next, a new
       DataWriteGuid ([MS-VHDX] 2.6.2.6.3, parent_linkage2)             flush
    2  the parent's headers get that DataWriteGuid                      flush
    3  the child's data and zeros are written to the parent             flush, log closed

After a crash before 2 the parent is as it was, after it the child accepts it all the same; and
while 3 is half done the child still reads as ever: whatever changed below is covered by its own
blocks. A merge that was cut off is simply made again. The child's file stays: it reads as before,
and may be removed once nobody has it open.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from snapshotter.blockio import BlockFile, LocalBlockFile
from snapshotter.errors import InvalidArgumentError, VhdxParentError
from snapshotter.units import MIB
from snapshotter.vhdx.disk import VhdxDisk
from snapshotter.vhdx.parent import DiskChain, parent_links, resolve_chain
from snapshotter.vhdx.relink import relink
from snapshotter.vhdx.structures import read_structures

_STEP: Final = MIB


def merge_child(
    path: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None
) -> str:
    """Merge the differencing disk at `path` into its parent; return the parent's path.

    Other children of that parent can no longer be read: their parent has changed. `progress` is
    called with (bytes of the disk done, bytes of the disk).

    Raises InvalidArgumentError for a disk without a parent, FailedPreconditionError where either
    file is open for writing, and as `resolve_chain`; after any error the merge can be repeated.
    """
    files = resolve_chain(path)
    if len(files) == 1:
        raise InvalidArgumentError(f"{path} has no parent to merge it into")
    below = files[1].path
    with (
        DiskChain.open(below, writable=True) as chain,
        LocalBlockFile.open(path, writable=True) as file,
    ):
        merge_file(file, chain.top, name=str(path), progress=progress)
    return str(below)


def merge_file(
    child: BlockFile,
    parent: VhdxDisk,
    *,
    name: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Merge the differencing disk in `child` into `parent`, open for writing; closing is left.

    `name` is for errors. Raises VhdxParentError where `parent` is not what `child` was made from.
    """
    links = parent_links(read_structures(child))
    present = parent.info().data_write_guid
    if links is None or not links.accepts(present):
        raise VhdxParentError(name, f"the disk with DataWriteGuid {present} is not its parent")
    following = uuid.uuid4()
    relink(child, replace(links, linkage=present, linkage2=following))
    parent.announce(following)
    top = VhdxDisk.load(child, parent=parent)
    for own in top.own_ranges():
        end = own.offset + own.length
        if own.is_zero:
            parent.trim(own.offset, own.length)
        else:
            for start in range(own.offset, end, _STEP):
                parent.write_at(start, top.read_at(start, min(_STEP, end - start)))
        if progress is not None:
            progress(end, top.size)
    parent.flush()
    if progress is not None:
        progress(top.size, top.size)
