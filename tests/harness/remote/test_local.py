"""This machine as a host behaves as the protocol says."""

from __future__ import annotations

import sys

import pytest

from harness.errors import RemoteCommandError, RemoteTimeoutError
from harness.remote.deadline import Deadline
from harness.remote.hostpython import python_argv, script_input
from harness.remote.local import LocalTransport
from harness.remote.transport import Transport

SOON = 10.0


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def local() -> Transport:
    return LocalTransport()


def test_a_command_gives_its_code_and_both_streams(local: Transport) -> None:
    code = "import sys;print('out');print('err',file=sys.stderr);sys.exit(7)"
    done = local.run(python(code), deadline=Deadline.after(SOON))
    assert (done.exit_code, done.text, done.stderr.strip()) == (7, "out", b"err")


def test_input_larger_than_every_pipe_comes_back_whole(local: Transport) -> None:
    data = bytes(range(256)) * 8192
    echo = "import sys;sys.stdout.buffer.write(sys.stdin.buffer.read())"
    assert local.run(python(echo), deadline=Deadline.after(SOON), stdin=data).stdout == data


def test_a_command_that_does_not_end_is_ended_at_the_deadline(local: Transport) -> None:
    with pytest.raises(RemoteTimeoutError) as caught:
        local.run(python("import time;time.sleep(60)"), deadline=Deadline.after(0.3))
    assert caught.value.maybe_ran


def test_a_missing_program_is_the_commands_fault(local: Transport) -> None:
    with pytest.raises(RemoteCommandError, match="no-such-program"):
        local.run(["no-such-program"], deadline=Deadline.after(SOON))


def test_a_process_is_written_to_while_it_is_read(local: Transport) -> None:
    code = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"
    deadline = Deadline.after(SOON)
    with local.open_shell(deadline=deadline) as shell:
        process = shell.start(python(code), deadline=deadline)
        process.write(b"one\n", deadline=deadline)
        assert process.read(deadline=deadline).stdout == b"ONE\n"
        process.write(b"two\n", deadline=deadline)
        assert process.read(deadline=deadline).stdout == b"TWO\n"
        process.close_stdin(deadline=deadline)
        assert process.read(deadline=deadline).exit_code == 0
        process.close()


def test_a_script_has_its_parameters_and_what_follows_on_standard_input(local: Transport) -> None:
    source = "def main(values, a, b): b.write(values['name'].encode() + b':' + a.read())"
    stdin = script_input(source, {"name": "h\u00e9llo\n\"'%"}) + b"\x00\r\n\xff"
    done = local.run(python_argv(sys.executable), deadline=Deadline.after(SOON), stdin=stdin)
    assert done.stdout == "h\u00e9llo\n\"'%:".encode() + b"\x00\r\n\xff", done.stderr
