"""File systems in memory: trees of nodes with a capacity, and what of them survives a crash.

A path is absolute and normalised ("/" or "/a/b"); links are followed by `harness.model.namespace`,
never here. Errors are OSErrors with the number Linux gives.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

BLOCK = 4096


class Kind(enum.Enum):
    """What a node is."""

    FILE = "-"
    DIRECTORY = "d"
    LINK = "l"
    CHARACTER = "c"
    BLOCK = "b"
    FIFO = "p"


@dataclass(slots=True, eq=False)
class Node:
    """One inode. `reserved` is what a file holds beyond its data: zeros that were never stored."""

    kind: Kind
    mode: int = 0o644
    data: bytearray = field(default_factory=bytearray)
    reserved: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    children: dict[str, Node] = field(default_factory=dict)
    opaque: bool = False
    load: Callable[[], bytes] | None = None
    """Reads the content of a file of a real disk, at its first use."""
    loaded_size: int = 0

    @property
    def size(self) -> int:
        """Bytes of a file."""
        return max(len(self.data), self.reserved, self.loaded_size if self.load else 0)

    @property
    def blocks(self) -> int:
        """Blocks that it takes of its file system."""
        if self.kind is Kind.FILE:
            return -(-self.size // BLOCK)
        return 1 if self.kind is Kind.DIRECTORY else 0

    @property
    def is_whiteout(self) -> bool:
        """Whether overlayfs hides a name by it."""
        return self.kind is Kind.CHARACTER and self.device == (0, 0)

    def content(self) -> bytes:
        """Return a file's bytes."""
        if self.load is not None:
            self.data, self.load = bytearray(self.load()), None
        return bytes(self.data) + bytes(max(0, self.reserved - len(self.data)))

    def copy(self) -> Node:
        """Return a copy of it and everything below."""
        return Node(
            self.kind,
            self.mode,
            bytearray(self.data),
            self.reserved,
            self.target,
            self.device,
            {name: child.copy() for name, child in self.children.items()},
            self.opaque,
            self.load,
            self.loaded_size,
        )


def directory(mode: int = 0o755) -> Node:
    """Return an empty directory."""
    return Node(Kind.DIRECTORY, mode)


@dataclass(frozen=True, slots=True)
class Usage:
    """What `df` shows; in blocks of 4 KiB and in inodes."""

    blocks: int
    free_blocks: int
    available_blocks: int
    inodes: int
    free_inodes: int


class Tree(Protocol):
    """A mounted file system as a namespace sees it."""

    @property
    def read_only(self) -> bool:
        """Whether it cannot be written to."""
        ...

    def find(self, path: str) -> Node | None:
        """Return what is at a path."""
        ...

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        ...

    def put(self, path: str, node: Node) -> None:
        """Make or replace what is at a path; its directory exists."""
        ...

    def remove(self, path: str) -> None:
        """Remove what is at a path, with all that is below."""
        ...

    def writable(self, path: str) -> Node:
        """Return the node at a path, to be changed."""
        ...

    def grow(self, node: Node, size: int) -> None:
        """Take the space for a file that is to have `size` bytes. Raises ENOSPC."""
        ...

    def usage(self) -> Usage:
        """Return how full it is."""
        ...

    def sync(self) -> None:
        """Make what was written survive a crash."""
        ...


class FileSystem:
    """A file system of its own: the root file system, a tmpfs, or an ext4 on a disk."""

    def __init__(
        self,
        root: Node,
        *,
        name: str,
        free_blocks: int = 1 << 20,
        reserved_blocks: int = 0,
        free_inodes: int = 1 << 20,
        read_only: bool = False,
    ) -> None:
        """`free_blocks` and `free_inodes` are those beside what `root` holds already."""
        self.name = name
        self.read_only = read_only
        self.root = root
        self._reserved = reserved_blocks
        blocks, inodes = _count(root)
        self._blocks, self._inodes = blocks + free_blocks, inodes + free_inodes
        self._used_blocks, self._used_inodes = blocks, inodes
        self._durable: Node | None = None
        self._changed = True

    def find(self, path: str) -> Node | None:
        """Return what is at a path."""
        node = self.root
        for name in path.split("/"):
            if name:
                child = node.children.get(name)
                if child is None:
                    return None
                node = child
        return node

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(self._directory(path).children)

    def put(self, path: str, node: Node) -> None:
        """Make or replace what is at a path. Raises EROFS, ENOSPC, ENOENT."""
        self._check_writable(path)
        parent, name = os.path.split(path)
        folder = self._directory(parent)
        blocks, inodes = _count(node)
        old = folder.children.get(name)
        if old is not None:
            gone_blocks, gone_inodes = _count(old)
            blocks, inodes = blocks - gone_blocks, inodes - gone_inodes
        self._take(blocks, inodes, path)
        folder.children[name] = node

    def remove(self, path: str) -> None:
        """Remove what is at a path, with all that is below."""
        self._check_writable(path)
        parent, name = os.path.split(path)
        folder = self._directory(parent)
        if name not in folder.children:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        blocks, inodes = _count(folder.children.pop(name))
        self._take(-blocks, -inodes, path)

    def writable(self, path: str) -> Node:
        """Return the node at a path, to be changed. Raises EROFS, ENOENT."""
        self._check_writable(path)
        node = self.find(path)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._changed = True
        return node

    def grow(self, node: Node, size: int) -> None:
        """Take the space for a file that is to have `size` bytes. Raises ENOSPC."""
        self._take(-(-size // BLOCK) - node.blocks, 0, self.name)

    def usage(self) -> Usage:
        """Return how full it is."""
        free = self._blocks - self._used_blocks
        return Usage(
            self._blocks,
            free,
            max(0, free - self._reserved),
            self._inodes,
            self._inodes - self._used_inodes,
        )

    def sync(self) -> None:
        """Make what was written survive a crash."""
        if self._changed:
            self._durable = self.root.copy()
            self._changed = False

    def crash(self) -> None:
        """Lose what was not synced: the worst that a power failure may do without a journal."""
        if self._durable is not None:
            self.root = self._durable.copy()
            self._used_blocks, self._used_inodes = _count(self.root)
            self._changed = False

    def _directory(self, path: str) -> Node:
        node = self.find(path)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if node.kind is not Kind.DIRECTORY:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return node

    def _check_writable(self, path: str) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def _take(self, blocks: int, inodes: int, path: str) -> None:
        room = self._blocks - self._used_blocks - blocks
        if (blocks > 0 and room < 0) or (inodes > 0 and self._used_inodes + inodes > self._inodes):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        self._used_blocks += blocks
        self._used_inodes += inodes
        self._changed = True


def _count(node: Node) -> tuple[int, int]:
    """Return blocks and inodes of a node and everything below."""
    blocks, inodes = node.blocks, 1
    for child in node.children.values():
        more_blocks, more_inodes = _count(child)
        blocks += more_blocks
        inodes += more_inodes
    return blocks, inodes
