"""Which program a name means on the pretend host.

A name is looked up as cmd.exe does: the table of programs that every host has (python and curl run
for real, hostname and whoami answer for the host), then files in the current folder and along
PATH below the host's disk. Nothing of the machine that runs the endpoint is visible by accident:
`ls` is not recognized.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from harness.winrmd.environment import WindowsEnvironment
from harness.winrmd.paths import HostPaths
from harness.winrmd.processes import Descriptors, Job

_SUFFIXES = ("", ".com", ".exe")


@dataclass(frozen=True, slots=True)
class ProgramCall:
    """A call of a program that the endpoint itself answers.

    `argv` is split as the C runtime does, `line` is what stood on the command line. The program
    reads and writes the descriptors (and closes none), and stops early when `job.ending` is set.
    """

    argv: Sequence[str]
    line: str
    descriptors: Descriptors
    environment: WindowsEnvironment
    directory: Path
    paths: HostPaths
    job: Job
    user: str


HostProgram = Callable[[ProgramCall], int]
"""A program that the endpoint answers itself; returns the exit code."""

Program = tuple[str, ...] | HostProgram
"""What a name stands for: the start of a real argv, or a program of the endpoint."""


class ProgramTable:
    """The programs that a host has without a file for them; names without `.exe`, any case."""

    def __init__(self, programs: Mapping[str, Program]) -> None:
        self._programs = MappingProxyType(
            {_stem(name): program for name, program in programs.items()}
        )

    def find(self, name: str, *, paths: HostPaths, directory: Path, search: str) -> Program | None:
        """Return what `name` runs, or None; `search` is the value of PATH."""
        known = self._programs.get(_stem(re.split(r"[\\/:]", name)[-1]))
        if not re.search(r"[\\/:]", name):
            if known:
                return known
            folders = [directory]
            for entry in search.split(";"):
                folder = paths.local(entry) if entry else None
                if folder is not None:
                    folders.append(folder)
        else:
            folders = [directory]
        for folder in folders:
            for suffix in _SUFFIXES:
                found = paths.local(name + suffix, directory=folder)
                if found is None or not found.is_file():
                    continue
                # A Windows binary cannot run here: the program of that name stands for it.
                if known:
                    return known
                if os.access(found, os.X_OK):
                    return (str(found),)
        return None


def _stem(name: str) -> str:
    lowered = name.lower()
    return lowered.removesuffix(".exe").removesuffix(".com")


def real_programs() -> Mapping[str, Program]:
    """Return the programs of a Windows host that run for real here: Python, and curl if any."""
    programs: dict[str, Program] = dict.fromkeys(("python", "py"), (sys.executable,))
    curl = shutil.which("curl")
    if curl is not None:
        programs["curl"] = (curl,)
    return programs
