"""Reading an inventory: defaults, strictness, where it is found, selecting hosts."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.hosts.inventory import FILE_NAME, VARIABLE, Inventory
from harness.hosts.maintenance import MaintenanceWindow
from harness.hosts.selection import select_hosts

GOOD = """
[defaults]
user = 'LAB\\svc-hv'
password = { env = "HV_PASSWORD" }
slots = 2

[hosts.win-07]
address = "win-07.lab"
tags = ["lcow", "amd", "nightly"]
slots = 4
maintenance = ["sun 02:00-04:00"]

[hosts.win-08]
address = "win-08.lab"
tags = ["lcow"]
tls = "pin:sha256:%s"
""" % ("ab" * 32)


def test_a_host_takes_from_the_defaults_what_it_does_not_say() -> None:
    inventory = Inventory.parse(GOOD)
    first, second = inventory.hosts["win-07"], inventory.hosts["win-08"]
    assert (first.slots, second.slots) == (4, 2)
    assert first.user == second.user == "LAB\\svc-hv"
    assert first.password is not None
    assert first.password.env == "HV_PASSWORD"
    assert (first.port, first.auth, first.tls) == (5986, "negotiate", "verify")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[hosts.a]\naddress='x'\nadress='y'", r"hosts\.a\.adress is not known; did you mean add"),
        ("[host.a]\naddress='x'", r"host is not known; did you mean hosts"),
        ("[hosts.a]\naddress='x'\npassword='s3cret'", "does not belong into this file"),
        ("[hosts.a]\naddress='x'\npassword={env='A', file='b'}", "exactly one of"),
        ("[hosts.a]\naddress='x'\npassword={evn='A'}", "did you mean env"),
        ("[hosts.a]\naddress='x'\ntls='maybe'", "write verify, off, or pin"),
        ("[hosts.a]\naddress='x'\ntls='off'\nauth='basic'", "shows the password"),
        ("[hosts.a]\naddress='x'\nagent='LAB\\\\someone'", "write SYSTEM, or a group managed"),
        ("[hosts.a]\ntags=['x']", r"hosts\.a\.address: Field required"),
        ("[hosts.all]\naddress='x'", "'all' is no host name"),
        ("[hosts.a]\naddress='x'\nmaintenance=['sunday']", "no maintenance window"),
        ("[hosts.a]\naddress='x'\nslots=0", "greater than or equal to 1"),
        ("hosts = 3", "hosts: Input should be a valid"),
        ("[hosts.a", "no TOML"),
    ],
)
def test_a_wrong_inventory_is_refused_with_place_and_mend(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Inventory.parse(text)


def test_a_refused_password_is_not_repeated_in_the_message() -> None:
    with pytest.raises(UsageError) as refused:
        Inventory.parse("[hosts.a]\naddress='x'\npassword='s3cret'")
    assert "s3cret" not in str(refused.value)


def test_a_wrong_default_is_reported_once() -> None:
    with pytest.raises(UsageError) as refused:
        Inventory.parse("[defaults]\nport=0\n[hosts.a]\naddress='x'\n[hosts.b]\naddress='y'")
    assert str(refused.value).count("port") == 1


def test_it_is_found_by_option_then_variable_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, name: str) -> Path:
        path.write_text(f"[hosts.{name}]\naddress='x'")
        return path

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(UsageError, match="no inventory found"):
        Inventory.load()
    write(tmp_path / FILE_NAME, "here")
    assert list(Inventory.load().hosts) == ["here"]
    monkeypatch.setenv(VARIABLE, str(write(tmp_path / "named.toml", "named")))
    assert list(Inventory.load().hosts) == ["named"]
    assert list(Inventory.load(write(tmp_path / "option.toml", "option")).hosts) == ["option"]


def test_the_schema_describes_every_field() -> None:
    schema = json.dumps(Inventory.model_json_schema())
    for field in ("address", "tags", "slots", "maintenance", "keyring"):
        assert f'"{field}"' in schema


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("all", ("win-07", "win-08")),
        ("nightly", ("win-07",)),
        ("lcow and not amd", ("win-08",)),
        ("win-07 or win-08", ("win-07", "win-08")),
        ("not (amd or win-08)", ()),
        ("not not amd", ("win-07",)),
    ],
)
def test_an_expression_selects_by_name_and_tag(expression: str, names: tuple[str, ...]) -> None:
    assert Inventory.parse(GOOD).select(expression) == names


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("nigthly", "did you mean nightly"),
        ("", "selects nothing"),
        ("amd and", "name or tag is missing"),
        ("(amd", "not closed"),
        ("amd lcow", "unexpected 'lcow'"),
        ("amd & lcow", "unexpected '&'"),
        ("(" * 100 + "amd", "nested deeper"),
    ],
)
def test_a_wrong_expression_is_refused_with_its_place(expression: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        select_hosts(expression, {"a": frozenset({"amd", "lcow", "nightly"})})


@pytest.mark.parametrize(
    ("text", "moment", "inside"),
    [
        ("sun 02:00-04:00", "2026-11-22T02:00", True),
        ("sun 02:00-04:00", "2026-11-22T04:00", False),
        ("sun 02:00-04:00", "2026-11-23T03:00", False),
        ("mon-fri 22:00-06:00", "2026-11-21T05:59", True),  # Saturday, begun on Friday
        ("mon-fri 22:00-06:00", "2026-11-22T05:59", False),
        ("sat-mon 00:00-01:00", "2026-11-23T00:30", True),
        ("daily 03:00-03:30", "2026-11-24T03:29", True),
    ],
)
def test_a_maintenance_window_contains_its_start_and_not_its_end(
    text: str, moment: str, inside: bool
) -> None:
    window = MaintenanceWindow.parse(text)
    assert window.contains(datetime.datetime.fromisoformat(moment)) is inside


@pytest.mark.parametrize(
    "text", ["", "sun", "someday 01:00-02:00", "sun 25:00-26:00", "sun 01:00-01:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        MaintenanceWindow.parse(text)


def test_the_agent_runs_as_system_or_as_an_account_without_a_password() -> None:
    text = "[defaults]\nagent='LAB\\gmsa-hv$'\n[hosts.a]\naddress='x'\n[hosts.b]\naddress='y'\n"
    inventory = Inventory.parse(text + "agent='SYSTEM'")
    assert [inventory.hosts[name].agent for name in "ab"] == ["LAB\\gmsa-hv$", "SYSTEM"]
