"""Saves a stopped machine's state to a file and loads it into another: migration without network.

Two kinds: the whole machine in one stream, or (`MemoryKind.FILE`) the devices alone, where memory
is a file that both machines map (QEMU's capability x-ignore-shared).

Source: QEMU docs/devel/migration, qapi/migration.json.
"""

from __future__ import annotations

import enum
from typing import Final

from harness.errors import ComputeServiceError
from harness.qemu.qmp import QmpClient, QmpCommand, QmpEvent

_STREAM: Final = "state"
_NO_LIMIT: Final = 1 << 40  # bytes a second; QEMU's default is 128 MiB
_ENDED: Final = ("completed", "failed", "cancelled")


class MemoryKind(enum.StrEnum):
    """Where the memory of a saved machine is."""

    FILE = "file"
    STREAM = "stream"


def save_state(qmp: QmpClient, target: int, *, memory: MemoryKind, deadline: float) -> None:
    """Write a stopped machine's state to the descriptor of a file. Raises ComputeServiceError."""
    _set_capabilities(qmp, memory, deadline)
    limit = QmpCommand("migrate-set-parameters", {"max-bandwidth": _NO_LIMIT})
    qmp.execute(limit, deadline=deadline)
    _migrate(qmp, "migrate", target, deadline)


def load_state(qmp: QmpClient, source: int, *, memory: MemoryKind, deadline: float) -> None:
    """Give a machine that waits (`-incoming defer`) the state in a file; it stays paused.

    Raises ComputeServiceError: QEMU refused it, ended over it, or was silent to the deadline.
    """
    _set_capabilities(qmp, memory, deadline)
    _migrate(qmp, "migrate-incoming", source, deadline)


def _set_capabilities(qmp: QmpClient, memory: MemoryKind, deadline: float) -> None:
    wanted = {"events": True}
    if memory is MemoryKind.FILE:
        wanted["x-ignore-shared"] = True
    states = [{"capability": name, "state": state} for name, state in wanted.items()]
    qmp.execute(QmpCommand("migrate-set-capabilities", {"capabilities": states}), deadline=deadline)


def _migrate(qmp: QmpClient, command: str, descriptor: int, deadline: float) -> None:
    name = QmpCommand("getfd", {"fdname": _STREAM})
    qmp.execute(name, deadline=deadline, pass_fds=[descriptor])
    after = qmp.event_cursor
    qmp.execute(QmpCommand(command, {"uri": f"fd:{_STREAM}"}), deadline=deadline)
    event = qmp.wait_event(_is_end, after=after, deadline=deadline)
    if event.data["status"] != "completed":
        raise ComputeServiceError(f"QEMU: {command} {event.data['status']}")


def _is_end(event: QmpEvent) -> bool:
    return event.name == "MIGRATION" and event.data.get("status") in _ENDED
