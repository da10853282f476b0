"""CIM over WS-Management: Get by selectors, Enumerate all or by a simple WQL filter.

The endpoint pages what `enumerate` returns. Sources: DSP0227 (the CIM binding of WS-Management),
DSP0230 (CIM-XML mapping), [MS-WSMV] 3.1.4.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from harness.winrmd import faults
from harness.winrmd.boots import Boot
from harness.winrmd.cimclasses import CLASSES, Instance, Value
from harness.winrmd.cmdlets import Machine
from harness.winrmd.resources import HostControl, Operation, ShellContext, ShellSession

_BASES: Final = (
    "http://schemas.microsoft.com/wbem/wsman/1/wmi/",
    "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/",
)
WQL: Final = "http://schemas.microsoft.com/wbem/wsman/1/WQL"
_COMMON: Final = "http://schemas.dmtf.org/wbem/wscim/1/common"
_XSI: Final = "http://www.w3.org/2001/XMLSchema-instance"
_FILTER: Final = "{http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd}Filter"
_SELECT: Final = re.compile(
    r"\s*select\s+(?P<what>\*|\w+(?:\s*,\s*\w+)*)\s+from\s+(?P<name>\w+)"
    r"(?:\s+where\s+(?P<where>.+?))?\s*",
    re.IGNORECASE | re.DOTALL,
)
_EQUAL: Final = re.compile(
    r"\s*(?P<name>\w+)\s*=\s*(?:'(?P<text>(?:[^'\\]|\\.)*)'|\"(?P<quoted>(?:[^\"\\]|\\.)*)\""
    r"|(?P<number>-?\d+)|(?P<truth>true|false))\s*",
    re.IGNORECASE,
)
_AND: Final = re.compile(r"\s+and\s+", re.IGNORECASE)
_CANNOT_PROCESS_FILTER: Final = 2150858778  # ERROR_WSMAN_ENUMERATE_CANNOT_PROCESS_FILTER


@dataclass(frozen=True, slots=True)
class Query:
    """A WQL query of ours: a class, the properties it wants (none: all), equalities."""

    name: str
    properties: tuple[str, ...] = ()
    equal: tuple[tuple[str, str], ...] = ()


def parse_wql(text: str) -> Query | None:
    """Return `SELECT … FROM … [WHERE a = b [AND …]]`, or None for any other WQL."""
    match = _SELECT.fullmatch(text)
    if match is None:
        return None
    what = match["what"]
    properties = () if what == "*" else tuple(re.split(r"\s*,\s*", what))
    equal: list[tuple[str, str]] = []
    for term in _AND.split(match["where"]) if match["where"] else ():
        found = _EQUAL.fullmatch(term)
        if found is None:
            return None
        quoted = found["text"] if found["text"] is not None else found["quoted"]
        value = found["number"] or found["truth"] or ""
        equal.append((found["name"], value if quoted is None else re.sub(r"\\(.)", r"\1", quoted)))
    return Query(match["name"], properties, tuple(equal))


class CimHandler:
    """Serves the CIM classes of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._host = machine.host

    def attach(self, control: HostControl) -> None:
        """Learn which endpoint this is."""
        self._host.attach(control)

    def handles(self, resource_uri: str) -> bool:
        """Return whether that is a CIM class or namespace."""
        return _split(resource_uri) is not None

    def open_shell(self, operation: Operation, shell: ShellContext) -> tuple[ShellSession, str]:
        """Refuse: CIM classes are no shells."""
        raise faults.action_not_supported(operation.action)

    def answer(self, operation: Operation) -> str:
        """Return the one instance that a Get's selectors name."""
        if operation.name != "Get":
            raise faults.action_not_supported(operation.action)
        namespace, name = self._named(operation)
        # __cimnamespace is a selector of the protocol's, not of the class.
        wanted = tuple(
            (key, value)
            for key, value in operation.selectors.items()
            if key.lower() != "__cimnamespace"
        )
        found = self._instances(operation, namespace, Query(name, equal=wanted))
        if len(found) != 1:
            raise faults.invalid_selectors(
                "The WS-Management service cannot process the request because the request "
                f"contained invalid selectors for the resource: {len(found)} instances of {name}. "
            )
        return found[0]

    def enumerate(self, operation: Operation) -> Sequence[str]:
        """Return every instance of a class, or those that a WQL filter selects."""
        namespace, name = self._named(operation)
        described = next(operation.body.iter(_FILTER), None)
        if described is None:
            return self._instances(operation, namespace, Query(name))
        query = parse_wql(described.text or "")
        if described.get("Dialect", WQL) != WQL or query is None:
            raise faults.WsmanFault(
                "n:CannotProcessFilter",
                _CANNOT_PROCESS_FILTER,
                "The WS-Management service cannot process the request because the filter is not "
                f"supported: {described.text}. ",
                value="s:Sender",
            )
        if name not in ("*", query.name):
            raise faults.invalid_resource(operation.resource_uri)
        return self._instances(operation, namespace, query)

    def rebooted(self, boot: Boot) -> None:
        """Let the host boot."""
        self._host.rebooted(boot)

    def _named(self, operation: Operation) -> tuple[str, str]:
        found = _split(operation.resource_uri)
        if found is None:
            raise faults.invalid_resource(operation.resource_uri)
        namespace, name = found
        return operation.selector("__cimnamespace", namespace).replace("\\", "/"), name

    def _instances(self, operation: Operation, namespace: str, query: Query) -> list[str]:
        known = CLASSES.get((namespace.lower(), query.name.lower()))
        if known is None:
            raise faults.WsmanFault(
                "a:DestinationUnreachable",
                faults.INVALID_RESOURCE_URI,
                "The WS-Management service cannot process the request. The class "
                f"{query.name} does not exist in the {namespace} namespace. ",
                value="s:Sender",
                detail="http://schemas.dmtf.org/wbem/wsman/1/wsman/faultDetail/InvalidResourceURI",
            )
        spelled, source = known
        base = next(each for each in _BASES if operation.resource_uri.lower().startswith(each))
        uri = f"{base}{namespace}/{spelled}" if base == _BASES[0] else base + spelled
        found: list[str] = []
        for instance in source(self._host.read(), self._host.boot):
            if not all(_holds(instance, key, value) for key, value in query.equal):
                continue
            wanted = {name.lower() for name in query.properties}
            shown = {
                key: value for key, value in instance.items() if not wanted or key.lower() in wanted
            }
            found.append(instance_xml(spelled, uri, shown))
        return found


