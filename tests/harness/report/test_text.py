from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.report.text import printable, seconds, spelled, tail


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_whatever_is_printable_fits_into_xml_and_utf_8(text: str) -> None:
    element = ET.Element("a", b=printable(text))
    element.text = printable(text)
    ET.fromstring(ET.tostring(element))
    assert printable(printable(text)) == printable(text)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_terminal_escapes_vanish_and_control_characters_show() -> None:
    assert printable("\x1b[1;31mred\x1b[0m\x1b]0;title\x07 \x00 a\tb") == "red � a\tb"


def test_a_tail_is_the_last_lines_without_trailing_blank_ones() -> None:
    assert tail("a\r\nb\nc\n\n\n", lines=2) == "b\nc"
    assert tail("", lines=2) == ""


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0.0, "0 s"),
        (0.0004, "0.4 ms"),
        (0.0123, "12 ms"),
        (0.9999, "1.00 s"),
        (1.236, "1.24 s"),
        (12.34, "12.3 s"),
        (59.99, "1 min 00 s"),
        (125, "2 min 05 s"),
    ],
)
def test_durations_read_well(duration_s: float, text: str) -> None:
    assert seconds(duration_s) == text


def test_facts_read_well() -> None:
    assert [spelled(each) for each in (True, False, 3, 1.23456, "x")] == [
        "yes",
        "no",
        "3",
        "1.235",
        "x",
    ]
