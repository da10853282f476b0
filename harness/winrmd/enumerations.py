"""WS-Enumeration: Enumerate, Pull and Release over items that a handler gave at once.

Source: DSP0226 section 8. The snapshot is taken at Enumerate, as WinRM does for shells.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.winrmd import faults
from harness.winrmd.resources import Operation
from harness.winrmd.soap import NAMESPACES

_ITEM_ROOM = 4  # payload_limit counts bytes before base64; items are XML as it is: 4/3 of them


@dataclass(slots=True)
class _Left:
    owner: str
    items: list[str]
    expires: float


@dataclass(slots=True)
class EnumerationTable:
    """The enumerations that are under way."""

    _left: dict[str, _Left] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enumerate(self, operation: Operation, items: Sequence[str], *, timeout_s: float) -> str:
        """Return `n:EnumerateResponse`; with OptimizeEnumeration it carries the first items."""
        asked = operation.body.find("n:Enumerate", NAMESPACES)
        if asked is None:
            raise faults.invalid_parameter()
        left = _Left(operation.user, list(items), time.monotonic() + timeout_s)
        first = ""
        if asked.find("w:OptimizeEnumeration", NAMESPACES) is not None:
            maximum = _maximum(asked.findtext("w:MaxElements", "1", NAMESPACES))
            first = f"<w:Items>{_take(left, maximum, operation)}</w:Items>"
            if not left.items:
                return (
                    f"<n:EnumerateResponse><n:EnumerationContext/>{first}<w:EndOfSequence/>"
                    "</n:EnumerateResponse>"
                )
        context = f"uuid:{str(uuid.uuid4()).upper()}"
        with self._lock:
            self._forget_expired()
            self._left[context] = left
        return (
            f"<n:EnumerateResponse><n:EnumerationContext>{context}</n:EnumerationContext>{first}"
            "</n:EnumerateResponse>"
        )

    def pull(self, operation: Operation) -> str:
        """Return `n:PullResponse` with the next items."""
        context, left = self._named(operation, "n:Pull/n:EnumerationContext")
        maximum = operation.body.findtext("n:Pull/n:MaxElements", "1", NAMESPACES)
        with self._lock:
            items = _take(left, _maximum(maximum), operation)
            if left.items:
                return (
                    f"<n:PullResponse><n:EnumerationContext>{context}</n:EnumerationContext>"
                    f"<n:Items>{items}</n:Items></n:PullResponse>"
                )
            self._left.pop(context, None)
        return f"<n:PullResponse><n:Items>{items}</n:Items><n:EndOfSequence/></n:PullResponse>"

    def release(self, operation: Operation) -> str:
        """Forget an enumeration; the reply has an empty body."""
        context, _ = self._named(operation, "n:Release/n:EnumerationContext")
        with self._lock:
            self._left.pop(context, None)
        return ""

    def _named(self, operation: Operation, path: str) -> tuple[str, _Left]:
        context = operation.body.findtext(path, "", NAMESPACES).strip()
        with self._lock:
            self._forget_expired()
            left = self._left.get(context)
        if left is None or left.owner != operation.user:
            raise faults.invalid_enumeration_context()
        return context, left

    def _forget_expired(self) -> None:
        now = time.monotonic()
        for context in [name for name, left in self._left.items() if left.expires < now]:
            del self._left[context]


def _maximum(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise faults.invalid_parameter()
    return int(text)


def _take(left: _Left, maximum: int, operation: Operation) -> str:
    """Take items off the front: at most `maximum`, and what fits the reply (at least one)."""
    room = operation.payload_limit * _ITEM_ROOM // 3
    taken: list[str] = []
    while left.items and len(taken) < maximum:
        room -= len(left.items[0].encode())
        if taken and room < 0:
            break
        taken.append(left.items.pop(0))
    return "".join(taken)
