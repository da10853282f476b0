"""What runs in the utility VM imports the standard library alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness

PACKAGE = Path(harness.__file__).parent
IN_THE_IMAGE = ["__init__.py", *(f"gcs/{n}.py" for n in ("__init__", "prot", "codec", "mux"))]

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import harness.gcs.prot, harness.gcs.codec, harness.gcs.mux
if sys.platform == "linux":
    import harness.guest.boot, harness.guest.__main__
allowed = set(sys.stdlib_module_names) | {"harness", "__main__"}
print(sorted(name for name in sys.modules if name.partition(".")[0] not in allowed))
print("asyncio" in sys.modules)
"""


def image_tree(target: Path) -> None:
    """Copy what the image builder puts into the initrd."""
    files = [*IN_THE_IMAGE, *(f"guest/{path.name}" for path in PACKAGE.glob("guest/*.py"))]
    for name in files:
        destination = target / "harness" / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, destination)


def test_the_guests_part_imports_alone(tmp_path: Path) -> None:
    image_tree(tmp_path)
    run = subprocess.run(
        [sys.executable, "-S", "-E", "-I", "-B", "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["[]", "False"]


@pytest.mark.parametrize("name", ["__init__.py", "gcs/__init__.py", "guest/__init__.py"])
def test_packages_on_the_guests_path_hold_nothing(name: str) -> None:
    assert (PACKAGE / name).read_text() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the agent is a Linux program")
def test_the_agent_refuses_to_run_outside_a_utility_vm() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "harness.guest"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert "runs nowhere else" in run.stderr
