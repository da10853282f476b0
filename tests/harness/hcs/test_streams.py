"""A stream endpoint is opened where it is, or refused with a reason."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    SystemExitedError,
    UsageError,
)
from harness.hcs.service import BRIDGE_PORT, StreamEndpoint
from harness.hcs.streams import hvsock_address, open_listener

VM = "8e8d1b57-0000-0000-0000-000000000000"


@pytest.fixture
def served(tmp_path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(1)
    return listener


def test_a_unix_endpoint_is_connected_at_once(served: socket.socket) -> None:
    with open_listener(StreamEndpoint("unix", served.getsockname())) as listener:
        peer, _ = served.accept()
        with listener.accept(1.0) as stream, peer:
            peer.sendall(b"hello")
            assert stream.recv(5) == b"hello"
    served.close()


def test_a_stream_that_is_not_taken_is_given_up(served: socket.socket) -> None:
    with open_listener(StreamEndpoint("unix", served.getsockname())):
        peer, _ = served.accept()
    with peer:
        assert peer.recv(1) == b""
    served.close()


def test_a_stream_is_accepted_once(served: socket.socket) -> None:
    with open_listener(StreamEndpoint("unix", served.getsockname())) as listener:
        listener.accept(1.0).close()
        with pytest.raises(UsageError):
            listener.accept(1.0)
    served.close()


def test_an_endpoint_that_is_gone_is_an_error_naming_it(tmp_path: Path) -> None:
    with pytest.raises(ComputeServiceError, match="gone"):
        open_listener(StreamEndpoint("unix", str(tmp_path / "gone")))


def test_an_unknown_transport_is_refused() -> None:
    with pytest.raises(UsageError, match="carrier pigeon"):
        open_listener(StreamEndpoint("carrier pigeon", "x"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has Hyper-V sockets")
def test_hyper_v_sockets_elsewhere_than_on_windows_are_a_clear_error() -> None:
    with pytest.raises(ComputeServiceError, match="Windows"):
        open_listener(StreamEndpoint("hvsock", hvsock_address(VM, BRIDGE_PORT)))


def test_a_vsock_port_becomes_its_service_guid() -> None:
    address = hvsock_address(VM, BRIDGE_PORT)
    assert address.endswith(":40000000-facb-11e6-bd58-64006a7986d3")


@pytest.mark.parametrize(("machine", "port"), [("vm-1", 1), ("", 1), (VM, -1), (VM, 1 << 32)])
def test_what_is_no_machine_or_no_port_has_no_address(machine: str, port: int) -> None:
    with pytest.raises(UsageError):
        hvsock_address(machine, port)


def test_an_address_without_a_service_is_refused() -> None:
    with pytest.raises(UsageError, match="is not <VM GUID>:<service GUID>"):
        open_listener(StreamEndpoint("hvsock", VM))


class Dialled:
    """Listens as a Hyper-V socket would; the guest dials a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "h"
        self.asked: list[tuple[str, str]] = []

    def listen(self, machine: str, service: str) -> socket.socket:
        self.asked.append((machine, service))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(1)
        return listener


def test_a_hyper_v_endpoint_is_bound_and_its_guest_accepted(tmp_path: Path) -> None:
    dialled = Dialled(tmp_path)
    endpoint = StreamEndpoint("hvsock", hvsock_address(VM, 1))
    with open_listener(endpoint, listen=dialled.listen) as listener:
        assert dialled.asked == [(VM, "00000001-facb-11e6-bd58-64006a7986d3")]
        with pytest.raises(ComputeTimeoutError, match=r"within 0\.01 s"):
            listener.accept(0.01)
        with socket.socket(socket.AF_UNIX) as guest:
            guest.connect(str(dialled.path))
            with listener.accept(10) as stream:
                assert stream.gettimeout() is None
                guest.sendall(b"hello")
                assert stream.recv(5) == b"hello"


def test_nobody_waits_for_a_guest_that_is_gone(tmp_path: Path) -> None:
    answers = iter([False, True])
    endpoint = StreamEndpoint("hvsock", hvsock_address(VM, 1))
    with (
        open_listener(
            endpoint, listen=Dialled(tmp_path).listen, gone=lambda: next(answers)
        ) as listener,
        pytest.raises(SystemExitedError, match="never connected"),
    ):
        listener.accept(3600)
