"""Packages of the distribution: looked up, downloaded and unpacked, never installed.

Everything goes through apt's own programs and the machine's own configuration, so proxies, pins
and mirrors hold. What is downloaded is checked against the SHA-256 of the signed index.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.cachedir import CACHE_VARIABLE
from harness.errors import ImageBuildError, MissingProgramError

_TIMEOUT_S = 900
# How programs say it: the last is tar, which was cut short in the middle of a block.
_DISK_FULL = (os.strerror(errno.ENOSPC), "Wrote only")
_OUTPUT_TAIL = 2000
_DEBIAN_ONLY = (
    "the programs of the utility VM come from Debian or Ubuntu packages; build the image on such a"
    " machine and copy the cache folder"
)
_CONFIGURATION = (
    "apt.conf",
    "apt.conf.d",
    "preferences",
    "preferences.d",
    "sources.list",
    "sources.list.d",
)


@dataclass(frozen=True, slots=True)
class Package:
    """A binary package as the index describes it; `depends` are names, alternatives included."""

    name: str
    version: str
    architecture: str
    depends: tuple[str, ...]
    sha256: str
    size: int

    @property
    def file_name(self) -> str:
        """The name that `apt-get download` gives the file: an epoch's colon is escaped."""
        version = self.version.replace(":", "%3a")
        return f"{self.name}_{version}_{self.architecture}.deb"


class Apt:
    """The package index and archive of this machine.

    `options` are put before every apt command, for example ``("-o", "Dir::Etc=…")`` to use another
    configuration. Raises MissingProgramError where the machine has no apt.
    """

    def __init__(self, options: Sequence[str] = ()) -> None:
        self._options = tuple(options)

    @contextmanager
    def session(self) -> Iterator[Apt]:
        """The same with an index file of its own, so that many look-ups cost as much as one.

        Without it each costs 0.4 s where the machine keeps no index (container images do not).
        """
        with tempfile.TemporaryDirectory(prefix="lcowlab-apt-") as folder:
            index = f"Dir::Cache::pkgcache={folder}/pkgcache.bin"
            yield Apt([*self._options, "-o", index, "-o", "Dir::Cache::srcpkgcache="])

    def fingerprint(self) -> str:
        """A digest that changes when the package lists or apt's configuration do.

        Made of names, sizes and modification times alone, in a few milliseconds: nothing is read.
        """
        lists, etc = self._directories()
        seen = hashlib.sha256(repr(self._options).encode())
        for path in sorted(
            [*_files(lists), *(f for name in _CONFIGURATION for f in _files(etc / name))]
        ):
            status = path.stat()
            seen.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return seen.hexdigest()

    def candidates(self, names: Iterable[str]) -> dict[str, Package]:
        """The version of each name that would be installed, without unknown and virtual names."""
        wanted = sorted(set(names))
        if not wanted:
            return {}
        shown = self._run("apt-cache", ["show", "--no-all-versions", *wanted], may_fail=True)
        packages = (_package(paragraph) for paragraph in shown.split("\n\n") if paragraph.strip())
        return {p.name: p for p in packages if p is not None and p.name in wanted}

    def require(self, names: Iterable[str]) -> dict[str, Package]:
        """Like `candidates`, for names that must all be there.

        Raises ImageBuildError that names the missing ones and says whether lists are missing.
        """
        wanted = list(names)
        found = self.candidates(wanted)
        missing = [name for name in wanted if name not in found]
        if not missing:
            return found
        lists, _ = self._directories()
        if not any(path.name.partition("_Packages")[1] for path in _files(lists)):
            raise ImageBuildError(
                f"there are no package lists in {lists}: run `sudo apt-get update` (it needs the"
                " network), then try again"
            )
        raise ImageBuildError(
            f"no configured package source has {', '.join(missing)}: run `sudo apt-get update`; if"
            " that does not help, enable the distribution's main archive (on Ubuntu also universe)"
        )

    def closure(self, roots: Iterable[str], *, follow: Callable[[str], bool]) -> dict[str, Package]:
        """The roots and what they depend on, as far as `follow` says yes to a package's name.

        Raises ImageBuildError if a root is unknown; an unknown dependency is left out.
        """
        known = self.require(roots)
        unknown: set[str] = set()
        fresh: Iterable[Package] = list(known.values())
        while True:
            names = {d for package in fresh for d in package.depends if follow(d)}
            names -= known.keys() | unknown
            if not names:
                return known
            found = self.candidates(names)
            unknown |= names - found.keys()
            known |= found
            fresh = found.values()

    def download(self, packages: Iterable[Package], folder: Path) -> dict[str, Path]:
        """Files of the packages by name, in `folder`; what is there already is not fetched again.

        Raises ImageBuildError if one cannot be fetched or differs from the index's SHA-256.
        """
        wanted = list(packages)
        paths = {package.name: folder / package.file_name for package in wanted}
        absent = [p for p in wanted if not _is_intact(paths[p.name], p)]
        if absent:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
                self._fetch(absent, Path(scratch))
                for package in absent:
                    (Path(scratch) / package.file_name).replace(paths[package.name])
        for path in paths.values():
            path.touch()  # in use: the cache prunes by age
        return paths

    def _fetch(self, packages: Sequence[Package], scratch: Path) -> None:
        # Sandbox::User: as root apt would drop to a user that may not write into the folder.
        options = ["-o", "APT::Sandbox::User=root", "-q=2"]
        names = [f"{package.name}={package.version}" for package in packages]
        self._run(
            "apt-get",
            [*options, "download", *names],
            cwd=scratch,
            hint=". Check the network and run `sudo apt-get update`",
        )
        for package in packages:
            if not _is_intact(scratch / package.file_name, package):
                raise ImageBuildError(
                    f"the downloaded {package.file_name} is not what the package lists describe:"
                    " run `sudo apt-get update` and try again"
                )

    def _directories(self) -> tuple[Path, Path]:
        shell = ["shell", "LISTS", "Dir::State::lists/d", "ETC", "Dir::Etc/d"]
        answer = self._run("apt-config", shell)
        values = dict(re.findall(r"^(\w+)='(.*)'$", answer, re.MULTILINE))
        if not {"LISTS", "ETC"} <= values.keys():
            raise ImageBuildError(f"apt-config does not say where the package lists are: {answer}")
        return Path(values["LISTS"]), Path(values["ETC"])

    def _run(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        cwd: Path | None = None,
        may_fail: bool = False,
        hint: str = "",
    ) -> str:
        argv = [program, *self._options, *arguments]
        return run_tool(argv, cwd=cwd, may_fail=may_fail, hint=hint)


