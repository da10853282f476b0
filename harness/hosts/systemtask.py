"""Scheduled tasks that run as SYSTEM: what WinRM starts itself ends with its shell, and in a job.

Source: [MS-TSCH] 2.5 (task definition).
"""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

FOLDER: Final = "\\lcowlab\\"
SYSTEM: Final = "S-1-5-18"


def system_task(
    command: str,
    arguments: str,
    *,
    directory: str = "",
    at_boot: bool = False,
    user: str = SYSTEM,
) -> str:
    """Return a task: highest privileges, one instance, no time limit.

    It starts with the host where `at_boot` is set, and is started again when it fails then. `user`
    is SYSTEM, or a group managed service account: that one logs on with the password that the
    domain keeps for it, and none is given here.
    """
    logon = "" if user == SYSTEM else "<LogonType>Password</LogonType>"
    trigger = "<BootTrigger><Enabled>true</Enabled></BootTrigger>" if at_boot else ""
    again = (
        "<RestartOnFailure><Interval>PT1M</Interval><Count>10</Count></RestartOnFailure>"
        if at_boot
        else ""
    )
    place = f"<WorkingDirectory>{escape(directory)}</WorkingDirectory>" if directory else ""
    return f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <Triggers>{trigger}</Triggers>
  <Principals><Principal id="Author">
    <UserId>{escape(user)}</UserId>{logon}<RunLevel>HighestAvailable</RunLevel>
  </Principal></Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <AllowHardTerminate>true</AllowHardTerminate>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Enabled>true</Enabled>
    {again}
  </Settings>
  <Actions Context="Author"><Exec>
    <Command>{escape(command)}</Command>
    <Arguments>{escape(arguments)}</Arguments>
    {place}
  </Exec></Actions>
</Task>
"""
