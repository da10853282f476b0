"""The pretend host behind the real endpoint, driven by pypsrp over sealed NTLM."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pypsrp.exceptions import WSManFaultError
from pypsrp.powershell import PowerShell, RunspacePool
from pypsrp.wsman import NAMESPACES, OptionSet, SelectorSet, WSMan

from harness.winrmd.cim import CimHandler
from harness.winrmd.cmdlets import Machine
from harness.winrmd.config import EndpointConfig
from harness.winrmd.knobs import Knobs
from harness.winrmd.psrp import PsrpHandler
from harness.winrmd.server import WinRmServer

PASSWORD = "correct horse battery"
OS = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/Win32_OperatingSystem"
WSMAN = f"{{{NAMESPACES['wsman']}}}"
WSEN = f"{{{NAMESPACES['wsen']}}}"

Connect = Callable[[], WSMan]


@pytest.fixture
def server(machine: Machine) -> Iterator[WinRmServer]:
    config = EndpointConfig(
        users={"lab": PASSWORD},
        root=machine.host.root,
        knobs=Knobs(reboot_down_s=0.1, shutdown_grace_s=0.05),
    )
    with WinRmServer(config, resources=[PsrpHandler(machine), CimHandler(machine)]) as running:
        yield running


@pytest.fixture
def connect(server: WinRmServer) -> Iterator[Connect]:
    opened: list[WSMan] = []

    def make() -> WSMan:
        wsman = WSMan(
            "127.0.0.1",
            port=server.port,
            username="lab",
            password=PASSWORD,
            ssl=False,
            auth="ntlm",
            no_proxy=True,
            connection_timeout=5,
            operation_timeout=5,
            read_timeout=10,
        )
        opened.append(wsman)
        return wsman

    yield make
    for wsman in opened:
        wsman.close()


def invoke(pool: RunspacePool, name: str, parameters: dict[str, object]) -> PowerShell:
    shell = PowerShell(pool)
    shell.add_cmdlet(name).add_parameters({**parameters, "ErrorAction": "Stop"})
    shell.invoke()
    return shell


def instances(body: ET.Element) -> list[ET.Element]:
    return [
        each
        for items in (*body.iter(f"{WSMAN}Items"), *body.iter(f"{WSEN}Items"))
        for each in items
    ]


def read(instance: ET.Element, name: str) -> str:
    (found,) = [each for each in instance if each.tag.endswith(f"}}{name}")]
    return "".join(found.itertext())


def boot_time(wsman: WSMan) -> str:
    return read(wsman.get(OS)[0], "LastBootUpTime")


def test_a_runspace_pool_runs_our_commands(connect: Connect) -> None:
    with RunspacePool(connect()) as pool:
        feature = invoke(
            pool, "Get-WindowsOptionalFeature", {"Online": True, "FeatureName": "Containers"}
        )
        assert feature.output[0].adapted_properties["State"] == "Disabled"
        failed = invoke(pool, "Get-Service", {"Name": ["nothing"]})
        assert failed.had_errors
        assert "NoServiceFoundForGivenName" in failed.streams.error[0].fq_error
        script = PowerShell(pool)
        script.add_script("$ExecutionContext.SessionState.LanguageMode")
        assert script.invoke() == ["ConstrainedLanguage"]


def test_large_values_go_both_ways_in_many_fragments(connect: Connect, machine: Machine) -> None:
    data = bytes(range(256)) * 2000
    with RunspacePool(connect()) as pool:
        added = invoke(
            pool,
            "Add-Content",
            {"LiteralPath": "C:\\Windows\\Temp\\big", "Value": data, "Encoding": "Byte"},
        )
        assert not added.had_errors
        assert machine.host.local_path("C:\\Windows\\Temp\\big").read_bytes() == data
        for index in range(60):
            text = f"{index:02}" * 5000
            machine.host.log("System", "p", event_id=index, level=2, message=text)
        events = invoke(pool, "Get-WinEvent", {"FilterHashtable": {"LogName": "System"}})
        messages = {each.adapted_properties["Message"][:2] for each in events.output}
        assert messages == {f"{index:02}" for index in range(60)}


def test_the_key_exchange_of_a_real_client_succeeds(connect: Connect) -> None:
    with RunspacePool(connect()) as pool:
        pool.exchange_keys()
        assert pool.get_available_runspaces() == 1


def test_features_are_there_after_a_reboot_and_shells_are_not(
    connect: Connect, server: WinRmServer, machine: Machine
) -> None:
    before = boot_time(connect())
    pool = RunspacePool(connect())
    pool.open()
    enabled = invoke(
        pool,
        "Enable-WindowsOptionalFeature",
        {"Online": True, "NoRestart": True, "FeatureName": ["Containers"]},
    )
    assert enabled.output[0].adapted_properties["RestartNeeded"] is True
    machine.host.restart(after_s=0)
    deadline = time.monotonic() + 10
    while server.boot.number == 1 or not server.listening:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with RunspacePool(connect()) as fresh:
        feature = invoke(
            fresh, "Get-WindowsOptionalFeature", {"Online": True, "FeatureName": "Containers"}
        )
    assert feature.output[0].adapted_properties["State"] == "Enabled"
    assert boot_time(connect()) > before
    # The old pool's shell ended with the old boot, whoever asks.
    selectors = SelectorSet()
    selectors.add_option("ShellId", pool.shell.id)
    with pytest.raises(WSManFaultError) as gone:
        connect().delete(pool.shell.resource_uri, selector_set=selectors)
    assert gone.value.code == 2150858843


def test_cim_instances_are_enumerated_in_pages(connect: Connect, machine: Machine) -> None:
    uri = OS.replace("Win32_OperatingSystem", "Win32_OptionalFeature")
    wsman = connect()
    ask = ET.Element(f"{WSEN}Enumerate")
    ET.SubElement(ask, f"{WSMAN}OptimizeEnumeration")
    ET.SubElement(ask, f"{WSMAN}MaxElements").text = "2"
    body = wsman.enumerate(uri, ask)
    pages = [instances(body)]
    while not any(each.tag.endswith("}EndOfSequence") for each in body.iter()):
        pull = ET.Element(f"{WSEN}Pull")
        context = next(body.iter(f"{WSEN}EnumerationContext")).text
        ET.SubElement(pull, f"{WSEN}EnumerationContext").text = context
        ET.SubElement(pull, f"{WSEN}MaxElements").text = "2"
        body = wsman.pull(uri, pull)
        pages.append(instances(body))
    assert max(map(len, pages)) == 2
    names = {read(each, "Name") for page in pages for each in page}
    assert names == set(machine.host.read().features)


def test_quotas_hold_once_winrm_has_restarted(
    connect: Connect, server: WinRmServer, machine: Machine
) -> None:
    with RunspacePool(connect()) as pool:
        set_ = invoke(
            pool,
            "Set-Item",
            {"LiteralPath": "WSMan:\\localhost\\Shell\\MaxShellsPerUser", "Value": "55"},
        )
        assert not set_.had_errors
    assert server.quotas.max_shells_per_user == 30
    boot = server.boot
    machine.host.restart_winrm(after_s=0)
    assert server.quotas.max_shells_per_user == 55
    assert server.boot == boot


def test_options_of_a_get_do_not_disturb_it(connect: Connect) -> None:
    options = OptionSet()
    options.add_option("IncludeClassOrigin", "false")
    assert read(connect().get(OS, option_set=options)[0], "BuildNumber") == "20348"


def test_what_is_missing_has_the_fault_codes_of_windows(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(WSManFaultError) as unknown:
        connect().get(OS + "Nothing")
    assert unknown.value.code == 2150858752
