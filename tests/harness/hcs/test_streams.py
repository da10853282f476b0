"""A stream endpoint is opened where it is, or refused with a reason."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from harness.errors import ComputeServiceError, UsageError
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
