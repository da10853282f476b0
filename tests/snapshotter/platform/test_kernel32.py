"""The ctypes layer against a library of our own, and against mingw-w64's headers if they exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from snapshotter.platform import kernel32, winerror
from snapshotter.platform.kernel32 import (
    FSCTL_DUPLICATE_EXTENTS_TO_FILE,
    INVALID_HANDLE,
    PROTOTYPES,
    DuplicateExtents,
    Kernel32,
    Kernel32Dll,
)
from snapshotter.platform.winerror import winerror_of
from tests.fakes.foreign import check_arguments
from tests.headers import constant, needs_headers, prototype
from tests.snapshotter.platform.ctypesnames import C_TYPES


class Function:
    """One exported function: remembers its arguments, answers what it was told to."""

    def __init__(self) -> None:
        self.restype: Any = None
        self.argtypes: tuple[Any, ...] = ()
        self.calls: list[tuple[Any, ...]] = []
        self.answer: Callable[..., int] = lambda *_: 1

    def __call__(self, *arguments: object) -> int:
        check_arguments(self.argtypes, arguments)
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


@needs_headers
@pytest.mark.parametrize("name", sorted(PROTOTYPES))
def test_prototypes_are_those_of_the_windows_headers(name: str) -> None:
    result, arguments = prototype(name, "fileapi.h", "winbase.h", "handleapi.h", "ioapiset.h")
    assert PROTOTYPES[name] == (C_TYPES[result], tuple(C_TYPES[each] for each in arguments))


@needs_headers
def test_numbers_are_those_of_the_windows_headers() -> None:
    for name in ("MOVEFILE_REPLACE_EXISTING", "MOVEFILE_WRITE_THROUGH"):
        assert getattr(kernel32, name) == constant(name, "winbase.h")
    for name in ("FILE_ATTRIBUTE_NORMAL", "FILE_SHARE_READ", "DELETE"):
        assert getattr(kernel32, name) == constant(name, "winnt.h")
    for name in ("CREATE_NEW", "OPEN_EXISTING"):
        assert getattr(kernel32, name) == constant(name, "fileapi.h")


@needs_headers
def test_error_codes_are_those_of_the_windows_headers() -> None:
    names = {
        name: value
        for name, value in vars(winerror).items()
        if name.isupper() and isinstance(value, int)
    }
    assert len(names) > 20
    for name, value in names.items():
        assert value == constant(f"ERROR_{name}", "winerror.h"), name
