"""SOAP envelopes of WS-Management: bytes in, a `Request` out; a body in, bytes out. No I/O.

What comes in is not trusted: a document type (and so every entity), deep nesting and element
floods are refused while parsing, before anything is built from them.
Sources: [MS-WSMV], DSP0226, recorded exchanges with Windows Server.
"""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from xml.sax.saxutils import escape

from harness.errors import ProtocolError
from harness.winrmd import faults

# A plain dict: that is what ElementTree's own functions take. Nothing changes it.
NAMESPACES: Final = {
    "s": "http://www.w3.org/2003/05/soap-envelope",
    "a": "http://schemas.xmlsoap.org/ws/2004/08/addressing",
    "x": "http://schemas.xmlsoap.org/ws/2004/09/transfer",
    "n": "http://schemas.xmlsoap.org/ws/2004/09/enumeration",
    "w": "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd",
    "p": "http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd",
    "rsp": "http://schemas.microsoft.com/wbem/wsman/1/windows/shell",
    "wsmid": "http://schemas.dmtf.org/wbem/wsman/identify/1/wsmanidentity.xsd",
}
SHELL_URI: Final = NAMESPACES["rsp"]
CMD_URI: Final = SHELL_URI + "/cmd"
TRANSFER_URI: Final = NAMESPACES["x"]
FAULT_ACTION: Final = "http://schemas.dmtf.org/wbem/wsman/1/wsman/fault"
CONTENT_TYPE: Final = "application/soap+xml;charset=UTF-8"

_DEEPEST: Final = 64
_MOST_ELEMENTS: Final = 20_000  # a request of ours has some thirty
_DECLARATIONS: Final = " ".join(
    f'xmlns:{prefix}="{uri}"' for prefix, uri in NAMESPACES.items() if prefix != "wsmid"
)
_DURATION: Final = re.compile(
    r"(?P<sign>-)?P(?:(?P<days>\d{1,9})D)?"
    r"(?:T(?:(?P<hours>\d{1,9})H)?(?:(?P<minutes>\d{1,9})M)?(?:(?P<seconds>\d{1,9}(?:\.\d*)?)S)?)?"
)
# What XML 1.0 cannot carry, not even as a reference.
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class EnvelopeError(ProtocolError):
    """What came in is no SOAP envelope that this endpoint reads: HTTP 400."""


@dataclass(frozen=True, slots=True)
class Request:
    """One envelope, taken apart. Times in seconds, sizes in bytes; None where nothing was said."""

    action: str
    resource_uri: str
    message_id: str
    operation_timeout_s: float | None
    max_envelope_size: int | None
    selectors: Mapping[str, str]
    options: Mapping[str, str]
    body: ET.Element
    identify: bool


class _Builder(ET.TreeBuilder):
    """Builds the tree, and stops at what no client of WinRM has a reason to send."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._elements = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ET.Element:
        self._depth += 1
        self._elements += 1
        if self._depth > _DEEPEST or self._elements > _MOST_ELEMENTS:
            raise EnvelopeError("the envelope nests or repeats elements beyond all reason")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ET.Element:
        self._depth -= 1
        return super().end(tag)

    def doctype(self, name: str, _public: str | None, _system: str | None) -> None:
        raise EnvelopeError(f"the envelope declares a document type ({name})")


def parse_xml(data: bytes) -> ET.Element:
    """Return the root element. Raises EnvelopeError: not XML, or XML made to do harm."""
    # _Builder refuses what S314 warns of.
    parser = ET.XMLParser(target=_Builder())  # noqa: S314
    try:
        parser.feed(data)
        root = parser.close()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise EnvelopeError(f"the envelope is not XML: {error}") from error
    if not isinstance(root, ET.Element):
        raise EnvelopeError("the envelope is empty")
    return root


def parse_duration(text: str) -> float:
    """Return the seconds of an `xs:duration` without years and months. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match[part] for part in ("days", "hours", "minutes", "seconds")):
        raise ValueError(f"not a duration: {text!r}")
    total = (
        int(match["days"] or 0) * 86400
        + int(match["hours"] or 0) * 3600
        + int(match["minutes"] or 0) * 60
        + float(match["seconds"] or 0)
    )
    return -total if match["sign"] else total


