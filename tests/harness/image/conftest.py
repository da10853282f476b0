"""What the image tests share: the machine's package archive, and one cache for all of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.cachedir import CACHE_VARIABLE, IMAGES, cache_directory
from harness.errors import InfrastructureError
from harness.image.distribution import Distribution, ProgramPackages, program_packages
from harness.image.packages import Apt
from harness.image.sources import GuestSources
from harness.image.userland import Userland

PROGRAM = {
    "harness/__init__.py": b"",
    "harness/guest/__init__.py": b"",
    "harness/guest/__main__.py": b"import json, os\nprint(json.dumps(os.getpid()))\n",
}


@pytest.fixture
def sources() -> GuestSources:
    return GuestSources(PROGRAM)


@pytest.fixture(scope="session")
def archive() -> tuple[Apt, ProgramPackages]:
    """The machine's packages, or a skip with the reason."""
    apt = Apt()
    try:
        Distribution.of_this_machine()
        with apt.session() as session:
            return apt, program_packages(session)
    except InfrastructureError as error:
        pytest.skip(f"no packages can be had here: {error}")


@pytest.fixture(scope="session")
def userland(
    archive: tuple[Apt, ProgramPackages], tmp_path_factory: pytest.TempPathFactory
) -> Userland:
    """The guest's programs, downloaded into the user's own cache and unpacked."""
    apt, plan = archive
    scratch = tmp_path_factory.mktemp("packages")
    unpacked = Userland(apt, plan, debs=cache_directory(IMAGES) / "deb", scratch=scratch)
    try:
        unpacked.unpack_roots()
    except InfrastructureError as error:
        pytest.skip(f"no packages can be downloaded here: {error}")
    return unpacked


@pytest.fixture
def private_cache(userland: Userland, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache but for the downloads, which are taken from the user's own."""
    debs = tmp_path / "cache" / IMAGES / "deb"
    debs.mkdir(parents=True)
    for file in (cache_directory(IMAGES) / "deb").glob("*.deb"):
        try:
            os.link(file, debs / file.name)
        except OSError:
            (debs / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"
