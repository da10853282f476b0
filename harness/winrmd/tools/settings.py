"""`powercfg`, `bcdedit`, `wevtutil`, `secedit`: settings that no cmdlet of ours reaches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from harness.winrmd.cimclasses import POWER_SCHEMES
from harness.winrmd.cmdlets import Machine
from harness.winrmd.host import BadPathError
from harness.winrmd.hoststate import HostState
from harness.winrmd.tools.console import Answer, switches, value_after

_ALIASES: Final = {
    "scheme_balanced": POWER_SCHEMES["Balanced"],
    "scheme_min": POWER_SCHEMES["High performance"],  # least power saved
    "scheme_max": POWER_SCHEMES["Power saver"],
}
_TIMEOUT: Final = re.compile(r"(monitor|disk|standby|hibernate)-timeout-(ac|dc)")
_CHANNEL_NOT_FOUND: Final = 15007
_DONE: Final = "The operation completed successfully.\n"
_TASK_DONE: Final = (
    "\nThe task has completed successfully.\n"
    "See log %windir%\\security\\logs\\scesrv.log for detail info.\n"
)
_RIGHT: Final = re.compile(r"\s*(Se\w+)\s*=\s*(.*?)\s*")


def powercfg(machine: Machine, arguments: Sequence[str]) -> Answer:
    """Run `powercfg /getactivescheme | /list | /setactive ID | /change NAME N | /hibernate off`."""
    given = switches(arguments)
    names = {scheme: name for name, scheme in POWER_SCHEMES.items()}
    active = machine.host.read().power_scheme

    def line(scheme: str) -> str:
        return f"Power Scheme GUID: {scheme}  ({names[scheme]})"

    match given:
        case ["/getactivescheme"]:
            return Answer(out=line(active) + "\n")
        case ["/list" | "/l"]:
            rows = [line(each) + (" *" if each == active else "") for each in names]
            return Answer(out="\nExisting Power Schemes (* Active)\n" + "\n".join(rows) + "\n")
        case ["/setactive" | "/s", wanted]:
            scheme = _ALIASES.get(wanted.lower(), wanted.lower().strip("{}"))
            if scheme not in names:
                return Answer(
                    1,
                    err="The power scheme, subgroup or setting specified does not exist.\n",
                )
            with machine.host.change() as state:
                state.power_scheme = scheme
            return Answer()
        case ["/change" | "/x", name, minutes] if (
            _TIMEOUT.fullmatch(name.lower()) and minutes.isdigit()
        ):
            with machine.host.change() as state:
                state.power_settings[name.lower()] = minutes
            return Answer()
        case ["/hibernate" | "/h", "on" | "off" as value]:
            with machine.host.change() as state:
                state.power_settings["hibernate"] = value
            return Answer()
        case _:
            return Answer(1, err='Invalid Parameters -- try "/?" for help\n')


def bcdedit(machine: Machine, arguments: Sequence[str]) -> Answer:
    """Run `bcdedit /enum [ID]` or `bcdedit /set [ID] hypervisorlaunchtype auto|off`."""
    words = [each for each in switches(arguments) if each not in ("{current}", "{default}")]
    match [each.lower() for each in words]:
        case [] | ["/enum"]:
            launch = machine.host.read().hypervisor_launch
            return Answer(
                out="\nWindows Boot Loader\n-------------------\n"
                "identifier              {current}\n"
                "device                  partition=C:\n"
                "path                    \\Windows\\system32\\winload.efi\n"
                "description             Windows Server\n"
                "osdevice                partition=C:\n"
                "systemroot              \\Windows\n"
                f"hypervisorlaunchtype    {launch}\n"
            )
        case ["/set", "hypervisorlaunchtype", "auto" | "off" as wanted]:
            with machine.host.change() as state:
                state.hypervisor_launch = "Auto" if wanted == "auto" else "Off"
            return Answer(out=_DONE)
        case _:
            return Answer(1, err="The parameter is incorrect.\nRun bcdedit /? for usage.\n")


def wevtutil(machine: Machine, arguments: Sequence[str]) -> Answer:
    """Run `wevtutil gl LOG` or `wevtutil sl LOG /ms:BYTES [/e:true]`."""
    if len(arguments) < 2:
        return Answer(87, err="Too few arguments. The parameter is incorrect.\n")
    verb, name = arguments[0].lower(), arguments[1]
    known = {each.lower(): each for each in machine.host.read().event_log_sizes}
    if name.lower() not in known:
        return Answer(
            _CHANNEL_NOT_FOUND,
            err=f"Failed to read configuration for log {name}.\n"
            "The specified channel could not be found.\n",
        )
    spelled = known[name.lower()]
    if verb in ("gl", "get-log"):
        size = machine.host.read().event_log_sizes[spelled]
        return Answer(
            out=f"name: {spelled}\nenabled: true\ntype: Admin\nlogging:\n  retention: false\n"
            f"  autoBackup: false\n  maxSize: {size}\n"
        )
    if verb in ("sl", "set-log"):
        sizes = [
            match[1]
            for each in switches(arguments[2:])
            if (match := re.fullmatch(r"/(?:ms|maxsize):(\d+)", each))
        ]
        if len(sizes) != 1 or int(sizes[0]) < 1 << 20:
            return Answer(87, err="The parameter is incorrect.\n")
        with machine.host.change() as state:
            # Windows rounds up to blocks of 64 KiB.
            state.event_log_sizes[spelled] = -(-int(sizes[0]) // 65536) * 65536
        return Answer()
    return Answer(87, err=f"Invalid option {arguments[0]}.\n")


def secedit(machine: Machine, arguments: Sequence[str]) -> Answer:
    """Run `secedit /export | /configure /cfg FILE /areas USER_RIGHTS` (/db is not looked at)."""
    file = value_after(arguments, "/cfg")
    if file is None:
        return Answer(1, err="\nInvalid syntax: /cfg is missing.\n")
    try:
        local = machine.host.local_path(file)
    except BadPathError:
        return Answer(1, err="\nThe system cannot find the path specified.\n")
    match switches(arguments)[0]:
        case "/export":
            try:
                local.write_bytes(_policy(machine.host.read()).encode("utf-16"))
            except OSError:
                return Answer(1, err="\nThe system cannot find the path specified.\n")
            return Answer(out=_TASK_DONE)
        case "/configure":
            try:
                text = local.read_bytes().decode("utf-16")
            except (OSError, UnicodeDecodeError):
                return Answer(1, err="\nThe system cannot find the file specified.\n")
            section = text.partition("[Privilege Rights]")[2].partition("\n[")[0]
            with machine.host.change() as state:
                for line in section.splitlines():
                    if match := _RIGHT.fullmatch(line):
                        trustees = [each.strip().lstrip("*") for each in match[2].split(",")]
                        state.user_rights[match[1]] = tuple(filter(None, trustees))
            return Answer(out=_TASK_DONE)
        case _:
            return Answer(1, err="\nInvalid syntax.\n")


def _policy(state: HostState) -> str:
    rights = [
        f"{name} = {','.join('*' + sid for sid in sids)}"
        for name, sids in sorted(state.user_rights.items())
    ]
    return "\r\n".join(
        [
            "[Unicode]",
            "Unicode=yes",
            "[Privilege Rights]",
            *rights,
            "[Version]",
            'signature="$CHICAGO$"',
            "Revision=1",
            "",
        ]
    )
