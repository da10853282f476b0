"""The calls of named pipes against mingw-w64's headers, and what they answer."""

from __future__ import annotations

import ctypes

import pytest

from snapshotter.platform import pipecalls
from snapshotter.platform.pipecalls import (
    ADVAPI32_PROTOTYPES,
    KERNEL32_PROTOTYPES,
    Overlapped,
    PipeCalls,
    SecurityAttributes,
)
from snapshotter.platform.winerror import winerror_of
from tests.fakes.foreign import ForeignLibrary
from tests.fakes.pipes import FakePipes
from tests.headers import constant, layout, needs_headers, prototype, structure
from tests.snapshotter.platform.ctypesnames import C_TYPES

_HEADERS = (
    *("namedpipeapi.h", "fileapi.h", "ioapiset.h", "synchapi.h", "handleapi.h", "winbase.h"),
    "sddl.h",
)
_TYPES = {
    "BOOL": ctypes.c_int32,
    "DWORD": ctypes.c_uint32,
    "HANDLE": ctypes.c_void_p,
    "LPVOID": ctypes.c_void_p,
    "PVOID": ctypes.c_void_p,
    "ULONG_PTR": ctypes.c_size_t,
    "WINBOOL": ctypes.c_int32,
}


@needs_headers
@pytest.mark.parametrize("name", sorted(KERNEL32_PROTOTYPES | ADVAPI32_PROTOTYPES))
def test_prototypes_are_those_of_the_windows_headers(name: str) -> None:
    result, arguments = prototype(name, *_HEADERS)
    ours = (KERNEL32_PROTOTYPES | ADVAPI32_PROTOTYPES)[name]
    assert ours == (C_TYPES[result], tuple(C_TYPES[each] for each in arguments))


@needs_headers
def test_structures_are_laid_out_as_the_windows_headers_say() -> None:
    attributes = structure("SECURITY_ATTRIBUTES", "minwinbase.h", _TYPES)
    assert layout(attributes) == layout(SecurityAttributes)
    overlapped = layout(structure("OVERLAPPED", "minwinbase.h", _TYPES))
    # The offset is in an unnamed structure of an unnamed union there.
    spelled = {name.rpartition(".")[2]: place for name, place in overlapped.items()}
    assert {name: spelled[name] for name in layout(Overlapped)} == layout(Overlapped)


@needs_headers
@pytest.mark.parametrize(
    "name",
    [
        "PIPE_ACCESS_DUPLEX",
        "FILE_FLAG_OVERLAPPED",
        "FILE_FLAG_FIRST_PIPE_INSTANCE",
        "PIPE_TYPE_BYTE",
        "PIPE_READMODE_BYTE",
        "PIPE_WAIT",
        "PIPE_REJECT_REMOTE_CLIENTS",
        "SDDL_REVISION_1",
    ],
)
def test_numbers_are_those_of_the_windows_headers(name: str) -> None:
    assert getattr(pipecalls, name) == constant(name, "winbase.h", "sddl.h")


def test_an_access_list_that_is_none_is_named() -> None:
    computer = FakePipes()
    computer.failing["ConvertStringSecurityDescriptorToSecurityDescriptorW"] = [1336]
    library = ForeignLibrary(computer)
    with pytest.raises(OSError, match="nonsense") as caught:
        PipeCalls(library, library, lambda: 1336).security_descriptor("nonsense")
    assert winerror_of(caught.value) == 1336
