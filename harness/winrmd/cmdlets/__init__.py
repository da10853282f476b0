"""The PowerShell commands that a pretend host has: those that this project sends, and no others."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from harness.winrmd.cmdlets import items, scheduled, system
from harness.winrmd.cmdlets.binding import (
    Bound,
    Cmdlet,
    CmdletError,
    Item,
    Machine,
    Output,
    Streams,
    not_recognized,
)

CMDLETS: Final[Mapping[str, Cmdlet]] = MappingProxyType(
    {
        cmdlet.name.lower(): cmdlet
        for cmdlet in (*items.CMDLETS, *system.CMDLETS, *scheduled.CMDLETS)
    }
)

__all__ = [
    "CMDLETS",
    "Bound",
    "Cmdlet",
    "CmdletError",
    "Item",
    "Machine",
    "Output",
    "Streams",
    "not_recognized",
]
