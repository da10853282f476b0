"""A host of the inventory becomes an endpoint, or says what is missing."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.hosts.inventory import Inventory
from harness.remote.endpoint import Endpoint
from harness.remote.passwords import Secret

TEXT = """
[defaults]
user = "labadmin"
password = { env = "LAB_PASSWORD" }
[hosts.win1]
address = "win1.example"
[hosts.ticket]
address = "win2.example"
auth = "kerberos"
"""


def test_a_host_of_the_inventory_becomes_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_PASSWORD", "c4n4ry")
    host = Inventory.parse(TEXT).hosts["win1"]
    endpoint = Endpoint.of("win1", host)
    assert (endpoint.name, endpoint.address, endpoint.port) == ("win1", "win1.example", 5986)
    assert endpoint.password == Secret("c4n4ry")
    ticket = host.model_copy(update={"auth": "kerberos", "password": None, "user": ""})
    assert not Endpoint.of("ticket", ticket).password


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"password": None, "auth": "ntlm"}, "password = "),
        ({"user": ""}, "without a user"),
        ({"tls": "maybe"}, "verify, off or"),
        ({"tls": "off", "auth": "basic"}, "shows the password"),
    ],
)
def test_what_is_missing_or_unsafe_is_said(
    change: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_PASSWORD", "c4n4ry")
    host = Inventory.parse(TEXT).hosts["win1"].model_copy(update=change)
    with pytest.raises(UsageError, match=message):
        Endpoint.of("win1", host)
