"""What both platforms do alike, and what Windows does on its own."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snapshotter.platform import Platform, local_platform
from snapshotter.platform.links import probe_links
from snapshotter.platform.patience import discard_file, patiently
from snapshotter.platform.posix import PosixPlatform
from snapshotter.platform.windows import WindowsPlatform, extended
from snapshotter.platform.winerror import windows_error, winerror_of
from tests.fakes.ntfs import FakeNtfs, NtfsPlatform


def test_directories_are_made_listed_moved_and_removed(platform: Platform, tmp_path: Path) -> None:
    platform.make_directory(tmp_path / "a")
    with pytest.raises(FileExistsError):
        platform.make_directory(tmp_path / "a")
    (tmp_path / "outside").write_text("stays")
    (tmp_path / "a/f").write_text("x")
    platform.make_directory(tmp_path / "a/deep")
    platform.symlink(tmp_path / "a/deep/link", tmp_path / "outside")
    platform.symlink(tmp_path / "a/directory", tmp_path)
    platform.rename(tmp_path / "a", tmp_path / "b")
    assert sorted(platform.names(tmp_path)) == ["b", "outside"]
    platform.flush_names(tmp_path)
    platform.remove_tree(tmp_path / "b")
    assert platform.names(tmp_path) == ["outside"]
    with pytest.raises(FileNotFoundError):
        platform.remove_tree(tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        platform.rename(tmp_path / "b", tmp_path / "c")


def test_a_dangling_link_exists(platform: Platform, tmp_path: Path) -> None:
    platform.symlink(tmp_path / "link", tmp_path / "nothing")
    assert platform.exists(tmp_path / "link")
    assert not platform.exists(tmp_path / "nothing")


def test_a_replaced_file_is_the_new_one(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    platform.replace(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"


def test_a_hard_link_is_the_same_file(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    platform.hard_link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")


def test_free_space_is_about_what_the_system_says(platform: Platform, tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    expected = status.f_bavail * status.f_frsize
    assert abs(platform.free_space(tmp_path) - expected) < 1 << 30


def test_a_clone_that_the_file_system_refuses_leaves_nothing(
    platform: Platform, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5000)
    failure: OSError | None = None
    try:
        platform.reflink(tmp_path / "a", tmp_path / "b")
    except OSError as error:
        failure = error
    if failure is None:
        assert (tmp_path / "b").read_bytes() == b"x" * 5000
    else:
        assert failure.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV)
        assert not (tmp_path / "b").exists()


def test_a_clone_never_overwrites(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    with pytest.raises(FileExistsError):
        platform.reflink(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "old"


@pytest.mark.parametrize("size", [0, 1, 4096, 5000])
def test_refs_clones_whole_clusters_and_keeps_the_length(tmp_path: Path, size: int) -> None:
    platform = NtfsPlatform(FakeNtfs(refs=True))
    (tmp_path / "a").write_bytes(os.urandom(size))
    platform.reflink(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_file_of_many_gibibytes_is_cloned_in_steps(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    class Recording(FakeNtfs):
        def duplicate_extents(
            self, target: int, source: int, *, source_offset: int, target_offset: int, length: int
        ) -> None:
            assert source_offset == target_offset
            steps.append((target_offset, length))

    with (tmp_path / "a").open("wb") as file:
        file.truncate(5 * (1 << 30) + 1)
    NtfsPlatform(Recording()).reflink(tmp_path / "a", tmp_path / "b")
    assert [length for _, length in steps] == [1 << 30] * 5 + [4096]
    assert [offset for offset, _ in steps] == [number << 30 for number in range(6)]
    assert (tmp_path / "b").stat().st_size == 5 * (1 << 30) + 1


# -- Windows alone


def test_an_open_file_can_be_neither_moved_nor_removed_there(
    ntfs: FakeNtfs, tmp_path: Path
) -> None:
    platform = NtfsPlatform(ntfs)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("x")
    with (tmp_path / "d/f").open(), pytest.raises(PermissionError) as caught:
        platform.rename(tmp_path / "d/f", tmp_path / "d/g")
    assert winerror_of(caught.value) == 32
    assert platform.may_pass(caught.value)
    with ntfs.hold(tmp_path / "d/f"):
        with pytest.raises(PermissionError) as caught:
            platform.rename(tmp_path / "d", tmp_path / "e")
        assert platform.may_pass(caught.value)
        with pytest.raises(PermissionError):
            platform.remove_tree(tmp_path / "d")
    assert (tmp_path / "d/f").read_text() == "x"
    platform.remove_tree(tmp_path / "d")


def test_on_linux_nothing_passes_by_waiting() -> None:
    assert not PosixPlatform().may_pass(OSError(errno.EBUSY, "busy"))


def test_this_machine_has_a_platform(tmp_path: Path) -> None:
    assert probe_links(local_platform(), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("privileged", "developer_mode", "knows_flag", "possible"),
    [
        (True, False, True, True),
        (False, True, True, True),
        (False, False, True, False),
        (True, False, False, True),  # before Windows 10 1703
        (False, True, False, False),
    ],
)
def test_links_need_a_privilege_or_developer_mode(
    tmp_path: Path, privileged: bool, developer_mode: bool, knows_flag: bool, possible: bool
) -> None:
    kernel = FakeNtfs(
        privileged=privileged,
        developer_mode=developer_mode,
        knows_unprivileged_flag=knows_flag,
    )
    refused = probe_links(NtfsPlatform(kernel), tmp_path)
    assert (refused is None) == possible
    if refused is not None:
        assert winerror_of(refused) == 1314
    assert list(tmp_path.iterdir()) == []


def test_a_write_protected_file_goes_with_its_directory(ntfs: FakeNtfs, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("x")
    ntfs.protect(tmp_path / "d/f")
    NtfsPlatform(ntfs).remove_tree(tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("C:\\a\\b", "\\\\?\\C:\\a\\b"),
        ("C:/a/./b/../c", "\\\\?\\C:\\a\\c"),
        ("\\\\server\\share\\x", "\\\\?\\UNC\\server\\share\\x"),
        ("\\\\?\\C:\\a", "\\\\?\\C:\\a"),
    ],
)
def test_the_extended_spelling_has_no_length_limit(path: str, expected: str) -> None:
    assert extended(path) == expected


def test_a_path_of_any_length_is_taken(ntfs: FakeNtfs, tmp_path: Path) -> None:
    platform = NtfsPlatform(ntfs)
    deep = tmp_path / "long"
    platform.make_directory(deep)
    while len(str(deep)) < 400:
        deep = deep / ("x" * 60)
        platform.make_directory(deep)
    (deep / "f").write_text("x")
    platform.rename(deep / "f", deep / "g")
    platform.symlink(deep / "l", deep / "g")
    assert sorted(platform.names(deep)) == ["g", "l"]
    platform.remove_tree(tmp_path / "long")
    with pytest.raises(OSError, match="too long"):
        ntfs.create_directory(str(tmp_path / ("x" * 250)))


@pytest.mark.parametrize(
    "spelling", ["c:\\FAST\\x", "C:/fast/./X", "\\\\?\\C:\\fast\\y\\..\\x", "C:\\fast\\x\\"]
)
def test_two_spellings_of_a_path_fold_to_one(spelling: str) -> None:
    fold = WindowsPlatform(FakeNtfs()).fold
    assert fold(spelling) == fold("C:\\fast\\x")


def test_names_differ_in_more_than_case(ntfs: FakeNtfs, tmp_path: Path) -> None:
    platform = NtfsPlatform(ntfs)
    platform.make_directory(tmp_path / "Store")
    with pytest.raises(FileExistsError):
        platform.make_directory(tmp_path / "store")
    platform.make_directory(tmp_path / "STORE/one")
    assert (tmp_path / "Store/one").is_dir()
    assert platform.exists(tmp_path / "sTORE/ONE")


def test_a_new_file_that_a_scanner_opens_is_published_when_it_lets_go() -> None:
    answers = [windows_error(32, "f"), windows_error(5, "f")]

    def rename() -> None:
        if answers:
            raise answers.pop()

    patiently(rename)
    assert answers == []


@pytest.mark.parametrize("error", [windows_error(32, "f"), windows_error(2, "f"), OSError("x")])
def test_patience_ends(error: OSError) -> None:
    calls = 0

    def rename() -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(OSError) as caught:
        patiently(rename, bound_s=0.03)
    assert caught.value is error
    assert (calls > 1) == (winerror_of(error) == 32)


class Scanned(type(Path())):  # type: ignore[misc] # the system's own kind of path
    """A file that a scanner has open for the next few attempts to delete it."""

    left = 0

    def unlink(self, missing_ok: bool = False) -> None:
        if type(self).left:
            type(self).left -= 1
            raise windows_error(32, str(self))
        super().unlink(missing_ok)


def test_a_file_that_came_to_nothing_is_deleted_when_a_scanner_lets_go(tmp_path: Path) -> None:
    path = Scanned(tmp_path / "f")
    path.write_text("x")
    Scanned.left = 3
    discard_file(path)
    assert (Scanned.left, list(tmp_path.iterdir())) == (0, [])
    discard_file(path)  # there is none


def test_a_file_that_cannot_be_deleted_hides_no_other_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "f").mkdir()
    discard_file(tmp_path / "f", bound_s=0)
    assert (tmp_path / "f").is_dir()
    assert str(tmp_path / "f") in caplog.text


def test_only_long_paths_are_spelled_differently() -> None:
    platform = WindowsPlatform(FakeNtfs())
    assert platform.long(Path("C:\\a")) == Path("C:\\a")
    deep = "C:\\" + "\\".join(["x" * 50] * 5)
    assert str(platform.long(Path(deep))) == extended(deep)
