"""A shell as seen through one connection that may be made anew."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pypsrp.shell import WinRS
from pypsrp.wsman import SelectorSet, WSMan

from harness.remote.deadline import Deadline
from harness.remote.retries import Attempts, RetryPolicy, call_with_retries
from harness.remote.wire import Wire

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connector:
    """How wires to one host are made, and how failed requests on them are repeated."""

    host: str
    connect: Callable[[], Wire]
    policy: RetryPolicy
    attempts: Attempts


class Link:
    """A shell as seen through one wire, made anew when that one is dead; one user at a time."""

    def __init__(self, connector: Connector, shell_id: str, wire: Wire | None = None) -> None:
        self._connector = connector
        self._shell_id = shell_id
        self._wire = wire
        self._turn = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._turn.locked()

    @property
    def payload_size(self) -> int:
        """Raw bytes that fit into one Send."""
        return self._live().payload_size

    def _live(self) -> Wire:
        if self._wire is None or self._wire.dead:
            self._wire = self._connector.connect()
        return self._wire

    @contextmanager
    def request(self, what: str, deadline: Deadline) -> Iterator[WinRS]:
        """Give the shell for one request. Raises RemoteError as `Wire.request` does."""
        with self._turn, self._live().request(what, deadline) as wsman:
            yield attach(wsman, self._shell_id)

    def repeat(
        self, what: str, deadline: Deadline, use: Callable[[WinRS], T], *, idempotent: bool
    ) -> T:
        """Return what `use` returns, on new connections as often as the policy allows."""

        def once() -> T:
            with self.request(what, deadline) as winrs:
                return use(winrs)

        return call_with_retries(
            once,
            what=f"{self._connector.host}: {what}",
            policy=self._connector.policy,
            deadline=deadline,
            idempotent=idempotent,
            attempts=self._connector.attempts,
        )

    def close(self) -> None:
        """End the connection; may be repeated, never raises."""
        if self._wire is not None:
            self._wire.close()


def attach(wsman: WSMan, shell_id: str) -> WinRS:
    """Return a shell that another connection opened: pypsrp has no public way to name one."""
    winrs = WinRS(wsman, id=shell_id)
    winrs._selector_set = SelectorSet()
    winrs._selector_set.add_option("ShellId", shell_id)
    winrs.opened = True
    return winrs
