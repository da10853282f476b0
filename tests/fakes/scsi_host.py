"""A virtual machine for the SCSI manager: host and guest side in one, strict about the rules.

Whatever a real host or guest would suffer from (a disk attached twice, taken out while mounted or
without an eject, an unmount that differs from its mount) is refused or kept in `violations`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import ComputeServiceError, GuestError, SystemExitedError
from harness.scsi import MountConfig, Slot
from harness.scsi.machine import eject_each


@dataclass
class Fault:
    """What the next call of an operation meets; `happens` does the work before the error."""

    error: BaseException | None
    happens: bool = False
    dies: bool = False


@dataclass
class BlockingPoint:
    """Holds one call: wait for `entered`, then set `resume`."""

    entered: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)


class FakeScsiHost:
    """Implements ScsiHost and ScsiGuest."""

    def __init__(self) -> None:
        self.disks: dict[Slot, tuple[Path, bool]] = {}
        self.visible: set[Slot] = set()  # what the guest's kernel still knows
        self.forgetting: set[Slot] = set()  # let go by the guest, which forgets it at some time
        self.mounts: dict[str, tuple[Slot, MountConfig]] = {}
        self.calls: list[tuple[object, ...]] = []
        self.violations: list[str] = []
        self.dead = False
        self.latency_s = 0.0
        self.discovers_late = False  # the guest finds a disk after it was to forget it
        self._faults: dict[str, deque[Fault]] = {}
        self._blocks: dict[str, deque[BlockingPoint]] = {}
        self._lock = threading.Lock()

    # What a test arranges.

    def fail(self, operation: str, error: BaseException, *, happens: bool = False) -> None:
        self._faults.setdefault(operation, deque()).append(Fault(error, happens))

    def die_in(self, operation: str, *, happens: bool = False) -> None:
        self._faults.setdefault(operation, deque()).append(Fault(None, happens, dies=True))

    def block(self, operation: str) -> BlockingPoint:
        point = BlockingPoint()
        self._blocks.setdefault(operation, deque()).append(point)
        return point

    def clear_faults(self) -> None:
        self._faults.clear()

    def die(self) -> None:
        with self._lock:
            self.dead = True
            self.disks.clear()
            self.visible.clear()
            self.forgetting.clear()
            self.mounts.clear()

    def count(self, operation: str) -> int:
        with self._lock:
            return sum(call[0] == operation for call in self.calls)

    @property
    def empty(self) -> bool:
        return not self.disks and not self.mounts and not self.visible

    # ScsiHost

    def attach(self, slot: Slot, path: Path, *, read_only: bool) -> None:
        fault = self._enter("attach", slot, path)
        if fault is None or fault.happens:
            with self._lock:
                if slot in self.disks:
                    self.violations.append(f"attach to {slot}, which is taken")
                    raise ComputeServiceError("slot is taken")
                if slot in self.forgetting:
                    self.violations.append(f"attach to {slot}, whose last disk is remembered")
                if any(path.samefile(other) for other, _ in self.disks.values()):
                    self.violations.append(f"{path} attached twice")
                self.disks[slot] = (path, read_only)
                self.visible.add(slot)
        self._leave(fault)

    def detach(self, slots: Sequence[Slot]) -> None:
        fault = self._enter("detach", *slots)
        if fault is None or fault.happens:
            for slot in slots if fault is None else slots[: max(1, len(slots) // 2)]:
                self._take_out(slot)
                if self.discovers_late:
                    self.visible.add(slot)
        self._leave(fault)

    def attached(self) -> Sequence[Slot]:
        self._leave(self._enter("attached"))
        with self._lock:
            return list(self.disks)

    # ScsiGuest

    def mount(self, slot: Slot, config: MountConfig, guest_path: str) -> None:
        fault = self._enter("mount", slot, config, guest_path)
        if fault is None or fault.happens:
            with self._lock:
                if slot not in self.visible:
                    self.violations.append(f"mount of {slot}, which the guest does not see")
                    raise GuestError("no such device", hresult=0x80070490, request="mount")
                if guest_path in self.mounts:
                    self.violations.append(f"mount over {guest_path}")
                self.mounts[guest_path] = (slot, config)
        self._leave(fault)

    def unmount(self, slot: Slot, config: MountConfig, guest_path: str) -> None:
        fault = self._enter("unmount", slot, config, guest_path)
        if fault is None or fault.happens:
            with self._lock:
                mounted = self.mounts.pop(guest_path, None)
                if mounted not in (None, (slot, config)):
                    self.violations.append(f"unmount of {guest_path} differs: {mounted}")
        self._leave(fault)

    def eject(self, slot: Slot) -> None:
        fault = self._enter("eject", slot)
        if fault is None or fault.happens:
            with self._lock:
                if any(mounted == slot for mounted, _ in self.mounts.values()):
                    self.violations.append(f"eject of {slot} while it is mounted")
                self.visible.discard(slot)
                self.forgetting.discard(slot)
        self._leave(fault)

    def eject_all(self, slots: Sequence[Slot]) -> Mapping[Slot, BaseException]:
        """Let go as our guest does: it forgets behind the answer, or when it is asked again."""

        def let_go(slot: Slot) -> None:
            self.eject(slot)
            with self._lock:
                if not self.dead:
                    self.forgetting.add(slot)

        return eject_each(let_go, slots)

    def _take_out(self, slot: Slot) -> None:
        with self._lock:
            if slot not in self.disks:
                self.violations.append(f"detach of {slot}, which is empty")
                raise ComputeServiceError("slot is empty")
            if slot in self.visible:
                self.violations.append(f"detach of {slot} without an eject")
            if any(mounted == slot for mounted, _ in self.mounts.values()):
                self.violations.append(f"detach of {slot} while it is mounted")
            self.visible.discard(slot)
            del self.disks[slot]

    def _enter(self, operation: str, *details: object) -> Fault | None:
        with self._lock:
            self.calls.append((operation, *details))
            blocks = self._blocks.get(operation)
            point = blocks.popleft() if blocks else None
        if point is not None:
            point.entered.set()
            assert point.resume.wait(30), "a test never resumed its blocking point"
        if self.latency_s:
            time.sleep(self.latency_s)
        with self._lock:
            if self.dead:
                raise SystemExitedError("the virtual machine has exited")
            faults = self._faults.get(operation)
            return faults.popleft() if faults else None

    def _leave(self, fault: Fault | None) -> None:
        if fault is None:
            return
        if fault.dies:
            self.die()
            raise SystemExitedError("the virtual machine has exited")
        if fault.error is not None:
            raise fault.error
