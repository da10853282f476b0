"""How an endpoint is set up: where it listens, who may enter, and the quotas of `winrm/config`.

The default quotas are the tighter ones that Windows Server has shipped with (2012 R2: 30 shells a
user, 25 processes a shell, envelopes of 500 KiB): what works under these works everywhere.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.errors import UsageError
from harness.winrmd.knobs import Knobs

PRODUCT_VERSION: Final = "OS: 10.0.20348 SP: 0.0 Stack: 3.0"


class AuthScheme(enum.Enum):
    """A way to prove who one is, as the CLI spells it."""

    BASIC = "basic"
    NTLM = "ntlm"
    NEGOTIATE = "negotiate"

    @property
    def challenge(self) -> str:
        """What WWW-Authenticate says for it."""
        return {
            AuthScheme.BASIC: 'Basic realm="WSMAN"',
            AuthScheme.NTLM: "NTLM",
            AuthScheme.NEGOTIATE: "Negotiate",
        }[self]


class ChannelBindings(enum.Enum):
    """CbtHardeningLevel: what is asked of NTLM and Negotiate inside of TLS."""

    NONE = "none"  # not looked at
    RELAXED = "relaxed"  # wrong ones are refused, missing ones accepted: the default of Windows
    STRICT = "strict"  # missing ones are refused too


@dataclass(frozen=True, slots=True)
class Quotas:
    """What `winrm/config` limits. Times in ms, sizes in KiB or MiB as their names say."""

    max_envelope_size_kib: int = 500
    max_timeout_ms: int = 60_000
    max_batch_items: int = 32_000
    max_concurrent_operations_per_user: int = 1500
    max_connections: int = 300
    enumeration_timeout_ms: int = 240_000
    idle_timeout_ms: int = 7_200_000
    max_concurrent_users: int = 10
    max_processes_per_shell: int = 25
    max_memory_per_shell_mib: int = 1024
    max_shells_per_user: int = 30

    @property
    def max_envelope_size(self) -> int:
        """The largest envelope in bytes."""
        return self.max_envelope_size_kib * 1024


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate chain and its key, PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """One endpoint. `users` maps names to passwords and belongs to this server alone.

    `root` stands for the host's disk: shells start there and named folders lie below it.
    `programs` maps the name of a Windows program to what runs instead (argv prefix), beside
    those that every endpoint has. Raises UsageError for what must not start.
    """

    users: Mapping[str, str] = field(repr=False)
    root: Path
    address: str = "127.0.0.1"
    port: int = 0
    machine: str = "WINRMD"
    auth: tuple[AuthScheme, ...] = (AuthScheme.NEGOTIATE, AuthScheme.NTLM, AuthScheme.BASIC)
    tls: TlsFiles | None = None
    allow_unencrypted: bool = False
    channel_bindings: ChannelBindings = ChannelBindings.RELAXED
    beyond_loopback: bool = False
    quotas: Quotas = Quotas()
    knobs: Knobs = field(default_factory=Knobs)
    environment: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would be open to everybody."""
        if not self.users or not all(name and word for name, word in self.users.items()):
            raise UsageError("an endpoint needs a user with a password: name one")
        for name in self.users:
            if any(character in name for character in ':\\\r\n"/[]|<>+=;,?*@'):
                raise UsageError(f"Windows allows no such user name: {name!r}")
        if not self.auth:
            raise UsageError("an endpoint needs a way to authenticate: basic, ntlm or negotiate")
        if not self.beyond_loopback and not _is_loopback(self.address):
            raise UsageError(
                f"{self.address} is not a loopback address: whoever reaches this endpoint and "
                "has the password runs programs here. Say so with --beyond-loopback"
            )


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


CONFIG_URI: Final = "http://schemas.microsoft.com/wbem/wsman/1/config"


