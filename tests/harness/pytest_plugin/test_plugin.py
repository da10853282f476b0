"""The pytest plugin, as another project's test run sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def _pytest(
    directory: Path, *args: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
        cwd=directory,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_unused_it_imports_no_backend(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_nothing_heavy():\n"
        "    heavy = ('harness.qemu', 'harness.lab', 'harness.image', 'snapshotter', 'numpy')\n"
        "    assert [name for name in heavy if name in sys.modules] == []\n"
    )
    done = _pytest(tmp_path, "-q")
    assert done.returncode == 0, done.stdout


def test_its_options_are_in_the_help(tmp_path: Path) -> None:
    done = _pytest(tmp_path, "--help")
    assert "--hv-backend" in done.stdout
    assert "--hv-accelerator" in done.stdout


def test_a_test_that_uses_a_utility_vm_is_marked_qemu(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_vm(uvm): pass\ndef test_other(): pass\n")
    done = _pytest(tmp_path, "--collect-only", "-q", "-m", "not qemu", "--strict-markers")
    assert "test_other" in done.stdout
    assert "test_vm" not in done.stdout


def test_without_qemu_a_test_is_skipped_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_vm(uvm): pass\n")
    done = _pytest(tmp_path, "-rs", env={"PATH": str(tmp_path)})
    assert "1 skipped" in done.stdout, done.stdout
    assert "apt install qemu-system-x86" in done.stdout


def test_an_unknown_backend_in_the_environment_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_vm(uvm): pass\n")
    done = _pytest(tmp_path, env={"HV_BACKEND": "vmware"})
    assert done.returncode != 0
    assert "hv_backend is 'vmware'" in done.stdout + done.stderr


def test_the_command_line_wins_over_the_environment(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from harness.pytest_plugin.options import backend\n"
        "def test_it(pytestconfig): assert backend(pytestconfig) == 'qemu'\n"
    )
    done = _pytest(tmp_path, "--hv-backend", "qemu", env={"HV_BACKEND": "vmware"})
    assert done.returncode == 0, done.stdout


def test_a_formatted_scratch_and_an_empty_store_come_as_fixtures(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "def test_it(scratch, snapshotter):\n"
        "    assert scratch.stat().st_size <= 5 << 20\n"
        "    assert list(snapshotter.walk()) == []\n"
    )
    done = _pytest(tmp_path)
    assert done.returncode == 0, done.stdout
