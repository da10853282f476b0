r"""Windows Update pauses while a host is leased, and not longer: it must not restart under a test.

::

    values of Settings ──► remembered with the lease ──► set until the lease's end ──► put back

What stood there before lies in the lease's own record: a controller that dies leaves a pause that
ends with its lease, and the next holder puts back what was there before either of them.
Source: the values that the Settings app writes (UX\Settings: Pause*StartTime, Pause*EndTime,
PauseUpdatesExpiryTime), ISO 8601 in UTC.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Final

from harness.hosts.facts import registry_values
from harness.remote.deadline import Deadline
from harness.remote.powershell import Command
from harness.remote.winrm import WinRM

UPDATE_SETTINGS: Final = r"HKLM:\SOFTWARE\Microsoft\WindowsUpdate\UX\Settings"
_STARTS: Final = (
    "PauseFeatureUpdatesStartTime",
    "PauseQualityUpdatesStartTime",
    "PauseUpdatesStartTime",
)
_ENDS: Final = (
    "PauseFeatureUpdatesEndTime",
    "PauseQualityUpdatesEndTime",
    "PauseUpdatesExpiryTime",
)


def read_pause(winrm: WinRM, *, deadline: Deadline) -> dict[str, object]:
    """Return what the host's owner has set, by name; values that are not there are left out."""
    values = registry_values(winrm, UPDATE_SETTINGS, deadline=deadline)
    return {name: str(values[name]) for name in (*_STARTS, *_ENDS) if values.get(name)}


def pause_updates(
    winrm: WinRM, former: Mapping[str, object], *, seconds: float, deadline: Deadline
) -> None:
    """Pause for so many seconds from the host's now; a longer pause of its owner's stays."""
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=winrm.clock_skew_s or 0)
    start, end = _zulu(now), _zulu(now + datetime.timedelta(seconds=seconds))
    if str(former.get("PauseUpdatesExpiryTime", "")) >= end:  # such texts sort as their times
        return
    for name in _STARTS:
        _set(winrm, name, start, deadline)
    for name in _ENDS:
        _set(winrm, name, end, deadline)


def restore_updates(winrm: WinRM, former: Mapping[str, object], *, deadline: Deadline) -> None:
    """Put back what was there before the pause; may be repeated."""
    there = read_pause(winrm, deadline=deadline)
    if added := tuple(name for name in there if name not in former):
        winrm.powershell(
            Command.build(
                "Remove-ItemProperty", {"LiteralPath": (UPDATE_SETTINGS,), "Name": added}
            ),
            deadline=deadline,
        )
    for name, value in former.items():
        if there.get(name) != value:
            _set(winrm, name, str(value), deadline)


def _set(winrm: WinRM, name: str, value: str, deadline: Deadline) -> None:
    winrm.powershell(
        Command.build(
            "Set-ItemProperty",
            {"LiteralPath": (UPDATE_SETTINGS,), "Name": name, "Value": value, "Type": "String"},
        ),
        deadline=deadline,
    )


def _zulu(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
