"""The host fetches the file from us over HTTPS: its Python, one authority, one random path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from harness.errors import ConnectionLostError
from harness.remote.deadline import Deadline
from harness.remote.hostpython import python_argv
from harness.remote.pullserver import offer_file
from harness.remote.retries import Attempt, Attempts
from harness.remote.streams import talking
from harness.remote.transport import Transport
from harness.remote.ways import Closed, Delivery, Errand, WayName

_TIMEOUT_S: Final = 10.0
_PULLS: Final = 5


@dataclass(frozen=True, slots=True)
class Pull:
    """A `Way`; `address` is the IP address of ours that the host can reach, if it can."""

    transport: Transport
    python: str
    root: str
    address: str
    attempts: Attempts
    name: WayName = "pull"

    def carry(self, errand: Errand) -> Delivery | Closed:
        """See `Way.carry`: a transfer that broke off after it had begun is taken up again."""
        with contextlib.ExitStack() as stack:
            try:
                offer = stack.enter_context(offer_file(errand.source, address=self.address))
            except OSError as error:
                return Closed(f"{self.address} is no address of ours: {error}")
            parameters = {
                "address": offer.address,
                "port": offer.port,
                "path": offer.path,
                "ca": offer.authority_pem,
                "part": errand.whole,
                "size": errand.size,
                "timeout_s": _TIMEOUT_S,
            }
            first: int | None = None
            have = 0
            reason = "nothing was asked for"
            for _ in range(_PULLS):
                before = have
                for report in self._follow(parameters, errand.deadline):
                    reason = str(report.get("error", reason))
                    if "have" not in report:
                        continue
                    have = int(report["have"])
                    if first is None:
                        first = before = have
                    if errand.progress is not None:
                        errand.progress(have, errand.size)
                if first is not None and have == errand.size:
                    return Delivery((errand.whole,), errand.size, errand.size - first)
                if have == before:
                    break  # not a byte came: there is no way from there to us
        return Closed(f"the host does not reach {self.address}: {reason}")

    def _follow(self, parameters: dict[str, Any], deadline: Deadline) -> Iterator[dict[str, Any]]:
        """Yield the reports of the script as they come; a lost connection ends them."""
        argv = python_argv(self.python, {"root": self.root})
        try:
            with (
                self.transport.open_shell(deadline=deadline) as shell,
                talking(self.transport, shell, argv, deadline) as talk,
            ):
                talk.begin("pull", parameters)
                talk.end_input()
                yield from talk.reports()
        except ConnectionLostError as error:
            self.attempts.record(Attempt(f"{self.transport.host}: pull", 1, error, wait_s=None))
