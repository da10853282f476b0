"""A host over WinRM, against a real endpoint: commands, drops at every step, quotas, deadlines."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import (
    AuthError,
    CertificateError,
    ConnectionLostError,
    OutputLostError,
    QuotaError,
    RemoteError,
    RemoteTimeoutError,
    RequestTooLargeError,
    ShellGoneError,
    UsageError,
)
from harness.remote.deadline import Deadline
from harness.remote.passwords import Secret
from harness.remote.winrm import WinRM
from harness.winrmd.config import Quotas
from harness.winrmd.knobs import Strike, Trouble
from tests.harness.remote.conftest import (
    OTHER_PASSWORD,
    OTHER_USER,
    PretendHost,
    pretend_host,
)

SOON = 15.0


def soon() -> Deadline:
    return Deadline.after(SOON)


def python(code: str) -> list[str]:
    return ["python", "-c", code]


APPEND = "open('runs', 'a').write('x')"


def runs(host: PretendHost) -> int:
    files = [file for file in host.root.rglob("runs") if file.is_file()]
    return sum(len(file.read_text()) for file in files)


@pytest.mark.parametrize("fixture", ["sealed", "pinned"])
def test_commands_give_codes_and_streams_byte_for_byte(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    host: PretendHost = request.getfixturevalue(fixture)
    every = bytes(range(256)) * 5000
    echo = "import sys;sys.stdout.buffer.write(sys.stdin.buffer.read())"
    both = "import sys;print('out');print('err',file=sys.stderr);sys.exit(3)"
    awkward = ["a b", 'c"d', "%PATH%", "&|<>^", "", "tail\\", '\\"', "h\u00e9\u4e16"]
    with host.connect() as win:
        assert win.run(["hostname"], deadline=soon()).text == "WINRMD"
        done = win.run(python(both), deadline=soon())
        assert (done.exit_code, done.text, done.stderr.split()) == (3, "out", [b"err"])
        assert win.run(python(echo), deadline=soon(), stdin=every).stdout == every
        assert win.run(python(echo), deadline=soon(), stdin=b"").stdout == b""
        show = "import sys;sys.stdout.buffer.write(ascii(sys.argv[1:]).encode())"
        assert win.run([*python(show), *awkward], deadline=soon()).text == ascii(awkward)
        assert win.attempts.failed == []


@pytest.mark.parametrize("auth", ["basic", "negotiate", "ntlm"])
def test_each_authentication_works_inside_of_tls(pinned: PretendHost, auth: str) -> None:
    with pinned.connect(auth=auth) as win:  # type: ignore[arg-type]
        assert win.run(["hostname"], deadline=soon()).text == "WINRMD"


def test_a_stream_is_written_while_it_is_read(win: WinRM) -> None:
    code = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"
    deadline = soon()
    script = f"exec({code!r})"
    with win.open_shell(deadline=deadline, environment={"WHO": "me"}) as shell:
        process = shell.start(python(script), deadline=deadline)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(process.read(deadline=deadline).stdout))
        reader.start()  # waits on the host while we write
        process.write(b"one\n", deadline=deadline)
        reader.join()
        assert got == [b"ONE\n"]
        with pytest.raises(RemoteTimeoutError):
            process.read(deadline=Deadline.after(0.6))
        process.write(b"two\n", deadline=deadline)
        assert process.read(deadline=deadline).stdout == b"TWO\n"
        process.close_stdin(deadline=deadline)
        assert process.read(deadline=deadline).exit_code == 0
        process.close()
        who = shell.run(python("import os;print(os.environ['WHO'])"), deadline=deadline)
        assert who.text == "me"


def test_a_command_that_does_not_end_is_ended_at_the_deadline(
    sealed: PretendHost, win: WinRM
) -> None:
    began = time.monotonic()
    slow = python("import time;print('begun',flush=True);time.sleep(60)")
    with pytest.raises(RemoteTimeoutError, match="begun") as caught:
        win.run(slow, deadline=Deadline.after(1.2), idempotent=True)
    assert caught.value.maybe_ran
    assert time.monotonic() - began < 4
    assert win.run(["hostname"], deadline=soon()).text == "WINRMD"


def test_a_silent_host_costs_no_more_than_the_deadline(sealed: PretendHost) -> None:
    sealed.server.config.knobs.latency_s = 5.0
    began = time.monotonic()
    with sealed.connect() as win, pytest.raises(RemoteTimeoutError):
        win.run(["hostname"], deadline=Deadline.after(1.0))
    assert time.monotonic() - began < 3
    sealed.server.config.knobs.latency_s = 0.0


STEPS = ["Get", "Create", "Command", "Send", "Receive", "Signal", "Delete"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("trouble", [Trouble.DROP_BEFORE, Trouble.DROP_AFTER])
def test_an_idempotent_command_survives_a_drop_at_every_step(
    sealed: PretendHost, step: str, trouble: Trouble
) -> None:
    sealed.server.config.knobs.plan(Strike(trouble, step))
    echo = "import sys;print(sys.stdin.read())"
    with sealed.connect() as win:
        done = win.run(python(echo), deadline=soon(), stdin=b"text", idempotent=True)
        assert done.text == "text"
    assert win.attempts.failed
    assert len(sealed.server.shells.listed()) == 0


@pytest.mark.parametrize("step", ["Create", "Command", "Receive", "Signal"])
@pytest.mark.parametrize("trouble", [Trouble.DROP_BEFORE, Trouble.DROP_AFTER])
def test_another_command_runs_once_or_its_loss_is_told(
    sealed: PretendHost, win: WinRM, step: str, trouble: Trouble
) -> None:
    win.run(["hostname"], deadline=soon())  # from here on its ids are known to be taken
    sealed.server.config.knobs.plan(Strike(trouble, step))
    # A command whose output is lost is ended: it may have run by then.
    told = pytest.raises(OutputLostError) if step == "Receive" else contextlib.nullcontext()
    with told:
        win.run(python(APPEND), deadline=soon())
    if step != "Receive":
        assert runs(sealed) == 1


def test_a_command_whose_answer_was_lost_is_found_again(sealed: PretendHost, win: WinRM) -> None:
    win.run(["hostname"], deadline=soon())
    sealed.server.config.knobs.plan(Strike(Trouble.DROP_AFTER, "Command"))
    assert win.run(python(f"{APPEND};print('out')"), deadline=soon()).text == "out"
    assert runs(sealed) == 1


def test_a_first_command_whose_answer_was_lost_is_not_repeated(sealed: PretendHost) -> None:
    sealed.server.config.knobs.plan(Strike(Trouble.DROP_AFTER, "Command"))
    with sealed.connect() as win, pytest.raises(ConnectionLostError) as caught:
        win.run(python(APPEND), deadline=soon())
    assert caught.value.maybe_ran


def test_reading_goes_on_after_a_lost_answer_on_a_new_connection(
    sealed: PretendHost, win: WinRM
) -> None:
    deadline = soon()
    code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with win.open_shell(deadline=deadline) as shell:
        process = shell.start(python(f"exec({code!r})"), deadline=deadline)
        process.write(b"lost\n", deadline=deadline)
        sealed.server.config.knobs.plan(Strike(Trouble.DROP_AFTER, "Receive"))
        with pytest.raises(OutputLostError):
            process.read(deadline=deadline)
        process.write(b"kept\n", deadline=deadline)
        assert process.read(deadline=deadline).stdout == b"kept\n"
        process.close()


@pytest.mark.parametrize(
    ("trouble", "error", "repeated"),
    [
        (Trouble.TOO_LARGE, RequestTooLargeError, False),
        (Trouble.UNAVAILABLE, ConnectionLostError, True),
        (Trouble.SERVER_ERROR, RemoteError, False),
    ],
)
def test_each_refusal_has_its_own_error_and_only_passing_ones_are_repeated(
    sealed: PretendHost, trouble: Trouble, error: type[RemoteError], repeated: bool
) -> None:
    sealed.server.config.knobs.plan(Strike(trouble, "Create"))
    with sealed.connect() as win:
        if repeated:
            assert win.run(["hostname"], deadline=soon()).text == "WINRMD"
            assert [type(each.error) for each in win.attempts.failed] == [error]
            return
        with pytest.raises(error) as caught:
            win.run(["hostname"], deadline=soon())
        assert caught.value.host == "win1"


def test_a_quota_is_waited_for_and_named_when_it_stays(tmp_path: Path) -> None:
    with (
        pretend_host(tmp_path, quotas=Quotas(max_shells_per_user=1)) as host,
        host.connect() as first,
        host.connect() as second,
    ):
        shell = first.open_shell(deadline=soon())
        with pytest.raises(QuotaError) as caught:
            second.run(["hostname"], deadline=Deadline.after(1.0))
        assert caught.value.code == 2150859173
        threading.Timer(0.1, shell.close).start()
        assert second.run(["hostname"], deadline=soon()).text == "WINRMD"


def test_a_restart_between_two_commands_is_not_noticed(sealed: PretendHost, win: WinRM) -> None:
    assert win.run(["hostname"], deadline=soon()).text == "WINRMD"
    sealed.server.restart_service()
    time.sleep(0.1)
    assert win.run(["hostname"], deadline=soon()).text == "WINRMD"


def test_a_restart_under_a_command_is_told(sealed: PretendHost, win: WinRM) -> None:
    def reboot_once_it_runs() -> None:
        began = time.monotonic()
        while runs(sealed) == 0 and time.monotonic() - began < SOON:
            time.sleep(0.02)
        sealed.server.reboot()

    threading.Thread(target=reboot_once_it_runs).start()
    with pytest.raises((ShellGoneError, ConnectionLostError)) as caught:
        win.run(python(f"{APPEND};import time;time.sleep(60)"), deadline=Deadline.after(2 * SOON))
    assert caught.value.maybe_ran
    assert runs(sealed) == 1


def test_a_wrong_password_and_a_wrong_certificate_are_told_apart(pinned: PretendHost) -> None:
    with pinned.connect(password="wrong") as win, pytest.raises(AuthError, match="password"):
        win.run(["hostname"], deadline=soon())
    assert win.attempts.failed == []  # one try: no account is locked out by us
    other = pinned.endpoint(tls="pin:sha256:" + "00" * 32)
    with WinRM(other) as win, pytest.raises(CertificateError, match="Fingerprints did not match"):
        win.run(["hostname"], deadline=soon())
    unknown = pinned.endpoint(tls="verify")
    with WinRM(unknown) as win, pytest.raises(CertificateError, match="pin:sha256"):
        win.run(["hostname"], deadline=soon())
    assert pinned.server.config.knobs.requests() == 0


def test_names_and_passwords_of_any_script_are_sealed_with(sealed: PretendHost) -> None:
    other = replace(sealed.endpoint(), user=OTHER_USER, password=Secret(OTHER_PASSWORD))
    with WinRM(other) as win:
        assert win.run(["hostname"], deadline=soon()).text == "WINRMD"


def test_no_password_leaves_unsealed(sealed: PretendHost, pinned: PretendHost) -> None:
    with pytest.raises(UsageError, match="no such password"):
        replace(pinned.endpoint(auth="basic"), password=Secret(OTHER_PASSWORD))
    with pytest.raises(UsageError, match="shows the password"):
        sealed.endpoint(auth="basic")


def test_proxies_of_the_environment_are_not_asked(
    pinned: PretendHost, sealed: PretendHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    for host in (pinned, sealed):
        with host.connect() as win:
            assert win.run(["hostname"], deadline=soon()).text == "WINRMD"


def test_nobody_there_is_a_lost_connection_in_which_nothing_ran(sealed: PretendHost) -> None:
    nowhere = replace(sealed.endpoint(), port=1)
    with WinRM(nowhere) as win, pytest.raises(ConnectionLostError, match="no connection") as caught:
        win.run(["hostname"], deadline=Deadline.after(1.0))
    assert not caught.value.maybe_ran
    assert len(win.attempts.failed) >= 2


def test_all_shells_are_gone_when_a_host_is_let_go(sealed: PretendHost) -> None:
    with sealed.connect() as win:
        win.run(["hostname"], deadline=soon())
        with win.open_shell(deadline=soon()) as shell:
            shell.start(python("import time;time.sleep(60)"), deadline=soon())
            assert len(sealed.server.shells.listed()) == 2
    assert len(sealed.server.shells.listed()) == 0