def unpack(deb: Path, folder: Path) -> None:
    """Unpack a package's files below `folder`. Raises ImageBuildError, MissingProgramError."""
    folder.mkdir(parents=True, exist_ok=True)
    run_tool(["dpkg-deb", "-x", str(deb), str(folder)])


def run_tool(
    argv: Sequence[str], *, cwd: Path | None = None, may_fail: bool = False, hint: str = ""
) -> str:
    """Standard output of one of the distribution's package programs.

    Raises MissingProgramError where the machine has none, ImageBuildError with the command, its
    exit code and the end of its output unless it `may_fail`.
    """
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    program = shutil.which(argv[0])
    if program is None:
        raise MissingProgramError(argv[0], install=_DEBIAN_ONLY)
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ImageBuildError(f"`{' '.join(argv)}` gave no answer in {_TIMEOUT_S} s") from error
    if done.returncode != 0 and not may_fail:
        output = (done.stdout + done.stderr).strip()[-_OUTPUT_TAIL:]
        if any(sign in output for sign in _DISK_FULL):
            raise ImageBuildError(
                f"the disk is full: `{argv[0]}` could not write. Make room, or set {CACHE_VARIABLE}"
                " to a folder on another disk"
            )
        raise ImageBuildError(
            f"`{' '.join(argv)}` failed with exit code {done.returncode}: {output}{hint}"
        )
    return done.stdout


def _package(paragraph: str) -> Package | None:
    fields = _fields(paragraph)
    if not {"Package", "Version", "SHA256", "Size"} <= fields.keys():
        return None  # installed, but no archive has it any more
    relations = ",".join(fields.get(name, "") for name in ("Pre-Depends", "Depends"))
    names = (re.split(r"[\s(:\[]", part.strip())[0] for part in re.split(r"[,|]", relations))
    return Package(
        name=fields["Package"],
        version=fields["Version"],
        architecture=fields.get("Architecture", "all"),
        depends=tuple(dict.fromkeys(name for name in names if name)),
        sha256=fields["SHA256"],
        size=int(fields["Size"]),
    )


def _fields(paragraph: str) -> Mapping[str, str]:
    """The single-line fields of a control paragraph (Debian policy 5.1)."""
    lines = (line for line in paragraph.splitlines() if line[:1].strip())
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [child for child in path.iterdir() if child.is_file() and child.name != "lock"]
    return [path] if path.is_file() else []


def _is_intact(path: Path, package: Package) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
    except FileNotFoundError:
        return False
