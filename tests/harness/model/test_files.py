"""File systems and overlays of the model, after the kernel's rules."""

from __future__ import annotations

import errno

import pytest

from harness.model.files import FileSystem, Kind, Node, directory
from harness.model.namespace import Mounted, Namespace
from harness.model.overlay import Branch, Overlay


def file(text: bytes) -> Node:
    return Node(Kind.FILE, data=bytearray(text))


def test_what_was_not_synced_is_lost_in_a_crash() -> None:
    files = FileSystem(directory(), name="disk")
    files.put("/kept", file(b"a"))
    files.sync()
    files.put("/lost", file(b"b"))
    files.writable("/kept").data[:] = b"changed"
    files.crash()
    assert files.names("/") == ["kept"]
    kept = files.find("/kept")
    assert kept is not None
    assert kept.content() == b"a"


def test_a_full_file_system_refuses_and_gives_back() -> None:
    files = FileSystem(directory(), name="disk", free_blocks=2, free_inodes=2)
    space = Namespace(Mounted("/", files))
    space.write("/a", bytes(8192))
    with pytest.raises(OSError, match="No space left") as full:
        space.write("/b", b"x")
    assert full.value.errno == errno.ENOSPC
    space.remove("/a")
    assert files.usage().free_blocks == 2
    space.write("/b", b"x")  # the file that was made before its content did not fit
    space.write("/c", b"")
    with pytest.raises(OSError, match="No space left"):
        space.write("/d", b"")


@pytest.fixture
def overlay() -> Overlay:
    """`lower` has etc/old and opt/data/a; the upper directory is empty."""
    lower = FileSystem(directory(), name="lower")
    for path in ("/etc", "/opt", "/opt/data"):
        lower.put(path, directory())
    lower.put("/etc/old", file(b"lower"))
    lower.put("/opt/data/a", file(b"a"))
    upper = FileSystem(directory(), name="upper")
    upper.put("/u", directory())
    return Overlay([Branch(lower, "/")], Branch(upper, "/u"))


def test_a_write_is_copied_up_and_the_layer_stays(overlay: Overlay) -> None:
    Namespace(Mounted("/", overlay)).write("/etc/old", b"upper")
    (lower,) = overlay.lower
    found = lower.find("/etc/old")
    assert found is not None
    assert found.content() == b"lower"
    assert Namespace(Mounted("/", overlay)).read("/etc/old") == b"upper"


def test_a_removed_name_is_hidden_by_a_whiteout_and_can_be_made_again(overlay: Overlay) -> None:
    space = Namespace(Mounted("/", overlay))
    space.remove("/etc/old")
    assert space.names("/etc") == []
    assert overlay.upper is not None
    whiteout = overlay.upper.find("/etc/old")
    assert whiteout is not None
    assert whiteout.is_whiteout
    space.write("/etc/old", b"new")
    assert space.read("/etc/old") == b"new"


def test_a_directory_made_in_the_place_of_a_removed_one_is_empty(overlay: Overlay) -> None:
    space = Namespace(Mounted("/", overlay))
    space.remove("/opt/data")
    space.make_directory("/opt/data")
    assert space.names("/opt/data") == []


def test_links_are_followed_within_the_root_and_loops_end() -> None:
    files = FileSystem(directory(), name="root")
    space = Namespace(Mounted("/", files))
    space.make_directory("/d")
    space.write("/d/f", b"x")
    space.put("/up", Node(Kind.LINK, target="../../../d"))
    space.put("/loop", Node(Kind.LINK, target="loop"))
    assert space.read("/up/f") == b"x"
    with pytest.raises(OSError, match="symbolic links") as loop:
        space.resolve("/loop")
    assert loop.value.errno == errno.ELOOP
