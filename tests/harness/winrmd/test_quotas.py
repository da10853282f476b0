"""What is limited at an endpoint, and how its clients are told."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pypsrp.exceptions import WinRMTransportError, WSManFaultError
from pypsrp.shell import Process, WinRS

from harness.winrmd.config import Quotas
from harness.winrmd.connection import ConnectionHandler
from tests.harness.winrmd.clients import attach, post, request, run, shell, wsman
from tests.harness.winrmd.conftest import MakeEndpoint

_TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer/"


def test_the_shells_of_a_user_are_limited(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint(quotas=Quotas(max_shells_per_user=2))
    with wsman(server) as client, WinRS(client), WinRS(client):
        with pytest.raises(WSManFaultError) as caught:
            WinRS(client).open()
        assert caught.value.code == 2150859173
        assert "maximum number of 2 concurrent shells" in caught.value.message
    with shell(server) as opened:
        assert run(opened, "echo again").rc == 0


def test_the_users_with_shells_are_limited(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint(users={"a": "x", "b": "y"}, quotas=Quotas(max_concurrent_users=1))
    with (
        shell(server, username="a", password="x"),
        wsman(server, username="b", password="y") as client,
        pytest.raises(WSManFaultError) as caught,
    ):
        WinRS(client).open()
    assert caught.value.code == 2150859179


def test_the_processes_of_a_shell_are_limited(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint(quotas=Quotas(max_processes_per_shell=1))
    with shell(server) as opened:
        first = Process(opened, 'python -c "input()"')
        first.begin_invoke()
        with pytest.raises(WSManFaultError) as caught:
            Process(opened, "echo hi").begin_invoke()
        assert caught.value.code == 2150859241
        first.send(b"\n", end=True)
        first.end_invoke()
        assert run(opened, "echo hi").stdout == b"hi\r\n"


def test_the_operations_of_a_user_are_limited(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint(quotas=Quotas(max_concurrent_operations_per_user=1))
    with shell(server) as opened, wsman(server) as other:
        process = Process(opened, 'python -c "input()"')
        process.begin_invoke()
        import threading

        waiting = threading.Thread(target=process.poll_invoke, kwargs={"timeout": 3})
        waiting.start()
        deadline = time.monotonic() + 5
        while server.config.knobs.requests("Receive") == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(WSManFaultError) as caught:
            other.get_server_config()
        assert caught.value.code == 2150859174
        server.set_quotas(Quotas())
        with wsman(server) as third:
            again = attach(third, opened)
            again.send("stdin", b"\n", process.id, end=True)
        waiting.join()


def test_quotas_are_read_and_changed_through_winrm_config(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint(allow_unencrypted=True, quotas=Quotas(max_shells_per_user=7))
    with wsman(server) as client:
        config = client.get_server_config()
        found = {element.tag.rsplit("}", 1)[-1]: element.text for element in config.iter()}
        assert found["MaxShellsPerUser"] == "7"
        assert found["MaxEnvelopeSizekb"] == "500"
        assert found["MaxTimeoutms"] == "60000"
        client.update_max_payload_size()
        assert client.max_payload_size > 300_000
    uri = "http://schemas.microsoft.com/wbem/wsman/1/config/winrs"
    put = request(
        _TRANSFER + "Put",
        uri=uri,
        body=f'<c:Winrs xmlns:c="{uri}"><c:MaxShellsPerUser>50</c:MaxShellsPerUser></c:Winrs>',
    )
    assert post(server, put)[0] == 200
    assert server.quotas == replace(server.config.quotas, max_shells_per_user=50)
    assert post(server, put.replace(b">50<", b">many<"))[0] == 500


def test_connections_beyond_the_quota_are_cut(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint(quotas=Quotas(max_connections=1))

    def ask() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        kept.callback(connection.close)
        connection.request("GET", "/wsman")
        return connection.getresponse().status

    with contextlib.ExitStack() as kept:
        assert ask() == 405
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            ask()
    deadline = time.monotonic() + 20
    while True:  # the endpoint hears a moment later that the first is gone
        with contextlib.ExitStack() as kept, contextlib.suppress(ConnectionError):
            assert ask() == 405
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_operation_takes_no_longer_than_the_endpoint_allows(
    make_endpoint: MakeEndpoint,
) -> None:
    server = make_endpoint(quotas=Quotas(max_timeout_ms=500))
    with shell(server, operation_timeout=60, read_timeout=90) as opened:
        process = Process(opened, 'python -c "import sys; sys.stdin.read()"')
        process.begin_invoke()
        began = time.monotonic()
        with pytest.raises(WSManFaultError) as caught:
            opened.receive("stdout stderr", process.id)
        assert caught.value.code == 2150858793
        assert time.monotonic() - began < 45  # and not the 60 s that were asked for


def test_an_answer_that_nobody_takes_leaves_no_descriptor() -> None:
    """What keeps a stream open keeps the connection's descriptor."""
    here, there = socket.socketpair()
    handler = ConnectionHandler.__new__(ConnectionHandler)
    handler.request = handler.connection = handler._raw = here
    handler.endpoint = SimpleNamespace(left=lambda _connection: None)
    handler.rfile = here.makefile("rb")
    handler.wfile = here.makefile("wb", 1 << 16)  # type: ignore[assignment]
    handler.wfile.write(b"an answer")
    there.close()
    handler.finish()
    assert handler.rfile.closed
    assert here.fileno() == -1


def test_an_envelope_that_is_too_large_gets_413(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    with shell(server) as opened:
        process = Process(opened, 'python -c "print(len(input()))"')
        process.begin_invoke()
        with pytest.raises(WinRMTransportError) as caught:
            opened.send("stdin", b"x" * 600_000, process.id)
        assert caught.value.code == 413
        # The message was never unsealed: that connection's context is out of step for good.
        with pytest.raises(WinRMTransportError) as caught:
            opened.send("stdin", b"x", process.id)
        assert caught.value.code == 400
        opened.opened = False
        with wsman(server) as client:
            again = attach(client, opened)
            again.send("stdin", b"x" * 300_000 + b"\n", process.id, end=True)
            process.shell = again
            process.end_invoke()
            again.close()
    assert (process.rc, process.stdout) == (0, b"300000\n")


def test_an_idle_shell_goes_away(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    with wsman(server) as client:
        opened = WinRS(client, idle_time_out=1)
        opened.open()
        assert run(opened, 'python -c "import time; time.sleep(1.3)"').rc == 0
        time.sleep(1.5)
        with pytest.raises(WSManFaultError) as caught:
            opened.command("echo", ["hi"])
        assert caught.value.code == 2150858843
        assert opened.id in caught.value.message
