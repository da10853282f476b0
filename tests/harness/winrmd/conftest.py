"""Endpoints for tests: one call makes one, with a disk of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.winrmd.certificates import make_certificate
from harness.winrmd.config import EndpointConfig, TlsFiles
from harness.winrmd.server import WinRmServer
from tests.harness.winrmd.clients import PASSWORD, USER

MakeEndpoint = Callable[..., WinRmServer]


@pytest.fixture
def make_endpoint(tmp_path: Path) -> Iterator[MakeEndpoint]:
    """Return a function that starts an endpoint with these settings; it ends with the test."""
    with contextlib.ExitStack() as stack:
        made = 0

        def make(**settings: Any) -> WinRmServer:  # noqa: ANN401 - EndpointConfig's
            nonlocal made
            made += 1
            root = tmp_path / f"host{made}"
            root.mkdir()
            settings.setdefault("users", {USER: PASSWORD})
            resources = settings.pop("resources", ())
            config = EndpointConfig(root=root, **settings)
            return stack.enter_context(WinRmServer(config, resources=resources))

        yield make


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """Return a certificate for 127.0.0.1."""
    return make_certificate(["127.0.0.1"], tmp_path_factory.mktemp("tls"))


@pytest.fixture
def plain(make_endpoint: MakeEndpoint) -> WinRmServer:
    """Return an endpoint that takes Basic without sealing, for requests made by hand."""
    return make_endpoint(allow_unencrypted=True)
