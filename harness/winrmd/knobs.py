"""What a test may do to an endpoint: make it slow, make it fail, restart it.

The knobs stand beside the protocol, never in it: a client cannot turn them.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from harness.winrmd.faults import WsmanFault

ANY: Final = ""


class Trouble(enum.Enum):
    """What happens to one request."""

    DROP_BEFORE = "drop-before"  # the connection is cut, the request was not processed
    DROP_AFTER = "drop-after"  # the request was processed, its reply is lost
    TOO_LARGE = "413"  # HTTP 413 as http.sys sends it: no SOAP, not processed
    UNAVAILABLE = "503"  # the service is starting
    SERVER_ERROR = "500"  # HTTP 500 without a body
    REBOOT = "reboot"  # the host restarts instead of processing it; the connection is cut
    FAULT = "fault"  # a fault of `Strike.make_fault`, not processed


@dataclass(slots=True)
class Strike:
    """`trouble` for the `nth` request (from 1) whose action ends in `name`, then `times` - 1 more.

    `make_fault` gives the fault of `Trouble.FAULT`.
    """

    trouble: Trouble
    name: str = ANY
    nth: int = 1
    times: int = 1
    make_fault: Callable[[], WsmanFault] | None = None


@dataclass(slots=True)
class _Planned:
    strike: Strike
    seen: int = 0


@dataclass(slots=True)
class Knobs:
    """The knobs of one endpoint; they may be turned while it runs.

    `latency_s` is added before every reply. `output_hold_s` is how long output is gathered
    before it is sent: real WinRM does (recordings show output and `Done` in one reply).
    A restart lets replies go out for `shutdown_grace_s`, then the port is closed for
    `reboot_down_s`. `input_filter` stands for a host that does not pass standard input untouched
    (whether Windows does is not proven). Strikes are counted over all connections.
    """

    latency_s: float = 0.0
    output_hold_s: float = 0.0
    shutdown_grace_s: float = 0.2
    reboot_down_s: float = 0.3
    input_filter: Callable[[bytes], bytes] | None = None
    _refused_logons: int = 0
    _planned: list[_Planned] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen: dict[str, int] = field(default_factory=dict)

    def plan(self, strike: Strike) -> None:
        """Let trouble come; requests are counted from now."""
        with self._lock:
            self._planned.append(_Planned(strike))

    def forget(self) -> None:
        """Let no trouble come any more."""
        with self._lock:
            self._planned.clear()

    def refuse_logons(self, times: int) -> None:
        """Answer 401 to the next right passwords, as a host does while its services start."""
        with self._lock:
            self._refused_logons = times

    def take_logon(self) -> bool:
        """Return whether a right password is let in."""
        with self._lock:
            refused = self._refused_logons > 0
            self._refused_logons -= refused
            return not refused

    def take(self, name: str) -> Strike | None:
        """Count a request (the last part of its action) and return what shall happen to it."""
        with self._lock:
            self._seen[name] = self._seen.get(name, 0) + 1
            hit: Strike | None = None
            for planned in self._planned:
                strike = planned.strike
                if strike.name not in (ANY, name):
                    continue
                planned.seen += 1
                if hit is None and strike.nth <= planned.seen < strike.nth + strike.times:
                    hit = strike
            return hit

    def requests(self, name: str = ANY) -> int:
        """Return how many requests of that name have come (all, if ANY)."""
        with self._lock:
            return sum(self._seen.values()) if name == ANY else self._seen.get(name, 0)