def parse_request(data: bytes) -> Request:
    """Return what an envelope asks for.

    Raises EnvelopeError for what is no envelope, WsmanFault for a header that cannot be used.
    """
    root = parse_xml(data)
    if root.tag != f"{{{NAMESPACES['s']}}}Envelope":
        raise EnvelopeError(f"not a SOAP 1.2 envelope: {root.tag}")
    body = root.find("s:Body", NAMESPACES)
    header = root.find("s:Header", NAMESPACES)
    if body is None:
        raise EnvelopeError("the envelope has no body")
    if header is None:
        header = ET.Element("header")

    def text(path: str) -> str:
        return (header.findtext(path, "", NAMESPACES) or "").strip()

    return Request(
        action=text("a:Action"),
        resource_uri=text("w:ResourceURI"),
        message_id=text("a:MessageID"),
        operation_timeout_s=_timeout(text("w:OperationTimeout")),
        max_envelope_size=_size(text("w:MaxEnvelopeSize")),
        selectors=_named(header, "w:SelectorSet/w:Selector"),
        options=_named(header, "w:OptionSet/w:Option"),
        body=body,
        identify=body.find("wsmid:Identify", NAMESPACES) is not None,
    )


def _timeout(text: str) -> float | None:
    if not text:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise faults.invalid_header(
            "The WS-Management service cannot process the request. The XML contains an invalid "
            f"timeout field in the SOAP header: {text}. "
        )
    return seconds


def _size(text: str) -> int | None:
    if not text:
        return None
    # Windows refuses an envelope size below 8192 octets (DSP0226 R6.3: at least 8192).
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) < 8192:
        raise faults.invalid_header(
            "The WS-Management service cannot process the request. The MaxEnvelopeSize header "
            f"is invalid: {text[:64]}. "
        )
    return int(text)


def _named(header: ET.Element, path: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for element in header.findall(path, NAMESPACES):
        found[element.get("Name", "")] = element.text or ""
    return MappingProxyType(found)


def xml_text(text: str) -> str:
    """Return text escaped for an element; characters that XML cannot carry become U+FFFD."""
    return escape(_NOT_XML.sub("\ufffd", text), {'"': "&quot;"})


def new_message_id() -> str:
    """Return a message id as Windows writes one."""
    return f"uuid:{str(uuid.uuid4()).upper()}"


def envelope(action: str, *, relates_to: str, body: str) -> bytes:
    """Return a reply with that body (XML with the prefixes of `NAMESPACES`)."""
    return (
        f'<s:Envelope xml:lang="en-US" {_DECLARATIONS}><s:Header>'
        f"<a:Action>{xml_text(action)}</a:Action>"
        f"<a:MessageID>{new_message_id()}</a:MessageID>"
        "<a:To>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:To>"
        f"<a:RelatesTo>{xml_text(relates_to)}</a:RelatesTo></s:Header>"
        f"<s:Body>{body}</s:Body></s:Envelope>"
    ).encode()


def fault_envelope(fault: faults.WsmanFault, *, relates_to: str, machine: str) -> bytes:
    """Return the reply that carries a fault."""
    detail = f"<w:FaultDetail>{fault.detail}</w:FaultDetail>" if fault.detail else ""
    message = fault.message_xml or xml_text(fault.message)
    body = (
        f"<s:Fault><s:Code><s:Value>{fault.value}</s:Value>"
        f"<s:Subcode><s:Value>{fault.subcode}</s:Value></s:Subcode></s:Code>"
        f'<s:Reason><s:Text xml:lang="en-US">{xml_text(fault.reason)}</s:Text></s:Reason>'
        f"<s:Detail>{detail}"
        '<f:WSManFault xmlns:f="http://schemas.microsoft.com/wbem/wsman/1/wsmanfault" '
        f'Code="{fault.code}" Machine="{xml_text(machine)}"><f:Message>{message}</f:Message>'
        "</f:WSManFault></s:Detail></s:Fault>"
    )
    return envelope(FAULT_ACTION, relates_to=relates_to, body=body)


def identify_envelope(product_version: str) -> bytes:
    """Return the answer to wsmid:Identify, which has no WS-Addressing headers."""
    return (
        f'<s:Envelope xml:lang="en-US" xmlns:s="{NAMESPACES["s"]}"><s:Header/><s:Body>'
        f'<wsmid:IdentifyResponse xmlns:wsmid="{NAMESPACES["wsmid"]}">'
        "<wsmid:ProtocolVersion>http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
        "</wsmid:ProtocolVersion><wsmid:ProductVendor>Microsoft Corporation"
        f"</wsmid:ProductVendor><wsmid:ProductVersion>{xml_text(product_version)}"
        "</wsmid:ProductVersion></wsmid:IdentifyResponse></s:Body></s:Envelope>"
    ).encode()
