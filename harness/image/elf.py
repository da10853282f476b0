"""What an ELF file asks of the dynamic loader, and the closure of that over a file tree.

Only 64-bit little-endian files are read: the guest is x86-64. Source: System V ABI, chapters 4
(object files) and 5 (program loading and dynamic linking).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

ELF_MAGIC = b"\x7fELF"
LIBRARY_DIRECTORIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")
"""Where Debian's and Ubuntu's ld.so looks without a cache file, on a merged /usr."""

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_DYN = struct.Struct("<qQ")
assert (_EHDR.size, _PHDR.size, _SHDR.size, _DYN.size) == (64, 56, 64, 16)

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 1, 5, 14, 15, 29
_SHT_NOBITS = 8


class ElfFormatError(ValueError):
    """Bytes that are not a 64-bit little-endian ELF file, or a damaged one."""


@dataclass(frozen=True, slots=True)
class ElfFile:
    """The dynamic linking facts of one ELF file; a static one has none of them."""

    needed: tuple[str, ...] = ()
    soname: str | None = None
    interpreter: str | None = None
    runpath: tuple[str, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> ElfFile:
        """Read them from a file's bytes. Raises ElfFormatError."""
        try:
            return cls._parse(data)
        except (struct.error, ValueError) as error:
            raise ElfFormatError(f"not a readable ELF file: {error}") from error

    @classmethod
    def _parse(cls, data: bytes) -> ElfFile:
        header = _header(data)
        phoff, phentsize, phnum = header[5], header[9], header[10]
        segments = [_PHDR.unpack_from(data, phoff + i * phentsize) for i in range(phnum)]
        loads = [(s[3], s[2], s[5]) for s in segments if s[0] == _PT_LOAD]
        interpreter = None
        entries: list[tuple[int, int]] = []
        for kind, _, offset, _, _, size, _, _ in segments:
            if kind == _PT_INTERP:
                interpreter = data[offset : offset + size].rstrip(b"\0").decode()
            elif kind == _PT_DYNAMIC:
                dynamic = data[offset : offset + size]
                entries = list(_DYN.iter_unpack(dynamic[: len(dynamic) // _DYN.size * _DYN.size]))
        strtab = next((value for tag, value in entries if tag == _DT_STRTAB), None)
        if strtab is None:
            return cls(interpreter=interpreter)
        base = _file_offset(strtab, loads)

        def text(value: int) -> str:
            start = base + value
            return data[start : data.index(b"\0", start)].decode()

        paths = [text(v) for tag, v in entries if tag in (_DT_RPATH, _DT_RUNPATH)]
        return cls(
            needed=tuple(text(v) for tag, v in entries if tag == _DT_NEEDED),
            soname=next((text(v) for tag, v in entries if tag == _DT_SONAME), None),
            interpreter=interpreter,
            runpath=tuple(part for path in paths for part in path.split(":") if part),
        )


def section(data: bytes, name: str) -> bytes | None:
    """The content of one named section, or None. Raises ElfFormatError."""
    try:
        header = _header(data)
        shoff, shentsize, shnum, shstrndx = header[6], header[11], header[12], header[13]
        sections = [_SHDR.unpack_from(data, shoff + i * shentsize) for i in range(shnum)]
        if shstrndx >= len(sections):
            return None
        names = sections[shstrndx][4]
        wanted = name.encode() + b"\0"
        for entry in sections:
            at = names + entry[0]
            if entry[1] != _SHT_NOBITS and data[at : at + len(wanted)] == wanted:
                return data[entry[4] : entry[4] + entry[5]]
    except struct.error as error:
        raise ElfFormatError(f"not a readable ELF file: {error}") from error
    return None


def _header(data: bytes) -> tuple[int, ...]:
    if data[:4] != ELF_MAGIC:
        raise ElfFormatError("no ELF magic")
    if data[4:6] != b"\x02\x01":
        raise ElfFormatError("not 64-bit little-endian")
    fields: tuple[int, ...] = _EHDR.unpack_from(data)
    return fields


def _file_offset(address: int, loads: Iterable[tuple[int, int, int]]) -> int:
    for start, offset, size in loads:
        if start <= address < start + size:
            return offset + address - start
    raise ElfFormatError(f"address {address:#x} lies in no loadable segment")


@dataclass(frozen=True, slots=True)
class MissingLibrary:
    """A library that the tree does not have: its soname and the path of a file that needs it."""

    soname: str
    needed_by: str


def library_closure(
    roots: Iterable[str], read: Callable[[str], bytes | None]
) -> tuple[list[str], list[MissingLibrary]]:
    """Paths of every library and loader that `roots` need, in the order found, and what is missing.

    `roots` are absolute paths in the tree; `read` gives a file's bytes by such a path, following
    symbolic links, or None. A root that is no ELF file needs nothing. Raises ElfFormatError for a
    damaged library.
    """
    found: dict[str, None] = {}
    missing: dict[str, MissingLibrary] = {}
    queue = list(roots)
    while queue:
        path = queue.pop(0)
        data = read(path)
        if data is None:
            missing.setdefault(path, MissingLibrary(path, path))
            continue
        if data[:4] != ELF_MAGIC:
            continue
        elf = ElfFile.parse(data)
        for candidates, soname in _wanted(elf, path):
            library = next((c for c in candidates if read(c) is not None), None)
            if library is None:
                missing.setdefault(soname, MissingLibrary(soname, path))
            elif library not in found:
                found[library] = None
                queue.append(library)
    return list(found), list(missing.values())


def _wanted(elf: ElfFile, path: str) -> Iterator[tuple[list[str], str]]:
    origin = path.rpartition("/")[0]
    searched = [p.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for p in elf.runpath]
    searched += LIBRARY_DIRECTORIES
    if elf.interpreter is not None:
        yield [elf.interpreter], elf.interpreter
    for soname in elf.needed:
        yield [f"{directory}/{soname}" for directory in searched], soname
