r"""The journal of a host: lines of JSON in its protected root, written before and after each step.

It is what a controller reads that takes over from one that died. A line is appended with
`Add-Content`, for which the host needs no Python; an append whose answer was lost is repeated, and
the line's id makes it count once. A torn last line counts as none.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from harness.errors import ConnectionLostError, RemoteTimeoutError, ShellGoneError
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline
from harness.remote.powershell import Command
from harness.remote.winrm import WinRM
from harness.scrubber import scrub

_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: when (ISO 8601, UTC), what happened, and its details."""

    id: str
    at: str
    event: str
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal `name` in one host's root."""

    root: ProtectedRoot
    name: str

    @property
    def path(self) -> str:
        """Where it lies on the host."""
        return self.root.inside("journal", f"{self.name}.jsonl")

    def append(
        self, winrm: WinRM, event: str, details: Mapping[str, object], *, deadline: Deadline
    ) -> None:
        """Write one line. Raises RemoteError when it cannot be known to be there."""
        line = {
            "id": uuid.uuid4().hex,
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "event": event,
            **details,
        }
        # The line break comes first: after a torn line, ours is a line of its own.
        data = b"\n" + scrub(json.dumps(line)).encode() + b"\n"
        command = Command.build(
            "Add-Content", {"LiteralPath": (self.path,), "Value": data, "Encoding": "Byte"}
        )
        for attempt in range(_ATTEMPTS):
            try:
                winrm.powershell(command, deadline=deadline)
            except (ConnectionLostError, RemoteTimeoutError, ShellGoneError):
                if attempt == _ATTEMPTS - 1 or deadline.passed:
                    raise
            else:
                return

    def read(self, winrm: WinRM, *, deadline: Deadline) -> tuple[Entry, ...]:
        """Return all lines in order, each once; none where there is no journal yet."""
        there = winrm.powershell(
            Command.build("Test-Path", {"LiteralPath": (self.path,)}), deadline=deadline
        )
        if there != (True,):
            return ()
        done = winrm.run(("cmd", "/d", "/c", "type", self.path), deadline=deadline, idempotent=True)
        entries: dict[str, Entry] = {}
        for line in done.stdout.splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict) and {"id", "at", "event"} <= values.keys():
                known = (str(values.pop(name)) for name in ("id", "at", "event"))
                identity, at, event = known
                entries.setdefault(identity, Entry(identity, at, event, values))
        return tuple(entries.values())
