from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import pytest

from snapshotter.vhdx.locator import ParentLinks
from snapshotter.vhdx.parentpath import paths_to_store, places_to_try

CHILD = Path("C:\\vm\\child.vhdx")
REMOTE_CHILD = Path("\\\\server\\share\\child.vhdx")


def places(key: str, text: str, child: Path, *, windows: bool) -> list[str]:
    links = ParentLinks(UUID(int=1), {key: text})
    return [str(place) for place in places_to_try(links, child, windows=windows)]


@pytest.mark.parametrize(
    ("key", "text", "place"),
    [
        ("relative_path", ".\\base.vhdx", "C:\\vm\\.\\base.vhdx"),
        ("relative_path", "..\\base.vhdx", "C:\\vm\\..\\base.vhdx"),
        ("absolute_win32_path", "D:\\base.vhdx", "D:\\base.vhdx"),
        ("absolute_win32_path", "\\\\?\\D:\\base.vhdx", "\\\\?\\D:\\base.vhdx"),
        (
            "volume_path",
            "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\base.vhdx",
            "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\base.vhdx",
        ),
    ],
)
def test_windows_takes_the_paths_as_they_are(key: str, text: str, place: str) -> None:
    assert places(key, text, CHILD, windows=True) == [place]


@pytest.mark.parametrize(
    "text",
    [
        "\\\\evil\\share\\base.vhdx",
        "//evil/share/base.vhdx",
        "\\\\?\\UNC\\evil\\share\\base.vhdx",
        "\\\\.\\UNC\\evil\\share\\base.vhdx",
        "\\\\?\\GLOBALROOT\\Device\\Mup\\evil\\share\\base.vhdx",
        "\\\\.\\pipe\\evil",
    ],
)
@pytest.mark.parametrize("key", ["relative_path", "absolute_win32_path"])
def test_windows_follows_a_local_child_to_no_other_computer(key: str, text: str) -> None:
    assert places(key, text, CHILD, windows=True) == []


def test_windows_follows_a_child_on_a_share_to_a_share() -> None:
    assert places("relative_path", "base.vhdx", REMOTE_CHILD, windows=True) == [
        "\\\\server\\share\\base.vhdx"
    ]
    text = "\\\\other\\share\\base.vhdx"
    assert places("absolute_win32_path", text, REMOTE_CHILD, windows=True) == [text]


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("relative_path", "..\\up\\base.vhdx", ["/vm/../up/base.vhdx"]),
        ("relative_path", "../up/base.vhdx", ["/vm/../up/base.vhdx"]),
        ("relative_path", "\\root\\base.vhdx", ["/vm/base.vhdx"]),
        ("relative_path", "C:\\d\\base.vhdx", ["/mnt/c/d/base.vhdx", "/vm/base.vhdx"]),
        ("absolute_win32_path", "/srv/base.vhdx", ["/srv/base.vhdx", "/vm/base.vhdx"]),
        ("absolute_win32_path", "\\\\?\\UNC\\host\\s\\base.vhdx", ["/vm/base.vhdx"]),
        ("absolute_win32_path", "..", []),
        ("volume_path", "\\", []),
    ],
)
def test_elsewhere_windows_paths_are_mapped(key: str, text: str, expected: list[str]) -> None:
    assert places(key, text, Path("/vm/child.vhdx"), windows=False) == expected


def test_each_place_is_tried_once() -> None:
    links = ParentLinks(
        UUID(int=1), {"relative_path": "base.vhdx", "absolute_win32_path": "\\\\s\\s\\base.vhdx"}
    )
    found = list(places_to_try(links, Path("/vm/child.vhdx"), windows=False))
    assert found == [Path("/vm/base.vhdx")]


def test_a_relative_path_is_stored_the_way_windows_writes_it(tmp_path: Path) -> None:
    below = paths_to_store(tmp_path / "child", tmp_path / "a" / "base", windows=False)
    assert below == {"relative_path": ".\\a\\base"}
    beside = paths_to_store(tmp_path / "b" / "child", tmp_path / "a" / "base", windows=False)
    assert beside == {"relative_path": "..\\a\\base"}


def test_a_relative_path_is_right_behind_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "down")
    stored = paths_to_store(tmp_path / "link" / "child", tmp_path / "base", windows=False)
    text = stored["relative_path"].replace("\\", "/")
    (tmp_path / "base").touch()
    assert os.path.samefile(tmp_path / "link" / text, tmp_path / "base")
