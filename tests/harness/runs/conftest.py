"""Every test has a cache of its own: which leases a controller holds lies there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.hosts.pretend import CANARY, Pretend
from tests.harness.runs.ready import ready_host


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LCOWLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pretend]:
    """One host for the tests of a module: each of them gives it back."""
    with ready_host(tmp_path_factory.mktemp("runs") / "host") as pretend:
        yield pretend


@pytest.fixture
def host(shared_host: Pretend) -> Iterator[Pretend]:
    """The module's host, without what an earlier test left of trouble."""
    yield shared_host
    shared_host.knobs.forget()


@pytest.fixture
def inventory(shared_host: Pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module's host as win-01 of an inventory, for commands."""
    monkeypatch.setenv("LAB_WORD", CANARY)
    file = tmp_path / "hv.toml"
    file.write_text(
        f'[hosts.win-01]\naddress = "127.0.0.1"\nport = {shared_host.port}\nauth = "ntlm"\n'
        'tls = "off"\nuser = "lab"\npassword = { env = "LAB_WORD" }\n'
    )
    monkeypatch.setenv("HV_INVENTORY", str(file))
    return file
