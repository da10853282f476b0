"""Holding hosts: the lease of each is taken before it is worked on, kept, and given back.

::

    take ──► keep, keep … ──► release(clean | what is unfinished)
              └── announce_restart ──► restarted ──► keep …

Which lease a controller has is written down here before the host is asked for it: a controller
that died is followed by one on the same machine that goes on with the same lease, and nobody else
is let in meanwhile. Elsewhere, its lease runs out with its time. While a host is held Windows
Update pauses; see `updatepause`.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import socket
import time
import uuid
from dataclasses import dataclass
from typing import Final, Self

import filelock

from harness.cachedir import cache_directory
from harness.errors import (
    ConnectionLostError,
    LeaseError,
    RemoteCommandError,
    RemoteError,
    RemoteTimeoutError,
    ShellGoneError,
)
from harness.hosts.facts import BootIdentity, read_boot
from harness.hosts.hostscripts import Fence, HostScripts
from harness.hosts.lease import LeaseKeeper, LeaseRecord
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.updatepause import pause_updates, read_pause, restore_updates
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM

LEASES: Final = "leases"
TTL_S: Final = 1800.0
_CALL_S: Final = 120.0
_TRIES: Final = 3
_LOST: Final = (ConnectionLostError, RemoteTimeoutError, ShellGoneError)


def owner_name() -> str:
    """Return who we are to others who want the host: user and machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


@dataclass(slots=True)
class _Held:
    """What is known of a lease that is ours; times on our monotonic clock."""

    keeper: LeaseKeeper
    token: int
    former: dict[str, object]
    renewed: float
    paused_until: float


