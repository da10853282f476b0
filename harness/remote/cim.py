"""CIM instances and WinRM's configuration, read over WS-Management without PowerShell.

Sources: [MS-WSMV] 3.1.4.1.30 (Enumerate), DSP0226 section 8, DSP0227 (the CIM binding).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Final

from pypsrp.wsman import NAMESPACES, WSMan

from harness.errors import RemoteError
from harness.remote.deadline import Deadline
from harness.remote.wire import Wire

Instance = Mapping[str, str | tuple[str, ...] | None]
"""Properties as text, as on the wire; an array is a tuple, null is None."""

CIMV2: Final = "root/cimv2"
_BASE: Final = "http://schemas.microsoft.com/wbem/wsman/1/wmi/"
_NIL: Final = "{http://www.w3.org/2001/XMLSchema-instance}nil"
_WSEN: Final = f"{{{NAMESPACES['wsen']}}}"
_WSMAN: Final = f"{{{NAMESPACES['wsman']}}}"
_PAGE: Final = 50
_MOST_PAGES: Final = 1000


def enumerate_instances(
    wire: Wire, class_name: str, *, namespace: str = CIMV2, host: str, deadline: Deadline
) -> tuple[Instance, ...]:
    """Return every instance of a CIM class. Raises RemoteError."""
    uri = f"{_BASE}{namespace}/{class_name}"
    what = f"enumerate {class_name}"
    ask = ET.Element(f"{_WSEN}Enumerate")
    ET.SubElement(ask, f"{_WSMAN}OptimizeEnumeration")
    ET.SubElement(ask, f"{_WSMAN}MaxElements").text = str(_PAGE)
    with wire.request(what, deadline) as wsman:
        body = wsman.enumerate(uri, ask)
    found: list[Instance] = []
    for _ in range(_MOST_PAGES):
        # The first answer has wsman:Items, those to Pull wsen:Items.
        for items in (*body.iter(f"{_WSMAN}Items"), *body.iter(f"{_WSEN}Items")):
            found.extend(_instance(each) for each in items)
        context = next(body.iter(f"{_WSEN}EnumerationContext"), None)
        ended = any(True for name in (_WSMAN, _WSEN) for _ in body.iter(f"{name}EndOfSequence"))
        if ended or context is None or not context.text:
            return tuple(found)
        with wire.request(what, deadline) as wsman:
            body = _pull(wsman, uri, context.text)
    raise RemoteError(f"{what}: over {_MOST_PAGES} answers and no end", host=host)


def _pull(wsman: WSMan, uri: str, context: str) -> ET.Element:
    ask = ET.Element(f"{_WSEN}Pull")
    ET.SubElement(ask, f"{_WSEN}EnumerationContext").text = context
    ET.SubElement(ask, f"{_WSEN}MaxElements").text = str(_PAGE)
    return wsman.pull(uri, ask)


def _instance(element: ET.Element) -> Instance:
    values: dict[str, str | tuple[str, ...] | None] = {}
    for child in element:
        name = child.tag.rpartition("}")[2]
        text = None if child.get(_NIL) == "true" else "".join(child.itertext()).strip()
        if name not in values or text is None:
            values[name] = text
            continue
        before = values[name]
        values[name] = (*(before if isinstance(before, tuple) else (before or "",)), text)
    return values


def read_config(wire: Wire, *, deadline: Deadline) -> Mapping[str, str]:
    """Return `winrm/config` as `Winrs/MaxShellsPerUser` → text. Raises RemoteError.

    Only administrators may read it: others get AuthError with the fault's code.
    """
    with wire.request("read winrm/config", deadline) as wsman:
        body = wsman.get_server_config()
    values: dict[str, str] = {}

    def walk(element: ET.Element, path: str) -> None:
        for child in element:
            name = child.tag.rpartition("}")[2]
            here = f"{path}/{name}" if path else name
            if len(child):
                walk(child, here)
            else:
                values[here] = (child.text or "").strip()

    for config in body:
        walk(config, "")
    return values
