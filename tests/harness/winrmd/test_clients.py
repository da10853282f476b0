"""pypsrp and pywinrm, which know nothing of us, over every authentication and transport."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import requests
from pypsrp.exceptions import AuthenticationError, WinRMTransportError, WSManFaultError
from pypsrp.shell import Process, SignalCode, WinRS
from requests.exceptions import SSLError
from winrm import Session
from winrm.exceptions import InvalidCredentialsError
from winrm.exceptions import WSManFaultError as PywinrmFaultError

from harness.winrmd.config import AuthScheme, ChannelBindings, TlsFiles
from harness.winrmd.server import WinRmServer
from tests.harness.winrmd.clients import PASSWORD, USER, Transport, pywinrm, run, shell, wsman
from tests.harness.winrmd.conftest import MakeEndpoint

_REVERSE = "import sys; print(sys.stdin.read()[::-1]); print('e', file=sys.stderr); sys.exit(3)"


@dataclass(frozen=True, slots=True)
class Way:
    """How a client gets in."""

    auth: str
    tls: bool
    encryption: str = "auto"

    def __str__(self) -> str:
        return f"{self.auth}-{'https' if self.tls else 'http'}-{self.encryption}"


WAYS = [
    Way("basic", tls=False, encryption="never"),
    Way("basic", tls=True),
    Way("ntlm", tls=False),
    Way("ntlm", tls=True),
    Way("ntlm", tls=True, encryption="always"),
    Way("negotiate", tls=False),
    Way("negotiate", tls=True),
    Way("negotiate", tls=True, encryption="always"),
]


def endpoint(make: MakeEndpoint, way: Way, certificate: TlsFiles) -> WinRmServer:
    return make(
        tls=certificate if way.tls else None,
        allow_unencrypted=way.encryption == "never",
        # The strictest level: both clients send their bindings.
        channel_bindings=ChannelBindings.STRICT,
    )


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_pypsrp_runs_processes(
    make_endpoint: MakeEndpoint, way: Way, certificate: TlsFiles
) -> None:
    server = endpoint(make_endpoint, way, certificate)
    with shell(server, auth=way.auth, encryption=way.encryption) as opened:
        process = run(opened, "python", stdin=b"abc", arguments=["-c", f'"{_REVERSE}"'])
        assert (process.rc, process.stdout, process.stderr) == (3, b"cba\n", b"e\n")
        assert run(opened, "echo hi & nosuch").stdout == b"hi \r\n"
    assert server.shells.listed() == ()


@pytest.mark.parametrize("way", [way for way in WAYS if way.auth != "negotiate"], ids=str)
def test_pywinrm_runs_processes(
    make_endpoint: MakeEndpoint, way: Way, certificate: TlsFiles
) -> None:
    server = endpoint(make_endpoint, way, certificate)
    transport: Transport = "basic" if way.auth == "basic" else "ntlm"
    with pywinrm(server, transport=transport, message_encryption=way.encryption) as client:
        shell_id = client.open_shell(env_vars={"WORD": "hello"}, codepage=65001)
        command_id = client.run_command(
            shell_id,
            "python",
            [
                "-c",
                '"import os, sys; print(sys.stdin.read() + os.environ[chr(87)+chr(79)+'
                'chr(82)+chr(68)]); sys.exit(9)"',
            ],
            console_mode_stdin=False,
        )
        client.send_command_input(shell_id, command_id, "said ", end=True)
        out = client.get_command_output(shell_id, command_id)
        client.cleanup_command(shell_id, command_id)
        client.close_shell(shell_id)
    assert out == (b"said hello\n", b"", 9)
    assert server.shells.listed() == ()


def test_pywinrms_session_runs_commands(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()
    session = Session(
        server.url, auth=(USER, PASSWORD), transport="ntlm", proxy=None, ca_trust_path=None
    )
    with contextlib.closing(session.protocol.transport.build_session()):
        result = session.run_cmd("echo", ["one", "two"])
    assert (result.status_code, result.std_out, result.std_err) == (0, b"one two\r\n", b"")


def test_binary_passes_untouched_both_ways(make_endpoint: MakeEndpoint) -> None:
    data = bytes(range(256)) * (5_000_000 // 256)
    cat = '"import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"'
    with wsman(make_endpoint()) as client:
        client.update_max_payload_size(500 << 10)
        with WinRS(client) as opened:
            process = Process(opened, "python", ["-c", cat])
            process.begin_invoke()
            out = bytearray()
            for at in range(0, len(data), 256_000):
                process.send(data[at : at + 256_000], end=at + 256_000 >= len(data))
                # What is not fetched stops the process, and then our next Send.
                state, _, streams = opened.receive("stdout stderr", process.id)
                out += streams["stdout"]
            while not state.endswith("Done"):
                state, _, streams = opened.receive("stdout stderr", process.id)
                out += streams["stdout"]
    assert out == data


def test_a_command_that_is_silent_times_out_and_goes_on(make_endpoint: MakeEndpoint) -> None:
    with shell(make_endpoint(), operation_timeout=1, read_timeout=30) as opened:
        process = Process(opened, 'python -c "print(int(input()) + 1)"')
        process.begin_invoke()
        with pytest.raises(WSManFaultError) as caught:
            opened.receive("stdout stderr", process.id)
        assert caught.value.code == 2150858793
        process.send(b"1\n", end=True)
        deadline = time.monotonic() + 60
        while True:  # however long the machine takes over it
            with contextlib.suppress(WSManFaultError):
                assert opened.receive("stdout stderr", process.id)[2]["stdout"] == b"2\n"
                break
            assert time.monotonic() < deadline


@pytest.mark.parametrize("auth", ["ntlm", "negotiate", "basic"])
def test_a_wrong_password_is_refused(
    make_endpoint: MakeEndpoint, certificate: TlsFiles, auth: str
) -> None:
    server = make_endpoint(tls=certificate)
    with (
        wsman(server, auth=auth, password=PASSWORD + "x") as client,
        pytest.raises(
            (AuthenticationError, WinRMTransportError), match=r"401|Failed to authenticate"
        ),
    ):
        client.get_server_config()
    assert server.config.knobs.requests() == 0


def test_pywinrm_is_told_of_a_wrong_user(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint(users={"Somebody": PASSWORD})
    with pywinrm(server, transport="ntlm") as client, pytest.raises(InvalidCredentialsError):
        client.open_shell()


@pytest.mark.parametrize("name", [USER.upper(), f"WINRMD\\{USER}", f".\\{USER.lower()}"])
def test_a_user_may_be_spelled_as_on_windows(make_endpoint: MakeEndpoint, name: str) -> None:
    server = make_endpoint()
    with shell(server, username=name) as opened:
        assert [found.owner for found in server.shells.listed()] == [USER]
        assert run(opened, "echo %USERNAME%").stdout.decode().strip() == USER


def test_two_endpoints_in_one_process_keep_their_users_apart(make_endpoint: MakeEndpoint) -> None:
    one = make_endpoint(users={USER: "first"})
    two = make_endpoint(users={USER: "second"})
    for server, right, wrong in ((one, "first", "second"), (two, "second", "first")):
        with shell(server, password=right) as opened:
            assert run(opened, "echo in").rc == 0
        with wsman(server, password=wrong) as client, pytest.raises(AuthenticationError):
            client.get_server_config()


def test_many_clients_at_once_get_their_own_answers(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint()

    def work(number: int) -> bytes:
        with shell(server, auth="negotiate" if number % 2 else "ntlm") as opened:
            return b"".join(bytes(run(opened, f"echo {number}").stdout) for _ in range(4))

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(work, range(12)))
    assert answers == [f"{number}\r\n".encode() * 4 for number in range(12)]
    assert server.shells.listed() == ()


def test_plain_http_without_sealing_is_refused(make_endpoint: MakeEndpoint) -> None:
    with (
        wsman(make_endpoint(), auth="basic", encryption="never") as client,
        pytest.raises(WinRMTransportError) as caught,
    ):
        client.get_server_config()
    assert caught.value.code == 500


def test_a_certificate_that_nobody_trusts_is_refused_by_the_client(
    make_endpoint: MakeEndpoint, certificate: TlsFiles
) -> None:
    server = make_endpoint(tls=certificate)
    with requests.Session() as session:
        session.trust_env = False
        with pytest.raises(SSLError):
            session.post(server.url)


@pytest.mark.parametrize(
    ("level", "sends", "enters"),
    [
        (ChannelBindings.STRICT, True, True),
        (ChannelBindings.STRICT, False, False),
        (ChannelBindings.RELAXED, False, True),
        (ChannelBindings.NONE, False, True),
    ],
)
def test_channel_bindings_are_asked_for_as_configured(
    make_endpoint: MakeEndpoint,
    certificate: TlsFiles,
    level: ChannelBindings,
    *,
    sends: bool,
    enters: bool,
) -> None:
    server = make_endpoint(tls=certificate, channel_bindings=level)
    with (
        contextlib.nullcontext() if enters else pytest.raises(AuthenticationError),
        wsman(server, negotiate_send_cbt=sends) as client,
    ):
        client.get_server_config()


def test_only_the_configured_ways_are_offered(make_endpoint: MakeEndpoint) -> None:
    server = make_endpoint(auth=(AuthScheme.BASIC,))
    with wsman(server, auth="ntlm") as client, pytest.raises(AuthenticationError):
        client.get_server_config()


@pytest.fixture
def opened(make_endpoint: MakeEndpoint) -> Iterator[WinRS]:
    with shell(make_endpoint()) as found:
        yield found


def test_ids_that_name_nothing_get_the_fault_of_windows(opened: WinRS) -> None:
    unknown = "11111111-1111-1111-1111-111111111111"
    with pytest.raises(WSManFaultError) as caught:
        opened.receive("stdout stderr", unknown)
    assert caught.value.code == 2150858843
    assert "command identifier that does not exist" in caught.value.message
    with pytest.raises(WSManFaultError) as caught:
        opened.receive("stdout stderr")
    assert (caught.value.code, caught.value.provider) == (87, "Shell cmd plugin")
    with pytest.raises(WSManFaultError) as caught:
        WinRS(opened.wsman, working_directory="C:\\nowhere").open()
    assert caught.value.code == 2147942667


def test_ctrl_c_and_terminate_end_a_command(opened: WinRS) -> None:
    process = Process(opened, 'python -c "import time; time.sleep(60)"')
    process.begin_invoke()
    with pytest.raises(WSManFaultError):
        opened.receive("stdout stderr", process.id, timeout=1)
    process.signal(SignalCode.CTRL_C)
    process.end_invoke()
    assert process.rc == 0xC000013A
    process.signal(SignalCode.TERMINATE)
    with pytest.raises(WSManFaultError) as caught:
        opened.receive("stdout stderr", process.id)
    assert caught.value.code == 2150858843


def test_without_cmd_a_missing_program_is_a_fault(opened: WinRS) -> None:
    process = Process(opened, "python", ["-c", '"print(1)"'], no_shell=True)
    process.invoke()
    assert process.stdout == b"1\n"
    with pytest.raises(WSManFaultError) as caught:
        Process(opened, "echo", ["hi"], no_shell=True).begin_invoke()
    assert caught.value.code == 2147942402


def test_faults_are_read_by_pywinrm_too(make_endpoint: MakeEndpoint) -> None:
    with pywinrm(make_endpoint(), transport="ntlm") as client:
        with pytest.raises(PywinrmFaultError) as caught:
            client.close_shell("11111111-1111-1111-1111-111111111111")
        assert caught.value.fault_subcode == "w:InvalidSelectors"
        assert caught.value.wsman_fault_code == 2150858843
