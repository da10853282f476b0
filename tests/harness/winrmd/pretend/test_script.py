"""The grammar of our PowerShell text: what the client writes reads back as what it meant."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.remote.cmdlets import CMDLETS, LANGUAGE_MODE_SCRIPT, Kind
from harness.remote.powershell import Command, Value, quote
from harness.winrmd.script import Call, Reference, ScriptSyntaxError, parse_script

# Apostrophes of all kinds, and what PowerShell would expand in another kind of string.
HARD = st.text(st.sampled_from("'\u2018\u2019\u201a\u201b\"`$;|&@{}()-,= \nx\u00e4")) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
)
TEXTS = st.lists(HARD, min_size=1, max_size=3).map(tuple)
INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
SCALARS: st.SearchStrategy[str | int | tuple[str, ...]] = HARD | INTEGERS | TEXTS
VALUES: Mapping[Kind, st.SearchStrategy[Value]] = {
    Kind.TEXT: HARD,
    Kind.TEXTS: TEXTS,
    Kind.INTEGER: INTEGERS,
    Kind.SWITCH: st.booleans(),
    Kind.BYTES: st.binary(max_size=40),
    Kind.SCALAR: SCALARS,
    Kind.TABLE: st.dictionaries(HARD.map(str.lower), SCALARS, max_size=3),
}


@st.composite
def commands(draw: st.DrawFn) -> Command:
    cmdlet = draw(st.sampled_from(sorted(CMDLETS.values(), key=lambda each: each.name)))
    optional = sorted(cmdlet.parameters.keys() - cmdlet.required)
    chosen = draw(st.lists(st.sampled_from(optional), unique=True)) if optional else []
    names = [*sorted(cmdlet.required), *chosen]
    return Command.build(
        cmdlet.name, {name: draw(VALUES[cmdlet.parameters[name]]) for name in names}
    )


def plain(value: object) -> object:
    """An array of one and its element are the same to a parameter."""
    if isinstance(value, tuple) and len(value) == 1:
        return value[0]
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return value


@given(commands())
def test_a_command_s_text_says_what_the_command_is(command: Command) -> None:
    parsed = parse_script(command.text)
    assert isinstance(parsed, Call)
    assert parsed.name == command.cmdlet.name
    assert {name: plain(value) for name, value in parsed.parameters} == {
        name: plain(value) for name, value in command.parameters.items()
    }


@given(HARD)
def test_nothing_gets_out_of_a_quoted_string(text: str) -> None:
    assert parse_script(f"Get-Service -Name {quote(text)}") == Call(
        "Get-Service", (("Name", text),)
    )


def test_the_one_script_is_a_reference() -> None:
    names = ("ExecutionContext", "SessionState", "LanguageMode")
    assert parse_script(LANGUAGE_MODE_SCRIPT) == Reference(names)


@pytest.mark.parametrize("quotes", ["''", "\u2019\u2019", "'\u2019", "\u2018'"])
def test_of_a_doubled_apostrophe_the_second_stays(quotes: str) -> None:
    parsed = parse_script(f"Get-Service -Name 'a{quotes}b'")
    assert parsed == Call("Get-Service", (("Name", f"a{quotes[1]}b"),))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("", 0),
        ("Get-Service -Name 'open", 18),
        ("Get-Service -Name bare", 18),
        ("Get-Service 'positional'", 12),
        ("Get-Service -Name 'a' | Out-String", 22),
        ("Get-Service -Name 'a'; Get-Service", 21),
        ('Get-Service -Name "$x"', 18),
        ("Get-Service -Name $x", 18),
        ("Get-Service -Name @{a = 1; A = 2}", 27),
        ("Get-Service -Name @('a'", 23),
        ("Add-Content -Value ([byte[]](256))", 19),
        ("get", 0),
        ("& 'Get-Service'", 0),
    ],
)
def test_everything_else_is_refused_where_it_starts(text: str, at: int) -> None:
    with pytest.raises(ScriptSyntaxError) as error:
        parse_script(text)
    assert error.value.at == at


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(ScriptSyntaxError):
        assert isinstance(parse_script(text), Call | Reference)
