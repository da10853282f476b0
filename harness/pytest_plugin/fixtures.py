"""The fixtures; everything heavy is imported when the first test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.pytest_plugin.options import accelerator, backend

if TYPE_CHECKING:
    from harness.lab import Lab
    from harness.uvm import UtilityVm
    from snapshotter import Snapshotter


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab for the whole session (one a worker under xdist); skips where QEMU cannot be had."""
    from harness.errors import MissingProgramError
    from harness.lab import Lab, LabConfig

    config = LabConfig(backend=backend(request.config), accelerator=accelerator(request.config))
    try:
        opened = Lab.open(config)
    except MissingProgramError as error:
        pytest.skip(f"needs a utility VM: {error}")
    with opened:
        yield opened


@pytest.fixture(scope="module")
def make_uvm(lab: Lab) -> Iterator[Callable[[], UtilityVm]]:
    """A function that boots a utility VM; each is closed at the end of the module."""
    made: list[UtilityVm] = []

    def boot() -> UtilityVm:
        vm = lab.boot_uvm()
        made.append(vm)
        return vm

    yield boot
    for vm in reversed(made):
        vm.close()


@pytest.fixture(scope="module")
def uvm(make_uvm: Callable[[], UtilityVm]) -> UtilityVm:
    """One running utility VM for a module."""
    return make_uvm()


@pytest.fixture
def snapshotter(tmp_path: Path) -> Iterator[Snapshotter]:
    """An empty snapshot store of its own."""
    from snapshotter import Snapshotter

    with Snapshotter.open(tmp_path / "snapshotter") as opened:
        yield opened


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A formatted 20 GB scratch VHDX of its own."""
    from snapshotter.scratch.template import ScratchTemplate
    from snapshotter.units import GIB

    path = tmp_path / "sandbox.vhdx"
    ScratchTemplate.build(20 * GIB).write(path)
    return path
