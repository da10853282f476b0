"""What runs on a host is the version that asks for it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness
import snapshotter
from harness.errors import ProvisionError, UsageError
from harness.hosts.bundle import Bundle
from harness.report.events import Outcome
from tests.harness.hosts.pretend import Pretend
from tests.harness.runs.ready import (
    ROOT,
    lease_of,
    ready_host,
    remote_run,
    request,
)


def write_wheel(folder: Path, *, more: bytes = b"") -> Path:
    """A bundle with a wheel of the packages that run here; `more` makes it another version."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    with zipfile.ZipFile(wheels / "lcowlab-1-py3-none-any.whl", "w") as archive:
        for package in (harness, snapshotter):
            (path,) = package.__path__
            for file in Path(path).rglob("*"):
                if file.is_file() and file.suffix != ".pyc":
                    archive.write(file, file.relative_to(Path(path).parent))
        if more:
            archive.writestr("harness/extra.py", more)
    Bundle.create(folder / "bundle", {"wheels": wheels})
    return folder / "bundle"


@pytest.fixture(scope="module")
def own_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pretend]:
    with ready_host(tmp_path_factory.mktemp("versions") / "host") as pretend:
        yield pretend


def test_another_version_is_refused_then_replaced_by_the_bundles(
    own_host: Pretend, tmp_path: Path
) -> None:
    other, ours = write_wheel(tmp_path / "other", more=b"x = 1"), write_wheel(tmp_path / "ours")
    asked = request("same-id-again")
    with own_host.connect() as winrm:
        deployed = own_host.host.local_path(ROOT.inside("deploy"))
        stale = deployed / "stale"
        for package in ("harness", "snapshotter"):
            (stale / package).mkdir(parents=True)
            (stale / package / "__init__.py").touch()
        (deployed / "current.json").write_text(f'{{"path": "{stale}"}}')
        with pytest.raises(ProvisionError, match="lcowlab deploy win-01 --bundle"):
            remote_run(winrm, asked).run()
        assert lease_of(own_host)["state"] == "free"
        with pytest.raises(UsageError, match="another version than this"):
            remote_run(winrm, asked, bundle=other).run()
        assert lease_of(own_host)["state"] == "free"
        said: list[str] = []
        hosted = remote_run(winrm, asked, bundle=ours, said=said).run()
        assert hosted.result.scenarios[0].outcome is Outcome.PASSED
        assert any("1 wheels copied" in each for each in said)
