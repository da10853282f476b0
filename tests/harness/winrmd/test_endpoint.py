"""What an endpoint does to its clients: quotas, troubles, restarts, and raw HTTP."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import socket
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from pypsrp.exceptions import WinRMTransportError, WSManFaultError
from pypsrp.shell import Process, WinRS
from pypsrp.wsman import WSMan

from harness.errors import UsageError
from harness.winrmd import faults
from harness.winrmd.config import AuthScheme, EndpointConfig, Quotas
from harness.winrmd.connection import ConnectionHandler
from harness.winrmd.knobs import Strike, Trouble
from harness.winrmd.server import WinRmServer
from harness.winrmd.soap import NAMESPACES, SHELL_URI, parse_xml
from tests.harness.winrmd.clients import PASSWORD, USER, request, run, shell, wsman
from tests.harness.winrmd.conftest import MakeEndpoint

_BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer/"
_ENUMERATION = "http://schemas.xmlsoap.org/ws/2004/09/enumeration/"


def post(
    server: WinRmServer, body: bytes, *, path: str = "/wsman", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send one request as it is, with Basic unless told otherwise."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        named = {"Authorization": _BASIC, "Content-Type": "application/soap+xml;charset=UTF-8"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, body, {k: v for k, v in named.items() if v})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


@pytest.fixture
def plain(make_endpoint: MakeEndpoint) -> WinRmServer:
    """Return an endpoint that takes Basic without sealing, for requests made by hand."""
    return make_endpoint(allow_unencrypted=True)


def attach(client: WSMan, opened: WinRS) -> WinRS:
    """Return the same shell over another connection."""
    again = WinRS(client)
    again.id, again.opened = opened.id, True
    again._selector_set = opened._selector_set
    return again


# Quotas


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


# Troubles


@pytest.mark.parametrize(
    ("trouble", "processed"), [(Trouble.DROP_BEFORE, False), (Trouble.DROP_AFTER, True)]
)
def test_a_dropped_connection_is_seen_by_the_client(
    make_endpoint: MakeEndpoint, trouble: Trouble, *, processed: bool
) -> None:
    server = make_endpoint()
    server.config.knobs.plan(Strike(trouble, "Command", nth=2))
    with shell(server) as opened:
        assert run(opened, "echo one").rc == 0
        with pytest.raises(requests.exceptions.ConnectionError):
            opened.command("echo there> f.txt", [])
        made = server.config.root / "Users" / USER / "f.txt"
        deadline = time.monotonic() + (5 if processed else 0.2)
        while not made.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert made.exists() == processed
        # A new connection of the same user finds the shell again.
        with wsman(server) as client:
            again = attach(client, opened)
            assert run(again, "echo three").stdout == b"three\r\n"
            again.close()
        opened.opened = False


def test_sealed_requests_of_a_lost_connection_are_refused(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    with wsman(server) as client:
        client.get_server_config()
        # The old context seals, a new connection receives.
        assert client.transport.session is not None
        client.transport.session.close()
        with pytest.raises(WinRMTransportError) as caught:
            client.get_server_config()
        assert caught.value.code in (400, 401)


def test_the_nth_request_meets_the_planned_fault(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    knobs = server.config.knobs
    knobs.plan(Strike(Trouble.FAULT, "Create", make_fault=lambda: faults.too_many_shells(30)))
    knobs.plan(Strike(Trouble.TOO_LARGE, "Command", times=2))
    with wsman(server) as client:
        with pytest.raises(WSManFaultError) as caught:
            WinRS(client).open()
        assert caught.value.code == 2150859173
        with WinRS(client) as opened:
            for _ in range(2):
                with pytest.raises(WinRMTransportError) as refused:
                    opened.command("echo", ["hi"])
                assert refused.value.code == 413
            assert run(opened, "echo hi").rc == 0
    assert knobs.requests("Command") == 3


def test_replies_are_late_and_output_is_held_as_told(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    with shell(server) as opened:
        server.config.knobs.output_hold_s = 2.0
        process = Process(opened, "echo a & python -c \"import time; time.sleep(.1); print('b')\"")
        process.begin_invoke()
        state, code, streams = opened.receive("stdout stderr", process.id)
        assert (state.rsplit("/", 1)[-1], code, streams["stdout"]) == ("Done", 0, b"a \r\nb\n")
        server.config.knobs.latency_s = 0.15
        begun = time.monotonic()
        opened.command("echo", ["hi"])
        assert time.monotonic() - begun >= 0.15


# Restarts


def wait_until_refused(server: WinRmServer) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
        except (ConnectionRefusedError, ConnectionResetError):
            return
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_until_listening(server: WinRmServer) -> None:
    deadline = time.monotonic() + 5
    while not server.listening:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_reboot_ends_shells_closes_the_port_and_changes_the_boot(
    make_endpoint: MakeEndpoint,
) -> None:
    server = make_endpoint()
    before = server.boot
    with wsman(server) as client:
        opened = WinRS(client)
        opened.open()
        process = Process(opened, 'python -c "import time; time.sleep(60)"')
        process.begin_invoke()
        # The reply of the command that restarts the host still arrives.
        assert run(opened, "shutdown /r /t 0").rc == 0
        wait_until_refused(server)
        wait_until_listening(server)
    assert server.boot.number == before.number + 1
    assert server.boot.identity != before.identity
    assert server.boot.began > before.began
    with wsman(server) as client:
        again = attach(client, opened)
        with pytest.raises(WSManFaultError) as caught:
            again.command("echo", ["hi"])
        assert caught.value.code == 2150858843
        with WinRS(client) as fresh:
            assert run(fresh, "echo up").stdout == b"up\r\n"


def test_a_service_restart_keeps_the_boot(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    before = server.boot
    with wsman(server) as client:
        WinRS(client).open()
        server.restart_service()
        wait_until_refused(server)
        wait_until_listening(server)
    assert server.boot == before
    assert server.shells.listed() == ()


def test_a_host_that_is_off_comes_back_when_switched_on(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    before = server.boot
    with shell(server) as opened:
        assert run(opened, "shutdown /s /t 0").rc == 0
        wait_until_refused(server)
        time.sleep(server.config.knobs.reboot_down_s + 0.2)
        assert not server.listening
        server.power_on()
        opened.opened = False
    assert server.boot != before
    with shell(server) as opened:
        assert run(opened, "echo on again").rc == 0


def test_deleting_a_shell_kills_what_runs_in_it(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    with shell(server) as opened:
        process = Process(
            opened, 'python -c "import os, time; print(os.getpid(), flush=True); time.sleep(60)"'
        )
        process.begin_invoke()
        pid = int(opened.receive("stdout", process.id)[2]["stdout"])
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_closing_an_endpoint_ends_all_that_ran(tmp_path: Path) -> None:
    config = EndpointConfig(users={USER: PASSWORD}, root=tmp_path)
    with contextlib.ExitStack() as stack:
        with WinRmServer(config) as server:
            opened = stack.enter_context(shell(server))
            process = Process(
                opened,
                'python -c "import os, time; print(os.getpid(), flush=True); time.sleep(60)"',
            )
            process.begin_invoke()
            pid = int(opened.receive("stdout", process.id)[2]["stdout"])
            opened.opened = False
        assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(requests.exceptions.ConnectionError):
            opened.command("echo", ["hi"])


def test_it_listens_on_ipv6_too(make_endpoint: MakeEndpoint) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    server = make_endpoint(address="::1")
    assert server.url == f"http://[::1]:{server.port}/wsman"
    with requests.Session() as session:
        session.trust_env = False
        assert session.post(server.url).status_code == 401


def test_nothing_of_the_endpoints_environment_reaches_a_process(
    make_endpoint: MakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_ENDPOINT", PASSWORD)
    with shell(make_endpoint()) as opened:
        out = run(opened, 'python -c "import os; print(sorted(os.environ.items()))"').stdout
        out += run(opened, "set").stdout
    assert b"SECRET" not in out
    assert PASSWORD.encode() not in out
    assert b"COMPUTERNAME=WINRMD" in out


# Raw requests


def test_identify_needs_no_password(plain: WinRmServer) -> None:
    identify = (
        f'<s:Envelope xmlns:s="{NAMESPACES["s"]}"><s:Header/><s:Body>'
        f'<i:Identify xmlns:i="{NAMESPACES["wsmid"]}"/></s:Body></s:Envelope>'
    ).encode()
    for headers, path in (
        ({"Authorization": "", "WSMANIDENTIFY": "unauthenticated"}, "/wsman"),
        ({"Authorization": ""}, "/wsman-anon/identify"),
        ({}, "/wsman"),
    ):
        status, _, body = post(plain, identify, path=path, **headers)
        assert status == 200
        assert b"<wsmid:ProductVendor>Microsoft Corporation<" in body


def test_who_says_nothing_is_asked_for_every_configured_way(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    with requests.Session() as session:
        session.trust_env = False
        response = session.post(server.url)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Negotiate, NTLM, Basic realm="WSMAN"'
    assert response.headers["Server"] == "Microsoft-HTTPAPI/2.0"


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Negotiate " + base64.b64encode(b"rubbish").decode(),
        "Negotiate " + base64.b64encode(b"NTLMSSP\0\x01\0\0\0").decode(),
        "Negotiate " + base64.b64encode(b"NTLMSSP\0\x03\0\0\0" + bytes(80)).decode(),
        "Kerberos YII=",
        "Digest x",
    ],
)
def test_what_is_no_authentication_is_refused(plain: WinRmServer, authorization: str) -> None:
    assert post(plain, b"", Authorization=authorization)[0] == 401
    assert post(plain, b"")[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"no xml", {}, 400),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', {}, 400),
        (request(_TRANSFER + "Get"), {"Content-Type": "multipart/encrypted"}, 400),
        (b"x" * 600_000, {}, 413),
        (b"", {"Content-Length": "x"}, 411),
    ],
)
def test_bodies_that_are_none(
    plain: WinRmServer, body: bytes, headers: dict[str, str], status: int
) -> None:
    assert post(plain, body, **headers)[0] == status


def test_there_is_nothing_to_get(plain: WinRmServer) -> None:
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(plain.url).status_code == 405


def test_other_paths_do_not_exist(plain: WinRmServer) -> None:
    assert post(plain, b"", path="/other")[0] == 404


@pytest.mark.parametrize(
    ("action", "uri", "code"),
    [
        (_TRANSFER + "Get", "http://schemas.microsoft.com/wbem/wsman/1/nothing", 2150858752),
        (_TRANSFER + "Create", SHELL_URI + "/cmd", 2150858843),
        (SHELL_URI + "/Command", SHELL_URI + "/cmd", 2150858843),
        (_TRANSFER + "Delete", "http://schemas.microsoft.com/wbem/wsman/1/config", 2150858754),
    ],
)
def test_requests_for_nothing_are_faults(
    plain: WinRmServer, action: str, uri: str, code: int
) -> None:
    status, _, body = post(plain, request(action, uri=uri))
    assert status == 500
    assert f'Code="{code}" Machine="WINRMD"'.encode() in body


def test_shells_are_enumerated_in_pieces(plain: WinRmServer) -> None:
    with wsman(plain) as client, WinRS(client) as one, WinRS(client) as two:
        first = request(
            _ENUMERATION + "Enumerate",
            uri=SHELL_URI,
            body="<n:Enumerate><w:OptimizeEnumeration/><w:MaxElements>1</w:MaxElements>"
            "</n:Enumerate>",
        )
        root = parse_xml(post(plain, first)[2])
        ids = [element.text for element in root.iter(f"{{{SHELL_URI}}}ShellId")]
        context = root.findtext(".//n:EnumerationContext", "", NAMESPACES)
        pull = request(
            _ENUMERATION + "Pull",
            uri=SHELL_URI,
            body=f"<n:Pull><n:EnumerationContext>{context}</n:EnumerationContext></n:Pull>",
        )
        root = parse_xml(post(plain, pull)[2])
        ids += [element.text for element in root.iter(f"{{{SHELL_URI}}}ShellId")]
        assert ids == [one.id, two.id]
        assert root.find(".//n:EndOfSequence", NAMESPACES) is not None
        assert b"enumeration context is not valid" in post(plain, pull)[2]


# Starting


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"users": {}}, "needs a user"),
        ({"users": {"a": ""}}, "needs a user"),
        ({"users": {"a:b": "x"}}, "no such user name"),
        ({"auth": ()}, "way to authenticate"),
        ({"address": "0.0.0.0"}, "not a loopback address"),
        ({"address": "::"}, "not a loopback address"),
    ],
)
def test_what_would_be_open_to_everybody_does_not_start(
    tmp_path: Path, settings: dict[str, object], says: str
) -> None:
    given: dict[str, object] = {"users": {"a": "x"}, "root": tmp_path, **settings}
    with pytest.raises(UsageError, match=says):
        EndpointConfig(**given)  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_said_and_leaves_nothing(
    make_endpoint: MakeEndpoint, tmp_path: Path
) -> None:
    taken = make_endpoint().port
    config = EndpointConfig(users={"a": "x"}, root=tmp_path, port=taken)
    with pytest.raises(UsageError, match="cannot listen"), WinRmServer(config):
        pass


def test_closing_leaves_no_file_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, root = tmp_path / "temporary", tmp_path / "root"
    temporary.mkdir()
    root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    config = EndpointConfig(users={USER: PASSWORD}, root=root, auth=(AuthScheme.NTLM,))
    with WinRmServer(config) as server:
        assert server.listening
        (store,) = temporary.iterdir()
        assert store.stat().st_mode & 0o077 == 0
        assert USER in (store / "users").read_text()
        assert PASSWORD not in (store / "users").read_text()
    assert list(temporary.iterdir()) == []
    assert "NTLM_USER_FILE" not in os.environ
