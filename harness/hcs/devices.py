"""The devices of an HCS virtual machine document, as LCOW uses them.

hcsshim `internal/hcs/schema2`; the rules of their JSON are in `harness.hcs.schema`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from harness.hcs.schema import decode, encode, json_name


class AttachmentType(enum.StrEnum):
    """What a SCSI attachment is."""

    VIRTUAL_DISK = "VirtualDisk"
    ISO = "Iso"
    PASS_THRU = "PassThru"  # noqa: S105 - a disk type, no password
    EXTENSIBLE_VIRTUAL_DISK = "ExtensibleVirtualDisk"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A disk on a SCSI controller."""

    type: AttachmentType | None = None
    path: str = ""
    ignore_flushes: bool = False
    caching_mode: str = ""
    no_write_hardening: bool = False
    disable_expansion_optimization: bool = False
    ignore_relative_locator: bool = False
    capture_io_attribution_context: bool = False
    read_only: bool = False
    support_compressed_volumes: bool = False
    always_allow_sparse_files: bool = False
    extensible_virtual_disk_type: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that HCS takes."""
        return encode(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Return the attachment of a JSON object. Raises UsageError naming a bad value."""
        return decode(cls, raw)


@dataclass(frozen=True, slots=True)
class Scsi:
    """A SCSI controller: LUN (a decimal number as text) to attachment."""

    attachments: Mapping[str, Attachment] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ComPort:
    """A serial port; "0" is COM1, which is ttyS0."""

    named_pipe: str = ""
    optimize_for_debugger: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HvSocketServiceConfig:
    """Access rules of one Hyper-V socket service."""

    bind_security_descriptor: str = ""
    connect_security_descriptor: str = ""
    allow_wildcard_binds: bool = False
    disabled: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HvSocketSystemConfig:
    """Access rules of a system's Hyper-V sockets: defaults, then per service GUID."""

    default_bind_security_descriptor: str = ""
    default_connect_security_descriptor: str = ""
    service_table: Mapping[str, HvSocketServiceConfig] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HvSocket:
    """The Hyper-V socket device."""

    hv_socket_config: HvSocketSystemConfig | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VirtualPMemDevice:
    """A disk as persistent memory; `image_format` is `Vhd1` or `Vhdx`."""

    host_path: str = ""
    read_only: bool = False
    image_format: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VirtualPMemController:
    """Persistent memory devices and their limits."""

    devices: Mapping[str, VirtualPMemDevice] = field(default_factory=dict)
    maximum_count: int = 0
    maximum_size_bytes: int = 0
    backing: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetworkAdapter:
    """A network adapter on an HNS endpoint."""

    endpoint_id: str = ""
    mac_address: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan9:
    """The 9p file server; its shares stay as JSON."""

    shares: tuple[Mapping[str, Any], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Devices:
    """Devices of a virtual machine."""

    com_ports: Mapping[str, ComPort] = field(default_factory=dict)
    scsi: Mapping[str, Scsi] = field(default_factory=dict)
    virtual_pmem: VirtualPMemController | None = field(
        default=None, metadata=json_name("VirtualPMem")
    )
    network_adapters: Mapping[str, NetworkAdapter] = field(default_factory=dict)
    hv_socket: HvSocket | None = None
    plan9: Plan9 | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
