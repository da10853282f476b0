"""An endpoint on loopback that stands for a Windows host, and the ways to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from harness.remote.endpoint import Endpoint
from harness.remote.passwords import Secret
from harness.remote.retries import RetryPolicy
from harness.remote.winrm import WinRM
from harness.winrmd.certificates import fingerprint, make_certificate
from harness.winrmd.config import AuthScheme, ChannelBindings, EndpointConfig, Quotas, TlsFiles
from harness.winrmd.knobs import Knobs
from harness.winrmd.pretendmachine import PretendMachine
from harness.winrmd.server import WinRmServer

USER = "labadmin"
CANARY = "c4n4ry-P@ss/w+rd"
OTHER_USER, OTHER_PASSWORD = "j\u00f6rg", "p\u00e4ss \u4e16\u754c"
QUICK = RetryPolicy(attempts=5, first_wait_s=0.02, longest_wait_s=0.2, jitter_s=0.02)


@dataclass(frozen=True, slots=True)
class PretendHost:
    """A running endpoint, and how it is reached."""

    server: WinRmServer
    root: Path
    tls: str

    def endpoint(
        self,
        *,
        auth: Literal["negotiate", "ntlm", "basic"] = "ntlm",
        password: str = CANARY,
        tls: str | None = None,
    ) -> Endpoint:
        return Endpoint(
            "win1", "127.0.0.1", self.server.port, auth, tls or self.tls, USER, Secret(password)
        )

    def connect(
        self, *, auth: Literal["negotiate", "ntlm", "basic"] = "ntlm", password: str = CANARY
    ) -> WinRM:
        return WinRM(self.endpoint(auth=auth, password=password), policy=QUICK)


@contextmanager
def pretend_host(
    folder: Path,
    *,
    tls: TlsFiles | None = None,
    quotas: Quotas | None = None,
    machine: PretendMachine | None = None,
    auth: tuple[AuthScheme, ...] = (AuthScheme.NEGOTIATE, AuthScheme.NTLM, AuthScheme.BASIC),
) -> Iterator[PretendHost]:
    root = folder / "disk"
    root.mkdir(exist_ok=True)
    config = EndpointConfig(
        users={USER: CANARY, OTHER_USER: OTHER_PASSWORD},
        root=root,
        auth=auth,
        tls=tls,
        quotas=quotas or Quotas(),
        programs=machine.programs if machine else {},
        knobs=Knobs(reboot_down_s=0.3, shutdown_grace_s=0.05),
        channel_bindings=ChannelBindings.STRICT,
    )
    with WinRmServer(config, resources=machine.resources if machine else ()) as server:
        pin = f"pin:sha256:{fingerprint(tls.certificate)}" if tls else "off"
        yield PretendHost(server, root, pin)


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[PretendHost]:
    """Plain HTTP: NTLM seals every message."""
    with pretend_host(tmp_path) as host:
        yield host


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[PretendHost]:
    """HTTPS with a self-signed certificate that is known by its hash; channel bindings asked."""
    with pretend_host(tmp_path, tls=make_certificate(["127.0.0.1"], tmp_path)) as host:
        yield host


@pytest.fixture
def win(sealed: PretendHost) -> Iterator[WinRM]:
    with sealed.connect() as transport:
        yield transport
