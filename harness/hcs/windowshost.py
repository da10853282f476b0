"""What of a Windows host the compute service stands on: HCS, Hyper-V sockets, named pipes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from harness.hcs.computecore import load_computecore
from harness.hcs.hcsapi import HcsApi
from harness.hcs.serialpipe import OpenPipe, open_pipe
from harness.hcs.streams import ListenHyperV, listen_hyperv
from harness.hcs.virtdisk import NativeDisk, StorageType, load_virtdisk

InspectDisk = Callable[[str, StorageType], NativeDisk]


@dataclass(frozen=True, slots=True)
class WindowsHost:
    """The ways to a host's virtual machines; the defaults are this machine's own."""

    api: HcsApi
    listen: ListenHyperV = listen_hyperv
    open_pipe: OpenPipe = open_pipe
    inspect_disk: InspectDisk | None = None
    """What Windows finds in a disk file; None where nobody can tell."""


@functools.cache
def this_windows() -> WindowsHost:
    """Return this machine, kept for the life of the process: HCS may call back at any time.

    Raises UsageError where it is no Windows, ComputeServiceError where its HCS is missing.
    """
    return WindowsHost(HcsApi(load_computecore()), inspect_disk=load_virtdisk().inspect)
