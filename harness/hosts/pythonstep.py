"""The step that gives a host its own Python, and how everybody else finds it there.

::

    archive (checked here) ──► cache on the host ──► Expand-Archive ──► compared with the archive by
    the Python in it ──► current.json names it ──► it is the host's Python

Each layout has a folder of its own, named by its version and hash; `current.json` changes last, so
that a Python that is not all there is never the host's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from harness.errors import RemoteCommandError, TransferError
from harness.hosts.actions import powershell
from harness.hosts.hostfile import bring_file, file_sha256, read_file
from harness.hosts.hostscripts import HostScripts
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.pythonlayout import PythonLayout
from harness.hosts.steps import Assessment, Look, State
from harness.remote.bootstrap import Bootstrap
from harness.remote.deadline import Deadline
from harness.remote.files import HostFiles
from harness.remote.winrm import WinRM

ON_PATH = "python"
_WORTH_FETCHING: Final = 4 << 20  # bytes: less is over WinRM before curl has been told where from
_FULL = (
    "give a full layout with --python-layout (the NuGet package python, a .nupkg, or its folder), "
    "a bundle that has one, or the path of one on the host with --python"
)


@dataclass(frozen=True, slots=True)
class InstalledPython:
    """The Python that we gave to a host: path of its program, and hash of its archive."""

    path: str
    sha256: str


def installed_python(
    winrm: WinRM, root: ProtectedRoot, *, deadline: Deadline
) -> InstalledPython | None:
    """Return the Python that a host has from us, or None. Nothing of an open folder is believed."""
    if root.read(winrm, deadline=deadline).wrong:
        return None
    text = read_file(winrm, root.inside("python", "current.json"), deadline=deadline)
    try:
        values = json.loads(text or b"")
        return InstalledPython(str(values["path"]), str(values["sha256"]))
    except (ValueError, KeyError, TypeError):
        return None


def find_python(winrm: WinRM, root: ProtectedRoot, given: str, *, deadline: Deadline) -> str:
    """Return which Python to use: the one named, else the host's from us, else that on its PATH."""
    if given:
        return given
    found = installed_python(winrm, root, deadline=deadline)
    return found.path if found is not None else ON_PATH


def host_python(look: Look) -> str:
    """Return which Python the host will have when it is provisioned."""
    options = look.options
    if options.layout is not None and not options.python:
        return _path(options.root, options.layout)
    return find_python(look.winrm, options.root, options.python, deadline=look.deadline)


def describe_python(winrm: WinRM, python: str, *, deadline: Deadline) -> dict[str, Any] | None:
    """Return what an interpreter says of itself, see `onhost.describepython`; None: none runs."""
    try:
        return HostScripts(winrm, python).ask("describepython", {}, {}, deadline=deadline)
    except (RemoteCommandError, ValueError):
        return None


def _path(root: ProtectedRoot, layout: PythonLayout) -> str:
    return root.inside("python", layout.name, *layout.folder.parts, "python.exe")


def _archive(root: ProtectedRoot, layout: PythonLayout) -> str:
    # Expand-Archive looks at the name.
    return root.inside("cache", f"python-{layout.sha256}.zip")


@dataclass(frozen=True, slots=True)
class BringPython:
    """Copies the archive to the host, which may have no Python; an `Action`."""

    root: ProtectedRoot
    layout: PythonLayout
    report: Callable[[str], None]

    @property
    def text(self) -> str:
        """See `Action.text`."""
        return (
            f"copy {self.layout.archive.name} ({self.layout.size} bytes, SHA-256 "
            f"{self.layout.sha256}) to {_archive(self.root, self.layout)}"
        )

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """See `Action.run`."""
        destination = _archive(self.root, self.layout)
        if file_sha256(winrm, destination, deadline=deadline) == self.layout.sha256:
            return
        former = installed_python(winrm, self.root, deadline=deadline)
        if former is not None and describe_python(winrm, former.path, deadline=deadline):
            HostFiles.every_way(winrm, former.path, self.root.path).put(
                self.layout.archive, destination, deadline=deadline
            )
        elif not self._fetched(winrm, destination, deadline):
            bring_file(
                winrm, self.layout.archive, destination, deadline=deadline, report=self.report
            )

    def _fetched(self, winrm: WinRM, destination: str, deadline: Deadline) -> bool:
        """Whether the host's curl.exe fetched it from us: fast, where there is one and a way."""
        if self.layout.size < _WORTH_FETCHING:
            return False
        archive = self.layout.archive
        try:
            Bootstrap(winrm, self.root.path).fetch(archive, destination, deadline=deadline)
        except TransferError as error:
            self.report(f"{error}; over WinRM, which takes longer")
            return False
        return True


@dataclass(frozen=True, slots=True)
class SettlePython:
    """Compares what was unpacked with the archive and makes it the host's; an `Action`."""

    root: ProtectedRoot
    layout: PythonLayout

    @property
    def text(self) -> str:
        """See `Action.text`."""
        return (
            f"compare {self.root.inside('python', self.layout.name)} with its archive; "
            f"make {_path(self.root, self.layout)} the host's Python"
        )

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """See `Action.run`."""
        path = _path(self.root, self.layout)
        answer = HostScripts(winrm, path).ask(
            "settle",
            {"sha256": self.layout.sha256, "path": path},
            {
                "archive": _archive(self.root, self.layout),
                "folder": self.root.inside("python", self.layout.name),
                "current": self.root.inside("python", "current.json"),
            },
            deadline=deadline,
        )
        if answer["wrong"]:
            raise TransferError(
                f"Python was unpacked, but {'; '.join(answer['wrong'])}: run it again",
                host=winrm.host,
            )


@dataclass(frozen=True, slots=True)
class Python:
    """CPython that runs isolated: what agent, leases and deployments are made of."""

    name: str = "python"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        options, path = look.options, host_python(look)
        layout = options.layout if not options.python else None
        if layout is not None:
            there = installed_python(look.winrm, options.root, deadline=look.deadline)
            if there is None or there.sha256 != layout.sha256:
                found = "none from us" if there is None else f"another, {there.path}"
                return Assessment(State.CHANGE, found, self._install(look, layout))
        described = describe_python(look.winrm, path, deadline=look.deadline)
        if described is None:
            if layout is not None:
                return Assessment(State.CHANGE, f"{path} does not run", self._install(look, layout))
            return Assessment(State.BLOCKED, f"{path} does not run: {_FULL}")
        version = ".".join(map(str, described["version"]))
        wrong = self._wrong(described, options.least_python)
        if wrong:
            return Assessment(State.BLOCKED, f"{path} ({version}) {wrong}: {_FULL}")
        return Assessment(State.FINE, f"{path}, {version}")

    @staticmethod
    def _wrong(described: dict[str, Any], least: tuple[int, int]) -> str:
        if described["embeddable"]:
            return (
                "is the embeddable build, whose ._pth file ignores PYTHON* variables and fixes "
                "sys.path"
            )
        if tuple(described["version"][:2]) < least:
            return f"is too old, {'.'.join(map(str, least))} is needed"
        return "" if described["bits"] == 64 else "is a 32-bit build"

    @staticmethod
    def _install(look: Look, layout: PythonLayout) -> tuple[BringPython, Any, SettlePython]:
        root = look.options.root
        unpack = powershell(
            "Expand-Archive",
            {
                "LiteralPath": _archive(root, layout),
                "DestinationPath": root.inside("python", layout.name),
                "Force": True,
            },
        )
        return BringPython(root, layout, look.report), unpack, SettlePython(root, layout)
