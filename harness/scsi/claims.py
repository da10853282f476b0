"""Which virtual machine has which disk: no disk is written by one while another has it.

The compute service would refuse the second one in words of its own, if it notices at all; here
the refusal comes first and names who holds the disk, and in which machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from harness.errors import DiskError
from harness.scsi.identity import Disk, DiskIdentity

HoldersOf = Callable[[Disk], str]


@dataclass(frozen=True, slots=True)
class _Claim:
    machine: str
    read_only: bool
    holders: HoldersOf


class DiskClaims:
    """The disks of several virtual machines; thread-safe. Readers share, a writer is alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[DiskIdentity, list[_Claim]] = {}

    def take(self, disk: Disk, *, machine: str, read_only: bool, holders: HoldersOf) -> None:
        """Note that a machine is to have a disk; a machine claims a disk once.

        Raises DiskError naming the other machine and, by its `holders`, who holds the disk there.
        """
        with self._lock:
            claims = self._claims.setdefault(disk.identity, [])
            if any(each.machine == machine for each in claims):
                return
            other = next((each for each in claims if not (read_only and each.read_only)), None)
            if other is None:
                claims.append(_Claim(machine, read_only, holders))
                return
        raise DiskError(
            f"cannot attach {disk.path} to {machine}: utility VM {other.machine} has it "
            f"{'read-only' if other.read_only else 'read-write'} ({other.holders(disk)}); "
            "release it there first"
        )

    def give_back(self, disk: Disk, *, machine: str) -> None:
        """Forget a machine's claim; one that is not there is fine."""
        with self._lock:
            claims = self._claims.get(disk.identity, [])
            claims[:] = [each for each in claims if each.machine != machine]
            if not claims:
                self._claims.pop(disk.identity, None)

    def give_back_all(self, machine: str) -> None:
        """Forget every claim of a machine that is gone."""
        with self._lock:
            for identity, claims in list(self._claims.items()):
                claims[:] = [each for each in claims if each.machine != machine]
                if not claims:
                    del self._claims[identity]

    def __len__(self) -> int:
        """How many disks are claimed."""
        with self._lock:
            return len(self._claims)
