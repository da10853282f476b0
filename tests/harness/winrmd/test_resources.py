"""What stands behind the endpoint beside cmd.exe: the seam for PSRP and CIM."""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import pytest
import requests
from pypsrp.exceptions import AuthenticationError, WSManFaultError
from pypsrp.shell import WinRS
from pypsrp.wsman import WSMan

from harness.winrmd import faults
from harness.winrmd.boots import Boot
from harness.winrmd.config import EndpointConfig, Quotas
from harness.winrmd.knobs import Strike, Trouble
from harness.winrmd.programs import ProgramCall
from harness.winrmd.resources import HostControl, Operation, ShellContext, ShellSession
from harness.winrmd.server import WinRmServer
from harness.winrmd.soap import NAMESPACES
from tests.harness.winrmd.clients import PASSWORD, USER, run, shell, wsman
from tests.harness.winrmd.conftest import MakeEndpoint

_URI = "http://example.org/echo"


class EchoSession:
    """A session that waits in `receive` until it is closed or told to answer."""

    def __init__(self, shell_context: ShellContext) -> None:
        self.context = shell_context
        self.closed = threading.Event()
        self.asked = threading.Event()

    @property
    def running(self) -> int:
        return 0

    def command(self, operation: Operation) -> str:
        return "<rsp:CommandResponse><rsp:CommandId>X</rsp:CommandId></rsp:CommandResponse>"

    def send(self, operation: Operation) -> str:
        return "<rsp:SendResponse/>"

    def receive(self, operation: Operation) -> str:
        self.asked.set()
        if not self.closed.wait(operation.seconds_left):
            raise faults.timed_out()
        raise faults.operation_aborted()

    def signal(self, operation: Operation) -> str:
        return "<rsp:SignalResponse/>"

    def other(self, operation: Operation) -> str:
        return f"<rsp:{operation.name}Response/>"

    def close(self) -> None:
        self.closed.set()


class EchoHandler:
    """Serves one URI: shells, one item that tells the boot, and three to enumerate."""

    def __init__(self) -> None:
        self.control: HostControl | None = None
        self.sessions: list[EchoSession] = []
        self.boots: list[Boot] = []
        self.refuse = False

    def attach(self, control: HostControl) -> None:
        self.control = control

    def handles(self, resource_uri: str) -> bool:
        return resource_uri == _URI

    def open_shell(self, operation: Operation, shell: ShellContext) -> tuple[ShellSession, str]:
        if self.refuse:
            raise faults.access_denied()
        session = EchoSession(shell)
        self.sessions.append(session)
        return session, "<e:Extra xmlns:e='urn:e'>more</e:Extra>"

    def answer(self, operation: Operation) -> str:
        assert self.control is not None
        if operation.name == "Break":
            raise RuntimeError("boom")
        if operation.name == "Reboot":
            self.control.reboot()
        return f"<e:Boot xmlns:e='urn:e'>{self.control.boot.number}</e:Boot>"

    def enumerate(self, operation: Operation) -> Sequence[str]:
        return [f"<e:Item xmlns:e='urn:e'>{number}</e:Item>" for number in range(3)]

    def rebooted(self, boot: Boot) -> None:
        self.boots.append(boot)


@pytest.fixture
def handler() -> EchoHandler:
    return EchoHandler()


@pytest.fixture
def server(make_endpoint: MakeEndpoint, handler: EchoHandler) -> WinRmServer:
    return make_endpoint(resources=[handler], quotas=Quotas(max_shells_per_user=1))


def boot_number(client: WSMan) -> str | None:
    return client.get(_URI).findtext(".//{urn:e}Boot")


def test_a_handler_answers_for_its_uri(server: WinRmServer, handler: EchoHandler) -> None:
    with wsman(server) as client:
        assert boot_number(client) == "1"
        asked = ET.Element(f"{{{NAMESPACES['n']}}}Enumerate")
        ET.SubElement(asked, f"{{{NAMESPACES['w']}}}OptimizeEnumeration")
        ET.SubElement(asked, f"{{{NAMESPACES['w']}}}MaxElements").text = "10"
        found = client.enumerate(_URI, asked)
        assert [item.text for item in found.iter("{urn:e}Item")] == ["0", "1", "2"]
    assert handler.control is server


def test_a_handlers_shells_are_counted_owned_and_closed(
    server: WinRmServer, handler: EchoHandler
) -> None:
    with wsman(server) as client:
        opened = WinRS(client, resource_uri=_URI)
        created = opened.open()
        assert created is not None
        assert created.findtext(".//{urn:e}Extra") == "more"
        (session,) = handler.sessions
        assert session.context.owner == USER
        assert session.context.shell_id == opened.id
        assert session.context.environment["COMPUTERNAME"] == "WINRMD"
        with pytest.raises(WSManFaultError) as caught:
            WinRS(client).open()
        assert caught.value.code == 2150859173
        assert not session.closed.is_set()
        opened.close()
        assert session.closed.is_set()


