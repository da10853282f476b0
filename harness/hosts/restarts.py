"""Restarts of a host: asked for once, and over when another boot answers steadily."""

from __future__ import annotations

import time
from dataclasses import dataclass

from harness.errors import AuthError, ProvisionError, RemoteCommandError, RemoteError
from harness.hosts.actions import RestartAction
from harness.hosts.facts import BootIdentity, read_boot
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM


@dataclass(frozen=True, slots=True)
class RestartPatience:
    """How long one restart may take, and what counts as back.

    `sessions` readings in a row must show the same new boot: a host that applies updates answers,
    and goes down again. `lost_s` is how long a host that was there may be away unasked.
    """

    timeout_s: float = 1200.0
    sessions: int = 3
    interval_s: float = 5.0
    delay_s: int = 2
    lost_s: float = 300.0


def restart_host(winrm: WinRM, before: BootIdentity, patience: RestartPatience) -> BootIdentity:
    """Restart a host unless it is past the boot `before`; return the boot that runs then.

    Raises ProvisionError when it does not come back in time; AuthError and others when the
    restart is refused.
    """
    deadline = Deadline.after(patience.timeout_s)
    if read_boot(winrm, deadline=deadline.capped(60)).same(before):
        RestartAction(patience.delay_s).run(winrm, deadline=deadline.capped(60))
    return wait_for_boot(winrm, before, patience, deadline=deadline)


def wait_for_answer(winrm: WinRM, patience: RestartPatience) -> BootIdentity:
    """Return the boot that runs, once a host that was lost answers again.

    Raises the last RemoteError when it does not within `patience.lost_s`.
    """
    deadline = Deadline.after(patience.lost_s)
    while True:
        try:
            return read_boot(winrm, deadline=deadline.capped(60))
        except RemoteCommandError:
            raise
        except RemoteError:  # AuthError too: what a host answers that is still starting
            if deadline.passed:
                raise
        time.sleep(min(patience.interval_s, deadline.remaining_s))


def wait_for_boot(
    winrm: WinRM, before: BootIdentity, patience: RestartPatience, *, deadline: Deadline
) -> BootIdentity:
    """Return the boot after `before`, once it has answered steadily. Raises ProvisionError."""
    seen: BootIdentity | None = None
    count = 0
    last: RemoteError | None = None
    while not deadline.passed:
        try:
            now = read_boot(winrm, deadline=deadline.capped(20))
        except AuthError as error:
            last, seen = error, None  # also what a host answers that is still starting
        except RemoteError as error:
            last, seen = error, None
        else:
            if now.same(before):
                seen = None
            elif seen is not None and now.same(seen):
                count += 1
            else:
                seen, count = now, 1
            if seen is not None and count >= patience.sessions:
                return seen
        time.sleep(min(patience.interval_s, deadline.remaining_s))
    raise ProvisionError(
        f"it was to restart and no other boot answers after {patience.timeout_s:.0f} s: look at "
        f"its console ({last or 'the old boot still runs'})",
        host=winrm.host,
    )
