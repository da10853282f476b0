"""The ctypes layer against a library of our own, and against mingw-w64's headers if they exist."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from ctypes import wintypes
from pathlib import Path
from typing import Any

import pytest

from snapshotter.platform import winerror
from snapshotter.platform.kernel32 import (
    FSCTL_DUPLICATE_EXTENTS_TO_FILE,
    INVALID_HANDLE,
    PROTOTYPES,
    DuplicateExtents,
    Kernel32,
    Kernel32Dll,
)
from snapshotter.platform.winerror import winerror_of

HEADERS = Path("/usr/share/mingw-w64/include")


class Function:
    """One exported function: remembers its arguments, answers what it was told to."""

    def __init__(self) -> None:
        self.restype: Any = None
        self.argtypes: tuple[Any, ...] = ()
        self.calls: list[tuple[Any, ...]] = []
        self.answer: Callable[..., int] = lambda *_: 1

    def __call__(self, *arguments: object) -> int:
        assert len(arguments) == len(self.argtypes)
        for argument, declared in zip(arguments, self.argtypes, strict=True):
            if not hasattr(argument, "_obj"):  # byref: only a foreign function takes it apart
                declared.from_param(argument)
        self.calls.append(arguments)
        return self.answer(*arguments)


class Library:
    def __init__(self) -> None:
        self.functions = {name: Function() for name in PROTOTYPES}

    def __getattr__(self, name: str) -> Function:
        return self.functions[name]


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def kernel(library: Library) -> Kernel32:
    return Kernel32Dll(library, lambda: winerror.SHARING_VIOLATION)


def test_every_call_passes_what_its_prototype_takes(library: Library, kernel: Kernel32) -> None:
    kernel.create_directory("d")
    kernel.move_file("a", "b", 9)
    kernel.delete_file("f")
    kernel.remove_directory("d")
    kernel.set_attributes("f", 0x80)
    kernel.create_symbolic_link("l", "t", 2)
    kernel.create_hard_link("l", "t")
    kernel.close_handle(5)
    kernel.set_file_size(5, 77)
    assert library.functions["MoveFileExW"].calls == [("a", "b", 9)]
    assert library.functions["CreateSymbolicLinkW"].calls == [("l", "t", 2)]
    assert library.functions["CreateHardLinkW"].calls == [("l", "t", None)]
    handle, kind, value, size = library.functions["SetFileInformationByHandle"].calls[0]
    assert (handle, kind, value._obj.value, size) == (5, 6, 77, 8)


def test_a_refusal_is_an_oserror_with_the_code_and_the_path(
    library: Library, kernel: Kernel32
) -> None:
    library.functions["MoveFileExW"].answer = lambda *_: 0
    with pytest.raises(PermissionError) as caught:
        kernel.move_file("here", "there", 0)
    assert winerror_of(caught.value) == 32
    assert caught.value.filename == "here"


def test_a_file_that_cannot_be_opened_is_no_handle(library: Library, kernel: Kernel32) -> None:
    assert INVALID_HANDLE is not None
    invalid = INVALID_HANDLE
    library.functions["CreateFileW"].answer = lambda *_: invalid
    with pytest.raises(PermissionError):
        kernel.create_file("f", 1, 1, 3)
    library.functions["CreateFileW"].answer = lambda *_: 1234
    assert kernel.create_file("f", 0x80000000, 1, 3) == 1234


def test_free_space_is_what_is_left_to_the_caller(library: Library, kernel: Kernel32) -> None:
    function = library.functions["GetDiskFreeSpaceExW"]

    def answer(*_: object) -> int:
        _path, free, total, all_free = function.calls[-1]
        free._obj.value = 7 << 40
        assert total is all_free is None
        return 1

    function.answer = answer
    assert kernel.free_bytes("d") == 7 << 40


def test_a_cluster_is_sectors_times_bytes_of_the_directorys_volume(
    library: Library, kernel: Kernel32
) -> None:
    function = library.functions["GetDiskFreeSpaceW"]

    def answer(*_: object) -> int:
        path, sectors, size, _free, _total = function.calls[-1]
        assert path.endswith("\\")
        sectors._obj.value, size._obj.value = 8, 512
        return 1

    function.answer = answer
    assert kernel.cluster_size("d") == 4096


def test_extents_are_duplicated_by_the_documented_structure(
    library: Library, kernel: Kernel32
) -> None:
    kernel.duplicate_extents(11, 22, source_offset=1 << 40, target_offset=4096, length=8192)
    handle, code, data, size, *_ = library.functions["DeviceIoControl"].calls[0]
    assert (handle, code, size) == (11, FSCTL_DUPLICATE_EXTENTS_TO_FILE, 32)
    assert isinstance(data._obj, DuplicateExtents)
    assert data._obj.FileHandle == 22
    assert bytes(data._obj)[8:] == b"".join(
        value.to_bytes(8, "little") for value in (1 << 40, 4096, 8192)
    )


C_TYPES = {
    "LPCWSTR": wintypes.LPCWSTR,
    "LPSECURITY_ATTRIBUTES": ctypes.c_void_p,
    "DWORD": wintypes.DWORD,
    "PULARGE_INTEGER": ctypes.POINTER(ctypes.c_uint64),
    "LPDWORD": ctypes.POINTER(wintypes.DWORD),
    "HANDLE": wintypes.HANDLE,
    "FILE_INFO_BY_HANDLE_CLASS": ctypes.c_int,
    "LPVOID": ctypes.c_void_p,
    "LPOVERLAPPED": ctypes.c_void_p,
    "WINBOOL": wintypes.BOOL,
    "BOOLEAN": ctypes.c_ubyte,
}


@pytest.mark.skipif(not HEADERS.is_dir(), reason="mingw-w64's headers are not installed")
@pytest.mark.parametrize("name", sorted(PROTOTYPES))
def test_prototypes_are_those_of_the_windows_headers(name: str) -> None:
    declaration = re.compile(rf"(\w+)\s+(?:WINAPI|APIENTRY)\s+{name}\s*\(([^)]*)\)")
    for header in ("fileapi.h", "winbase.h", "handleapi.h", "ioapiset.h"):
        text = (HEADERS / header).read_text(errors="replace")
        if (found := declaration.search(text)) is not None:
            result, arguments = found.groups()
            types = [" ".join(each.split()).split(" ")[0] for each in arguments.split(",")]
            assert PROTOTYPES[name] == (C_TYPES[result], tuple(C_TYPES[each] for each in types))
            return
    pytest.fail(f"no header declares {name}")
