"""`net start | stop` and `sc query | start | stop`: services, WinRM's own among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from harness.winrmd.cmdlets import Machine
from harness.winrmd.hoststate import HostState, Service
from harness.winrmd.tools.console import Answer

_NOT_INSTALLED: Final = 1060
_ALREADY_RUNNING: Final = 1056
_NOT_ACTIVE: Final = 1062
_STATES: Final = {"Running": "4  RUNNING", "Stopped": "1  STOPPED"}


def net(machine: Machine, arguments: Sequence[str]) -> Answer:
    """Run `net start NAME` or `net stop NAME`; every other `net` has no use here."""
    match [each.lower() for each in arguments[:2]]:
        case ["start" | "stop" as verb, name]:
            wanted: Literal["Running", "Stopped"] = "Running" if verb == "start" else "Stopped"
            found, code = _turn(machine, name, wanted)
            if code == _NOT_INSTALLED:
                return Answer(2, err="The service name is invalid.\n\nMore help is available.\n")
            title = found.display_name or name
            if code == _ALREADY_RUNNING:
                return Answer(2, err="The requested service has already been started.\n")
            if code == _NOT_ACTIVE:
                return Answer(2, err=f"The {title} service is not started.\n")
            done = "started" if verb == "start" else "stopped"
            return Answer(out=f"The {title} service was {done} successfully.\n\n")
        case _:
            return Answer(1, err="The syntax of this command is:\n\nNET [ START | STOP ] NAME\n")


def sc(machine: Machine, arguments: Sequence[str]) -> Answer:
    """Run `sc query NAME`, `sc start NAME` or `sc stop NAME`."""
    match [each.lower() for each in arguments[:2]]:
        case ["query", name]:
            service = _find(machine.host.read(), name)
            if service is None:
                return _failed("EnumQueryServicesStatus:OpenService", _NOT_INSTALLED)
            return Answer(
                out=f"\nSERVICE_NAME: {name}\n        STATE              : "
                f"{_STATES[service.status]}\n"
            )
        case ["start" | "stop" as verb, name]:
            _, code = _turn(machine, name, "Running" if verb == "start" else "Stopped")
            if code:
                return _failed("StartService" if verb == "start" else "ControlService", code)
            return Answer(out=f"\nSERVICE_NAME: {name}\n")
        case _:
            return Answer(1639, err="ERROR:  Unrecognized command\n")


def _find(state: HostState, name: str) -> Service | None:
    for each, service in state.services.items():
        needed = state.features.get(service.with_feature)
        there = not service.with_feature or (needed is not None and needed.state == "Enabled")
        if each.lower() == name.lower() and there:
            return service
    return None


def _turn(
    machine: Machine, name: str, wanted: Literal["Running", "Stopped"]
) -> tuple[Service, int]:
    """Return the service and 0, or the Win32 error of why it did not turn.

    Stopping WinRM ends every shell, that of who stops it too: only a task comes to start it again.
    """
    with machine.host.change() as state:
        service = _find(state, name)
        if service is None:
            return Service("Stopped", "Disabled"), _NOT_INSTALLED
        if service.status == wanted:
            return service, _ALREADY_RUNNING if wanted == "Running" else _NOT_ACTIVE
        service.status = wanted
    if name.lower() == "winrm":
        if wanted == "Running":
            machine.host.start_winrm()
        else:
            machine.host.stop_winrm()
    return service, 0


def _failed(what: str, code: int) -> Answer:
    texts = {
        _NOT_INSTALLED: "The specified service does not exist as an installed service.",
        _ALREADY_RUNNING: "An instance of the service is already running.",
        _NOT_ACTIVE: "The service has not been started.",
    }
    return Answer(code, out=f"[SC] {what} FAILED {code}:\n\n{texts[code]}\n\n")
