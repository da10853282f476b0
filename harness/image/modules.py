"""Kernel modules: where they are, what they depend on, and an order in which they load.

The dependencies are read from the modules themselves (`.modinfo`): a Debian kernel package carries
no modules.dep, which depmod writes at installation. Modules may be plain, .xz or .zst.
"""

from __future__ import annotations

import lzma
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from harness.errors import ImageBuildError
from harness.image.elf import ElfFormatError, section

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst")


@dataclass(frozen=True, slots=True)
class ModuleSet:
    """The modules of one kind of machine: `first` before the bridge opens, `later` after that.

    `root` are those that a root on a SCSI disk needs before there is an agent. A name may stand for
    code that is built into the kernel: then nothing is loaded.
    """

    name: str
    first: tuple[str, ...]
    later: tuple[str, ...]
    root: tuple[str, ...]


QEMU = ModuleSet(
    "qemu",
    first=("virtio_pci", "virtio_console"),
    later=("virtio_scsi", "sd_mod", "ext4", "overlay", "virtio_rng"),
    root=("virtio_pci", "virtio_scsi", "sd_mod", "ext4"),
)
HYPERV = ModuleSet(
    "hyperv",
    first=("hv_vmbus", "vsock", "hv_sock"),
    later=("hv_storvsc", "sd_mod", "ext4", "overlay", "hv_utils"),
    root=("hv_vmbus", "hv_storvsc", "sd_mod", "ext4"),
)


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """What a module says of itself: `depends` must be loaded, `softdeps` should be if present."""

    depends: tuple[str, ...]
    softdeps: tuple[str, ...]

    @classmethod
    def parse(cls, module: bytes) -> ModuleInfo:
        """Read the `.modinfo` section of an uncompressed module. Raises ElfFormatError."""
        raw = section(module, ".modinfo")
        if raw is None:
            raise ElfFormatError("no .modinfo section")
        depends: list[str] = []
        softdeps: list[str] = []
        for item in raw.split(b"\0"):
            key, _, value = item.decode("utf-8", "replace").partition("=")
            if key == "depends":
                depends += [_canonical(name) for name in value.split(",") if name]
            elif key == "softdep":
                softdeps += _before(value.split())
        return cls(tuple(depends), tuple(softdeps))


def _before(words: Iterable[str]) -> list[str]:
    names: list[str] = []
    is_before = False
    for word in words:
        if word in ("pre:", "post:"):
            is_before = word == "pre:"
        elif is_before:
            names.append(_canonical(word))
    return names


def _canonical(name: str) -> str:
    return name.replace("-", "_")


class ModuleTree:
    """The modules of one kernel, found below a directory (`/lib/modules/<release>` or any other).

    `modules.builtin`, where the directory has one, names what is built into the kernel.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = tuple(directories)
        self._paths: dict[str, Path] = {}
        self._builtin: set[str] = set()
        self._info: dict[str, ModuleInfo] = {}
        for directory in directories:
            self._scan(directory)

    def _scan(self, directory: Path) -> None:
        for folder, _, files in os.walk(directory):
            for file in files:
                stem = next((file.removesuffix(s) for s in _SUFFIXES if file.endswith(s)), None)
                if stem is not None:
                    self._paths[_canonical(stem)] = Path(folder, file)
                elif file == "modules.builtin":
                    lines = Path(folder, file).read_text().splitlines()
                    self._builtin |= {_canonical(Path(line).stem) for line in lines}

    def __contains__(self, name: str) -> bool:
        """Tell whether the name is a module or is built in."""
        return name in self._paths or name in self._builtin

    def is_empty(self) -> bool:
        """Tell whether no module was found at all."""
        return not self._paths

    def missing(self, modules: ModuleSet) -> list[str]:
        """Names of the set that are neither a module nor built in."""
        return [name for name in (*modules.first, *modules.later) if name not in self]

    def load_order(self, wanted: Iterable[str], *, loaded: Iterable[str] = ()) -> list[str]:
        """Names of the modules to load, each after what it depends on, without repetition.

        What is built in or `loaded` already is left out. Raises ImageBuildError for a name or
        dependency that is neither a module nor built in.
        """
        before = tuple(loaded)
        order: dict[str, None] = dict.fromkeys(before)
        for name in wanted:
            self._visit(name, order, path=())
        return list(order)[len(set(before)) :]

    def _visit(self, name: str, order: dict[str, None], *, path: tuple[str, ...]) -> None:
        if name in order or name in path:
            return
        if name not in self._paths:
            if name in self._builtin:
                return
            needed = f", which {path[-1]} needs," if path else ""
            where = ", ".join(str(directory) for directory in self._directories)
            raise ImageBuildError(
                f"kernel module {name}{needed} is not in {where} and not in its modules.builtin"
            )
        info = self.info(name)
        for dependency in info.softdeps:
            if dependency in self._paths:
                self._visit(dependency, order, path=(*path, name))
        for dependency in info.depends:
            self._visit(dependency, order, path=(*path, name))
        order[name] = None

    def info(self, name: str) -> ModuleInfo:
        """What a module says about itself. Raises ImageBuildError, KeyError."""
        if name not in self._info:
            try:
                self._info[name] = ModuleInfo.parse(self.read(name))
            except ElfFormatError as error:
                raise ImageBuildError(f"kernel module {self._paths[name]}: {error}") from error
        return self._info[name]

    def read(self, name: str) -> bytes:
        """A module's uncompressed bytes. Raises ImageBuildError, KeyError."""
        path = self._paths[name]
        raw = path.read_bytes()
        try:
            if path.suffix == ".xz":
                return lzma.decompress(raw)
            if path.suffix == ".zst":
                return zstandard.ZstdDecompressor().decompressobj().decompress(raw)
        except (lzma.LZMAError, zstandard.ZstdError) as error:
            raise ImageBuildError(f"kernel module {path} is damaged: {error}") from error
        return raw
