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

from array import array
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from snapshotter.errors import LayerError
from snapshotter.ext4.acl import acl_after_chmod
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

# What is kept of each member for its inode, and how.
COLUMNS: Final[dict[str, type[np.generic]]] = {
    "mode": np.uint16,
    "uid": np.uint32,
    "gid": np.uint32,
    "mtime": np.int64,
    "mtime_ns": np.uint32,
    "size": np.int64,
    "block": np.uint32,
}

_PACK_EVERY: Final = 32_768  # names
_PACK_UP_TO: Final = 512
_NO_LIMIT: Final = 1 << 62
_WHITEOUT: Final = b".wh."
_META_WHITEOUT: Final = b".wh..wh."
_OPAQUE_MARK: Final = b".wh..wh..opq"
_OPAQUE_XATTR: Final = b"trusted.overlay.opaque"
_ACCESS_ACL: Final = b"system.posix_acl_access"
_MAX_TARGET: Final = BLOCK_SIZE - 1
_MAX_REPORTED: Final = 100

_KINDS: Final = {
    **dict.fromkeys(b"0\x007S", S_IFREG),
    SYMLINK: S_IFLNK,
    CHAR_DEVICE: S_IFCHR,
    BLOCK_DEVICE: S_IFBLK,
    DIRECTORY: S_IFDIR,
    FIFO: S_IFIFO,
}
_OLD_REGULAR: Final = 0  # the type of V7 tars, which mark directories by a slash alone