def _split(uri: str) -> tuple[str, str] | None:
    """Return namespace and class of a resource URI, or None."""
    lowered = uri.lower()
    if lowered.startswith(_BASES[0]):
        namespace, slash, name = uri[len(_BASES[0]) :].rpartition("/")
        return (namespace, name) if slash and name else None
    if lowered.startswith(_BASES[1]) and "/" not in uri[len(_BASES[1]) :]:
        return "root/cimv2", uri[len(_BASES[1]) :]
    return None


def _holds(instance: Instance, name: str, value: str) -> bool:
    """Return whether a property has that value, as text and without regard to case."""
    for key, actual in instance.items():
        if key.lower() == name.lower():
            text = _text(actual) if not isinstance(actual, tuple) and actual is not None else ""
            return text.lower() == value.lower()
    return False


def instance_xml(name: str, uri: str, instance: Instance) -> str:
    """Return an instance as XML: null is xsi:nil, an array repeats its element."""
    parts = [
        f"<p:{name} xmlns:p={quoteattr(uri)} xmlns:cim={quoteattr(_COMMON)} "
        f'xmlns:xsi={quoteattr(_XSI)} xsi:type="p:{name}_Type">'
    ]
    for key, value in instance.items():
        if value is None or value == ():
            parts.append(f'<p:{key} xsi:nil="true"/>')
            continue
        for each in value if isinstance(value, tuple) else (value,):
            text = escape(_text(each))
            if isinstance(each, datetime.datetime):
                text = f"<cim:Datetime>{text}</cim:Datetime>"
            parts.append(f"<p:{key}>{text}</p:{key}>")
    parts.append(f"</p:{name}>")
    return "".join(parts)


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return str(value)
