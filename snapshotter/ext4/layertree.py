"""The directory tree that a layer's members make, and what overlayfs has to see of it.

Members come in the order of the tar; a later one takes the place of an earlier one of its name,
directories merge, missing parents are made in the image of the directory above them. Whiteouts
(OCI image-spec, layer.md) become overlayfs' own: `.wh.x` a character device 0:0 named x,
`.wh..wh..opq` the xattr trusted.overlay.opaque=y of its directory. A whiteout hides what lower
layers have, never what this layer has: where a directory and a whiteout share a name, in either
order, the directory becomes opaque; any other member simply stays.

Nothing is resolved through symlinks, and a name that leaves the layer is an error.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from snapshotter.errors import LayerError
from snapshotter.ext4.format import BLOCK_SIZE, LOST_AND_FOUND
from snapshotter.ext4.inode import (
    MAX_LINKS,
    S_IFBLK,
    S_IFCHR,
    S_IFDIR,
    S_IFIFO,
    S_IFLNK,
    S_IFREG,
)
from snapshotter.ext4.membername import PathError, is_clean, split_path
from snapshotter.ext4.tarheader import (
    BLOCK_DEVICE,
    CHAR_DEVICE,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    SYMLINK,
    Members,
)
from snapshotter.ext4.xattr import is_supported_name

ROOT: Final = 0  # node numbers
LOST: Final = 1
NO_MEMBER: Final = -1  # a node that no member describes

_WHITEOUT: Final = b".wh."
_META_WHITEOUT: Final = b".wh..wh."
_OPAQUE_MARK: Final = b".wh..wh..opq"
_OPAQUE_XATTR: Final = b"trusted.overlay.opaque"
_MAX_TARGET: Final = BLOCK_SIZE - 1
_MAX_REPORTED: Final = 100

_KINDS: Final = {
    **dict.fromkeys(b"0\x007", S_IFREG),
    SYMLINK: S_IFLNK,
    CHAR_DEVICE: S_IFCHR,
    BLOCK_DEVICE: S_IFBLK,
    DIRECTORY: S_IFDIR,
    FIFO: S_IFIFO,
}
_OLD_REGULAR: Final = 0  # the type of V7 tars, which mark directories by a slash alone


class LayerTree:
    """Nodes by number, each list indexed by it; `links` of 0 means that the node is gone."""

    def __init__(self) -> None:
        self.kinds: list[int] = [S_IFDIR, S_IFDIR]
        self.links: list[int] = [1, 1]  # names that lead here
        self.members: list[int] = [NO_MEMBER, NO_MEMBER]  # by number in the whole tar
        self.children: dict[int, dict[bytes, int]] = {ROOT: {LOST_AND_FOUND: LOST}, LOST: {}}
        self.parents: dict[int, int] = {ROOT: ROOT, LOST: ROOT}  # of directories
        self.targets: dict[int, bytes] = {}  # of symlinks
        self.devices: dict[int, int] = {}
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        self.ignored_xattrs: list[str] = []
        self.count = 0
        self._batches: list[Members] = []

    def column(self, name: str) -> NDArray[np.int64]:
        """Return one column of all members: mode, uid, gid, mtime, mtime_ns, size or block."""
        if not self._batches:
            return np.zeros(0, np.int64)
        return np.concatenate([getattr(batch, name) for batch in self._batches])

    def add(self, members: Members) -> None:
        """Put the next members into the tree. Raises LayerError naming the member at fault."""
        last_path: bytes | None = None
        directory = ROOT
        for index, (name, kind) in enumerate(zip(members.names, members.types, strict=True)):
            try:
                if not is_clean(name):
                    if kind == _OLD_REGULAR and name.endswith(b"/"):
                        kind = DIRECTORY
                    parts = split_path(name)
                    if not parts:
                        self._describe_root(members, index, kind)
                        continue
                    name = b"/".join(parts)
                path, _, base = name.rpartition(b"/")
                if path != last_path:
                    last_path = None
                    if _META_WHITEOUT in path and self._is_foreign(path):
                        continue
                    directory = self._directory(path)
                    last_path = path
                if base.startswith(_WHITEOUT):
                    self._white_out(directory, base)
                elif self._place(directory, base, kind, members, index):
                    last_path = None  # a subtree went away, perhaps the one just cached
            except PathError as error:
                raise LayerError(
                    str(error), entry=members.names[index][:300].decode(errors="backslashreplace")
                ) from None
        # Names, links and xattrs are in the tree now; the columns are for the inode table.
        members.names.clear()
        members.links.clear()
        members.types.clear()
        members.xattrs.clear()
        self._batches.append(members)
        self.count += len(members.size)

    @staticmethod
    def _is_foreign(path: bytes) -> bool:
        # Below `.wh..wh.plnk` and its like, aufs kept its own bookkeeping.
        return any(part.startswith(_META_WHITEOUT) for part in path.split(b"/"))

    def _directory(self, path: bytes) -> int:
        """Return the directory at `path`, made where it is missing."""
        node = ROOT
        for part in path.split(b"/") if path else ():
            child = self.children[node].get(part)
            if child is None:
                if part.startswith(_WHITEOUT):
                    raise PathError("a member below a whiteout")
                child = self._new_directory(node, part, self.members[node])
            elif child not in self.children:
                if not self._is_whiteout(child):
                    raise PathError(f"{_shown(part)} on its way is not a directory")
                replaced = child
                child = self._new_directory(node, part, self.members[node])
                self._set_opaque(child)
                self._unlink(replaced)
            node = child
        return node

    def _describe_root(self, members: Members, index: int, kind: int) -> None:
        if kind != DIRECTORY:
            raise PathError("the root of the layer can only be a directory")
        self.members[ROOT] = self.count + index
        self._add_xattrs(ROOT, members.xattrs.get(index))

    def _place(self, directory: int, base: bytes, kind: int, members: Members, index: int) -> bool:
        """Put one member into `directory`; returns whether a directory had to go for it."""
        siblings = self.children[directory]
        old = siblings.get(base)
        if kind == DIRECTORY:
            if old is not None and old in self.children:
                node = old
                self.members[node] = self.count + index
            else:
                node = self._new_directory(directory, base, self.count + index)
                if old is not None:
                    self._set_opaque(node)
                    self._unlink(old)
            self._add_xattrs(node, members.xattrs.get(index))
            return False
        if old == LOST and directory == ROOT:
            raise PathError("ext4 keeps this name for a directory")
        if kind == HARD_LINK:
            node = self._link_target(members.links[index])
            if node == old:
                return False
            self.links[node] += 1
            if self.links[node] > MAX_LINKS:
                raise PathError(f"more than {MAX_LINKS} hard links to one file")
        else:
            node = self._new_node(_KINDS[kind], self.count + index)
            if kind == SYMLINK:
                self.targets[node] = self._checked_target(members.links[index])
            elif kind in (CHAR_DEVICE, BLOCK_DEVICE):
                self.devices[node] = members.devices[index]
            self._add_xattrs(node, members.xattrs.get(index))
        siblings[base] = node
        if old is None:
            return False
        gone = old in self.children
        self._unlink(old)
        return gone

    def _white_out(self, directory: int, base: bytes) -> None:
        if base == _OPAQUE_MARK:
            self._set_opaque(directory)
            return
        if base.startswith(_META_WHITEOUT):
            return
        hidden = base[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise PathError("a whiteout of no name")
        siblings = self.children[directory]
        node = siblings.get(hidden)
        if node is None:
            siblings[hidden] = whiteout = self._new_node(S_IFCHR, NO_MEMBER)
            self.devices[whiteout] = 0
        elif node in self.children:
            self._set_opaque(node)

    def _is_whiteout(self, node: int) -> bool:
        return self.kinds[node] == S_IFCHR and self.members[node] == NO_MEMBER

    def _link_target(self, name: bytes) -> int:
        *path, base = split_path(name) or [b""]
        node: int | None = ROOT
        for part in [*path, base]:
            node = self.children[node].get(part) if node in self.children else None
            if node is None:
                raise PathError(f"hard link to {_shown(name)}, which is not before it in the layer")
        assert node is not None
        if node in self.children or self._is_whiteout(node):
            raise PathError(f"hard link to {_shown(name)}, which is not a file")
        return node

    @staticmethod
    def _checked_target(target: bytes) -> bytes:
        if not target or b"\0" in target or len(target) > _MAX_TARGET:
            raise PathError(f"symlink to {_shown(target)!r}: not 1 to {_MAX_TARGET} bytes")
        return target

    def _new_node(self, kind: int, member: int) -> int:
        self.kinds.append(kind)
        self.links.append(1)
        self.members.append(member)
        return len(self.kinds) - 1

    def _new_directory(self, parent: int, name: bytes, member: int) -> int:
        node = self._new_node(S_IFDIR, member)
        self.children[node] = {}
        self.parents[node] = parent
        self.children[parent][name] = node
        return node

    def _unlink(self, node: int) -> None:
        """Take back one name of `node`, with all that is below it."""
        gone = [node]
        while gone:
            node = gone.pop()
            self.links[node] -= 1
            if self.links[node] == 0:
                gone.extend(self.children.pop(node, {}).values())
                for kept in (self.parents, self.targets, self.devices, self.xattrs):
                    kept.pop(node, None)

    def _set_opaque(self, directory: int) -> None:
        self.xattrs.setdefault(directory, {})[_OPAQUE_XATTR] = b"y"

    def _add_xattrs(self, node: int, xattrs: dict[bytes, bytes] | None) -> None:
        for name, value in (xattrs or {}).items():
            if is_supported_name(name):
                self.xattrs.setdefault(node, {})[name] = value
            elif len(self.ignored_xattrs) < _MAX_REPORTED:
                self.ignored_xattrs.append(_shown(name))


def _shown(name: bytes) -> str:
    return name[:100].decode(errors="backslashreplace")
