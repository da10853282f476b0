"""A lease on a host: who may use it, kept on the host itself; see `onhost.lease` for its states."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import LeaseError
from harness.hosts.facts import BootIdentity
from harness.hosts.hostscripts import HostScripts
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline


class HostState(enum.Enum):
    """What a host is to those who want it."""

    FREE = "free"
    BUSY = "busy"
    DIRTY = "dirty"
    CLEANING = "cleaning"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What the host says of its lease; `token` rises with every holder.

    `purpose` is what the holder does; `updates` are settings to put back at the release, None
    where nothing was changed.
    """

    state: HostState
    token: int
    owner: str
    note: str
    draining: bool
    purpose: str
    updates: Mapping[str, object] | None


@dataclass(frozen=True, slots=True)
class LeaseKeeper:
    """The lease of one host, in one boot of it. Every call may be repeated; all raise RemoteError.

    A host that restarted since is seen by whoever reads the boot anew: make another keeper then.
    """

    scripts: HostScripts
    root: ProtectedRoot
    boot: BootIdentity

    def show(self, *, deadline: Deadline) -> LeaseRecord:
        """Return the lease as it is."""
        return self._ask("show", {}, deadline)

    @property
    def boot_name(self) -> str:
        """How the lease names the boot."""
        return self.boot.began if self.boot.boot_id is None else f"boot {self.boot.boot_id}"

    def acquire(
        self,
        owner: str,
        *,
        ttl_s: float,
        deadline: Deadline,
        purpose: str = "",
        resumes: str = "",
        nonce: str = "",
    ) -> LeaseRecord:
        """Take a free host. Raises LeaseError saying who has it or what is wrong with it.

        A dirty one is taken too if the work that left it so was `resumes`. The same `nonce` gets
        the same lease again.
        """
        return self._ask(
            "acquire",
            {
                "owner": owner,
                "ttl_s": ttl_s,
                "nonce": nonce or uuid.uuid4().hex,
                "purpose": purpose,
                "resumes": resumes or "-",
            },
            deadline,
        )

    def clean(self, owner: str, *, ttl_s: float, deadline: Deadline) -> LeaseRecord:
        """Take a dirty host in order to clean it; release it as clean or not. Raises LeaseError."""
        return self._ask(
            "clean", {"owner": owner, "ttl_s": ttl_s, "nonce": uuid.uuid4().hex}, deadline
        )

    def renew(self, token: int, *, ttl_s: float, deadline: Deadline) -> LeaseRecord:
        """Go on holding it. Raises LeaseError when it ran out or is another's."""
        return self._ask("renew", {"token": token, "ttl_s": ttl_s}, deadline)

    def announce_restart(self, token: int, *, ttl_s: float, deadline: Deadline) -> LeaseRecord:
        """Go on holding it over one restart, for `ttl_s` after it. Raises LeaseError."""
        return self._ask("restarting", {"token": token, "ttl_s": ttl_s}, deadline)

    def remember(
        self, token: int, updates: Mapping[str, object] | None, *, deadline: Deadline
    ) -> LeaseRecord:
        """Keep what is to be put back at the release, unless that is known; None: it was put back.

        Raises LeaseError.
        """
        return self._ask("remember", {"token": token, "updates": updates}, deadline)

    def release(self, token: int, *, dirty: str = "", deadline: Deadline) -> LeaseRecord:
        """Give it back; `dirty` says what was left behind. Raises LeaseError if it was lost."""
        return self._ask("release", {"token": token, "clean": not dirty, "note": dirty}, deadline)

    def drain(self, note: str = "", *, deadline: Deadline) -> LeaseRecord:
        """Let nobody take it any more; whoever has it keeps it until the release."""
        return self._ask("drain", {"note": note}, deadline)

    def reset(self, *, deadline: Deadline) -> LeaseRecord:
        """Declare it free, whatever it was; whoever held it finds the lease lost."""
        return self._ask("reset", {}, deadline)

    def _ask(
        self, operation: str, parameters: dict[str, object], deadline: Deadline
    ) -> LeaseRecord:
        values = self.scripts.ask(
            "lease",
            {"operation": operation, "boot": self.boot_name, **parameters},
            {"lease": self.root.inside("lease")},
            deadline=deadline,
        )
        if refused := values["refused"]:
            unclean = HostState(values["state"]) in (HostState.DIRTY, HostState.QUARANTINED)
            hint = "; look at it, then lcowlab hosts reset" if unclean else ""
            raise LeaseError(f"{refused}{hint}", host=self.scripts.transport.host)
        return LeaseRecord(
            HostState(values["state"]),
            int(values["token"]),
            str(values["owner"]),
            str(values["note"]),
            bool(values["draining"]),
            str(values["purpose"]),
            values["updates"],
        )
