"""Which modules of the distribution's CPython a program needs, and their bytecode.

The closure is static: sources are parsed, nothing is imported. Parsing and compiling are done by
the guest's own CPython, run from its unpacked packages through its own loader: its syntax and its
bytecode may differ from those of the interpreter that runs this.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ImageBuildError
from harness.image import imports
from harness.image.imports import Imported, with_parents
from harness.image.tree import PackageTree, TreeFile

_TIMEOUT_S = 300
_LOADER = "/usr/lib64/ld-linux-x86-64.so.2"
_ALWAYS = (
    "encodings",
    "encodings.aliases",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_8",
    "os",
    "runpy",
)
"""What the interpreter itself looks up by name at its start, `os` also to find its prefix by."""
_LEFT_OUT = frozenset(
    {
        "_bz2",
        "_decimal",
        "_hashlib",
        "_ios_support",
        "_lzma",
        "_pydecimal",
        "_ssl",
        "_uuid",
        "asyncio",
        "bz2",
        "concurrent",
        "curses",
        "decimal",
        "doctest",
        "email",
        "encodings",
        "http",
        "importlib.metadata",
        "importlib.readers",
        "importlib.resources",
        "lzma",
        "multiprocessing",
        "pdb",
        "plistlib",
        "pydoc",
        "ssl",
        "statistics",
        "tarfile",
        "tkinter",
        "unittest",
        "xml",
        "zipfile",
    }
)
"""Large or for other systems, and reached through optional or late imports alone.

A program that asks for one gets it. `encodings` imports its codecs by name at run time: the ones
needed are in _ALWAYS.
"""


@dataclass(frozen=True, slots=True)
class Closure:
    """The modules to ship: sources by module name, and extension modules by their path."""

    sources: dict[str, TreeFile]
    extensions: tuple[TreeFile, ...]


class GuestPython:
    """The distribution's CPython `version` ("3.11") in a tree of unpacked packages."""

    def __init__(self, tree: PackageTree, version: str) -> None:
        self._tree = tree
        self.version = version
        self.program = f"/usr/bin/python{version}"
        self.library = f"/usr/lib/python{version}"
        self._extensions = {
            file.path.rpartition("/")[2].partition(".")[0]: file
            for file in tree.below(f"{self.library}/lib-dynload")
        }

    def is_package(self, file: TreeFile) -> bool:
        """Tell whether a source is a package's `__init__.py`."""
        return file.path.endswith("/__init__.py")

    def find(self, module: str) -> TreeFile | None:
        """The source or extension module of that name; None for what is built in or not there."""
        base = f"{self.library}/{module.replace('.', '/')}"
        source = self._tree.find(f"{base}/__init__.py") or self._tree.find(f"{base}.py")
        return source or self._extensions.get(module)

    def folders(self) -> list[Path]:
        """Where the library lies unpacked: each of its packages has a part."""
        files = self._tree.below(self.library)
        direct = (f for f in files if f.path.rpartition("/")[0] == self.library)
        return sorted({file.source.parent for file in direct})

    def closure(self, wanted: Iterable[Imported], *, command: GuestCommand) -> Closure:
        """The standard library modules that importing `wanted` can lead to.

        Imports inside functions are followed like all others, but for a fixed list of large
        packages that only those and optional imports reach, unless one of them is wanted. Raises
        ImageBuildError for a module that must be there and is neither a file nor built in.
        """
        builtin = command.builtin_modules()
        sources: dict[str, TreeFile] = {}
        extensions: dict[str, TreeFile] = {}
        found = [*(Imported(name, True) for name in _ALWAYS), *wanted]
        asked: set[str] = set()
        while found:
            fresh: dict[str, TreeFile] = {}
            for name, is_required in ((imported.name, imported.is_required) for imported in found):
                file = self.find(name)
                if file is None:
                    # A submodule without a file is one that its parent puts into sys.modules
                    # itself: os.path, and collections.abc since 3.13.
                    if is_required and name not in builtin and "." not in name:
                        raise ImageBuildError(
                            f"CPython {self.version} of this distribution has no {name}"
                        )
                    continue
                asked.add(name)
                if file.path.endswith(".py"):
                    fresh[name] = file
                else:
                    extensions[name] = file
            sources |= fresh
            found = [
                imported
                for imported in command.imports(fresh)
                if imported.name not in asked and _LEFT_OUT.isdisjoint(with_parents(imported.name))
            ]
        return Closure(dict(sorted(sources.items())), tuple(extensions.values()))


