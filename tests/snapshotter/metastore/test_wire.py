"""An Info in the row against protobuf's own decoder, and against the other columns."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from snapshotter import Info, Kind, Snapshotter
from snapshotter.filters import Filters
from snapshotter.metastore.schema import MIGRATIONS
from snapshotter.metastore.store import MetaStore
from snapshotter.metastore.wire import info_frame
from snapshotter.rpc import messages

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
times = st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9)
"""What google.protobuf.Timestamp can say: the years 1 to 9999."""
infos = st.builds(
    Info,
    name=texts,
    kind=st.sampled_from(Kind),
    parent=texts,
    labels=st.dictionaries(texts, texts, max_size=5),
    created_ns=times,
    updated_ns=times,
)


def decoded(frame: bytes) -> Info:
    info = messages.StatSnapshotResponse.FromString(frame).info
    return Info(
        info.name,
        Kind(info.kind),
        info.parent,
        dict(info.labels),
        info.created_at.seconds * 10**9 + info.created_at.nanos,
        info.updated_at.seconds * 10**9 + info.updated_at.nanos,
    )


@given(infos)
def test_protobuf_reads_what_is_encoded(info: Info) -> None:
    assert decoded(info_frame(info)) == info


@given(st.lists(infos, max_size=5))
def test_frames_one_after_the_other_are_a_list(found: list[Info]) -> None:
    response = messages.ListSnapshotsResponse.FromString(b"".join(map(info_frame, found)))
    assert [info.name for info in response.info] == [info.name for info in found]


@given(infos)
def test_the_nanoseconds_of_a_time_are_never_negative(info: Info) -> None:
    stamp = messages.StatSnapshotResponse.FromString(info_frame(info)).info.created_at
    assert 0 <= stamp.nanos < 10**9


def test_the_kept_bytes_follow_every_change(store: Snapshotter) -> None:
    def check() -> None:
        assert [decoded(frame) for frame in store.walk_frames()] == list(store.walk())
        for info in store.walk():
            assert decoded(store.stat_frame(info.name)) == info

    store.prepare("extract-a", labels={"x": "1", "empty": ""})
    check()
    store.commit("a", "extract-a", labels={"y": "ä"})
    check()
    store.prepare("b", "a", labels={"z": "3"})
    store.view("v", "a")
    check()
    store.update(Info("b", labels={"q": "4"}), "labels.q")
    store.update(Info("a", labels={"r": "5"}))
    check()
    store.prepare("extract-c")
    store.commit("c", "extract-c", parent="a")
    check()
    assert decoded(store.stat_frame("c")).parent == "a"


def test_filters_choose_the_same_from_either_form(store: Snapshotter) -> None:
    for number in range(6):
        store.view(f"v{number}", labels={"even": str(number % 2 == 0)})
    for filters in (["labels.even==True"], ["name~=v[12]"], ["kind==view,name!=v3"], []):
        kept = [decoded(frame).name for frame in store.walk_frames(*filters)]
        assert kept == [info.name for info in store.walk(*filters)]
        assert kept


def test_an_older_store_gets_the_bytes_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with contextlib.closing(MetaStore.open(path)) as store:
        with store.transaction(write=True) as tx:
            tx.snapshots.create(Kind.ACTIVE, "a", "", {"l": "1"})
        with store.transaction(write=False) as tx:
            before = list(tx.snapshots.frames(Filters()))
    with contextlib.closing(sqlite3.connect(path)) as old:
        assert MIGRATIONS[1].statements == (
            "ALTER TABLE snapshot ADD COLUMN frame BLOB NOT NULL DEFAULT x''",
        )
        old.execute("ALTER TABLE snapshot DROP COLUMN frame")
        old.execute("DELETE FROM migration WHERE version >= 2")
        old.commit()
    with (
        contextlib.closing(MetaStore.open(path)) as store,
        store.transaction(write=False) as tx,
    ):
        assert list(tx.snapshots.frames(Filters())) == before
