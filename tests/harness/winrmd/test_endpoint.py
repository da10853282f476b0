"""How an endpoint starts, where it listens, and what it keeps to itself."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest
import requests

from harness.errors import UsageError
from harness.winrmd.config import AuthScheme, EndpointConfig
from harness.winrmd.server import WinRmServer
from tests.harness.winrmd.clients import PASSWORD, USER, run, shell
from tests.harness.winrmd.conftest import MakeEndpoint


def test_it_listens_on_ipv6_too(make_endpoint: MakeEndpoint) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    server = make_endpoint(address="::1")
    assert server.url == f"http://[::1]:{server.port}/wsman"
    with requests.Session() as session:
        session.trust_env = False
        assert session.post(server.url).status_code == 401


def test_nothing_of_the_endpoints_environment_reaches_a_process(
    make_endpoint: MakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_ENDPOINT", PASSWORD)
    with shell(make_endpoint()) as opened:
        out = run(opened, 'python -c "import os; print(sorted(os.environ.items()))"').stdout
        out += run(opened, "set").stdout
    assert b"SECRET" not in out
    assert PASSWORD.encode() not in out
    assert b"COMPUTERNAME=WINRMD" in out


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"users": {}}, "needs a user"),
        ({"users": {"a": ""}}, "needs a user"),
        ({"users": {"a:b": "x"}}, "no such user name"),
        ({"auth": ()}, "way to authenticate"),
        ({"address": "0.0.0.0"}, "not a loopback address"),
        ({"address": "::"}, "not a loopback address"),
    ],
)
def test_what_would_be_open_to_everybody_does_not_start(
    tmp_path: Path, settings: dict[str, object], says: str
) -> None:
    given: dict[str, object] = {"users": {"a": "x"}, "root": tmp_path, **settings}
    with pytest.raises(UsageError, match=says):
        EndpointConfig(**given)  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_said_and_leaves_nothing(
    make_endpoint: MakeEndpoint, tmp_path: Path
) -> None:
    taken = make_endpoint().port
    config = EndpointConfig(users={"a": "x"}, root=tmp_path, port=taken)
    with pytest.raises(UsageError, match="cannot listen"), WinRmServer(config):
        pass


def test_closing_leaves_no_file_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, root = tmp_path / "temporary", tmp_path / "root"
    temporary.mkdir()
    root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    config = EndpointConfig(users={USER: PASSWORD}, root=root, auth=(AuthScheme.NTLM,))
    with WinRmServer(config) as server:
        assert server.listening
        (store,) = temporary.iterdir()
        assert store.stat().st_mode & 0o077 == 0
        assert USER in (store / "users").read_text()
        assert PASSWORD not in (store / "users").read_text()
    assert list(temporary.iterdir()) == []
    assert "NTLM_USER_FILE" not in os.environ
