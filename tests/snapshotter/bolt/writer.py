"""The smallest writer of bbolt files that makes everything a reader has to read.

Nested buckets, inline and with pages of their own, branch pages, overflow pages. A dict is a
bucket, bytes are a value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from snapshotter.bolt.page import fnv1a

PAGE_SIZE = 4096
Tree = dict[bytes, "bytes | Tree"]


@dataclass
class _Writer:
    inline: bool
    fan_out: int
    sequence: int
    pages: dict[int, bytes] = field(default_factory=dict)
    next_page: int = 4  # two meta pages, a free list, and one to begin with

    def bucket(self, tree: Tree) -> bytes:
        """The record of a bucket, its inline page included."""
        elements = [
            (1, key, self.bucket(value)) if isinstance(value, dict) else (0, key, value)
            for key, value in sorted(tree.items())
        ]
        small = sum(len(key) + len(value) for _, key, value in elements) < PAGE_SIZE // 4
        if self.inline and small and not any(flags for flags, _, _ in elements):
            return struct.pack("<QQ", 0, self.sequence) + _leaf(elements, 0, 0)
        return struct.pack("<QQ", self.level(elements), self.sequence)

    def level(self, elements: list[tuple[int, bytes, bytes]]) -> int:
        """Write leaf pages, and branch pages above them until there is one."""
        parts = [
            elements[at : at + self.fan_out] for at in range(0, max(1, len(elements)), self.fan_out)
        ]
        nodes = [(part[0][1] if part else b"", self.put(partial(_leaf, part))) for part in parts]
        while len(nodes) > 1:
            groups = [nodes[at : at + self.fan_out] for at in range(0, len(nodes), self.fan_out)]
            nodes = [(group[0][0], self.put(partial(_branch, group))) for group in groups]
        return nodes[0][1]

    def put(self, build: Callable[[int, int], bytes]) -> int:
        overflow = (len(build(0, 0)) - 1) // PAGE_SIZE
        number = self.next_page
        self.next_page += 1 + overflow
        self.pages[number] = build(number, overflow)
        return number


def bolt_file(tree: Tree, *, inline: bool = True, fan_out: int = 40, sequence: int = 7) -> bytes:
    """A file whose root bucket is `tree`; `sequence` is that of every bucket."""
    writer = _Writer(inline, max(2, fan_out), sequence)
    elements = [
        (1, key, writer.bucket(value)) if isinstance(value, dict) else (0, key, value)
        for key, value in sorted(tree.items())
    ]
    root = writer.level(elements)
    image = bytearray(writer.next_page * PAGE_SIZE)
    for number, page in writer.pages.items():
        image[number * PAGE_SIZE : number * PAGE_SIZE + len(page)] = page
    for number, transaction in ((0, 5), (1, 4)):
        meta = struct.pack(
            *("<IIIIQQQQQ", 0xED0CDAED, 2, PAGE_SIZE, 0, root, 0, 2, writer.next_page),
            transaction,
        )
        header = struct.pack("<QHHI", number, 4, 0, 0)
        at = number * PAGE_SIZE
        whole = header + meta + struct.pack("<Q", fnv1a(meta))
        image[at : at + len(whole)] = whole
    image[2 * PAGE_SIZE : 2 * PAGE_SIZE + 16] = struct.pack("<QHHI", 2, 0x10, 0, 0)
    return bytes(image)


def _leaf(elements: list[tuple[int, bytes, bytes]], number: int, overflow: int) -> bytes:
    head = struct.pack("<QHHI", number, 2, len(elements), overflow)
    data = b"".join(key + value for _, key, value in elements)
    at = 16 + 16 * len(elements)
    index = b""
    for position, (flags, key, value) in enumerate(elements):
        index += struct.pack("<IIII", flags, at - 16 - 16 * position, len(key), len(value))
        at += len(key) + len(value)
    return head + index + data


def _branch(children: list[tuple[bytes, int]], number: int, overflow: int) -> bytes:
    head = struct.pack("<QHHI", number, 1, len(children), overflow)
    at = 16 + 16 * len(children)
    index = b""
    for position, (key, page) in enumerate(children):
        index += struct.pack("<IIQ", at - 16 - 16 * position, len(key), page)
        at += len(key)
    return head + index + b"".join(key for key, _ in children)


def uvarint(value: int) -> bytes:
    """Go's binary.PutUvarint."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def go_time(nanoseconds: int) -> bytes:
    """time.Time.MarshalBinary of a UTC time."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return struct.pack(">Bqih", 1, seconds + 62_135_596_800, rest, -1)


def snapshot(
    number: int,
    kind: int,
    parent: str = "",
    *,
    created_ns: int = 1,
    updated_ns: int = 2,
    size: int = 0,
    inodes: int = 0,
    labels: dict[str, str] | None = None,
) -> Tree:
    """A snapshot's bucket, as containerd writes it."""
    row: Tree = {
        b"id": uvarint(number),
        b"kind": bytes([kind]),
        b"createdat": go_time(created_ns),
        b"updatedat": go_time(updated_ns),
        b"size": uvarint(size << 1),
        b"inodes": uvarint(inodes << 1),
    }
    if parent:
        row[b"parent"] = parent.encode()
    if labels:
        row[b"labels"] = {name.encode(): value.encode() for name, value in labels.items()}
    return row


def containerd_file(
    rows: dict[str, Tree], *, sequence: int = 7, fan_out: int = 40, inline: bool = True
) -> bytes:
    """A metadata.db with these snapshots."""
    tree: Tree = {b"v1": {b"snapshots": {key.encode(): row for key, row in rows.items()}}}
    return bolt_file(tree, inline=inline, fan_out=fan_out, sequence=sequence)
