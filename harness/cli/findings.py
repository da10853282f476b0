"""What `lcowlab doctor` looked at, what it found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `fix` is empty when it is fine.

    `stops` says that nothing can run before it is mended. `host` is empty for this machine.
    """

    what: str
    found: str
    fix: str = ""
    stops: bool = False
    host: str = ""
