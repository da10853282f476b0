"""PowerShell is built from values: what is sent parses, and says what was meant."""

from __future__ import annotations

import pytest
import tree_sitter_powershell
from hypothesis import given
from hypothesis import strategies as st
from tree_sitter import Language, Node, Parser

from harness.errors import UsageError
from harness.remote.cmdlets import CMDLETS, LANGUAGE_MODE_SCRIPT, Kind
from harness.remote.powershell import Command, Value, quote

PARSER = Parser(Language(tree_sitter_powershell.language()))

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
TEXTS = st.lists(TEXT, min_size=1, max_size=4).map(tuple)
INTEGER = st.integers(-(1 << 63), (1 << 63) - 1)
SCALAR = TEXT | INTEGER | TEXTS
VALUES: dict[Kind, st.SearchStrategy[Value]] = {
    Kind.TEXT: TEXT,
    Kind.TEXTS: TEXTS,
    Kind.INTEGER: INTEGER,
    Kind.SWITCH: st.booleans(),
    Kind.BYTES: st.binary(max_size=32),
    Kind.SCALAR: SCALAR,
    Kind.TABLE: st.dictionaries(TEXT, SCALAR, max_size=3),
}


def parse(text: str) -> Node:
    return PARSER.parse(text.encode()).root_node


def find(node: Node, kind: str) -> list[Node]:
    if node.type == kind:
        return [node]
    return [found for child in node.children for found in find(child, kind)]


def read_verbatim(literal: str) -> str:
    """Read a verbatim string as PowerShell's tokenizer does (ScanStringLiteral)."""
    apostrophes = "'\u2018\u2019\u201a\u201b"
    assert literal[0] in apostrophes
    result, at = [], 1
    while literal[at] not in apostrophes or (
        at + 1 < len(literal) and literal[at + 1] in apostrophes
    ):
        at += literal[at] in apostrophes
        result.append(literal[at])
        at += 1
    assert at == len(literal) - 1, "the literal ends before its text does"
    return "".join(result)


@given(TEXT)
def test_a_quoted_string_reads_back_as_itself(text: str) -> None:
    assert read_verbatim(quote(text)) == text


@given(st.text("'\u2018\u2019\u201a\u201b\"$`;\n\r()@{}", max_size=12))
def test_a_quoted_string_is_one_literal_to_the_parser(text: str) -> None:
    tree = parse(f"Test-Path -LiteralPath {quote(text)}")
    assert not tree.has_error
    (literal,) = find(tree, "verbatim_string_characters")
    assert literal.text is not None
    assert read_verbatim(literal.text.decode()) == text


def test_a_nul_character_is_refused() -> None:
    with pytest.raises(UsageError, match="NUL"):
        quote("a\0b")


@given(st.data())
def test_every_command_with_any_values_is_one_pipeline_of_one_command(data: st.DataObject) -> None:
    cmdlet = CMDLETS[data.draw(st.sampled_from(sorted(CMDLETS)))]
    names = sorted(cmdlet.required) + [
        name
        for name in cmdlet.parameters
        if name not in cmdlet.required and data.draw(st.booleans())
    ]
    command = Command.build(
        cmdlet.name, {name: data.draw(VALUES[cmdlet.parameters[name]]) for name in names}
    )
    tree = parse(command.text)
    assert not tree.has_error, command.text
    (parsed,) = find(tree, "command")
    (name,) = find(parsed, "command_name")
    assert name.text == cmdlet.name.encode()
    parameters = [node.text.decode() for node in find(parsed, "command_parameter") if node.text]
    assert [each.rstrip(":") for each in parameters] == [f"-{n}" for n in (*names, "ErrorAction")]


def test_a_command_reads_as_a_person_would_type_it() -> None:
    command = Command.build(
        "Unregister-ScheduledTask",
        {"TaskName": ("agent", "it's"), "TaskPath": ("\\lcowlab\\",), "Confirm": False},
    )
    assert command.text == (
        "Unregister-ScheduledTask -TaskName 'agent','it''s' -TaskPath '\\lcowlab\\' "
        "-Confirm:$false -ErrorAction 'Stop'"
    )


def test_tables_negative_numbers_and_bytes_have_literals() -> None:
    events = Command.build(
        "Get-WinEvent", {"FilterHashtable": {"LogName": ("A", "B"), "Id": -1, "Level": 2}}
    )
    assert "@{'LogName' = 'A','B'; 'Id' = (-1); 'Level' = 2}" in events.text
    added = Command.build(
        "Add-Content", {"LiteralPath": ("x",), "Value": b"\x00\xff", "Encoding": "Byte"}
    )
    assert "-Value ([byte[]](0,255))" in added.text


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("Get-Servise", {}, "did you mean Get-Service"),
        ("Invoke-Expression", {}, "no PowerShell command of ours"),
        ("Get-Service", {"Nam": ("x",)}, "did you mean Name"),
        ("Get-Service", {}, "needs Name"),
        ("Get-Service", {"Name": "vmms"}, "takes tuple"),
        ("Get-Service", {"Name": ()}, "takes tuple"),
        ("Get-WinEvent", {"FilterHashtable": {"Id": True}}, "takes dict"),
        ("Get-WinEvent", {"FilterHashtable": {}, "MaxEvents": True}, "takes int"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(
    name: str, parameters: dict[str, Value], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Command.build(name, parameters)


def test_the_one_script_parses() -> None:
    assert not parse(LANGUAGE_MODE_SCRIPT).has_error
