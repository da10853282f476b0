"""Vagrant is called with argv lists, and what it prints becomes an inventory.

Where no Windows can be started, a program of the test answers in Vagrant's place: its answers are
those of vagrant 2.3.4 (`status` and its failure without WinRM as printed, `winrm-config` as its
template has it).
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from harness.devlab.inventoryfile import LabHost, render_inventory, write_inventory
from harness.devlab.machines import load_machines
from harness.devlab.vagrant import Vagrant, parse_status, parse_winrm_config
from harness.errors import InfrastructureError, MissingProgramError, UsageError
from harness.hosts.inventory import Inventory

PIN = "ab" * 32
PASSWORD = "the-password-of-the-box"

STATUS = """\
1795557051,hv-1,metadata,provider,libvirt
1795557051,hv-2,metadata,provider,libvirt
1795557051,hv-1,provider-name,libvirt
1795557051,hv-1,state,not_created
1795557051,hv-1,state-human-short,not created
1795557051,hv-2,provider-name,libvirt
1795557051,hv-2,state,running
1795557051,,ui,info,Current machine states:\\n\\nhv-1 not created%!(VAGRANT_COMMA) state,running
"""

PROGRAM = """\
#!{python}
import json, os, sys
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(arguments) + "\\n")
answers = json.load(open({answers!r}))
code, out, err = answers.get(arguments[0], [0, "", ""])
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


