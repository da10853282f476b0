"""Maintenance windows of a host: when nobody may take it.

Written `sun 02:00-04:00`, `mon-fri 22:00-06:00` or `daily 03:00-03:30`, in the controller's local
time; a window whose end is not after its start ends on the next day.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Final, Self

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW: Final = re.compile(
    r"(?P<first>[a-z]+)(?:-(?P<last>[a-z]+))?\s+(?P<start>\d{2}:\d{2})-(?P<end>\d{2}:\d{2})"
)


@dataclass(frozen=True, slots=True)
class MaintenanceWindow:
    """Days of the week on which it starts (0 is Monday), start and end of it."""

    days: frozenset[int]
    start: datetime.time
    end: datetime.time

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the window that `text` describes. Raises ValueError saying how it is written."""
        match = _WINDOW.fullmatch(text.strip().lower())
        if match is None:
            raise ValueError(f"{text!r} is no maintenance window: write 'sun 02:00-04:00'")
        try:
            start = datetime.time.fromisoformat(match["start"])
            end = datetime.time.fromisoformat(match["end"])
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from error
        if start == end:
            raise ValueError(f"{text!r} starts and ends at the same time")
        return cls(_days(match["first"], match["last"], text), start, end)

    def contains(self, moment: datetime.datetime) -> bool:
        """Return whether a local time lies in the window; its end does not."""
        time = moment.time()
        today = moment.weekday() in self.days
        if self.start < self.end:
            return today and self.start <= time < self.end
        yesterday = (moment.weekday() - 1) % 7 in self.days
        return (today and time >= self.start) or (yesterday and time < self.end)


def _days(first: str, last: str | None, text: str) -> frozenset[int]:
    if first == "daily" and last is None:
        return frozenset(range(7))
    names = [first] if last is None else [first, last]
    for name in names:
        if name not in _DAYS:
            raise ValueError(f"{text!r}: {name} is no day; days are {', '.join(_DAYS)} and daily")
    begin, end = _DAYS.index(first), _DAYS.index(last or first)
    return frozenset((begin + offset) % 7 for offset in range((end - begin) % 7 + 1))
