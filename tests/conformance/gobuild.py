"""Our Go programs, built against Debian's packages of containerd 1.6: GOPATH mode, no downloads.

`python -m tests.conformance.gobuild` builds what is missing under build/conformance.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SOURCES = Path(__file__).parent / "go"
_TARGETS = Path(__file__).parents[2] / "build" / "conformance"
_GOPATH = Path("/usr/share/gocode")
_PACKAGES = "golang-go golang-github-containerd-containerd-dev"
_PROGRAMS = {
    "suite": ("test", "-c"),
    "peer": ("build",),
    "load": ("build",),
    "filters": ("build",),
}
_DEADLINE_S = 600


class CannotBuildError(Exception):
    """What is missing, or what the compiler said."""


@dataclass(frozen=True, slots=True)
class GoPrograms:
    """The built programs: containerd's suite, its snapshotters served, a load, its filters."""

    suite: Path
    peer: Path
    load: Path
    filters: Path


def go_programs(*, build: bool = True) -> GoPrograms:
    """The programs of the present sources, built where they are missing.

    Raises CannotBuildError where they are missing and cannot be built, or not `build`.
    """
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.rglob("*.go")):
        digest.update(path.read_bytes())
    folder = _TARGETS / digest.hexdigest()[:12]
    programs = GoPrograms(*(folder / name for name in _PROGRAMS))
    missing = [name for name in _PROGRAMS if not (folder / name).is_file()]
    if missing and not build:
        raise CannotBuildError("the Go programs are not built: run ./dev conformance once")
    if missing:
        for problem in _problems():
            raise CannotBuildError(problem)
        folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            _build(name, folder / name)
    return programs


def _problems() -> Iterator[str]:
    if shutil.which("go") is None:
        yield f"no Go compiler: apt-get install {_PACKAGES}"
    if not (_GOPATH / "src/github.com/containerd/containerd/snapshots/testsuite").is_dir():
        yield f"no sources of containerd to build with: apt-get install {_PACKAGES}"


def _build(name: str, target: Path) -> None:
    command = ["go", *_PROGRAMS[name], "-o", f"{target}.new", "."]
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": str(_GOPATH),
        "GOCACHE": str(_TARGETS / "cache"),
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
    }
    done = subprocess.run(
        command,
        cwd=_SOURCES / name,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )
    if done.returncode:
        raise CannotBuildError(f"{' '.join(command)} in {name}: {done.stderr[-4000:]}")
    Path(f"{target}.new").replace(target)


if __name__ == "__main__":
    try:
        print(go_programs().suite.parent)  # noqa: T201, the answer
    except CannotBuildError as error:
        sys.exit(f"conformance: {error}")
