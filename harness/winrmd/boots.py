"""The boot identity of the pretend host: what a controller compares to know that it restarted."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot: a number that counts up, an identity, and when it began (UTC)."""

    number: int
    identity: uuid.UUID
    began: datetime.datetime

    @classmethod
    def first(cls) -> Self:
        """Return the boot of a host that was just switched on."""
        return cls(1, uuid.uuid4(), datetime.datetime.now(datetime.UTC))

    def next(self) -> Boot:
        """Return the boot after this one; never the same time, however fast it was."""
        now = datetime.datetime.now(datetime.UTC)
        # LastBootUpTime has microseconds: two boots within one are told apart all the same.
        later = max(now, self.began + datetime.timedelta(microseconds=1))
        return Boot(self.number + 1, uuid.uuid4(), later)
