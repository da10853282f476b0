"""What `WindowsBlockFile` calls, against mingw-w64's headers."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from snapshotter.blockio import windows
from snapshotter.blockio.windows import PROTOTYPES, Overlapped, ZeroData
from tests.headers import constant, layout, needs_headers, prototype, structure

_TYPES: dict[str, Any] = {
    "DWORD": ctypes.c_uint32,
    "FILE_INFO_BY_HANDLE_CLASS": ctypes.c_int,
    "HANDLE": ctypes.c_void_p,
    "LPCVOID": ctypes.c_void_p,
    "LPCWSTR": ctypes.c_wchar_p,
    "LPDWORD": ctypes.c_void_p,
    "LPOVERLAPPED": ctypes.c_void_p,
    "LPSECURITY_ATTRIBUTES": ctypes.c_void_p,
    "LPVOID": ctypes.c_void_p,
    "PLARGE_INTEGER": ctypes.c_void_p,
    "WINBOOL": ctypes.c_int,
}


@needs_headers
@pytest.mark.parametrize("name", sorted(PROTOTYPES))
def test_prototypes_are_those_of_the_windows_headers(name: str) -> None:
    result, arguments = prototype(name, "fileapi.h", "handleapi.h", "winbase.h", "ioapiset.h")
    assert PROTOTYPES[name] == (_TYPES[result], *(_TYPES[each] for each in arguments))


@needs_headers
def test_structures_and_numbers_are_those_of_the_windows_headers() -> None:
    numbers = {"LARGE_INTEGER": ctypes.c_int64}
    zeros = structure("FILE_ZERO_DATA_INFORMATION", "winioctl.h", numbers)
    assert layout(zeros) == layout(ZeroData)
    fields = {"DWORD": ctypes.c_uint32, "HANDLE": ctypes.c_void_p, "PVOID": ctypes.c_void_p}
    found = layout(
        structure("OVERLAPPED", "minwinbase.h", {"ULONG_PTR": ctypes.c_size_t, **fields})
    )
    spelled = {name.rpartition(".")[2]: place for name, place in found.items()}
    assert {name: spelled[name] for name in layout(Overlapped)} == layout(Overlapped)
    for name in ("FILE_SHARE_READ", "FILE_SHARE_WRITE", "FILE_SHARE_DELETE"):
        assert getattr(windows, name) == constant(name, "winnt.h")
    for name in ("GENERIC_READ", "GENERIC_WRITE", "FILE_ATTRIBUTE_NORMAL"):
        assert getattr(windows, name) == constant(name, "winnt.h")
    for name in vars(windows):
        if name.startswith("ERROR_"):
            assert getattr(windows, name) == constant(name, "winerror.h"), name