class StandIn:
    """A program called vagrant, its answers by verb, and what it was called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log, self._answers = folder / "log", folder / "answers.json"
        self._log.touch()
        self._values: dict[str, tuple[int, str, str]] = {}
        self.answer("status", STATUS)
        self.answer("winrm-config", winrm_config("192.168.121.7"))
        self.answer("provision", f"    hv-1: pin:sha256:{PIN}\n")
        (folder / "bin").mkdir()
        program = folder / "bin" / "vagrant"
        program.write_text(
            PROGRAM.format(python=sys.executable, log=str(self._log), answers=str(self._answers))
        )
        program.chmod(0o755)
        (folder / "Vagrantfile").touch()
        (folder / "vagrant").mkdir()
        (folder / "vagrant/machines.toml").write_text(
            '[defaults]\nslots = 3\n[machines.hv-1]\ntags = ["lcow"]\n[machines.hv-2]\n'
        )

    def answer(self, verb: str, out: str, *, code: int = 0, err: str = "") -> None:
        self._values[verb] = (code, out, err)
        self._answers.write_text(json.dumps(self._values))

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]


def winrm_config(address: str) -> str:
    return (
        f"Host hv-1\n  HostName {address}\n  User vagrant\n  Password {PASSWORD}\n  Port 5985\n"
        f"  RDPHostName {address}\n  RDPPort 3389\n  RDPUser other\n  RDPPassword other\n\n"
    )


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    if os.name == "nt":
        pytest.skip("the stand-in is a script with #!")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("HV_MACHINES", raising=False)
    return StandIn(tmp_path)


def test_up_starts_the_named_machine_and_learns_how_to_reach_it(standin: StandIn) -> None:
    (host,) = Vagrant(standin.folder).up(["hv-1"], provider="libvirt")
    assert standin.calls == [
        ["status", "--machine-readable"],
        ["up", "--provider=libvirt", "hv-1"],
        ["winrm-config", "hv-1"],
        ["provision", "hv-1", "--provision-with", "winrm-https"],
    ]
    assert (host.address, host.port, host.user, host.pin) == ("192.168.121.7", 5986, "vagrant", PIN)
    assert (host.slots, host.tags) == (3, ("lcow",))
    assert host.password_file.read_text() == PASSWORD
    assert stat.S_IMODE(host.password_file.stat().st_mode) == 0o600


def test_the_inventory_pins_the_certificate_and_holds_no_password(standin: StandIn) -> None:
    hosts = Vagrant(standin.folder).up([], provider=None)
    path = standin.folder / "inventory.toml"
    write_inventory(path, hosts)
    entries = Inventory.load(path).hosts
    assert list(entries) == ["hv-1", "hv-2"]
    assert entries["hv-1"].tls == f"pin:sha256:{PIN}"
    assert PASSWORD not in path.read_text()


def test_behind_nat_the_forwarded_port_is_asked_for(standin: StandIn) -> None:
    standin.answer("winrm-config", winrm_config("127.0.0.1"))
    standin.answer("port", "55986\n")
    (host,) = Vagrant(standin.folder).up(["hv-1"], provider="virtualbox")
    assert (host.address, host.port) == ("127.0.0.1", 55986)
    assert ["port", "hv-1", "--guest", "5986"] in standin.calls


def test_destroy_takes_the_password_along(standin: StandIn) -> None:
    vagrant = Vagrant(standin.folder)
    (host,) = vagrant.up(["hv-1"], provider=None)
    vagrant.destroy(["hv-1"])
    assert standin.calls[-1] == ["destroy", "--force", "hv-1"]
    assert not host.password_file.exists()


def test_snapshots_are_saved_restored_and_deleted_by_name(standin: StandIn) -> None:
    vagrant = Vagrant(standin.folder)
    vagrant.save_snapshot("hv-1", "clean")
    vagrant.restore_snapshot("hv-1", "clean")
    vagrant.delete_snapshot("hv-1", "clean")
    assert standin.calls == [
        ["snapshot", "save", "hv-1", "clean"],
        ["snapshot", "restore", "--no-provision", "hv-1", "clean"],
        ["snapshot", "delete", "hv-1", "clean"],
    ]


def test_a_bootstrap_without_a_pin_is_an_error_that_shows_its_output(standin: StandIn) -> None:
    standin.answer("provision", "Run this as an administrator")
    with pytest.raises(InfrastructureError, match="printed no pin: Run this as"):
        Vagrant(standin.folder).up(["hv-1"], provider=None)


def test_a_failed_call_says_which_and_how(standin: StandIn) -> None:
    standin.answer("up", "", code=1)
    with pytest.raises(InfrastructureError, match=r"vagrant up hv-1 failed with exit code 1"):
        Vagrant(standin.folder).up(["hv-1"], provider=None)


def test_a_vagrant_without_winrm_is_known_before_anything_starts(standin: StandIn) -> None:
    standin.answer(
        "status", "", code=1, err="`require': cannot load such file -- winrm (LoadError)\n"
    )
    with pytest.raises(InfrastructureError, match="gem install winrm"):
        Vagrant(standin.folder).up([], provider=None)
    assert [call[0] for call in standin.calls] == ["status"]


def test_without_vagrant_it_says_where_to_get_it(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(standin.folder))
    with pytest.raises(MissingProgramError, match="HashiCorp's package"):
        Vagrant(standin.folder).status()


@pytest.mark.parametrize(
    ("names", "provider", "message"),
    [
        (["hv-9"], None, "no machine hv-9; there are hv-1, hv-2"),
        ([], "hyper-v", "known are libvirt, hyperv"),
    ],
)
def test_a_wrong_name_is_refused_before_vagrant_runs(
    standin: StandIn, names: list[str], provider: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Vagrant(standin.folder).up(names, provider=provider)
    assert standin.calls == []


def test_no_vagrantfile_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Vagrantfile in"):
        Vagrant(tmp_path).status()


def test_status_reads_the_states_and_nothing_else() -> None:
    assert [(host.name, host.state) for host in parse_status(STATUS)] == [
        ("hv-1", "not_created"),
        ("hv-2", "running"),
    ]


def test_access_is_that_of_winrm_and_hides_the_password() -> None:
    access = parse_winrm_config(winrm_config("10.0.0.1"), machine="hv-1")
    assert (access.address, access.user, access.password) == ("10.0.0.1", "vagrant", PASSWORD)
    assert PASSWORD not in repr(access)
    with pytest.raises(InfrastructureError, match="hv-1 printed no address"):
        parse_winrm_config("Host hv-1\n", machine="hv-1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[machines.a]\nmemory_mib = 4096\n", r"machines\.a\.memory_mib: .*8192"),
        ("[machines.a]\nmemry = 1\n", r"machines\.a\.memry"),
        ("", "no machine in it"),
    ],
)
def test_a_mistake_in_the_machines_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "machines.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_machines(path)


def test_a_path_that_toml_must_escape_arrives_as_it_is() -> None:
    file = Path('/tmp/a "b"\\c\u007f\u00e9/password')
    text = render_inventory([LabHost("a.b", "::1", 5986, r"LAB\me", file, PIN)])
    host = Inventory.parse(text).hosts["a.b"]
    assert host.password is not None
    assert (host.password.file, host.user) == (file, r"LAB\me")
