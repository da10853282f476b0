"""A disk that fills up while the image is built."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import ImageBuildError
from harness.image.packages import unpack


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    target = tmp_path / "small"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", target], check=True)
    yield target
    subprocess.run(["umount", target], check=True)


def test_a_full_disk_is_one_clear_error_that_says_what_to_do(
    small_disk: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "package"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: big\nVersion: 1\nArchitecture: all\nMaintainer: none\nDescription: big\n"
    )
    (tree / "file").write_bytes(os.urandom(2 << 20))
    package = tmp_path / "big.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "-Znone", tree, package], check=True, capture_output=True
    )
    with pytest.raises(ImageBuildError, match=r"disk is full.*LCOWLAB_CACHE"):
        unpack(package, small_disk)
