from __future__ import annotations

import contextlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.winrmd.cmdline import (
    CmdSyntaxError,
    Group,
    Joined,
    Redirection,
    Simple,
    expand_variables,
    parse_line,
    split_argv,
    strip_outer_quotes,
)

_plain = st.text(st.characters(codec="utf-8", exclude_characters='"\\\0 \t'), min_size=1)


@given(_plain, st.lists(st.text(st.sampled_from('ab "\\\t'), max_size=8)))
def test_argv_is_what_python_quoted_for_windows(program: str, arguments: list[str]) -> None:
    # subprocess.list2cmdline is the independent half of the rule.
    assert split_argv(subprocess.list2cmdline([program, *arguments])) == [program, *arguments]


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        (r'p "a b c" d e', ["p", "a b c", "d", "e"]),
        (r'p "ab\"c" "\\" d', ["p", 'ab"c', "\\", "d"]),
        (r"p a\\\b d"[:9], ["p", "a\\\\\\b", "d"]),
        (r"p a\\\"b c d", ["p", 'a\\"b', "c", "d"]),
        (r'p a\\\\"b c" d e', ["p", "a\\\\b c", "d", "e"]),
        (r'p a"b"" c d', ["p", 'ab" c d']),
        (r'"C:\a b\p.exe" x', ["C:\\a b\\p.exe", "x"]),
        ("", []),
    ],
)
def test_argv_is_what_microsoft_documents(line: str, argv: list[str]) -> None:
    assert split_argv(line) == argv


def test_operators_bind_as_in_cmd() -> None:
    a, b, c, d = (Simple(f" {name} ") for name in "abcd")
    assert parse_line(" a || b && c & d ") == Joined("&", Joined("||", a, Joined("&&", b, c)), d)


def test_quotes_and_carets_hide_operators() -> None:
    assert parse_line('echo "a & b"') == Simple('echo "a & b"')
    assert parse_line("echo a^&b") == Simple("echo a&b")


def test_redirections_leave_the_text_as_echo_prints_it() -> None:
    assert parse_line("echo hi > out.txt 2>&1") == Simple(
        "echo hi  ", (Redirection(1, ">", "out.txt"), Redirection(2, ">&", "1"))
    )
    assert parse_line("echo hi 2>>err") == Simple("echo hi ", (Redirection(2, ">>", "err"),))
    assert parse_line('sort<"a b"') == Simple("sort", (Redirection(0, "<", "a b"),))


def test_a_digit_belongs_to_the_text_unless_it_stands_alone() -> None:
    assert parse_line("echo a2>x") == Simple("echo a2", (Redirection(1, ">", "x"),))


def test_groups_take_redirections() -> None:
    assert parse_line("(echo a& echo b) > f") == Group(
        Joined("&", Simple("echo a"), Simple(" echo b")), (Redirection(1, ">", "f"),)
    )
    assert parse_line("echo (x)") == Simple("echo (x)")


@pytest.mark.parametrize("line", ["&& a", "a &&", "a | ", "(a", "a >", "|", "a & & b"])
def test_what_cmd_refuses_is_refused(line: str) -> None:
    with pytest.raises(CmdSyntaxError):
        parse_line(line)


@given(st.text(st.sampled_from('ab &|<>()^"%12'), max_size=40))
def test_every_line_is_parsed_or_refused(line: str) -> None:
    with contextlib.suppress(CmdSyntaxError):
        assert isinstance(parse_line(line), Simple | Group | Joined)


def test_variables_are_replaced_and_unknown_ones_stay() -> None:
    known = {"a": "1234"}
    assert expand_variables("%a% %b% 100% %a:~1,2%", known.get) == "1234 %b% 100% 23"


def test_cmd_strips_the_outer_quotes_unless_they_name_a_program() -> None:
    programs = {"C:\\a b\\p.exe"}
    for line, runs in [
        ('"echo "a" b"', 'echo "a" b'),
        ('"C:\\a b\\p.exe" "x"', '"C:\\a b\\p.exe" "x"'),
        ("echo hi", "echo hi"),
        ('"', '"'),
    ]:
        assert strip_outer_quotes(line, programs.__contains__) == runs
