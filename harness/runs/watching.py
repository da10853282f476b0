"""Watching a run on a host to its end, whatever happens to the connection and the host meanwhile.

::

    watch ── events ──► watch … ── Ended ──► over
      │ connection lost ─► wait for an answer ─┬─ same boot ──► watch, where it was
      │                                        └─ another ────► take the lease up again, watch: what
      │                                                         was written is read, then `died`
      └─ cancelled ─► ask it once, watch: it takes down what it made, then Ended
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from harness.errors import (
    ConnectionLostError,
    LeaseError,
    RemoteTimeoutError,
    ShellGoneError,
)
from harness.hosts.facts import BootIdentity
from harness.hosts.holding import TTL_S
from harness.hosts.restarts import RestartPatience, wait_for_answer, wait_for_boot
from harness.remote.deadline import Deadline
from harness.runs.hostruns import HostRuns
from harness.runs.wire import Ended, Event, EventReader, Failure

_CALL_S: Final = 120.0
_WAIT_S: Final = 2.0
_MOST_LOST: Final = 20
_LOST: Final = (ConnectionLostError, RemoteTimeoutError, ShellGoneError)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take: a host that is away, the end of a cancelled run; seconds.

    The lease is asked for `ttl_s` at a time: so long a run goes on without anybody who watches.
    """

    restart: RestartPatience = field(default_factory=RestartPatience)
    cancel_s: float = 300.0
    ttl_s: float = TTL_S


@dataclass(frozen=True, slots=True)
class Watched:
    """How a run ended. It `died` where it was not the run itself that said so."""

    ended: Ended
    died: bool = False


class Watcher:
    """Watches the run `run`, in the boot `boot`; made without I/O.

    Every event goes to `tell`, what happens beside them to `progress`. Setting `cancel` ends it.
    """

    def __init__(
        self,
        runs: HostRuns,
        run: str,
        *,
        boot: BootIdentity,
        tell: Callable[[Event], None],
        progress: Callable[[str], None],
        cancel: threading.Event,
        patience: Patience,
    ) -> None:
        self._runs = runs
        self._run = run
        self._boot = boot
        self._tell = tell
        self._progress = progress
        self._cancel = cancel
        self._patience = patience
        self._kept = time.monotonic()
        self._cancelled: Deadline | None = None
        self._restarted: Deadline | None = None
        self._lost = 0

    def follow(self) -> Watched:
        """Return how it ended, once it has.

        Raises LeaseError when the host is another's meanwhile; RemoteError when it stays away or
        does not end within `Patience.cancel_s`.
        """
        reader, offset = EventReader(), 0
        while True:
            try:
                self._attend()
                seen = self._runs.watch(
                    self._run, offset=offset, wait_s=_WAIT_S, deadline=Deadline.after(_CALL_S)
                )
            except _LOST as error:
                self._lost += 1
                if self._lost > _MOST_LOST:
                    raise
                self._progress(f"lost sight of it ({error}): it goes on there")
                self._return(error)
                continue
            except LeaseError as error:
                self._return(error)
                continue
            self._lost = 0
            offset += len(seen.data)
            for event in reader.feed(seen.data):
                self._tell(event)
                if isinstance(event, Ended):
                    return Watched(event)
            if seen.answer is not None:
                self._note_restart()
                failure = Failure("infrastructure", self._death(seen.answer))
                return Watched(Ended(None, failure), died=True)
            self._lose_patience()

    def _attend(self) -> None:
        """Pass a cancellation on, and ask for more time where a part of it has passed."""
        if self._cancel.is_set() and self._cancelled is None:
            self._runs.cancel(self._run, deadline=Deadline.after(_CALL_S))
            self._cancelled = Deadline.after(self._patience.cancel_s)
        if time.monotonic() - self._kept > self._patience.ttl_s / 6:
            self._runs.hold.keep()
            self._kept = time.monotonic()

    def _return(self, error: Exception) -> None:
        """Come back to a host that was lost. Raises LeaseError where it is no longer ours."""
        if not self._note_restart() and isinstance(error, LeaseError):
            raise error

    def _note_restart(self) -> bool:
        """Whether another boot runs than before, once one answers; the lease is taken up in it."""
        patience = self._patience.restart
        boot = wait_for_answer(self._runs.winrm, patience)
        if boot.same(self._boot):
            return False
        self._progress("the host restarted under it")
        boot = wait_for_boot(
            self._runs.winrm, self._boot, patience, deadline=Deadline.after(patience.timeout_s)
        )
        self._runs.hold.restarted(boot)
        self._boot = boot
        self._restarted = Deadline.after(patience.timeout_s)
        return True

    def _lose_patience(self) -> None:
        host = self._runs.winrm.host
        if self._cancelled is not None and self._cancelled.passed:
            raise RemoteTimeoutError(
                f"the run was cancelled and does not end: look at {self._folder}", host=host
            )
        if self._restarted is not None and self._restarted.passed:
            raise RemoteTimeoutError(
                "it restarted and its agent does not come back: lcowlab provision looks after it",
                host=host,
            )

    @property
    def _folder(self) -> str:
        return self._runs.root.inside("runs", self._run)

    def _death(self, answer: dict[str, Any]) -> str:
        """Return why a run is over that never said so itself."""
        if self._restarted is not None:
            return "the host restarted while it ran"
        if "error" in answer:
            return f"the run ended under the host's agent ({answer['error']})"
        said = base64.b64decode(answer["stderr"]).decode(errors="replace").strip()[-2000:]
        return f"the run's process ended with code {answer['exit_code']}: {said or 'no output'}"