def test_a_session_that_is_refused_leaves_no_shell(
    server: WinRmServer, handler: EchoHandler
) -> None:
    handler.refuse = True
    with wsman(server) as client:
        with pytest.raises(WSManFaultError) as caught:
            WinRS(client, resource_uri=_URI).open()
        assert caught.value.code == 5
        handler.refuse = False
        with WinRS(client, resource_uri=_URI):
            assert len(server.shells.listed()) == 1


def test_deleting_a_shell_wakes_who_waits_in_it(server: WinRmServer, handler: EchoHandler) -> None:
    codes: list[int | None] = []

    def wait(opened: WinRS) -> None:
        try:
            opened.receive("stdout", "X")
        except WSManFaultError as fault:
            codes.append(fault.code)

    with wsman(server) as client, wsman(server) as other:
        opened = WinRS(client, resource_uri=_URI)
        opened.open()
        waiting = threading.Thread(target=wait, args=(opened,))
        waiting.start()
        assert handler.sessions[0].asked.wait(5)
        other.delete(_URI, selector_set=opened._selector_set)
        waiting.join(5)
    assert codes == [995]


def test_a_handler_restarts_its_host_and_learns_the_new_boot(
    server: WinRmServer, handler: EchoHandler
) -> None:
    with wsman(server) as client, WinRS(client, resource_uri=_URI) as opened:
        # The reply of the request that restarts the host still arrives.
        assert client.invoke(_URI + "/Reboot", _URI, None) is not None
        assert handler.sessions[0].closed.wait(5)
        opened.opened = False
    deadline = time.monotonic() + 5
    while not (server.listening and handler.boots):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with wsman(server) as client:
        assert boot_number(client) == "2"
    assert [boot.number for boot in handler.boots] == [2]


def test_a_request_that_breaks_its_handler_is_a_fault_and_no_more(
    server: WinRmServer, caplog: pytest.LogCaptureFixture
) -> None:
    with wsman(server) as client:
        with pytest.raises(WSManFaultError) as caught:
            client.invoke(_URI + "/Break", _URI, None)
        assert caught.value.code == 1359
        assert "boom" in caplog.text
        assert boot_number(client) == "1"


def test_a_planned_reboot_takes_the_request_with_it(
    server: WinRmServer, handler: EchoHandler
) -> None:
    server.config.knobs.plan(Strike(Trouble.REBOOT, "Get", nth=2))
    with wsman(server) as client:
        boot_number(client)
        with pytest.raises(requests.exceptions.ConnectionError):
            boot_number(client)
    deadline = time.monotonic() + 5
    while not (server.listening and handler.boots):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with wsman(server) as client:
        assert boot_number(client) == "2"


def test_a_starting_host_may_answer_401_to_the_right_password(server: WinRmServer) -> None:
    server.config.knobs.refuse_logons(1)
    with wsman(server) as client, pytest.raises(AuthenticationError):
        boot_number(client)
    with wsman(server) as client:
        assert boot_number(client) == "1"


def test_a_program_of_the_endpoint_reads_and_writes_like_any_other(
    make_endpoint: MakeEndpoint,
) -> None:
    def shout(call: ProgramCall) -> int:
        with (
            open(call.descriptors.stdin, "rb", closefd=False) as source,
            open(call.descriptors.stdout, "wb", closefd=False) as out,
        ):
            out.write(source.read().upper() + " ".join(call.argv).encode())
        return 7

    server = make_endpoint(programs={"powershell": shout, "curl": ()})
    with shell(server) as opened:
        process = run(opened, 'PowerShell.exe -Command "a b"', stdin=b"text ")
        assert (process.rc, process.stdout) == (7, b"TEXT PowerShell.exe -Command a b")
        assert run(opened, "curl --version").rc == 1


def test_the_launcher_of_python_takes_its_version_switch(make_endpoint: MakeEndpoint) -> None:
    with shell(make_endpoint()) as opened:
        assert run(opened, 'py -3 -c "import sys; print(sys.argv[1])" a').stdout == b"a\n"
        assert run(opened, "py.exe -V").stdout.startswith(b"Python 3")


def test_a_host_may_mangle_what_it_is_sent(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    server.config.knobs.input_filter = lambda data: data.replace(b"\n", b"\r\n")
    with shell(server) as opened:
        echo = 'python -c "import sys; print(sys.stdin.buffer.read())"'
        assert run(opened, echo, stdin=b"a\n").stdout == b"b'a\\r\\n'\n"


def test_the_password_is_in_no_representation() -> None:
    from pathlib import Path

    assert PASSWORD not in repr(EndpointConfig(users={USER: PASSWORD}, root=Path()))
