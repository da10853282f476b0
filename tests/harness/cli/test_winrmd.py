from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cli.app import app
from harness.cli.exit_codes import ExitCode
from harness.errors import UsageError
from tests.harness.winrmd.clients import run

_LCOWLAB = [sys.executable, "-c", "from harness.cli import main; main()", "winrmd"]


def test_it_says_when_it_is_ready_and_serves_until_it_is_ended(tmp_path: Path) -> None:
    from pypsrp.shell import WinRS
    from pypsrp.wsman import WSMan

    process = subprocess.Popen(
        [
            *_LCOWLAB,
            "--listen",
            "127.0.0.1:0",
            "--root",
            str(tmp_path),
            "--user",
            "joe",
            "--password-env",
            "WORD",
            "--tls",
            "--auth",
            "ntlm",
        ],
        env={**os.environ, "WORD": "secret word"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        certificate, digest, listening = (process.stdout.readline().split() for _ in range(3))
        assert listening[:2] == ["listening", "on"]
        port = int(listening[2].removeprefix("https://127.0.0.1:").removesuffix("/wsman"))
        pem = Path(certificate[1]).read_text()
        assert list(Path(certificate[1]).parent.iterdir()) == [Path(certificate[1])]  # no key
        der = ssl.PEM_cert_to_DER_cert(pem)
        assert digest == ["sha256", hashlib.sha256(der).hexdigest()]
        with (
            WSMan(
                "127.0.0.1",
                port=port,
                username="joe",
                password="secret word",
                auth="ntlm",
                cert_validation=certificate[1],  # type: ignore[arg-type]
                no_proxy=True,
            ) as client,
            WinRS(client) as opened,
        ):
            assert run(opened, "echo served").stdout == b"served\r\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == ExitCode.INTERRUPTED
        assert not Path(certificate[1]).exists()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_ctrl_c_ends_every_process_that_a_client_started(tmp_path: Path) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("looks for the process in /proc")
    from pypsrp.shell import Process, WinRS
    from pypsrp.wsman import WSMan

    process = subprocess.Popen(
        [
            *(*_LCOWLAB, "--listen", "127.0.0.1:0", "--root", str(tmp_path)),
            *("--user", "joe", "--password-env", "WORD"),
        ],
        env={**os.environ, "WORD": "secret word"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().split(":")[-1].removesuffix("/wsman\n"))
        with (
            contextlib.closing(process.stdout),
            WSMan(
                "127.0.0.1",
                port=port,
                username="joe",
                password="secret word",
                auth="ntlm",
                ssl=False,
                no_proxy=True,
            ) as client,
        ):
            shell = WinRS(client)
            shell.open()
            code = "import os,time;open('pid','w').write(str(os.getpid()));time.sleep(300)"
            Process(shell, f'python -c "{code}"').begin_invoke()
            deadline = time.monotonic() + 30
            while not (text := "".join(file.read_text() for file in tmp_path.rglob("pid"))):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            child = Path("/proc", text, "stat")
            assert child.exists()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == ExitCode.INTERRUPTED
            client.close()
        while child.exists() and child.read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
            assert time.monotonic() < deadline + 10
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--password-env", "PATH", "--auth", "kerberos"], "keytab"),
        (["--password-env", "PATH", "--realm", "LAB.TEST"], "go together"),
        (["--password-env", "EMPTY_WORD"], "holds no password"),
        (["--user", "b", "--password-env", "PATH"], "one --password-env for each"),
        (["--password-env", "PATH", "--listen", "0.0.0.0:0"], "not a loopback address"),
        (["--password-env", "PATH", "--listen", "nowhere"], "ADDRESS:PORT"),
        (["--password-env", "PATH", "--auth", "none"], "known are basic"),
        (["--password-env", "PATH", "--root", "/nowhere/at/all"], "is no folder"),
    ],
)
def test_what_must_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.setenv("EMPTY_WORD", "")
    given = ["winrmd", "--user", "joe", "--root", str(tmp_path), "--listen", "127.0.0.1:0"]
    with pytest.raises(UsageError, match=says):
        app([*given, *arguments], standalone_mode=False)
