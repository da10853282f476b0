from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.winrmd.cmdexe import CmdExe, HostSide
from harness.winrmd.environment import WindowsEnvironment
from harness.winrmd.paths import HostPaths
from harness.winrmd.processes import Descriptors, Job, RunningCommand
from harness.winrmd.programs import ProgramCall, ProgramTable

Cmd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shutdowns() -> list[tuple[float, str]]:
    return []


@pytest.fixture
def cmd(tmp_path: Path, shutdowns: list[tuple[float, str]]) -> Cmd:
    """Return a function that runs a line and returns exit code, stdout and stderr."""
    home = tmp_path / "Users" / "joe"
    home.mkdir(parents=True)

    def answer(call: ProgramCall) -> int:
        os.write(call.descriptors.stdout, ("|".join(call.argv)).encode())
        return 1 << 31

    def run(line: str, *, code_page: str = "cp437") -> tuple[int, str, str]:
        host = HostSide(
            paths=HostPaths(tmp_path),
            programs=ProgramTable(
                {"python.exe": (sys.executable, "-S"), "Answer": answer, "gone": ()}
            ),
            machine="HOST",
            user="joe",
            code_page=code_page,
            system_path=os.environ["PATH"],
            shutdown=lambda after_s, kind: shutdowns.append((after_s, kind)),
        )
        variables = WindowsEnvironment(
            {"A": "one", "PATH": "C:\\bin", "COMSPEC": "C:\\Windows\\System32\\cmd.exe"}
        )

        def body(io: Descriptors, job: Job) -> int:
            return CmdExe(host, variables, home, job).run_command_line(line, io)

        command = RunningCommand("id", body)
        command.start()
        out = {"stdout": b"", "stderr": b""}
        code = None
        while code is None:
            received = command.receive(
                ("stdout", "stderr"), limit=1 << 20, deadline=time.monotonic() + 10
            )
            code = received.exit_code
            for chunk in received.chunks:
                out[chunk.stream] += chunk.data
        command.close()
        codec = code_page
        return code, out["stdout"].decode(codec), out["stderr"].decode(codec)

    return run


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("echo hi", "hi\r\n"),
        ("echo  two  spaces ", " two  spaces\r\n"),
        ("echo.", "\r\n"),
        ("echo", "ECHO is on.\r\n"),
        ("@echo off & echo", "ECHO is off.\r\n"),
        ('echo "a & b"', '"a & b"\r\n'),
        ("echo a&& echo b", "a\r\nb\r\n"),
        ("echo a && echo b", "a \r\nb\r\n"),
        ("echo %A% %a% %nope%", "one one %nope%\r\n"),
        ("set A=two& echo %A%", "one\r\n"),
        ("set A", "A=one\r\n"),
        ('set "B=x y" & set b', "B=x y\r\n"),
        ("cd", "C:\\Users\\joe\r\n"),
        ("cd /d c:\\users & cd", "C:\\Users\r\n"),
        ("cd \\ && cd", "C:\\\r\n"),
        ("echo %CD%", "C:\\Users\\joe\r\n"),
        ("hostname", "HOST\r\n"),
        ("whoami.exe", "host\\joe\r\n"),
        ("%COMSPEC% /c echo in", "in\r\n"),
        ('cmd /s /c "echo "q""', '"q"\r\n'),
        ('"echo quoted"', "quoted\r\n"),
        ("cmd /c exit 3 || echo no", "no\r\n"),
        ("if exist C:\\Users echo yes", "yes\r\n"),
        ("if not exist C:\\nope echo no", "no\r\n"),
        ("if /i ONE==one (echo same)", "same\r\n"),
        ("rem x & echo hidden", "hidden\r\n"),
        ("chcp", "Active code page: 437\r\n"),
        (
            '(echo a& echo b) | python -c "import sys; print(sys.stdin.read().split())"',
            "['a', 'b']\n",
        ),
    ],
)
def test_a_line_prints_what_cmd_prints(cmd: Cmd, line: str, out: str) -> None:
    assert cmd(line) == (0, out, "")


