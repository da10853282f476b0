"""How an endpoint is set up: where it listens, who may enter, and the quotas of `winrm/config`.

The default quotas are the tighter ones that Windows Server has shipped with (2012 R2: 30 shells a
user, 25 processes a shell, envelopes of 500 KiB): what works under these works everywhere.
"""

from __future__ import annotations

import enum
import ipaddress
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from harness.errors import MissingProgramError, UsageError
from harness.winrmd.knobs import Knobs
from harness.winrmd.programs import Program

PRODUCT_VERSION: Final = "OS: 10.0.20348 SP: 0.0 Stack: 3.0"


class AuthScheme(enum.Enum):
    """A way to prove who one is, as the CLI spells it."""

    BASIC = "basic"
    NTLM = "ntlm"
    NEGOTIATE = "negotiate"
    KERBEROS = "kerberos"

    @property
    def challenge(self) -> str:
        """What WWW-Authenticate says for it."""
        return {
            AuthScheme.BASIC: 'Basic realm="WSMAN"',
            AuthScheme.NTLM: "NTLM",
            AuthScheme.NEGOTIATE: "Negotiate",
            AuthScheme.KERBEROS: "Kerberos",
        }[self]


class ChannelBindings(enum.Enum):
    """CbtHardeningLevel: what is asked of NTLM and Negotiate inside of TLS.

    Of Kerberos, wrong ones are refused at either level: MIT's acceptor does not tell which tickets
    came without.
    """

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
class KerberosKeys:
    """What tickets are accepted with: the service's keys, and the realm whose users are ours.

    The keytab holds principals such as HTTP/host and WSMAN/host; a ticket for a user of `realm`
    is that user of the endpoint, whose password is not asked then.
    """

    keytab: Path
    realm: str


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """One endpoint. `users` maps names to passwords and belongs to this server alone.

    `root` stands for the host's disk: shells start there and named folders lie below it.
    `programs` adds to and replaces those of `programs.real_programs`: an empty tuple takes one
    away. Raises UsageError for what must not start.
    """

    users: Mapping[str, str] = field(repr=False)
    root: Path
    address: str = "127.0.0.1"
    port: int = 0
    machine: str = "WINRMD"
    auth: tuple[AuthScheme, ...] = (AuthScheme.NEGOTIATE, AuthScheme.NTLM, AuthScheme.BASIC)
    tls: TlsFiles | None = None
    kerberos: KerberosKeys | None = None
    allow_unencrypted: bool = False
    channel_bindings: ChannelBindings = ChannelBindings.RELAXED
    beyond_loopback: bool = False
    connection_idle_s: float = 120.0  # http.sys closes a connection that is silent for so long
    quotas: Quotas = Quotas()
    knobs: Knobs = field(default_factory=Knobs)
    environment: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, Program] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would be open to everybody."""
        if not self.users or not all(name and word for name, word in self.users.items()):
            raise UsageError("an endpoint needs a user with a password: name one")
        for name in self.users:
            if any(character in name for character in ':\\\r\n"/[]|<>+=;,?*@'):
                raise UsageError(f"Windows allows no such user name: {name!r}")
        if not self.auth:
            raise UsageError(
                "an endpoint needs a way to authenticate: basic, ntlm, negotiate or kerberos"
            )
        if AuthScheme.KERBEROS in self.auth and self.kerberos is None:
            raise UsageError("kerberos needs a keytab and a realm: --keytab FILE --realm NAME")
        if self.kerberos is not None and find_spec("gssapi") is None:
            raise MissingProgramError("gssapi", install="pip install lcowlab[kerberos]")
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

_QUOTA_ELEMENTS: Final = {
    "MaxEnvelopeSizekb": "max_envelope_size_kib",
    "MaxTimeoutms": "max_timeout_ms",
    "MaxBatchItems": "max_batch_items",
    "MaxConcurrentOperationsPerUser": "max_concurrent_operations_per_user",
    "MaxConnections": "max_connections",
    "EnumerationTimeoutms": "enumeration_timeout_ms",
    "IdleTimeout": "idle_timeout_ms",
    "MaxConcurrentUsers": "max_concurrent_users",
    "MaxProcessesPerShell": "max_processes_per_shell",
    "MaxMemoryPerShellMB": "max_memory_per_shell_mib",
    "MaxShellsPerUser": "max_shells_per_user",
}


def is_config_uri(uri: str) -> bool:
    """Return whether that is `winrm/config` or a part of it, in either of its spellings."""
    lowered = uri.lower()
    return any(name in lowered for name in ("/winrm/config", "wsman/1/config")) or (
        lowered == "winrm/config"
    )


def quotas_from_xml(body: ET.Element, quotas: Quotas) -> Quotas:
    """Return the quotas after a Put with that body. Raises ValueError for what is no number."""
    changes: dict[str, int] = {}
    for element in body.iter():
        field_name = _QUOTA_ELEMENTS.get(element.tag.rsplit("}", 1)[-1])
        if field_name is not None:
            changes[field_name] = quota_value(element.text or "")
    return replace(quotas, **changes)


def quota_value(text: str) -> int:
    """Return the value of a quota, 1 to 2^32-1. Raises ValueError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 0xFFFFFFFF:
        raise ValueError(f"not the value of a quota: {text[:64]!r}")
    return int(text)


