"""The scenarios that a first Windows host will run, over the stand-in: bodies, lab and audit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if sys.platform != "linux":
    pytest.skip("the stand-in's machines need Linux", allow_module_level=True)

from harness.diskfiles import DiskFiles
from harness.errors import ImageBuildError, UsageError
from harness.exportedimage import export_image, open_image
from harness.hcs.windowshost import WindowsHost
from harness.image.build import UvmImage
from harness.image.demo import ensure_demo_image
from harness.image.rootdisk import RootDisk
from harness.lab import Lab, LabConfig
from harness.model.rootdisk import write_root_disk
from harness.report.events import Outcome
from harness.scenarios.catalogue import CATALOGUE, select
from harness.scenarios.runner import run_scenarios

if TYPE_CHECKING:
    from tests.fakes.computecore import StandInHcs


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An exported image whose kernel nobody will boot: the stand-in's guests are in process."""
    parts = {}
    for name in ("vmlinux", "bzimage", "initrd", "spdx"):
        parts[name] = tmp_path / name
        parts[name].write_bytes(name.encode())
    root = RootDisk(tmp_path / "root.vhd", tmp_path / "initrd")
    write_root_disk(root.disk)
    folder = tmp_path / "image"
    made = UvmImage(**parts, kernel_version="6.1.0-stand-in", key="k")
    export_image(made, root, ensure_demo_image(), folder)
    return folder


def lab_over(library: StandInHcs, config: LabConfig, windows: WindowsHost) -> Lab:
    class StandInLab(Lab):
        """The stand-in's guests write to the model's disks, not into the files."""

        @contextlib.contextmanager
        def files_on(self, disk: Path) -> Iterator[DiskFiles]:
            yield library.disks.open_files(disk)

    return StandInLab.open(config, windows=windows)


PLAYED = [
    scenario.name
    for scenario in CATALOGUE
    if "model" in scenario.backends() and "slow" not in scenario.tags
]


@pytest.mark.parametrize("name", PLAYED)
def test_a_scenario_passes_on_hcs_and_leaves_nothing(
    name: str, library: StandInHcs, host: WindowsHost, image: Path
) -> None:
    with lab_over(library, LabConfig(backend="hcs", image=image), host) as lab:
        result = run_scenarios(lab, select(CATALOGUE, names=[name], tags=()))
        (only,) = result.scenarios
        assert (only.outcome, only.reason) == (Outcome.PASSED, None)
        assert result.leaks == ()
        assert (result.backend, result.accelerator) == ("hcs", "hyper-v")
        assert result.environment["identity"]
        assert result.environment["hcs schemas"] == "2.1, 2.5"
        assert result.environment["kernel"] == "6.1.0-stand-in"


def test_without_an_image_it_says_how_to_get_one(host: WindowsHost, library: StandInHcs) -> None:
    with pytest.raises(UsageError, match="lcowlab uvm build --export"):
        lab_over(library, LabConfig(backend="hcs"), host)


@pytest.mark.skipif(sys.platform == "win32", reason="it is Windows")
def test_elsewhere_than_on_windows_the_backend_is_a_clear_error() -> None:
    with pytest.raises(UsageError, match="needs Windows with Hyper-V"):
        Lab.open(LabConfig(backend="hcs"))


def test_an_exported_image_is_whole_or_refused(image: Path) -> None:
    opened = open_image(image)
    assert (opened.key, opened.kernel_version) == ("k", "6.1.0-stand-in")
    assert opened.initrd.read_bytes() == b"initrd"
    (image / "initrd.cpio").write_bytes(b"other")
    with pytest.raises(ImageBuildError, match=r"initrd\.cpio is damaged"):
        open_image(image)
    (image / "initrd.cpio").unlink()
    with pytest.raises(ImageBuildError, match=r"lacks initrd\.cpio"):
        open_image(image)
    (image / "image.json").write_text("{}")
    with pytest.raises(ImageBuildError, match="another version"):
        open_image(image)
    (image / "image.json").unlink()
    with pytest.raises(ImageBuildError, match="--export"):
        open_image(image)
