"""Mount namespaces: which tree a path leads to, links followed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from harness.model.files import Kind, Node, Tree, Usage, directory

_MAX_LINKS = 40  # as the kernel


@dataclass(frozen=True, slots=True)
class Mounted:
    """A tree in a namespace; `source`, `fstype` and `device` are what mountinfo shows."""

    target: str
    tree: Tree
    source: str = "none"
    fstype: str = "tmpfs"
    device: tuple[int, int] = (0, 1)
    block_device: str = ""
    """The SCSI disk below, such as `sda`."""


class Namespace:
    """Paths of one mount namespace. Mounts stack: the latest at a path counts."""

    def __init__(self, root: Mounted) -> None:
        self.mounts: list[Mounted] = [root]
        self.generated: dict[str, Callable[[], bytes]] = {}
        """Files whose content is made when they are read (proc)."""

    def mount_at(self, target: str) -> Mounted | None:
        """Return the topmost mount at exactly this path."""
        for mount in reversed(self.mounts):
            if mount.target == target:
                return mount
        return None

    def owner(self, path: str) -> tuple[Mounted, str]:
        """Return the mount that a path without links is in, and the path in its tree."""
        best = self.mounts[0]
        for mount in self.mounts:
            inside = mount.target in ("/", path) or path.startswith(mount.target + "/")
            if inside and len(mount.target) >= len(best.target):
                best = mount
        return best, "/" + path[len(best.target.rstrip("/")) :].strip("/")

    def resolve(self, path: str, *, cwd: str = "/", follow: bool = True) -> str:
        """Return the path with its links followed, those at its end only if asked for.

        What does not exist stays in the path. Raises ELOOP, ENOTDIR.
        """
        full = path if path.startswith("/") else os.path.join(cwd, path)
        waiting = full.split("/")[::-1]
        at, links = "", 0
        while waiting:
            name = waiting.pop()
            if name in ("", "."):
                continue
            if name == "..":
                at = os.path.dirname(at).rstrip("/")
                continue
            here = f"{at}/{name}"
            node = self._node(here)
            if node is not None and node.kind is Kind.LINK and (waiting or follow):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if node.target.startswith("/"):
                    at = ""
                waiting += node.target.split("/")[::-1]
                continue
            at = here
        return at or "/"

    def find(self, path: str, *, cwd: str = "/", follow: bool = True) -> Node | None:
        """Return what is at a path."""
        return self._node(self.resolve(path, cwd=cwd, follow=follow))

    def need(self, path: str, *, cwd: str = "/", follow: bool = True) -> Node:
        """Return what is at a path. Raises ENOENT."""
        node = self.find(path, cwd=cwd, follow=follow)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node

    def _node(self, path: str) -> Node | None:
        if path in self.generated:
            return Node(Kind.FILE, 0o444)
        mount, inside = self.owner(path)
        return mount.tree.find(inside)

    def names(self, path: str, *, cwd: str = "/") -> list[str]:
        """Return the names in a directory."""
        at = self.resolve(path, cwd=cwd)
        mount, inside = self.owner(at)
        return mount.tree.names(inside)

    def read(self, path: str, *, cwd: str = "/") -> bytes:
        """Return a file's content."""
        at = self.resolve(path, cwd=cwd)
        if at in self.generated:
            return self.generated[at]()
        node = self.need(at)
        if node.kind is Kind.DIRECTORY:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return node.content()

    def write(self, path: str, data: bytes, *, cwd: str = "/", append: bool = False) -> None:
        """Write a file. What fits is there after ENOSPC."""
        at = self.resolve(path, cwd=cwd)
        mount, inside = self.owner(at)
        node = mount.tree.find(inside)
        if node is not None and node.kind is Kind.DIRECTORY:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if node is not None and node.kind in (Kind.CHARACTER, Kind.BLOCK):
            return
        if node is None:
            node = Node(Kind.FILE)
            mount.tree.put(inside, node)
        node = mount.tree.writable(inside)
        old = node.content() if append else b""
        if not append:
            mount.tree.grow(node, 0)
            node.data, node.reserved, node.load = bytearray(), 0, None
        mount.tree.grow(node, len(old) + len(data))
        node.data = bytearray(old + data)
        node.reserved = 0

    def reserve(self, path: str, size: int, *, cwd: str = "/") -> None:
        """Make a file of `size` zeros, whose space is taken. Raises ENOSPC; nothing grew then."""
        at = self.resolve(path, cwd=cwd)
        mount, inside = self.owner(at)
        if mount.tree.find(inside) is None:
            mount.tree.put(inside, Node(Kind.FILE))
        node = mount.tree.writable(inside)
        mount.tree.grow(node, size)
        node.data, node.reserved, node.load = bytearray(), size, None

    def make_directory(self, path: str, mode: int = 0o755, *, cwd: str = "/") -> None:
        """Make one directory. Raises EEXIST."""
        at = self.resolve(path, cwd=cwd)
        if self._node(at) is not None:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self.put(at, directory(mode))

    def put(self, path: str, node: Node) -> None:
        """Make or replace what is at a path without links."""
        mount, inside = self.owner(path)
        mount.tree.put(inside, node)

    def remove(self, path: str, *, cwd: str = "/") -> None:
        """Remove a file or a directory with all that is in it; EBUSY where something is mounted."""
        at = self.resolve(path, cwd=cwd, follow=False)
        below = [m.target for m in self.mounts if m.target == at or m.target.startswith(at + "/")]
        if below:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), below[0])
        mount, inside = self.owner(at)
        mount.tree.remove(inside)

    def usage(self, path: str, *, cwd: str = "/") -> tuple[Mounted, Usage]:
        """Return the mount that a path is in, and how full it is."""
        mount, _ = self.owner(self.resolve(path, cwd=cwd))
        return mount, mount.tree.usage()

    def sync(self) -> None:
        """Make everything that was written survive a crash."""
        for mount in self.mounts:
            mount.tree.sync()

    def mountinfo(self) -> bytes:
        """Return the table as /proc/self/mountinfo shows it."""
        rows = [
            f"{number} 1 {mount.device[0]}:{mount.device[1]} / {mount.target} "
            f"{'ro' if mount.tree.read_only else 'rw'} - {mount.fstype} {mount.source} rw"
            for number, mount in enumerate(self.mounts, start=1)
        ]
        return ("\n".join(rows) + "\n").encode()
