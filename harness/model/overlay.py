"""An overlay of trees: what overlayfs does with whiteouts, opaque directories and copies up."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from harness.model.files import BLOCK, Kind, Node, Tree, Usage, directory


@dataclass(frozen=True, slots=True)
class Branch:
    """A directory of a tree."""

    tree: Tree
    path: str

    def at(self, path: str) -> str:
        """Return where a path of the overlay is in the tree."""
        return "/" + f"{self.path}/{path}".strip("/").replace("//", "/")

    def find(self, path: str) -> Node | None:
        """Return what the branch has at a path of the overlay."""
        return self.tree.find(self.at(path))


class Overlay:
    """The merged view; `upper` takes every change, and nothing can be changed without one."""

    def __init__(self, lower: Sequence[Branch], upper: Branch | None) -> None:
        """`lower` is topmost first."""
        self.lower = tuple(lower)
        self.upper = upper

    @property
    def read_only(self) -> bool:
        """Whether it cannot be written to."""
        return self.upper is None or self.upper.tree.read_only

    @property
    def trees(self) -> tuple[Tree, ...]:
        """Everything that it stands on."""
        return tuple(branch.tree for branch in self._branches())

    def find(self, path: str) -> Node | None:
        """Return what is at a path: the topmost branch's, unless it is hidden."""
        found = self._visible(path)
        return found[0][1] if found else None

    def names(self, path: str) -> list[str]:
        """Return the names in a merged directory, sorted."""
        layers = self._visible(path)
        if not layers:
            raise _error(errno.ENOENT, path)
        if layers[0][1].kind is not Kind.DIRECTORY:
            raise _error(errno.ENOTDIR, path)
        seen: dict[str, bool] = {}
        for _, node in layers:
            for name, child in node.children.items():
                seen.setdefault(name, not child.is_whiteout)
        return sorted(name for name, there in seen.items() if there)

    def put(self, path: str, node: Node) -> None:
        """Make or replace what is at a path, in the upper branch."""
        upper = self._for_writing(path)
        self._copy_up_directory(os.path.dirname(path))
        if node.kind is Kind.DIRECTORY and self._in_lower(path):
            node.opaque = True  # what a removed directory of that name had must stay hidden
        upper.tree.put(upper.at(path), node)

    def remove(self, path: str) -> None:
        """Remove what is at a path; a whiteout hides what lower branches have there."""
        upper = self._for_writing(path)
        if self.find(path) is None:
            raise _error(errno.ENOENT, path)
        if self._in_lower(path):
            self._copy_up_directory(os.path.dirname(path))
            upper.tree.put(upper.at(path), Node(Kind.CHARACTER))
        else:
            upper.tree.remove(upper.at(path))

    def writable(self, path: str) -> Node:
        """Return the upper branch's node at a path, copied up where needed."""
        upper = self._for_writing(path)
        layers = self._visible(path)
        if not layers:
            raise _error(errno.ENOENT, path)
        branch, node = layers[0]
        if branch is not upper:
            if node.kind is Kind.DIRECTORY:
                self._copy_up_directory(path)
            else:
                self._copy_up_directory(os.path.dirname(path))
                node.content()
                upper.tree.put(upper.at(path), node.copy())
        return upper.tree.writable(upper.at(path))

    def grow(self, node: Node, size: int) -> None:
        """Take the space in the upper branch."""
        assert self.upper is not None, "only what is writable grows"
        self.upper.tree.grow(node, size)

    def usage(self) -> Usage:
        """Return how full the upper branch's file system is."""
        if self.upper is None:
            blocks = sum(branch.tree.usage().blocks for branch in self.lower)
            return Usage(blocks, 0, 0, blocks // BLOCK, 0)
        return self.upper.tree.usage()

    def sync(self) -> None:
        """Make what was written survive a crash."""
        if self.upper is not None:
            self.upper.tree.sync()

    def _branches(self) -> tuple[Branch, ...]:
        return (self.upper, *self.lower) if self.upper is not None else self.lower

    def _visible(self, path: str) -> list[tuple[Branch, Node]]:
        """Return the branches' nodes at a path that are merged there, topmost first."""
        current = [(branch, node) for branch in self._branches() if (node := branch.find("/"))]
        at = ""
        for name in [part for part in path.split("/") if part]:
            at += f"/{name}"
            below: list[tuple[Branch, Node]] = []
            for branch, node in current:
                child = node.children.get(name)
                if child is None:
                    continue
                if child.is_whiteout:
                    break
                if below and child.kind is not Kind.DIRECTORY:
                    break
                below.append((branch, child))
                if child.kind is not Kind.DIRECTORY or child.opaque:
                    break
            current = below
        return current

    def _in_lower(self, path: str) -> bool:
        return any(branch is not self.upper for branch, _ in self._visible_through(path))

    def _visible_through(self, path: str) -> list[tuple[Branch, Node]]:
        """Return what lower branches have at a path, the upper one's own node put aside."""
        view = Overlay(self.lower, None)
        return view._visible(path)

    def _for_writing(self, path: str) -> Branch:
        if self.upper is None or self.upper.tree.read_only:
            raise _error(errno.EROFS, path)
        return self.upper

    def _copy_up_directory(self, path: str) -> None:
        upper = self._for_writing(path)
        at = ""
        for name in [part for part in path.split("/") if part]:
            at += f"/{name}"
            own = upper.find(at)
            if own is None:
                lower = self.find(at)
                if lower is None:
                    raise _error(errno.ENOENT, at)
                upper.tree.put(upper.at(at), directory(lower.mode))


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
