"""Lost connections, late answers, and restarts, as a client of an endpoint meets them."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest
import requests
from pypsrp.exceptions import WinRMTransportError, WSManFaultError
from pypsrp.shell import Process, WinRS

from harness.winrmd import faults
from harness.winrmd.config import EndpointConfig
from harness.winrmd.knobs import Strike, Trouble
from harness.winrmd.server import WinRmServer
from tests.harness.winrmd.clients import PASSWORD, USER, attach, run, shell, wsman
from tests.harness.winrmd.conftest import MakeEndpoint


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
