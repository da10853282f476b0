from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.winrmd import faults
from harness.winrmd.soap import (
    NAMESPACES,
    EnvelopeError,
    envelope,
    fault_envelope,
    parse_duration,
    parse_request,
    xml_text,
)
from tests.harness.winrmd.clients import request

_ACTION = "http://schemas.xmlsoap.org/ws/2004/09/transfer/Get"


def test_a_request_is_taken_apart() -> None:
    parsed = parse_request(
        request(
            _ACTION,
            header="<w:OperationTimeout>PT1M2.500S</w:OperationTimeout>"
            "<w:MaxEnvelopeSize>153600</w:MaxEnvelopeSize>"
            '<w:SelectorSet><w:Selector Name="ShellId">AB</w:Selector></w:SelectorSet>'
            '<w:OptionSet><w:Option Name="WINRS_CODEPAGE">65001</w:Option></w:OptionSet>',
        )
    )
    assert parsed.action == _ACTION
    assert parsed.operation_timeout_s == 62.5
    assert parsed.max_envelope_size == 153600
    assert parsed.selectors == {"ShellId": "AB"}
    assert parsed.options == {"WINRS_CODEPAGE": "65001"}
    assert not parsed.identify


@pytest.mark.parametrize(
    "attack",
    [
        b'<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]><a>&y;</a>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        b"<a>" * 100 + b"</a>" * 100,
        b"<a>" + b"<b/>" * 30_000 + b"</a>",
    ],
    ids=["entities", "external-subset", "external-entity", "depth", "flood"],
)
def test_xml_made_to_do_harm_is_refused(attack: bytes) -> None:
    with pytest.raises(EnvelopeError):
        parse_request(attack)


@given(st.binary(max_size=200))
def test_no_input_breaks_the_parser(data: bytes) -> None:
    with pytest.raises(EnvelopeError):
        parse_request(data)


@given(st.integers(0, 600), st.binary(max_size=8))
def test_damaged_envelopes_are_refused_or_read(at: int, noise: bytes) -> None:
    good = request(_ACTION, header="<w:OperationTimeout>PT60S</w:OperationTimeout>")
    damaged = good[:at] + noise + good[at + len(noise) :]
    with contextlib.suppress(EnvelopeError, faults.WsmanFault):
        assert parse_request(damaged).body is not None


@pytest.mark.parametrize("text", ["PT0S", "PT-5.000S", "-PT5S", "60", "P", "PT", "PTxS"])
def test_a_time_out_that_is_none_is_the_fault_that_windows_sends(text: str) -> None:
    with pytest.raises(faults.WsmanFault) as caught:
        parse_request(request(_ACTION, header=f"<w:OperationTimeout>{text}</w:OperationTimeout>"))
    assert caught.value.code == 2150858767
    assert f"invalid timeout field in the SOAP header: {text}" in caught.value.message


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations_add_up(days: int, hours: int, minutes: int, millis: int) -> None:
    text = f"P{days}DT{hours}H{minutes}M0.{millis:03}S"
    assert parse_duration(text) == pytest.approx(
        days * 86400 + hours * 3600 + minutes * 60 + millis / 1000
    )


@given(st.text())
def test_any_text_survives_as_far_as_xml_can_carry_it(text: str) -> None:
    root = ET.fromstring(f"<a>{xml_text(text)}</a>")
    carried = "".join(c if c in "\t\n\r" or ord(c) >= 32 else "\ufffd" for c in text)
    carried = carried.replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")
    assert (root.text or "") == carried.replace("\r\n", "\n").replace("\r", "\n")


def test_a_reply_names_what_it_answers() -> None:
    root = ET.fromstring(envelope("urn:x", relates_to="uuid:<1>", body="<rsp:SendResponse/>"))
    assert root.findtext("s:Header/a:RelatesTo", "", NAMESPACES) == "uuid:<1>"
    assert root.find("s:Body/rsp:SendResponse", NAMESPACES) is not None


def test_a_fault_carries_code_machine_and_message() -> None:
    fault = faults.shell_missing("A<B")
    root = ET.fromstring(fault_envelope(fault, relates_to="uuid:1", machine="HOST"))
    found = root.find(".//{http://schemas.microsoft.com/wbem/wsman/1/wsmanfault}WSManFault")
    assert found is not None
    assert found.get("Code") == "2150858843"
    assert found.get("Machine") == "HOST"
    assert "ShellId A<B failed" in "".join(found.itertext())
