"""One argv becomes one line from which cmd.exe and the C runtime make the same argv."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.remote.commandline import MAX_LENGTH, command_line

ARGUMENT = st.text(
    st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]), max_size=20
)
NASTY = st.text("ab \\\"%^&|<>()!;,='\t", max_size=12)


def read_as_cmd(line: str) -> str:
    """What cmd.exe /c passes on: variables expanded, carets taken; no operator may be left."""
    assert not line.startswith('"'), "cmd /c would strip this quotation mark"
    names = line.split("%")[1:-1]
    assert not any(name in VARIABLES for name in names), "a variable would be expanded"
    passed, quoted, at = [], False, 0
    while at < len(line):
        character = line[at]
        if character == "^" and not quoted:
            at += 1
            passed.append(line[at])
        else:
            if character == '"':
                quoted = not quoted
            assert quoted or character not in "&|<>", f"an operator at {at} of {line!r}"
            passed.append(character)
        at += 1
    assert not quoted
    return "".join(passed)


VARIABLES = frozenset({"PATH", "a", "b", "ab"})


def read_as_runtime(line: str) -> list[str]:
    """Microsoft's rules for argv after the program's name."""
    out: list[str] = []
    at = 0
    while at < len(line):
        while at < len(line) and line[at] in " \t":
            at += 1
        if at == len(line):
            break
        word, quoted = "", False
        while at < len(line) and (quoted or line[at] not in " \t"):
            backslashes = 0
            while at < len(line) and line[at] == "\\":
                backslashes, at = backslashes + 1, at + 1
            if at < len(line) and line[at] == '"':
                word += "\\" * (backslashes // 2)
                if backslashes % 2:
                    word += '"'
                else:
                    quoted = not quoted
                at += 1
            else:
                word += "\\" * backslashes
                if at < len(line) and (quoted or line[at] not in " \t"):
                    word += line[at]
                    at += 1
        out.append(word)
    return out


@given(st.lists(ARGUMENT | NASTY, max_size=5))
def test_an_argv_survives_both_parsers(arguments: list[str]) -> None:
    argv = ["C:\\python\\python.exe", *arguments]
    assert read_as_runtime(read_as_cmd(command_line(argv))) == argv


def test_a_program_with_spaces_does_not_start_the_line_with_a_quotation_mark() -> None:
    argv = ["C:\\Program Files\\x.exe", "a b", "%PATH%"]
    line = command_line(argv)
    assert not line.startswith('"')
    assert read_as_runtime(read_as_cmd(line)) == argv


def test_plain_arguments_stand_as_they_are() -> None:
    assert command_line(["bcdedit", "/set", "hypervisorlaunchtype", "auto"]) == (
        "bcdedit /set hypervisorlaunchtype auto"
    )


@pytest.mark.parametrize(
    "argv", [[], [""], ["a", "b\nc"], ["a", "b\0"], ['a"b'], ["a", "x" * MAX_LENGTH]]
)
def test_what_cannot_be_said_is_refused(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        command_line(argv)
