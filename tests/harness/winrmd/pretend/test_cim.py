"""CIM over WS-Management: instances, selectors, filters, and their XML."""

from __future__ import annotations

import datetime
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.winrmd.cim import CimHandler, Query, instance_xml, parse_wql
from harness.winrmd.cimclasses import CLASSES
from harness.winrmd.cmdlets import Machine
from harness.winrmd.faults import WsmanFault
from tests.harness.winrmd.pretend.psrp_client import operation

BASE = "http://schemas.microsoft.com/wbem/wsman/1/wmi/"
XSI = "{http://www.w3.org/2001/XMLSchema-instance}"
ALL = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/*"


def values(xml: str) -> dict[str, list[str | None]]:
    found: dict[str, list[str | None]] = {}
    for child in ET.fromstring(xml):
        nil = child.get(f"{XSI}nil") == "true"
        text = None if nil else "".join(child.itertext())
        found.setdefault(child.tag.rpartition("}")[2], []).append(text)
    return found


def enumerate_all(machine: Machine, uri: str, wql: str = "") -> list[dict[str, list[str | None]]]:
    body = f"<n:Enumerate><w:Filter>{wql}</w:Filter></n:Enumerate>" if wql else "<n:Enumerate/>"
    return [
        values(each)
        for each in CimHandler(machine).enumerate(operation("Enumerate", body, uri=uri))
    ]


@pytest.mark.parametrize(("namespace", "name"), sorted(CLASSES))
def test_every_class_can_be_enumerated(machine: Machine, namespace: str, name: str) -> None:
    handler = CimHandler(machine)
    uri = f"{BASE}{namespace}/{name}"
    assert handler.handles(uri)
    items = handler.enumerate(operation("Enumerate", "<n:Enumerate/>", uri=uri))
    spelled = CLASSES[namespace, name][0]
    assert items
    for item in items:
        assert ET.fromstring(item).tag.endswith(f"}}{spelled}")


def test_the_operating_system_says_when_it_booted(machine: Machine) -> None:
    uri = f"{BASE}root/cimv2/Win32_OperatingSystem"

    def booted() -> datetime.datetime:
        (found,) = values(CimHandler(machine).answer(operation("Get", uri=uri)))["LastBootUpTime"]
        return datetime.datetime.fromisoformat(found or "")

    before = booted()
    assert before == machine.host.boot.began
    machine.host.restart(after_s=0)
    assert booted() > before


def test_selectors_choose_one_instance(machine: Machine) -> None:
    uri = f"{BASE}root/cimv2/Win32_Service"
    found = CimHandler(machine).answer(operation("Get", uri=uri, selectors={"name": "winrm"}))
    assert values(found)["State"] == ["Running"]
    for selectors in ({"Name": "nothing"}, {}):
        with pytest.raises(WsmanFault, match="2150858843"):
            CimHandler(machine).answer(operation("Get", uri=uri, selectors=selectors))


def test_a_filter_selects_instances_and_properties(machine: Machine) -> None:
    wql = "SELECT Name, InstallState FROM Win32_OptionalFeature WHERE Name = 'Containers'"
    assert enumerate_all(machine, ALL, wql) == [{"InstallState": ["2"], "Name": ["Containers"]}]
    wql = "select * from win32_service where started = true and name='WinRM'"
    assert [each["Name"] for each in enumerate_all(machine, ALL, wql)] == [["WinRM"]]


@pytest.mark.parametrize(
    "wql", ["SELECT * FROM Win32_Service WHERE Name LIKE 'a%'", "DELETE FROM x", "SELECT"]
)
def test_a_filter_of_another_kind_is_refused(machine: Machine, wql: str) -> None:
    with pytest.raises(WsmanFault, match="2150858778"):
        enumerate_all(machine, ALL, wql)


def test_the_namespace_may_come_as_a_selector(machine: Machine) -> None:
    asked = operation(
        "Get",
        uri="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/Win32_ComputerSystem",
        selectors={"__cimnamespace": "root/cimv2"},
    )
    assert values(CimHandler(machine).answer(asked))["Name"] == ["WINRMD"]


@pytest.mark.parametrize(
    "uri", [f"{BASE}root/cimv2/Win32_Nothing", f"{BASE}root/nothing/Win32_OperatingSystem"]
)
def test_a_class_that_is_not_there_is_named(machine: Machine, uri: str) -> None:
    with pytest.raises(WsmanFault, match="does not exist in the root/") as fault:
        CimHandler(machine).answer(operation("Get", uri=uri))
    assert fault.value.code == 2150858752


def test_virtualisation_hides_behind_a_running_hypervisor(machine: Machine) -> None:
    def shown() -> tuple[str | None, str | None]:
        (cpu,) = enumerate_all(machine, f"{BASE}root/cimv2/Win32_Processor")
        (computer,) = enumerate_all(machine, f"{BASE}root/cimv2/Win32_ComputerSystem")
        return cpu["VirtualizationFirmwareEnabled"][0], computer["HypervisorPresent"][0]

    assert shown() == ("true", "false")
    with machine.host.change() as state:
        state.features["Microsoft-Hyper-V"].state = "Enabled"
    machine.host.restart(after_s=0)
    assert shown() == ("false", "true")


def test_only_reading_is_offered(machine: Machine) -> None:
    uri = f"{BASE}root/cimv2/Win32_OperatingSystem"
    with pytest.raises(WsmanFault, match="2150858754"):
        CimHandler(machine).answer(operation("Put", uri=uri))
    assert not CimHandler(machine).handles("http://schemas.microsoft.com/wbem/wsman/1/config")


def test_null_and_arrays_have_their_own_xml() -> None:
    xml = instance_xml("C", "urn:c", {"A": ("x", "<y>"), "N": None, "E": (), "B": False})
    assert values(xml) == {"A": ["x", "<y>"], "N": [None], "E": [None], "B": ["false"]}


@given(st.from_regex(r"[A-Za-z_]\w{0,8}", fullmatch=True), st.text(st.characters(codec="ascii")))
def test_equalities_of_wql_keep_their_text(name: str, text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    parsed = parse_wql(f"SELECT * FROM C WHERE {name} = '{escaped}'")
    assert parsed == Query("C", (), ((name, text),))


def test_several_equalities_must_all_hold() -> None:
    parsed = parse_wql("select A, B from C where A = 'x and y' and B=5 AND D = true")
    assert parsed == Query("C", ("A", "B"), (("A", "x and y"), ("B", "5"), ("D", "true")))
    assert parse_wql("select * from C where A = 1 and") is None
    assert parse_wql("select * from C where A = 1 or B = 2") is None
