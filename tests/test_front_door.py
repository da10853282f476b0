"""The `./dev` script and what a fresh clone starts from."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

TOP = Path(__file__).parent.parent


def _dev(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TOP / "dev"), *args], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_names_every_verb() -> None:
    done = _dev("help")
    assert done.returncode == 0
    for verb in ("run", "test", "check", "bench", "soak", "fuzz", "conformance", "clean", "help"):
        assert re.search(rf"^  {verb} ", done.stdout, re.MULTILINE), verb


def test_an_unknown_verb_is_a_usage_error_that_names_it() -> None:
    done = _dev("frobnicate")
    assert done.returncode == 2
    assert "frobnicate" in done.stderr


def test_every_locked_package_has_hashes_and_no_host_is_named() -> None:
    lock = (TOP / "requirements.lock").read_text()
    assert "://" not in lock
    for requirement in re.split(r"\n(?=[a-z])", lock.strip()):
        assert "--hash=sha256:" in requirement, requirement.splitlines()[0]


def test_every_dependency_is_in_the_lock() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    locked = set(re.findall(r"^([a-z0-9-]+)==", (TOP / "requirements.lock").read_text(), re.M))
    for requirement in wanted:
        name = re.split(r"[<>=~! ]", requirement)[0].lower()
        assert name in locked, name