def config_xml(config: EndpointConfig, quotas: Quotas, *, port: int) -> str:
    """Return `cfg:Config` as Windows orders it, with the quotas that are in force."""

    def element(name: str) -> str:
        return f"<cfg:{name}>{getattr(quotas, _QUOTA_ELEMENTS[name])}</cfg:{name}>"

    def auth(scheme: AuthScheme) -> str:
        return str(scheme in config.auth).lower()

    http, https = (5985, port) if config.tls else (port, 5986)
    return (
        f'<cfg:Config xmlns:cfg="{CONFIG_URI}" xml:lang="en-US">'
        f"{element('MaxEnvelopeSizekb')}{element('MaxTimeoutms')}{element('MaxBatchItems')}"
        "<cfg:MaxProviderRequests>4294967295</cfg:MaxProviderRequests>"
        "<cfg:Client><cfg:NetworkDelayms>5000</cfg:NetworkDelayms><cfg:URLPrefix>wsman"
        "</cfg:URLPrefix><cfg:AllowUnencrypted>false</cfg:AllowUnencrypted></cfg:Client>"
        "<cfg:Service><cfg:MaxConcurrentOperations>4294967295</cfg:MaxConcurrentOperations>"
        f"{element('MaxConcurrentOperationsPerUser')}{element('EnumerationTimeoutms')}"
        f"{element('MaxConnections')}"
        "<cfg:MaxPacketRetrievalTimeSeconds>120</cfg:MaxPacketRetrievalTimeSeconds>"
        f"<cfg:AllowUnencrypted>{str(config.allow_unencrypted).lower()}</cfg:AllowUnencrypted>"
        f"<cfg:Auth><cfg:Basic>{auth(AuthScheme.BASIC)}</cfg:Basic><cfg:Kerberos>"
        f"{auth(AuthScheme.KERBEROS)}</cfg:Kerberos><cfg:Negotiate>{auth(AuthScheme.NEGOTIATE)}</cfg:Negotiate>"
        "<cfg:Certificate>false</cfg:Certificate><cfg:CredSSP>false</cfg:CredSSP>"
        f"<cfg:CbtHardeningLevel>{config.channel_bindings.value.capitalize()}"
        "</cfg:CbtHardeningLevel></cfg:Auth>"
        f"<cfg:DefaultPorts><cfg:HTTP>{http}</cfg:HTTP><cfg:HTTPS>{https}</cfg:HTTPS>"
        "</cfg:DefaultPorts><cfg:AllowRemoteAccess>true</cfg:AllowRemoteAccess></cfg:Service>"
        "<cfg:Winrs><cfg:AllowRemoteShellAccess>true</cfg:AllowRemoteShellAccess>"
        f"{element('IdleTimeout')}{element('MaxConcurrentUsers')}"
        f"{element('MaxProcessesPerShell')}{element('MaxMemoryPerShellMB')}"
        f"{element('MaxShellsPerUser')}</cfg:Winrs></cfg:Config>"
    )
