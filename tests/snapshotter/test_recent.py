"""What was seen last: bounded, given out once, and a commit believes it only where it is right."""

from __future__ import annotations

from pathlib import Path

from snapshotter import Snapshotter
from snapshotter.recent import Recent


def test_the_oldest_are_forgotten() -> None:
    recent: Recent[str, int] = Recent(most=2)
    for number, key in enumerate("abac"):
        recent.put(key, number)
    assert [recent.take(key) for key in "abc"] == [2, None, 3]


def test_a_value_is_given_out_once() -> None:
    recent: Recent[str, int] = Recent(most=2)
    recent.put("a", 1)
    assert recent.take("a") == 1
    assert recent.take("a") is None


def test_a_commit_measures_the_snapshot_that_has_the_key_now(tmp_path: Path) -> None:
    """Another process may have removed the one that was prepared here, and made another."""
    with Snapshotter.open(tmp_path) as here, Snapshotter.open(tmp_path) as there:
        here.prepare("extract-a")
        there.remove("extract-a")
        there.prepare("extract-a")
        layer = there.directory("extract-a") / "layer.vhd"
        layer.write_bytes(b"x" * 100_000)
        here.commit("a", "extract-a")
        assert here.usage("a").inodes == 2
        assert here.usage("a").size >= 100_000
        assert here.directory("a") == layer.parent