class HostHold:
    """The lease of one host for one piece of work, `purpose`; made without I/O.

    What the same work left unfinished is taken up again. A context manager: takes the lease at its
    start; gives it back at its end, as dirty where that was an exception.
    """

    def __init__(
        self,
        winrm: WinRM,
        root: ProtectedRoot,
        python: str,
        *,
        purpose: str,
        ttl_s: float = TTL_S,
    ) -> None:
        self._winrm = winrm
        self._root = root
        self._python = python
        self._purpose = purpose
        self._ttl_s = ttl_s
        endpoint = winrm.endpoint
        name = f"{endpoint.address}:{endpoint.port} {root.path}".lower()
        self._file = cache_directory(LEASES) / f"{hashlib.sha256(name.encode()).hexdigest()}.json"
        self._local = filelock.FileLock(self._file.with_suffix(".lock"), timeout=0)
        self._held: _Held | None = None

    @property
    def held(self) -> bool:
        """Whether the lease is ours, as far as we know."""
        return self._held is not None

    @property
    def token(self) -> int:
        """The token of this lease: another after a restart that was nobody's. Raises LeaseError."""
        return self._mine().token

    @property
    def scripts(self) -> HostScripts:
        """The host's scripts behind the fence of this lease. Raises LeaseError without one."""
        held = self._mine()
        fence = Fence(held.token, held.keeper.boot_name, self._root.inside("lease"))
        return HostScripts(self._winrm, self._python, fence)

    def take(self) -> LeaseRecord:
        """Take the lease and pause updates.

        Raises LeaseError naming who has it; UnprotectedRootError; RemoteError.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._local.acquire()
        except filelock.Timeout as error:
            raise LeaseError(
                "busy: another lcowlab of this machine works with it", host=self._winrm.host
            ) from error
        try:
            return self._take()
        except BaseException:
            self._held = None
            self._local.release()
            raise

    def _take(self) -> LeaseRecord:
        deadline = Deadline.after(_CALL_S)
        self._root.verify(self._winrm, deadline=deadline)
        keeper = self._keeper(read_boot(self._winrm, deadline=deadline))
        try:
            record = keeper.acquire(
                owner_name(),
                ttl_s=self._ttl_s,
                deadline=deadline,
                purpose=self._purpose,
                resumes=self._purpose,
                nonce=self._nonce(),
            )
        except LeaseError:
            self._file.unlink(missing_ok=True)
            raise
        now = time.monotonic()
        self._held = _Held(keeper, record.token, {}, now, 0.0)
        self._pause(record, deadline)
        return record

    def _nonce(self) -> str:
        """Return what tells our lease from others, the one of a dead predecessor if there is one.

        It is written before it is used.
        """
        try:
            values = json.loads(self._file.read_bytes())
            if values["purpose"] == self._purpose:
                return str(values["nonce"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or torn: then nothing was asked for with it
        nonce = uuid.uuid4().hex
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps({"purpose": self._purpose, "nonce": nonce}), "utf-8")
        beside.replace(self._file)
        return nonce

    def keep(self, boot: BootIdentity | None = None) -> None:
        """Go on holding it: ask whether it is still ours, and for more time.

        `boot` is the one that runs, read now unless given: in another one than before the lease is
        lost. Raises LeaseError.
        """
        held = self._mine()
        deadline = Deadline.after(_CALL_S)
        held.keeper = self._keeper(boot or read_boot(self._winrm, deadline=deadline))
        record = self._renewed(held, deadline)
        held.renewed = time.monotonic()
        if held.paused_until - held.renewed < self._ttl_s / 2:
            self._pause(record, deadline)

    def _renewed(self, held: _Held, deadline: Deadline) -> LeaseRecord:
        for _ in range(_TRIES - 1):
            try:
                return held.keeper.renew(held.token, ttl_s=self._ttl_s, deadline=deadline)
            except _LOST:
                continue
        return held.keeper.renew(held.token, ttl_s=self._ttl_s, deadline=deadline)

    def announce_restart(self) -> None:
        """Say that the host restarts for us: the lease is carried over it. Raises LeaseError."""
        held = self._mine()
        held.keeper.announce_restart(
            held.token, ttl_s=self._ttl_s, deadline=Deadline.after(_CALL_S)
        )

    def restarted(self, boot: BootIdentity) -> None:
        """Take note of the boot that runs now, and take up the lease in it. Raises LeaseError.

        Where the restart was nobody's, the work that it broke off is taken up again.
        """
        if self._held is not None:
            try:
                self.keep(boot)
            except LeaseError:
                self._held = None
                self._file.unlink(missing_ok=True)
            else:
                return
        self._take()

    def release(self, unfinished: str = "") -> None:
        """Put updates back and give the lease back; `unfinished` leaves the host dirty, saying why.

        Nothing happens where it is not held. A lease that was lost is no error: the host's record
        says what became of it. Raises RemoteError, and may then be repeated.
        """
        held = self._held
        if held is None:
            return
        deadline = Deadline.after(_CALL_S)
        try:
            # Another holder's pause is not ours to end.
            held.keeper.renew(held.token, ttl_s=self._ttl_s, deadline=deadline)
            self._unpause(held, deadline)
            held.keeper.release(held.token, dirty=unfinished, deadline=deadline)
        except LeaseError:
            pass
        self._held = None
        self._file.unlink(missing_ok=True)
        self._local.release()

    def abandon(self) -> None:
        """Let go here and leave the host's record alone: what a dying controller does."""
        self._held = None
        self._local.release()

    def _keeper(self, boot: BootIdentity) -> LeaseKeeper:
        return LeaseKeeper(HostScripts(self._winrm, self._python), self._root, boot)

    def _mine(self) -> _Held:
        if self._held is None:
            raise LeaseError("it is not held", host=self._winrm.host)
        return self._held

    def _pause(self, record: LeaseRecord, deadline: Deadline) -> None:
        held = self._mine()
        if record.updates is None:
            found = read_pause(self._winrm, deadline=deadline)
            record = held.keeper.remember(held.token, found, deadline=deadline)
        held.former = dict(record.updates or {})
        # From before the request on: the pause must not outlast the lease.
        seconds = held.renewed + self._ttl_s - time.monotonic()
        # A Windows without these settings: updates are its owner's affair.
        with contextlib.suppress(RemoteCommandError):
            pause_updates(self._winrm, held.former, seconds=seconds, deadline=deadline)
        held.paused_until = held.renewed + self._ttl_s

    def _unpause(self, held: _Held, deadline: Deadline) -> None:
        with contextlib.suppress(RemoteCommandError):
            restore_updates(self._winrm, held.former, deadline=deadline)
        held.keeper.remember(held.token, None, deadline=deadline)

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            self.release()
            return
        try:
            self.release(f"{self._purpose} broke off: {error}")
        except RemoteError:
            self.abandon()  # the error under way says more; the lease runs out with its time
