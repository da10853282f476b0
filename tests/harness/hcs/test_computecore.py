"""The ctypes layer against the headers of mingw-w64, and each call against the stand-in library."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the stand-in's machines need Linux", allow_module_level=True)

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    HcsCallError,
    SystemExitedError,
    SystemNotFoundError,
    UsageError,
)
from harness.hcs.computecore import (
    EVENT_CALLBACK,
    OPERATION_CALLBACK,
    PROTOTYPES,
    ComputeCore,
    EventType,
    HcsEvent,
    load_computecore,
)
from harness.hcs.document import ComputeSystem
from harness.hcs.hcsapi import HcsApi
from harness.hcs.hresult import hcs_error
from harness.hcs.notifications import Notification
from tests.fakes.computecore import StandInHcs
from tests.fakes.hcsoperations import Trouble
from tests.fakes.hcssystem import RefusedError

HEADERS = Path("/usr/share/mingw-w64/include")
needs_headers = pytest.mark.skipif(
    not (HEADERS / "computecore.h").is_file(),
    reason="computecore.h is not installed: apt install mingw-w64-common",
)
C_TYPES: dict[str, Any] = {
    "HRESULT": ctypes.c_int32,
    "void": None,
    "HCS_OPERATION": ctypes.c_void_p,
    "HCS_SYSTEM": ctypes.c_void_p,
    "HANDLE": ctypes.c_void_p,
    "PCWSTR": ctypes.c_wchar_p,
    "DWORD": ctypes.c_uint32,
    "HCS_EVENT_OPTIONS": ctypes.c_uint32,
    "PWSTR *": ctypes.POINTER(ctypes.c_void_p),
    "HCS_SYSTEM *": ctypes.POINTER(ctypes.c_void_p),
    "const void *": ctypes.c_void_p,
    "const SECURITY_DESCRIPTOR *": ctypes.c_void_p,
    "HCS_OPERATION_COMPLETION": OPERATION_CALLBACK,
    "HCS_EVENT_CALLBACK": EVENT_CALLBACK,
}


def c_type(declaration: str) -> str:
    """Return the type of `const void *context`, spelled in one way."""
    return re.sub(r"\s*\*\s*", " *", re.sub(r"\w+$", "", declaration.strip())).strip()


@needs_headers
@pytest.mark.parametrize("name", sorted(PROTOTYPES))
def test_prototypes_are_those_of_the_windows_headers(name: str) -> None:
    text = (HEADERS / "computecore.h").read_text()
    found = re.search(rf"(\w+)\s+WINAPI\s+{name}\s*\(([^)]*)\)", text)
    assert found is not None, f"computecore.h does not declare {name}"
    result, arguments = found.groups()
    declared = tuple(C_TYPES[c_type(each)] for each in arguments.split(","))
    assert PROTOTYPES[name] == (C_TYPES[result], declared)


@needs_headers
def test_event_types_and_their_structure_are_those_of_the_windows_headers() -> None:
    text = (HEADERS / "computedefs.h").read_text()
    for event in EventType:
        name = "".join(part.capitalize() for part in event.name.split("_"))
        found = re.search(rf"HcsEvent(?:System)?{name} = (0x[0-9a-fA-F]+)", text)
        assert found is not None, name
        assert int(found[1], 16) == event
    fields = re.search(r"typedef struct HCS_EVENT \{([^}]*)\}", text)
    assert fields is not None
    assert fields[1].split() == [
        *("HCS_EVENT_TYPE", "Type;", "PCWSTR", "EventData;", "HCS_OPERATION", "Operation;")
    ]
    for name, _ in HcsEvent._fields_:
        assert f"{name};" in fields[1]


def test_an_event_has_the_layout_of_x64() -> None:
    assert (HcsEvent.Type.offset, HcsEvent.EventData.offset, HcsEvent.Operation.offset) == (
        0,
        8,
        16,
    )
    assert ctypes.sizeof(HcsEvent) == 24


def test_a_library_without_a_function_is_an_old_windows() -> None:
    class Old:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    with pytest.raises(ComputeServiceError, match=r"HcsCreateOperation: Windows 10 1809"):
        ComputeCore(Old(), lambda _: None)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has it")
def test_elsewhere_than_on_windows_the_library_is_a_clear_error() -> None:
    with pytest.raises(UsageError, match="needs Windows with Hyper-V"):
        load_computecore()


def created(api: HcsApi, document: ComputeSystem, library: StandInHcs) -> int:
    machine = document.virtual_machine
    assert machine is not None
    assert machine.chipset is not None
    direct = machine.chipset.linux_kernel_direct
    assert direct is not None
    library.grants |= {("vm", direct.kernel_file_path), ("vm", direct.init_rd_path)}
    return api.create("vm", document.to_json(), timeout_s=10)


def end(api: HcsApi, library: StandInHcs, handle: int) -> None:
    api.close(handle)
    library.grants.clear()


def test_a_system_goes_through_its_life_and_leaves_no_handle_or_string(
    api: HcsApi, library: StandInHcs, document: ComputeSystem
) -> None:
    library.boots = False
    handle = created(api, document, library)
    seen: list[Notification] = []
    number = api.subscribe(handle, seen.append)
    assert api.properties(handle, timeout_s=10)["State"] == "Created"
    api.start(handle, timeout_s=10)
    (listed,) = api.enumerate({"Owners": ["lcowlab:test"]}, timeout_s=10)
    assert (listed["Id"], listed["State"]) == ("vm", "Running")
    assert api.enumerate({"Owners": ["lcowlab"]}, timeout_s=10) == ()
    with pytest.raises(HcsCallError, match="HCS_E_INVALID_STATE: the state is Running"):
        api.start(handle, timeout_s=10)
    api.terminate(handle, timeout_s=10)
    with pytest.raises(SystemExitedError):
        api.terminate(handle, timeout_s=10)
    (exited,) = seen
    assert exited.type == EventType.SYSTEM_EXITED
    assert '"ForcedExit"' in exited.document
    api.unsubscribe(number)
    end(api, library, handle)


def test_another_handle_opens_the_same_system(
    api: HcsApi, library: StandInHcs, document: ComputeSystem
) -> None:
    with pytest.raises(SystemNotFoundError):
        api.open("vm")
    handle = created(api, document, library)
    other = api.open("vm")
    assert api.properties(other, timeout_s=10) == api.properties(handle, timeout_s=10)
    api.close(other)
    end(api, library, handle)


def test_a_shutdown_needs_a_guest_connection(
    api: HcsApi, library: StandInHcs, document: ComputeSystem
) -> None:
    handle = created(api, document, library)
    with pytest.raises(SystemExitedError, match="no guest connection"):
        api.shut_down(handle, timeout_s=10)
    end(api, library, handle)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_refusal_tells_its_events_and_what_to_do(
    api: HcsApi, library: StandInHcs, document: ComputeSystem, *, at_once: bool
) -> None:
    refusal = RefusedError(0xC03A001A, "Attachment 'a.vhdx' failed to open", "because it is sparse")
    library.operations.meet("HcsStartComputeSystem", Trouble(refusal, at_once=at_once))
    handle = created(api, document, library)
    with pytest.raises(HcsCallError, match="copy it whole") as caught:
        api.start(handle, timeout_s=10)
    assert caught.value.call == "HcsStartComputeSystem"
    assert caught.value.hresult == 0xC03A001A
    if not at_once:
        assert caught.value.events[:2] == (
            "Attachment 'a.vhdx' failed to open",
            "because it is sparse",
        )
    end(api, library, handle)


def test_a_creation_that_fails_leaves_no_handle(
    api: HcsApi, library: StandInHcs, document: ComputeSystem
) -> None:
    with pytest.raises(HcsCallError, match="does not have permission"):
        api.create("vm", document.to_json(), timeout_s=10)
    with pytest.raises(HcsCallError, match="HCS_E_INVALID_JSON"):
        api.create("vm", {"Owner": "x"}, timeout_s=10)
    assert library.leaks() == []


def test_no_answer_in_time_is_a_timeout_and_the_operation_is_closed(
    api: HcsApi, library: StandInHcs, document: ComputeSystem
) -> None:
    library.boots = False
    handle = created(api, document, library)
    late = threading.Event()
    library.operations.meet("HcsStartComputeSystem", Trouble(wait=late))
    with pytest.raises(ComputeTimeoutError, match="unknown"):
        api.start(handle, timeout_s=0.05)
    assert "HcsCancelOperation" in library.calls
    late.set()
    library.operations.quiet()
    assert api.properties(handle, timeout_s=10)["State"] == "Running"
    end(api, library, handle)


def test_a_creation_that_comes_too_late_is_ended(
    api: HcsApi, library: StandInHcs, document: ComputeSystem
) -> None:
    late = threading.Event()
    library.operations.meet("HcsCreateComputeSystem", Trouble(wait=late))
    with pytest.raises(ComputeTimeoutError):
        api.create("vm", document.to_json(), timeout_s=0.05)
    late.set()
    library.operations.quiet()
    assert library.leaks() == []


def test_notifications_after_the_close_are_dropped(
    api: HcsApi, library: StandInHcs, document: ComputeSystem
) -> None:
    handle = created(api, document, library)
    seen: list[Notification] = []
    number = api.subscribe(handle, seen.append)
    with pytest.raises(HcsCallError, match="CALLBACK_ALREADY_SET"):
        api.subscribe(handle, seen.append)
    api.unsubscribe(number)
    end(api, library, handle)
    gc.collect()
    assert library.late_notification() == 1
    assert seen == []


def test_a_sink_that_fails_does_not_reach_the_library(
    api: HcsApi, library: StandInHcs, document: ComputeSystem, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Notification) -> None:
        raise ValueError("on purpose")

    handle = created(api, document, library)
    api.subscribe(handle, fail)
    library.systems["vm"].stop("GracefulExit")
    assert "on purpose" in caplog.text
    end(api, library, handle)


@pytest.mark.parametrize(
    ("hresult", "kind", "spelled"),
    [
        (0xC037010E, SystemNotFoundError, 0x8037010E),
        (0x8037010E - (1 << 32), SystemNotFoundError, 0x8037010E),
        (0xC0370110, SystemExitedError, 0x80370110),
        (0x80370106, SystemExitedError, 0x80370106),
        (0x80370109, ComputeTimeoutError, 0x80370109),
        (0x80070490, HcsCallError, 0x80070490),
        (0x8037011B, HcsCallError, 0x8037011B),
    ],
)
def test_both_spellings_of_an_hresult_are_one_error(
    hresult: int, kind: type[ComputeServiceError], spelled: int
) -> None:
    error = hcs_error("HcsX", hresult, "")
    assert type(error) is kind
    assert error.hresult == spelled


@pytest.mark.parametrize(
    "document",
    ["", "no JSON", "[]", "{}", '{"ErrorEvents": 7}', '{"ErrorEvents": [7], "ErrorMessage": null}'],
)
def test_a_document_of_any_kind_is_told_or_left_out(document: str) -> None:
    assert "HcsX" in str(hcs_error("HcsX", 0x80004005, document))