def test_a_missing_program_has_cmds_words_and_code(cmd: Cmd) -> None:
    for name in ("nosuch", "ls", "gone"):
        assert cmd(f"{name} x") == (
            1,
            "",
            f"'{name}' is not recognized as an internal or external command,\r\n"
            "operable program or batch file.\r\n",
        )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("exit 7", 7),
        ("exit /b 9", 9),
        ("exit -1", 0xFFFFFFFF),
        ("exit 300 & echo never", 300),
        ("nosuch & exit", 1),
        ('python -c "raise SystemExit(5)"', 5),
        ("cmd /c exit 4", 4),
        ("cd nowhere", 1),
        ("set nope", 1),
        ("answer", 1 << 31),
    ],
)
def test_exit_codes(cmd: Cmd, line: str, code: int) -> None:
    got, out, _ = cmd(line)
    assert got == code
    assert "never" not in out


def test_redirections_write_and_read_files(cmd: Cmd, tmp_path: Path) -> None:
    home = tmp_path / "Users" / "joe"
    assert cmd("echo one> f.txt& echo two>> f.txt")[0] == 0
    assert (home / "f.txt").read_bytes() == b"one\r\ntwo\r\n"
    assert cmd("type F.TXT")[1] == "one\r\ntwo\r\n"
    assert cmd('python -c "import sys; print(len(sys.stdin.buffer.read()))" < f.txt')[1] == "10\n"
    assert cmd("nosuch 2>&1 >nul")[1].startswith("'nosuch' is not")
    assert cmd("nosuch >nul 2>&1")[1:] == ("", "")
    assert cmd("type < missing") == (1, "", "The system cannot find the file specified.\r\n")


def test_folders_and_files_come_and_go(cmd: Cmd, tmp_path: Path) -> None:
    assert cmd("md a\\b && echo x> a\\b\\c && del a\\b\\c && rd a\\b")[0] == 0
    assert list((tmp_path / "Users" / "joe").rglob("*")) == [tmp_path / "Users" / "joe" / "a"]
    assert cmd("md a")[2] == "A subdirectory or file a already exists.\r\n"
    assert cmd("rd /s /q a") == (0, "", "")
    assert cmd("rd /s /q C:\\")[0] != 0


def test_real_processes_get_local_paths_and_the_shells_variables(cmd: Cmd, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "tool.exe"
    tool.write_text('#!/bin/sh\necho "$1" "$W" "$PWD"\n')
    tool.chmod(0o755)
    code, out, _ = cmd("set W=C:\\Users& tool C:\\bin\\x")
    assert (code, out) == (0, f"{tmp_path}/bin/x {tmp_path}/Users {tmp_path}/Users/joe\n")


def test_a_windows_binary_stands_for_the_program_of_its_name(cmd: Cmd, tmp_path: Path) -> None:
    (tmp_path / "py dir").mkdir()
    (tmp_path / "py dir" / "python.exe").write_bytes(b"MZ")
    assert cmd('"C:\\py dir\\python.exe" -c "print(1)"') == (0, "1\n", "")
    assert cmd("C:\\nothere\\python.exe -c 1")[0] == 1


def test_a_line_of_8192_characters_is_too_long(cmd: Cmd) -> None:
    assert cmd("echo " + "x" * 8186)[:2] == (0, "x" * 8186 + "\r\n")
    assert cmd("echo " + "x" * 8187) == (1, "", "The command line is too long.\r\n")


def test_text_is_in_the_code_page_of_the_shell(cmd: Cmd) -> None:
    assert cmd("echo äß", code_page="cp437")[1] == "äß\r\n"
    assert cmd("echo äß→", code_page="utf-8")[1] == "äß→\r\n"
    assert cmd("echo →", code_page="cp850")[1] == "?\r\n"


def test_shutdown_restarts_the_host(cmd: Cmd, shutdowns: list[tuple[float, str]]) -> None:
    assert cmd("shutdown /r /f /t 5")[0] == 0
    assert cmd("shutdown -s -t 0")[0] == 0
    assert cmd("shutdown /r /t soon")[0] == 87
    assert shutdowns == [(5.0, "r"), (0.0, "s")]


def test_start_does_not_wait(cmd: Cmd, tmp_path: Path) -> None:
    begun = time.monotonic()
    code, out, _ = cmd('start "" /b python -c "import time; time.sleep(20)" & echo after')
    assert (code, out) == (0, "after\r\n")
    assert time.monotonic() - begun < 10
