"""A Windows host that is none: the stand-in for computecore.dll, with all that belongs to it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.hcs.computecore import ComputeCore
from harness.hcs.document import ComputeSystem, lcow_document
from harness.hcs.hcsapi import HcsApi
from harness.hcs.hcsservice import HcsComputeService
from harness.hcs.windowshost import WindowsHost

if TYPE_CHECKING:
    from tests.fakes.computecore import StandInHcs


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for socket names."""
    folder = Path(tempfile.mkdtemp(prefix="hcs-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def library(short_folder: Path) -> Iterator[StandInHcs]:
    """The stand-in; at the end nothing may be held and no mistake have been made."""
    if sys.platform != "linux":
        pytest.skip("the stand-in's machines need Linux")
    from tests.fakes.computecore import StandInHcs

    library = StandInHcs(short_folder)
    yield library
    library.disks.close()
    assert library.leaks() == []


@pytest.fixture
def api(library: StandInHcs) -> HcsApi:
    return HcsApi(ComputeCore(library, library.operations.local_free))


@pytest.fixture
def host(library: StandInHcs, api: HcsApi) -> WindowsHost:
    return WindowsHost(api, library.sockets.listen, library.open_pipe)


@pytest.fixture
def service(host: WindowsHost) -> Iterator[HcsComputeService]:
    with HcsComputeService(host) as opened:
        yield opened


@pytest.fixture
def document(tmp_path: Path) -> ComputeSystem:
    """A system that may be made: its boot files exist."""
    for name in ("vmlinux", "initrd"):
        (tmp_path / name).write_bytes(b"boot")
    return lcow_document(
        owner="lcowlab:test",
        kernel=str(tmp_path / "vmlinux"),
        initrd=str(tmp_path / "initrd"),
        serial_pipe="console",
    )
