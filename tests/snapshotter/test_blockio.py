"""One suite for every implementation of a file: this host's, and Windows's over a stand-in."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.blockio import BlockFile, LocalBlockFile
from snapshotter.blockio.windows import (
    ERROR_NOT_SUPPORTED,
    INVALID_HANDLE,
    WindowsBlockFile,
)
from snapshotter.errors import FailedPreconditionError, UnavailableError
from snapshotter.units import GIB, KIB, MIB

from .kernel32 import ERROR_DISK_FULL, StandInKernel32

AnyFile = LocalBlockFile | WindowsBlockFile
Open = Callable[..., AnyFile]


@pytest.fixture(params=["this host", "Windows", "Windows without FSCTL_SET_ZERO_DATA"])
def open_file(request: pytest.FixtureRequest) -> Iterator[Open]:
    if request.param == "this host":
        yield LocalBlockFile.open
        return
    kernel32 = StandInKernel32(zero_data=request.param == "Windows")

    def opener(path: Path, *, writable: bool = False) -> WindowsBlockFile:
        return WindowsBlockFile.open(path, writable=writable, kernel32=kernel32)

    yield opener
    assert kernel32.open_handles == 0, "a handle was left open"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk"
    made.write_bytes(b"0123456789")
    return made


def test_reads_end_with_the_file(open_file: Open, path: Path) -> None:
    with open_file(path) as file:
        assert file.size == 10
        assert file.read_at(2, 3) == b"234"
        assert file.read_at(8, 5) == b"89"
        assert file.read_at(10, 5) == b""
        assert file.read_at(10**15, 5) == b""
        assert file.read_at(3, 0) == b""


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63, 2**64 - MIB, 2**64, 2**70])
def test_no_file_reaches_an_offset_that_the_system_cannot_express(
    open_file: Open, path: Path, offset: int
) -> None:
    with open_file(path, writable=True) as file:
        assert file.read_at(offset, 5) == b""
        assert file.read_into(offset, [bytearray(5)]) == 0
        with pytest.raises(UnavailableError, match="cannot write"):
            file.write_at(offset, b"x")
        with pytest.raises(UnavailableError, match="cannot write"):
            file.write_from(offset, [b"x"])
    assert path.read_bytes() == b"0123456789"


def test_a_reader_cannot_write(open_file: Open, path: Path) -> None:
    with open_file(path) as file, pytest.raises((UnavailableError, AssertionError)):
        file.write_at(0, b"x")
    assert path.read_bytes() == b"0123456789"


def test_writes_go_where_they_belong_and_grow_the_file(open_file: Open, path: Path) -> None:
    with open_file(path, writable=True) as file:
        file.write_at(3, b"abc")
        file.write_at(12, memoryview(bytearray(b"zz")))
        assert file.size == 14
        file.write_at(0, b"")
        file.flush()
    assert path.read_bytes() == b"012abc6789\0\0zz"


def test_offsets_beyond_4_gib_are_not_cut(open_file: Open, path: Path) -> None:
    with open_file(path, writable=True) as file:
        file.write_at(5 * GIB + 7, b"far")
        assert file.read_at(5 * GIB + 7, 3) == b"far"
        assert file.read_at(GIB + 7, 3) == bytes(3)
        assert file.size == 5 * GIB + 10
        file.truncate(4)
        assert file.size == 4


def test_large_transfers_are_whole(open_file: Open, path: Path) -> None:
    data = bytes(range(256)) * 4096 * 3
    with open_file(path, writable=True) as file:
        file.write_at(5, data)
        assert file.read_at(5, len(data)) == data


def test_many_buffers_go_and_come_in_one_call(open_file: Open, path: Path) -> None:
    parts = [bytes([n % 256]) * (n % 7) for n in range(3000)]
    with open_file(path, writable=True) as file:
        file.write_from(2, parts)
        buffers = [bytearray(len(part)) for part in parts]
        assert file.read_into(2, buffers) == sum(map(len, parts))
        assert buffers == [bytearray(part) for part in parts]
        beyond = [bytearray(4), bytearray(9)]
        assert file.read_into(file.size - 6, beyond) == 6


def test_zeros_replace_exactly_a_stretch(open_file: Open, path: Path) -> None:
    with open_file(path, writable=True) as file:
        file.write_at(0, b"x" * (3 * MIB))
        file.write_zeros(4097, 2 * MIB)
        file.write_zeros(0, 0)
        assert file.size == 3 * MIB
        assert file.read_at(0, 3 * MIB) == (b"x" * 4097 + bytes(2 * MIB) + b"x" * (MIB - 4097))


def test_growing_by_truncate_reads_as_zeros(open_file: Open, path: Path) -> None:
    with open_file(path, writable=True) as file:
        file.truncate(100)
        assert file.read_at(0, 200) == b"0123456789" + bytes(90)


def test_one_writer_and_any_number_of_readers(open_file: Open, path: Path) -> None:
    with open_file(path) as early, open_file(path, writable=True) as writer:
        with pytest.raises(FailedPreconditionError, match="another program"):
            open_file(path, writable=True)
        with open_file(path) as late:
            writer.write_at(0, b"new")
            assert early.read_at(0, 3) == late.read_at(0, 3) == b"new"
    with open_file(path, writable=True) as file:
        assert file.size == 10


def test_a_missing_file_is_missing(open_file: Open, tmp_path: Path) -> None:
    for writable in (False, True):
        with pytest.raises(FileNotFoundError):
            open_file(tmp_path / "none", writable=writable)


def test_a_closed_file_says_so(open_file: Open, path: Path) -> None:
    file = open_file(path, writable=True)
    file.close()
    file.close()
    for use in (
        lambda: file.read_at(0, 1),
        lambda: file.write_at(0, b"x"),
        lambda: file.truncate(5),
        file.flush,
    ):
        with pytest.raises(UnavailableError):
            use()


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(("write", "zeros", "truncate", "read", "gather")),
            st.integers(0, 300 * KIB),
            st.integers(0, 200 * KIB),
        ),
        max_size=12,
    )
)
def test_every_implementation_is_the_same_array_of_bytes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    files: list[AnyFile] = []
    for number, kernel32 in enumerate((None, StandInKernel32(), StandInKernel32(zero_data=False))):
        path = folder / f"{number}"
        path.touch()
        if kernel32 is None:
            files.append(LocalBlockFile.open(path, writable=True))
        else:
            files.append(WindowsBlockFile.open(path, writable=True, kernel32=kernel32))
    model = bytearray()
    for number, (step, offset, length) in enumerate(steps):
        for file in files:
            if step == "write":
                file.write_at(offset, bytes([number + 1]) * length)
            elif step == "gather":
                file.write_from(offset, [bytes([number + 1]) * (length // 2)] * 2)
            elif step == "zeros":
                file.write_zeros(offset, max(0, min(length, file.size - offset)))
            elif step == "truncate":
                file.truncate(offset)
        if step in ("write", "gather"):
            count = length // 2 * 2 if step == "gather" else length
            if count:
                model.extend(bytes(max(0, offset + count - len(model))))
                model[offset : offset + count] = bytes([number + 1]) * count
        elif step == "zeros":
            count = max(0, min(length, len(model) - offset))
            model[offset : offset + count] = bytes(count)
        elif step == "truncate":
            model = (model + bytes(max(0, offset - len(model))))[:offset]
        for file in files:
            assert file.read_at(offset, length) == model[offset : offset + length]
    for file in files:
        assert file.size == len(model)
        file.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[..., tuple[WindowsBlockFile, WindowsBlockFile]]]:
    """Two files on one volume of Windows: one to share blocks from, and an empty one."""
    opened: list[WindowsBlockFile] = []

    def make(kernel32: StandInKernel32, data: bytes) -> tuple[WindowsBlockFile, WindowsBlockFile]:
        (tmp_path / "source").write_bytes(data)
        (tmp_path / "target").touch()
        for name in ("source", "target"):
            file = WindowsBlockFile.open(
                tmp_path / name, writable=name == "target", kernel32=kernel32
            )
            opened.append(file)
        return opened[0], opened[1]

    yield make
    for file in opened:
        file.close()


def test_files_on_refs_share_clusters(
    pair: Callable[..., tuple[WindowsBlockFile, WindowsBlockFile]],
) -> None:
    kernel32 = StandInKernel32(clusters=4 * KIB)
    data = bytes(range(256)) * 64
    source, target = pair(kernel32, data)
    assert target.share_from(source, 4 * KIB, 8 * KIB, 8 * KIB)
    assert target.read_at(0, 20 * KIB) == bytes(8 * KIB) + data[4 * KIB : 12 * KIB]
    assert target.share_from(source, 0, 0, 4 * KIB)
    assert target.size == 16 * KIB
    assert kernel32.shared == [(4 * KIB, 8 * KIB, 8 * KIB), (0, 0, 4 * KIB)]


@pytest.mark.parametrize(
    ("clusters", "start", "length"),
    [
        (0, 0, 4 * KIB),
        (64 * KIB, 0, 4 * KIB),
        (4 * KIB, 100, 4 * KIB),
        (4 * KIB, 8 * KIB, 16 * KIB),
    ],
    ids=["NTFS", "part of a cluster", "across clusters", "behind the end"],
)
def test_what_cannot_be_shared_on_windows_leaves_the_length_as_it_was(
    pair: Callable[..., tuple[WindowsBlockFile, WindowsBlockFile]],
    clusters: int,
    start: int,
    length: int,
) -> None:
    source, target = pair(StandInKernel32(clusters=clusters), b"x" * 16 * KIB)
    target.write_at(0, b"before")
    assert not target.share_from(source, start, 0, length)
    assert target.read_at(0, 100) == b"before"
    source.close()
    assert not target.share_from(source, 0, 0, 4 * KIB)


def test_gibibytes_are_shared_in_steps(
    pair: Callable[..., tuple[WindowsBlockFile, WindowsBlockFile]],
) -> None:
    class Refs(StandInKernel32):
        def _duplicate(self, target: int, given: object, given_length: int) -> int:
            asked = given.contents  # type: ignore[attr-defined]
            self.shared.append((asked.SourceFileOffset, asked.TargetFileOffset, asked.ByteCount))
            return 1

    kernel32 = Refs()
    source, target = pair(kernel32, b"")
    assert target.share_from(source, MIB, 0, 2 * GIB + MIB)
    assert kernel32.shared == [(MIB, 0, GIB), (MIB + GIB, GIB, GIB), (MIB + 2 * GIB, 2 * GIB, MIB)]
    assert target.size == 2 * GIB + MIB


@pytest.mark.parametrize(
    ("function", "use"),
    [
        ("ReadFile", lambda file: file.read_at(0, 1)),
        ("WriteFile", lambda file: file.write_at(0, b"x")),
        ("FlushFileBuffers", lambda file: file.flush()),
        ("GetFileSizeEx", lambda file: file.size),
        ("SetFileInformationByHandle", lambda file: file.truncate(3)),
        ("DeviceIoControl", lambda file: file.write_zeros(0, 3)),
    ],
)
def test_what_windows_refuses_names_the_file_and_the_error(
    path: Path, function: str, use: Callable[[BlockFile], object]
) -> None:
    kernel32 = StandInKernel32(failing={function: ERROR_DISK_FULL})
    with WindowsBlockFile.open(path, writable=True, kernel32=kernel32) as file:
        with pytest.raises(UnavailableError, match=f"{path.name}.*") as caught:
            use(file)
        assert str(ERROR_DISK_FULL) in str(caught.value) or sys.platform == "win32"


def test_a_handle_that_windows_refuses_is_not_used(path: Path) -> None:
    kernel32 = StandInKernel32(failing={"CreateFileW": ERROR_NOT_SUPPORTED})
    with pytest.raises(UnavailableError, match="cannot open"):
        WindowsBlockFile.open(path, kernel32=kernel32)
    assert kernel32.calls == ["CreateFileW"]
    assert INVALID_HANDLE != 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_the_environments_fault() -> None:
    with (
        LocalBlockFile.open("/dev/full", writable=True) as file,
        pytest.raises(UnavailableError, match=r"cannot write /dev/full") as caught,
    ):
        file.write_at(0, b"x")
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ENOSPC


@pytest.mark.skipif(sys.platform != "linux", reason="holes are given back on Linux")
def test_zeros_give_the_room_back(path: Path) -> None:
    with LocalBlockFile.open(path, writable=True) as file:
        file.write_at(0, b"x" * 8 * MIB)
        file.flush()
        before = path.stat().st_blocks
        file.write_zeros(0, 4 * MIB)
        file.flush()
    if path.stat().st_blocks == before:
        pytest.skip("this file system has no holes")
    assert path.stat().st_blocks < before
