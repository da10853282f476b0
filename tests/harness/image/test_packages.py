"""Package look-up and download, on the machine's own apt and on one without any list."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.errors import ImageBuildError, MissingProgramError
from harness.image.distribution import ProgramPackages
from harness.image.packages import Apt, Package, run_tool, unpack


@pytest.fixture
def empty_apt(tmp_path: Path, archive: tuple[Apt, ProgramPackages]) -> Apt:
    """An apt that was never updated."""
    for folder in ("state/lists/partial", "cache/archives/partial", "etc/sources.list.d"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "status").touch()
    options = {
        "Dir::State": "state",
        "Dir::State::status": "status",
        "Dir::Cache": "cache",
        "Dir::Etc": "etc",
    }
    return Apt([x for k, v in options.items() for x in ("-o", f"{k}={tmp_path / v}")])


def test_no_package_lists_says_to_update(empty_apt: Apt) -> None:
    with pytest.raises(ImageBuildError, match=r"no package lists in .*apt-get update"):
        empty_apt.require(["crun"])


def test_an_unknown_package_is_named(archive: tuple[Apt, ProgramPackages]) -> None:
    with pytest.raises(ImageBuildError, match="no configured package source has no-such-package"):
        archive[0].require(["libc6", "no-such-package"])


def test_a_package_that_cannot_be_fetched_says_so(
    archive: tuple[Apt, ProgramPackages], tmp_path: Path
) -> None:
    package = archive[1].packages["busybox-static"]
    offline = Apt(["-o", "Acquire::http::Proxy=http://127.0.0.1:9", "-o", "Acquire::Retries=0"])
    with pytest.raises(ImageBuildError, match=r"apt-get .*download.*Check the network"):
        offline.download([package], tmp_path / "deb")
    assert list((tmp_path / "deb").iterdir()) == []


def test_a_damaged_download_is_fetched_again_or_refused(
    archive: tuple[Apt, ProgramPackages], tmp_path: Path
) -> None:
    apt, plan = archive
    package = plan.packages["libuuid1"]
    (tmp_path / package.file_name).write_bytes(b"damaged")
    path = apt.download([package], tmp_path)[package.name]
    assert path.stat().st_size == package.size
    wrong = Package(package.name, package.version, package.architecture, (), "0" * 64, 1)
    with pytest.raises(ImageBuildError, match="not what the package lists describe"):
        apt.download([wrong], tmp_path)


def test_the_fingerprint_changes_with_the_configuration(empty_apt: Apt, tmp_path: Path) -> None:
    before = empty_apt.fingerprint()
    assert empty_apt.fingerprint() == before
    (tmp_path / "etc" / "sources.list").write_text("# nothing\n")
    changed = empty_apt.fingerprint()
    assert changed != before
    os.utime(tmp_path / "etc" / "sources.list", (1, 1))
    assert empty_apt.fingerprint() not in (before, changed)


def test_dependencies_are_names_with_their_alternatives(
    archive: tuple[Apt, ProgramPackages],
) -> None:
    depends = archive[1].packages["crun"].depends
    assert {"libc6", "libseccomp2"} <= set(depends)
    assert not [name for name in depends if not name.replace("-", "").replace(".", "").isalnum()]


def test_a_damaged_package_is_reported_with_the_command(tmp_path: Path) -> None:
    deb = tmp_path / "bad.deb"
    deb.write_bytes(b"no package")
    with pytest.raises(ImageBuildError, match=r"dpkg-deb -x .*bad\.deb.*exit code"):
        unpack(deb, tmp_path / "out")


def test_a_machine_without_apt_says_what_it_takes() -> None:
    with pytest.raises(MissingProgramError, match="Debian or Ubuntu"):
        run_tool(["lcowlab-no-such-program"])
