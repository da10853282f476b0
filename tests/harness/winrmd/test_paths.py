from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.winrmd.environment import WindowsEnvironment
from harness.winrmd.paths import HostPaths


def test_names_are_found_whatever_their_case(tmp_path: Path) -> None:
    (tmp_path / "Program Files" / "Tool").mkdir(parents=True)
    paths = HostPaths(tmp_path)
    found = paths.local("c:\\PROGRAM FILES\\tool\\New.txt")
    assert found == tmp_path / "Program Files" / "Tool" / "New.txt"
    assert paths.windows(found) == "C:\\Program Files\\Tool\\New.txt"
    assert paths.local("\\\\?\\C:\\x") == tmp_path / "x"


def test_relative_names_start_where_the_command_is(tmp_path: Path) -> None:
    paths = HostPaths(tmp_path)
    assert paths.local("..\\b", directory=tmp_path / "a") == tmp_path / "b"
    assert paths.local("\\b", directory=tmp_path / "a") == tmp_path / "b"


def test_another_drive_is_not_there(tmp_path: Path) -> None:
    assert HostPaths(tmp_path).local("D:\\x") is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "a", "C:", "", "b c"]), max_size=8))
def test_nothing_outside_of_the_root_can_be_named(tmp_path: Path, names: list[str]) -> None:
    found = HostPaths(tmp_path).local("\\".join(names), directory=tmp_path / "d")
    assert found is not None
    assert found.is_relative_to(tmp_path)
    assert ".." not in found.parts


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("C:\\a\\b.py", "/a/b.py"),
        ("--out=C:\\a", "--out={}/a"),
        ("x C:\\a", "x C:\\a"),
        ("http://h:80/c", "http://h:80/c"),
        ("plain", "plain"),
    ],
)
def test_arguments_of_real_processes_name_local_files(
    tmp_path: Path, text: str, local: str
) -> None:
    if local.startswith("/"):
        local = "{}" + local
    assert HostPaths(tmp_path).translate(text) == local.format(tmp_path)


def test_variables_ignore_case_and_keep_their_spelling() -> None:
    variables = WindowsEnvironment({"Path": "a"})
    copy = variables.copy()
    copy.set("PATH", "b")
    assert dict(copy) == {"Path": "b"}
    assert variables["pAtH"] == "a"
    copy.set("path", "")
    assert "Path" not in copy