class GuestCommand:
    """The guest's interpreter, run on this machine from its unpacked packages.

    `libraries` are folders with its shared libraries; nothing of this machine is loaded.
    """

    def __init__(self, tree: PackageTree, python: GuestPython, libraries: Sequence[Path]) -> None:
        self._tree = tree
        self._python = python
        self._libraries = tuple(libraries)

    def builtin_modules(self) -> frozenset[str]:
        """Names that need no file: built in, or frozen and loaded before any other.

        Raises ImageBuildError.
        """
        script = "import sys; print(*sys.builtin_module_names, *sys.modules)"
        return frozenset(self._run(script, "").split())

    def imports(self, modules: Mapping[str, TreeFile]) -> list[Imported]:
        """What these modules import. Raises ImageBuildError."""
        lines = [
            f"{file.source}\t{name}\t{int(self._python.is_package(file))}\n"
            for name, file in modules.items()
        ]
        script = Path(imports.__file__).read_text(encoding="utf-8")
        words = self._run(script, "".join(lines)).split()
        return [Imported(word.removeprefix("!"), word.startswith("!")) for word in words]

    def compile(self, jobs: Iterable[tuple[Path, str]], folder: Path) -> list[bytes]:
        """The .pyc bytes of each source, whose path in the guest is given for tracebacks.

        `folder` is used for scratch files. Raises ImageBuildError.
        """
        listed = list(jobs)
        lines = [
            f"{source}\t{name}\t{folder / str(i)}\n" for i, (source, name) in enumerate(listed)
        ]
        self._run(_COMPILE, "".join(lines))
        return [(folder / str(i)).read_bytes() for i in range(len(listed))]

    def argv(self, script: str) -> list[str]:
        """The command that runs a script. Raises ImageBuildError."""
        loader, program = self._tree.find(_LOADER), self._tree.find(self._python.program)
        if loader is None or program is None:
            raise ImageBuildError("the distribution's packages hold no CPython")
        return [
            str(loader.source),
            "--library-path",
            os.pathsep.join(map(str, self._libraries)),
            str(program.source),
            *("-S", "-s", "-B", "-X", "utf8", "-c", script),
        ]

    def environment(self) -> dict[str, str]:
        """The variables it runs with, none of this machine's. Raises ImageBuildError.

        <home>/lib/python3.x is where it finds its library, which two packages share.
        """
        landmark = self._tree.find(f"{self._python.library}/os.py")
        if landmark is None:
            raise ImageBuildError("the distribution's packages hold no standard library")
        return {
            "PYTHONHOME": str(landmark.source.parents[2]),
            "PYTHONPATH": os.pathsep.join(map(str, self._python.folders())),
        }

    def _run(self, script: str, stdin: str) -> str:
        try:
            done = subprocess.run(
                self.argv(script),
                input=stdin,
                env=self.environment(),
                capture_output=True,
                encoding="utf-8",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ImageBuildError(f"the guest's CPython cannot be run here: {error}") from error
        if done.returncode != 0:
            raise ImageBuildError(
                f"the guest's CPython cannot be run here (exit code {done.returncode}):"
                f" {done.stderr.strip()[-1000:]}. Is the cache folder mounted noexec?"
            )
        return done.stdout


_COMPILE = """
import importlib.util, marshal, sys
for line in sys.stdin.read().splitlines():
    source, name, target = line.split("\\t")
    with open(source, "rb") as file:
        text = file.read()
    code = compile(text, name, "exec", dont_inherit=True)
    # PEP 552: a hash-based .pyc that is not checked against its source.
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little")
    with open(target, "wb") as file:
        file.write(header + importlib.util.source_hash(text) + marshal.dumps(code))
"""