def is_config_uri(uri: str) -> bool:
    """Return whether that is `winrm/config`, in either of its spellings."""
    return uri.lower().rstrip("/").endswith(("winrm/config", "wsman/1/config"))


def config_xml(config: EndpointConfig) -> str:
    """Return `cfg:Config` as Windows orders it."""
    quotas = config.quotas
    unencrypted = str(config.allow_unencrypted).lower()

    def auth(scheme: AuthScheme) -> str:
        return str(scheme in config.auth).lower()

    http, https = ("5985", str(config.port)) if config.tls else (str(config.port), "5986")
    level = config.channel_bindings.value.capitalize()
    return (
        f'<cfg:Config xmlns:cfg="{CONFIG_URI}" xml:lang="en-US">'
        f"<cfg:MaxEnvelopeSizekb>{quotas.max_envelope_size_kib}</cfg:MaxEnvelopeSizekb>"
        f"<cfg:MaxTimeoutms>{quotas.max_timeout_ms}</cfg:MaxTimeoutms>"
        f"<cfg:MaxBatchItems>{quotas.max_batch_items}</cfg:MaxBatchItems>"
        "<cfg:MaxProviderRequests>4294967295</cfg:MaxProviderRequests>"
        "<cfg:Client><cfg:NetworkDelayms>5000</cfg:NetworkDelayms><cfg:URLPrefix>wsman"
        "</cfg:URLPrefix><cfg:AllowUnencrypted>false</cfg:AllowUnencrypted></cfg:Client>"
        "<cfg:Service><cfg:MaxConcurrentOperations>4294967295</cfg:MaxConcurrentOperations>"
        "<cfg:MaxConcurrentOperationsPerUser>"
        f"{quotas.max_concurrent_operations_per_user}</cfg:MaxConcurrentOperationsPerUser>"
        f"<cfg:EnumerationTimeoutms>{quotas.enumeration_timeout_ms}</cfg:EnumerationTimeoutms>"
        f"<cfg:MaxConnections>{quotas.max_connections}</cfg:MaxConnections>"
        "<cfg:MaxPacketRetrievalTimeSeconds>120</cfg:MaxPacketRetrievalTimeSeconds>"
        f"<cfg:AllowUnencrypted>{unencrypted}</cfg:AllowUnencrypted>"
        f"<cfg:Auth><cfg:Basic>{auth(AuthScheme.BASIC)}</cfg:Basic><cfg:Kerberos>false"
        f"</cfg:Kerberos><cfg:Negotiate>{auth(AuthScheme.NEGOTIATE)}</cfg:Negotiate>"
        "<cfg:Certificate>false</cfg:Certificate><cfg:CredSSP>false</cfg:CredSSP>"
        f"<cfg:CbtHardeningLevel>{level}</cfg:CbtHardeningLevel></cfg:Auth>"
        f"<cfg:DefaultPorts><cfg:HTTP>{http}</cfg:HTTP><cfg:HTTPS>{https}</cfg:HTTPS>"
        "</cfg:DefaultPorts><cfg:AllowRemoteAccess>true</cfg:AllowRemoteAccess></cfg:Service>"
        "<cfg:Winrs><cfg:AllowRemoteShellAccess>true</cfg:AllowRemoteShellAccess>"
        f"<cfg:IdleTimeout>{quotas.idle_timeout_ms}</cfg:IdleTimeout>"
        f"<cfg:MaxConcurrentUsers>{quotas.max_concurrent_users}</cfg:MaxConcurrentUsers>"
        f"<cfg:MaxProcessesPerShell>{quotas.max_processes_per_shell}</cfg:MaxProcessesPerShell>"
        f"<cfg:MaxMemoryPerShellMB>{quotas.max_memory_per_shell_mib}</cfg:MaxMemoryPerShellMB>"
        f"<cfg:MaxShellsPerUser>{quotas.max_shells_per_user}</cfg:MaxShellsPerUser></cfg:Winrs>"
        "</cfg:Config>"
    )
