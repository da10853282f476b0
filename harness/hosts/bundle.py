"""A bundle: one hash-listed folder with all that a host needs, so that nobody needs the internet.

`wheels/` (ours and win_amd64 dependencies), `python/` (a full layout of CPython), `image/` (the
utility VM's) and `boot/` (user-supplied boot files), each optional; `bundle.json` lists every file
with its size and SHA-256. A file that is not listed, or not as listed, makes the whole bundle
unusable.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.errors import UsageError
from harness.hosts.hostscripts import HostScripts
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline
from harness.remote.files import HostFiles
from harness.remote.winrm import WinRM

LIST: Final = "bundle.json"
PARTS: Final = ("wheels", "python", "image", "boot")


class BundleFile(BaseModel):
    """One file: its path below the bundle with slashes, size in bytes, SHA-256 in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        pure = PurePosixPath(value)
        unsafe = any(character in value for character in '\\:*?"<>|') or pure.is_absolute()
        if unsafe or ".." in pure.parts or pure.parts[:1] not in [(each,) for each in PARTS]:
            raise ValueError(
                f"{value!r} is no path of a bundle: {', '.join(PARTS)} are its folders"
            )
        return value


class BundleList(BaseModel):
    """What `bundle.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["lcowlab.bundle/1"] = "lcowlab.bundle/1"
    files: tuple[BundleFile, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files were all read and found as listed.

    `sources` are parts that lie elsewhere, by name.
    """

    folder: Path
    files: tuple[BundleFile, ...]
    sources: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def create(cls, folder: Path, sources: Mapping[str, Path]) -> Self:
        """Make a bundle of the files in each source folder, by part; return it.

        Raises UsageError for a folder that is not empty, and a part without files.
        """
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty: a bundle is made in a folder of its own")
        listed = []
        for part, given in sources.items():
            found, source = _files_of(given, part)
            for file in found:
                name = PurePosixPath(part, *file.relative_to(source).parts)
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
                listed.append(_describe(target, str(name)))
        content = BundleList(files=tuple(listed))
        # Last: a folder without its list is no bundle.
        (folder / LIST).write_text(content.model_dump_json(indent=1) + "\n", "utf-8")
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Return the bundle in a folder. Raises UsageError naming every file that is not right."""
        try:
            content = BundleList.model_validate_json((folder / LIST).read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(f"{folder} is no bundle: {error}") from error
        wrong = []
        for each in content.files:
            file = folder / each.path
            if file.is_symlink() or not file.is_file():
                wrong.append(f"{each.path} is missing")
            elif _describe(file, each.path) != each:
                wrong.append(f"{each.path} is not what it was")
        known = {LIST, *(each.path for each in content.files)}
        wrong += [
            f"{name} is not listed"
            for each in sorted(folder.rglob("*"))
            if not each.is_dir() and (name := each.relative_to(folder).as_posix()) not in known
        ]
        if wrong:
            raise UsageError(f"the bundle {folder} cannot be used: {'; '.join(wrong)}")
        return cls(folder, content.files)

    def with_part(self, part: str, source: Path) -> Self:
        """Return the bundle with the files of a folder (or one file) as that part, where they lie.

        Raises UsageError for one without files.
        """
        found, source = _files_of(source, part)
        listed = [
            _describe(file, str(PurePosixPath(part, *file.relative_to(source).parts)))
            for file in found
        ]
        others = tuple(each for each in self.files if not each.path.startswith(f"{part}/"))
        return replace(self, files=(*others, *listed), sources={**self.sources, part: source})

    def local(self, file: BundleFile) -> Path:
        """Return where a file of the bundle lies here."""
        part, *rest = PurePosixPath(file.path).parts
        return self.sources.get(part, self.folder / part).joinpath(*rest)

    def part(self, name: str) -> tuple[BundleFile, ...]:
        """Return the files of one part, such as `wheels`."""
        return tuple(each for each in self.files if each.path.startswith(f"{name}/"))


def _files_of(source: Path, part: str) -> tuple[list[Path], Path]:
    """Return the files of a folder, or the one file, and the folder. Raises UsageError for none."""
    found = [each for each in sorted(source.rglob("*")) if each.is_file()]
    if source.is_file():
        found, source = [source], source.parent
    if not found:
        raise UsageError(f"{source} has no files for {part}")
    return found, source


def _describe(file: Path, name: str) -> BundleFile:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return BundleFile(path=name, size=stream.tell(), sha256=digest)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push came to: files that were there already, that were copied, and bytes moved."""

    kept: int
    copied: tuple[str, ...]
    moved: int


def differing_files(
    scripts: HostScripts,
    root: ProtectedRoot,
    files: tuple[BundleFile, ...],
    *,
    deadline: Deadline,
) -> frozenset[str]:
    r"""Return the paths of those files that are not below `bundle\` as listed."""
    there = scripts.ask(
        "compare",
        {"files": [each.model_dump() for each in files]},
        {"folder": root.inside("bundle")},
        deadline=deadline,
    )
    return frozenset(there["differing"])


def push_files(
    winrm: WinRM,
    root: ProtectedRoot,
    scripts: HostScripts,
    bundle: Bundle,
    *,
    files: tuple[BundleFile, ...],
    deadline: Deadline,
    report: Callable[[str], None],
    pull_address: str | None = None,
) -> Pushed:
    r"""Bring files of a bundle to `bundle\` in the host's root; only what is not there as listed.

    Raises UnprotectedRootError, TransferError and other RemoteErrors; what arrived stays.
    """
    root.verify(winrm, deadline=deadline)
    differing = differing_files(scripts, root, files, deadline=deadline)
    host_files = HostFiles.every_way(winrm, scripts.python, root.path, pull_address=pull_address)
    moved = 0
    copied = []
    for each in files:
        if each.path not in differing:
            continue
        report(f"{each.path} ({each.size} bytes)")
        target = root.inside("bundle", *PurePosixPath(each.path).parts)
        moved += host_files.put(bundle.local(each), target, deadline=deadline).moved
        copied.append(each.path)
    return Pushed(len(files) - len(copied), tuple(copied), moved)
