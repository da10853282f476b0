"""Reading bbolt files: a real one, any of ours, and anything an attacker may write."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.bolt import BoltFile, Bucket
from snapshotter.bolt.containerd import last_number, snapshots
from snapshotter.errors import BoltError, FailedPreconditionError
from tests.snapshotter.bolt.golden import EXPECTED, LAST_NUMBER, golden_database
from tests.snapshotter.bolt.writer import (
    PAGE_SIZE,
    Tree,
    bolt_file,
    containerd_file,
    snapshot,
)


def content(bucket: Bucket) -> Tree:
    tree: Tree = dict(bucket.values())
    tree.update((key, content(nested)) for key, nested in bucket.buckets())
    return tree


def test_what_containerds_own_code_wrote_is_read_as_it_says() -> None:
    file = BoltFile.load(golden_database())
    found = {
        row.info.name: (
            *(row.number, int(row.info.kind), row.info.parent, row.info.created_ns),
            *(row.usage.size, row.usage.inodes),
        )
        for row in snapshots(file)
    }
    assert found == EXPECTED
    assert last_number(file) == LAST_NUMBER
    labels = {row.info.name: row.info.labels for row in snapshots(file)}
    assert labels["k8s.io/2/sha256:00"] == {"containerd.io/snapshot.ref": "sha256:00", "x": "ä"}
    assert labels["k8s.io/7/pod"] == {}


KEYS = st.binary(min_size=1, max_size=20)
TREES = st.recursive(
    st.dictionaries(KEYS, st.binary(max_size=300), max_size=12),
    lambda inner: st.dictionaries(KEYS, st.one_of(st.binary(max_size=300), inner), max_size=6),
    max_leaves=20,
)


@given(TREES, st.booleans(), st.integers(2, 12))
@settings(max_examples=60)
def test_any_tree_of_buckets_is_read_as_written(tree: Tree, inline: bool, fan_out: int) -> None:
    whole = bolt_file(tree, inline=inline, fan_out=fan_out)
    assert content(BoltFile.load(whole).root) == tree


def test_a_value_longer_than_a_page_is_read_whole() -> None:
    tree: Tree = {b"b": {b"long": bytes(range(256)) * 80}}
    assert content(BoltFile.load(bolt_file(tree)).root) == tree


def test_thousands_of_snapshots_in_branch_pages() -> None:
    rows = {f"ns/{n}/k": snapshot(n, 3, created_ns=n, size=n) for n in range(1, 3001)}
    found = list(snapshots(BoltFile.load(containerd_file(rows, sequence=3000))))
    assert {row.number for row in found} == set(range(1, 3001))
    assert all(row.usage.size == row.info.created_ns == row.number for row in found)


def test_a_half_written_meta_page_leaves_the_older_one() -> None:
    whole = bytearray(bolt_file({b"a": b"1"}))
    whole[16 + 40] ^= 1
    assert content(BoltFile.load(bytes(whole)).root) == {b"a": b"1"}
    whole[PAGE_SIZE + 16 + 40] ^= 1
    with pytest.raises(BoltError, match="no bbolt database"):
        BoltFile.load(bytes(whole))


def test_a_page_that_leads_back_to_itself_ends() -> None:
    rows = {f"ns/{n}/k": snapshot(n, 3) for n in range(1, 200)}
    whole = bytearray(containerd_file(rows, fan_out=10))
    for number in range(3, len(whole) // PAGE_SIZE):
        at = number * PAGE_SIZE
        if whole[at + 8] == 1:  # a branch page: its first child is itself
            whole[at + 24 : at + 32] = number.to_bytes(8, "little")
    with pytest.raises(BoltError, match="once more"):
        list(snapshots(BoltFile.load(bytes(whole))))


GOLDEN = golden_database()
SMALL = containerd_file({f"ns/{n}/k": snapshot(n, 3, labels={"a": "b"}) for n in range(1, 60)})


@given(
    st.sampled_from([GOLDEN, SMALL]),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
    st.floats(0, 1),
)
@settings(max_examples=300)
def test_whatever_is_in_a_file_it_is_read_or_refused(
    original: bytes, changes: list[tuple[float, bytes]], length: float
) -> None:
    whole = bytearray(original)
    for place, data in changes:
        at = 2 * PAGE_SIZE + int(place * (len(whole) - 2 * PAGE_SIZE - 8))
        whole[at : at + len(data)] = data
    if length < 0.2:
        del whole[int(length * 5 * len(whole)) :]
    with contextlib.suppress(BoltError):
        file = BoltFile.load(bytes(whole))
        assert len(list(snapshots(file))) <= len(whole) // 16
        last_number(file)


@pytest.mark.parametrize("data", [b"", b"SQLite format 3\0" * 1000, b"\0" * 70_000])
def test_another_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(BoltError):
        BoltFile.open(tmp_path / "f")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"id", b""),
        (b"id", b"\0"),
        (b"id", b"\xff" * 10),
        (b"kind", b"\x04"),
        (b"kind", b"\x03\x03"),
        (b"parent", b"\xff"),
        (b"createdat", b"\x01" + bytes(13)),
        (b"updatedat", b"\x09" + bytes(14)),
        (b"updatedat", b"\x01" + bytes(14)),
        (b"size", b"\x01"),
        (b"inodes", b"\x80"),
    ],
)
def test_a_bad_field_names_what_is_wrong(name: bytes, value: bytes) -> None:
    row = snapshot(1, 3)
    row[name] = value
    with pytest.raises(BoltError):
        list(snapshots(BoltFile.load(containerd_file({"a": row}))))


@pytest.mark.parametrize("name", [b"id", b"kind", b"createdat", b"updatedat"])
def test_a_missing_field_is_named(name: bytes) -> None:
    row = snapshot(1, 3)
    del row[name]
    with pytest.raises(BoltError, match=name.decode()):
        list(snapshots(BoltFile.load(containerd_file({"a": row}))))


def test_an_empty_store_has_no_snapshots() -> None:
    file = BoltFile.load(bolt_file({}))
    assert list(snapshots(file)) == []
    assert last_number(file) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_a_file_that_a_running_containerd_has_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(GOLDEN)
    script = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('x');"
    with subprocess.Popen(
        [sys.executable, "-c", script + "sys.stdout.flush(); sys.stdin.read()", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"x\n"
        with pytest.raises(FailedPreconditionError, match="running containerd"):
            BoltFile.open(path)
        holder.communicate()
    with BoltFile.open(path) as file:
        assert last_number(file) == LAST_NUMBER
