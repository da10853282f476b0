"""A CPython for hosts: a full layout for Windows on x64, as a zip, looked at before it is sent.

A full layout has `python.exe`, its DLL, `Lib` and `DLLs`: what the NuGet package `python` holds (a
.nupkg is a zip), and what the installer leaves in a folder. The embeddable zip is another
thing: its `._pth` file switches PYTHON* variables, `site` and `-I`'s rules off and fixes sys.path,
so that nothing can be added to it.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Self

from harness.errors import UsageError

_DLL: Final = re.compile(r"python(3)(\d{2})\.dll")
_X64: Final = 0x8664  # IMAGE_FILE_MACHINE_AMD64
_MACHINES: Final = {0x14C: "32-bit x86", 0xAA64: "ARM64"}
_HOW: Final = (
    "take the NuGet package python (python.X.Y.Z.nupkg), or the folder that the installer of "
    "python.org makes"
)
_DATE: Final = (1980, 1, 1, 0, 0, 0)  # the first of a zip: one folder gives one archive


@dataclass(frozen=True, slots=True)
class PythonLayout:
    """One layout: its archive, where `python.exe` lies in it, and its version."""

    archive: Path
    sha256: str
    size: int
    folder: PurePosixPath
    version: tuple[int, int]

    @property
    def name(self) -> str:
        """What its folder on a host is called."""
        return f"{self.version[0]}.{self.version[1]}-{self.sha256[:12]}"

    @classmethod
    def open(cls, source: Path, *, least: tuple[int, int], into: Path) -> Self:
        """Return the layout in a zip, a .nupkg or a folder; the latter is packed below `into`.

        Raises UsageError saying what is wrong with it and what to take instead.
        """
        archive = source
        try:
            if source.is_dir():
                archive = into / "python.zip"
                _pack(source, archive)
            elif not zipfile.is_zipfile(source):
                raise UsageError(f"{source} is neither a zip nor a folder: {_HOW}")
            with zipfile.ZipFile(archive) as opened:
                folder, version = _judge(opened, source, least)
            with archive.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                size = stream.tell()
        except (OSError, zipfile.BadZipFile) as error:
            raise UsageError(f"{source} is no Python to install: {error}") from error
        return cls(archive, sha256, size, folder, version)


def _pack(source: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(source.rglob("*")):
            parts = file.relative_to(source).parts
            if file.is_file() and "__pycache__" not in parts:
                info = zipfile.ZipInfo("/".join(parts), _DATE)
                info.compress_type = zipfile.ZIP_DEFLATED
                packed.writestr(info, file.read_bytes())


def _judge(
    opened: zipfile.ZipFile, source: Path, least: tuple[int, int]
) -> tuple[PurePosixPath, tuple[int, int]]:
    names = {}
    for info in opened.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in info.filename:
            raise UsageError(f"{source}: {info.filename!r} leads out of the archive")
        if not info.is_dir():
            names[str(path).lower()] = info
    programs = sorted(
        (PurePosixPath(name) for name in names if PurePosixPath(name).name == "python.exe"),
        key=lambda path: len(path.parts),
    )
    # venv's template is a python.exe as well, further down.
    if not programs:
        raise UsageError(f"{source} has no python.exe: {_HOW}")
    folder = programs[0].parent
    here = {PurePosixPath(name).name for name in names if PurePosixPath(name).parent == folder}
    if any(name.endswith("._pth") for name in here):
        raise UsageError(
            f"{source} is the embeddable build: its ._pth file fixes sys.path and ignores PYTHON* "
            f"variables, so that our packages cannot be added; {_HOW}"
        )
    versions = [(int(match[1]), int(match[2])) for name in here if (match := _DLL.fullmatch(name))]
    prefix = "" if str(folder) == "." else f"{folder}/"
    if len(versions) != 1 or f"{prefix}lib/os.py" not in names:
        raise UsageError(f"{source} is no full layout of CPython (python3XY.dll, Lib): {_HOW}")
    if versions[0] < least:
        raise UsageError(
            f"{source} is Python {versions[0][0]}.{versions[0][1]}; "
            f"{least[0]}.{least[1]} is needed (AF_HYPERV came with 3.12): {_HOW}"
        )
    machine = _machine(opened.read(names[f"{prefix}python.exe"]))
    if machine != _X64:
        kind = _MACHINES.get(machine, "no Windows program")
        raise UsageError(f"{source}: its python.exe is {kind}; hosts are x64: {_HOW}")
    spelled = names[f"{prefix}python.exe"].filename.replace("\\", "/")
    return PurePosixPath(spelled).parent, versions[0]


def _machine(program: bytes) -> int:
    """Return the machine of a PE file, 0 for what is none.

    Source: PE format, MS-DOS stub (e_lfanew at 0x3c) and COFF file header.
    """
    if program[:2] != b"MZ" or len(program) < 0x40:
        return 0
    (at,) = struct.unpack_from("<I", program, 0x3C)
    if program[at : at + 4] != b"PE\0\0" or len(program) < at + 6:
        return 0
    (machine,) = struct.unpack_from("<H", program, at + 4)
    return int(machine)