class LayerTree:
    """Nodes by number, each array indexed by it; `links` of 0 means that the node is gone.

    `max_held` bounds the bytes of names, link targets and xattrs, which stay in memory.
    """

    def __init__(self, *, max_held: int = _NO_LIMIT) -> None:
        self.kinds = array("H", [S_IFDIR, S_IFDIR])
        self.links = array("I", [1, 1])  # names that lead here
        self.members = array("i", [NO_MEMBER, NO_MEMBER])  # by number in the whole tar
        self.parents = array("I", [ROOT, ROOT])  # of directories
        self.targets: dict[int, bytes] = {}  # of symlinks
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        self.extents: dict[int, NDArray[np.int64]] = {}  # of sparse files, by member
        self.ignored_xattrs: list[str] = []
        self.count = 0
        # Names in a directory: a dict while it is in use, else packed (`_pack_names`).
        self._children: dict[int, dict[bytes, int] | bytes] = {
            ROOT: {LOST_AND_FOUND: LOST},
            LOST: {},
        }
        self._unpacked = 0  # names that came into dicts since the last packing
        self._devices: dict[int, int] = {}
        self._columns: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
        self._max_held = max_held
        self._held = 0
        self._known_xattrs: dict[tuple[tuple[bytes, bytes], ...], dict[bytes, bytes]] = {}

    @property
    def devices(self) -> NDArray[np.uint32]:
        """The device number of each node, made anew; 0 for what is no device."""
        numbers = np.zeros(len(self.kinds), np.uint32)
        for node, number in self._devices.items():
            numbers[node] = number
        return numbers

    def is_directory(self, node: int) -> bool:
        """Return whether a live node is a directory."""
        return self.kinds[node] == S_IFDIR

    def directories(self) -> Iterable[int]:
        """Return the live directories."""
        return self._children

    def children(self, directory: int) -> Mapping[bytes, int]:
        """Return the names in a live directory, in the order in which they came."""
        names = self._children[directory]
        return _unpack_names(names) if isinstance(names, bytes) else names

    def column(self, name: str) -> NDArray[Any]:
        """Return one column of all members, one of `COLUMNS`."""
        parts = self._columns[name]
        if len(parts) != 1:
            whole = np.concatenate(parts) if parts else np.zeros(0, COLUMNS[name])
            parts[:] = [whole]
        return parts[0]

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
        for column, so_far in self._columns.items():
            so_far.append(getattr(members, column).astype(COLUMNS[column]))
        for index, extents in members.extents.items():
            self.extents[self.count + index] = extents
        self.count += len(members.size)
        self._unpacked += len(members.size)
        if self._unpacked >= _PACK_EVERY:
            self._pack_directories()

    def _names(self, directory: int) -> dict[bytes, int]:
        """Return the names in a directory, to be looked at and changed."""
        names = self._children[directory]
        if isinstance(names, bytes):
            names = self._children[directory] = _unpack_names(names)
            self._unpacked += len(names)
        return names

    def _pack_directories(self) -> None:
        """Keep directories of a usual size in a fifth of the memory, until they are asked again.

        Large ones stay as they are, lest a tar that jumps between two of them takes for ever.
        """
        self._unpacked = 0
        for directory, names in self._children.items():
            if not isinstance(names, bytes) and len(names) <= _PACK_UP_TO:
                self._children[directory] = _pack_names(names)

    @staticmethod
    def _is_foreign(path: bytes) -> bool:
        # Below `.wh..wh.plnk` and its like, aufs kept its own bookkeeping.
        return any(part.startswith(_META_WHITEOUT) for part in path.split(b"/"))

    def _directory(self, path: bytes) -> int:
        """Return the directory at `path`, made where it is missing."""
        node = ROOT
        for part in path.split(b"/") if path else ():
            child = self._names(node).get(part)
            if child is None:
                if part.startswith(_WHITEOUT):
                    raise PathError("a member below a whiteout")
                child = self._new_directory(node, part, self.members[node])
            elif not self.is_directory(child):
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
        self._change_mode(ROOT, int(members.mode[index]))
        self._add_xattrs(ROOT, members.xattrs.get(index))

    def _place(self, directory: int, base: bytes, kind: int, members: Members, index: int) -> bool:
        """Put one member into `directory`; returns whether a directory had to go for it."""
        siblings = self._names(directory)
        old = siblings.get(base)
        if kind == DIRECTORY:
            if old is not None and self.is_directory(old):
                node = old
                self.members[node] = self.count + index
                self._change_mode(node, int(members.mode[index]))
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
                self.targets[node] = target = self._checked_target(members.links[index])
                self._hold(len(target))
            elif kind in (CHAR_DEVICE, BLOCK_DEVICE):
                self._devices[node] = members.devices[index]
            if members.xattrs:
                self._add_xattrs(node, members.xattrs.get(index))
        siblings[base] = node
        if old is None:
            self._hold(len(base))
            return False
        gone = self.is_directory(old)
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
        siblings = self._names(directory)
        node = siblings.get(hidden)
        if node is None:
            self._hold(len(hidden))
            siblings[hidden] = self._new_node(S_IFCHR, NO_MEMBER)
        elif self.is_directory(node):
            self._set_opaque(node)

    def _is_whiteout(self, node: int) -> bool:
        return self.kinds[node] == S_IFCHR and self.members[node] == NO_MEMBER

    def _link_target(self, name: bytes) -> int:
        *path, base = split_path(name) or [b""]
        node = ROOT
        for part in [*path, base]:
            child = self._names(node).get(part) if self.is_directory(node) else None
            if child is None:
                raise PathError(f"hard link to {_shown(name)}, which is not before it in the layer")
            node = child
        if self.is_directory(node) or self._is_whiteout(node):
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
        self.parents.append(ROOT)
        return len(self.kinds) - 1

    def _new_directory(self, parent: int, name: bytes, member: int) -> int:
        self._hold(len(name))
        node = self._new_node(S_IFDIR, member)
        self._children[node] = {}
        self.parents[node] = parent
        self._names(parent)[name] = node
        return node

    def _unlink(self, node: int) -> None:
        """Take back one name of `node`, with all that is below it."""
        gone = [node]
        while gone:
            node = gone.pop()
            self.links[node] -= 1
            if self.links[node] == 0:
                names = self._children.pop(node, {})
                gone.extend((_unpack_names(names) if isinstance(names, bytes) else names).values())
                self.targets.pop(node, None)
                self._devices.pop(node, None)
                self.xattrs.pop(node, None)

    def _set_opaque(self, directory: int) -> None:
        self._merge_xattrs(directory, {_OPAQUE_XATTR: b"y"})

    def _change_mode(self, directory: int, mode: int) -> None:
        """Let a directory that is described again have the ACL that chmod(2) would leave it."""
        acl = self.xattrs.get(directory, {}).get(_ACCESS_ACL)
        if acl is not None:
            self._merge_xattrs(directory, {_ACCESS_ACL: acl_after_chmod(acl, mode)})

    def _add_xattrs(self, node: int, xattrs: dict[bytes, bytes] | None) -> None:
        if not xattrs:
            return
        supported = {name: value for name, value in xattrs.items() if is_supported_name(name)}
        if len(supported) < len(xattrs) and len(self.ignored_xattrs) < _MAX_REPORTED:
            self.ignored_xattrs += [_shown(name) for name in xattrs if name not in supported]
            del self.ignored_xattrs[_MAX_REPORTED:]
        if supported:
            self._merge_xattrs(node, supported)

    def _merge_xattrs(self, node: int, more: dict[bytes, bytes]) -> None:
        merged = {**self.xattrs.get(node, {}), **more}
        key = tuple(merged.items())
        known = self._known_xattrs.get(key)  # whole layers carry the same label
        if known is None:
            self._hold(sum(len(name) + len(value) for name, value in key))
            known = self._known_xattrs[key] = merged
        self.xattrs[node] = known

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > self._max_held:
            raise PathError(
                f"names, link targets and xattrs of more than {self._max_held} bytes in one layer"
            )


def _pack_names(names: dict[bytes, int]) -> bytes:
    nodes = array("I", [len(names), *names.values()])
    return nodes.tobytes() + b"/".join(names)


def _unpack_names(packed: bytes) -> dict[bytes, int]:
    (count,) = array("I", packed[:4])
    nodes = array("I", packed[4 : 4 + 4 * count])
    return dict(zip(packed[4 + 4 * count :].split(b"/"), nodes, strict=True)) if count else {}


def _shown(name: bytes) -> str:
    return name[:100].decode(errors="backslashreplace")
