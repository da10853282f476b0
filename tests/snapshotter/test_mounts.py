from __future__ import annotations

import json
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import InvalidArgumentError
from snapshotter.metastore import Kind, Snapshot, SnapshotId
from snapshotter.mounts import Mount, go_json, lcow_mounts


def mounts(kind: Kind, *parents: int) -> Mount:
    snapshot = Snapshot(SnapshotId(9), kind, tuple(map(SnapshotId, parents)))
    (mount,) = lcow_mounts(snapshot, lambda number: Path(f"/r/snapshots/{number}"))
    return mount


def test_an_active_snapshot_lists_its_parents_nearest_first() -> None:
    assert mounts(Kind.ACTIVE, 3, 2, 1) == Mount(
        "lcow-layer",
        "/r/snapshots/9",
        ("rw", 'parentLayerPaths=["/r/snapshots/3","/r/snapshots/2","/r/snapshots/1"]'),
    )


def test_an_active_snapshot_without_parents_has_a_null_list() -> None:
    assert mounts(Kind.ACTIVE).options == ("rw", "parentLayerPaths=null")


def test_a_view_is_its_parents_directory_read_only() -> None:
    assert mounts(Kind.VIEW, 3, 2) == Mount(
        "lcow-layer", "/r/snapshots/3", ("ro", 'parentLayerPaths=["/r/snapshots/2"]')
    )


def test_a_view_of_one_layer_has_a_null_list() -> None:
    assert mounts(Kind.VIEW, 3).options == ("ro", "parentLayerPaths=null")


def test_a_view_of_nothing_is_its_own_directory() -> None:
    assert mounts(Kind.VIEW) == Mount(
        "lcow-layer", "/r/snapshots/9", ("ro", "parentLayerPaths=null")
    )


def test_paths_are_escaped_as_go_escapes_them() -> None:
    assert go_json([r"C:\a", "<&>", "ä\u2028\ud800"]) == (
        r'["C:\\a","\u003c\u0026\u003e","ä\u2028\ufffd"]'
    )


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
@settings(max_examples=100, deadline=None)
def test_the_list_decodes_to_the_paths(paths: list[str]) -> None:
    assert json.loads(go_json(paths)) == paths


def test_parent_paths_come_back_from_the_option() -> None:
    assert mounts(Kind.ACTIVE, 2, 1).parent_layer_paths == (
        Path("/r/snapshots/2"),
        Path("/r/snapshots/1"),
    )
    assert mounts(Kind.ACTIVE).parent_layer_paths == ()
    windows = Mount("lcow-layer", "C:\\x", ("rw", r'parentLayerPaths=["C:\\r\\1"]'))
    assert [PureWindowsPath(path).name for path in windows.parent_layer_paths] == ["1"]


@pytest.mark.parametrize("text", ["{}", "[1]", "nonsense"])
def test_a_broken_parent_list_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="mount option"):
        _ = Mount("lcow-layer", "/x", ("rw", f"parentLayerPaths={text}")).parent_layer_paths
