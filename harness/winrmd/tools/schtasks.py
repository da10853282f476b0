"""`schtasks`: the Task Scheduler from a command line."""

from __future__ import annotations

from collections.abc import Sequence

from harness.winrmd.cmdlets import Machine
from harness.winrmd.host import BadPathError
from harness.winrmd.tasks import TaskError, parse_task
from harness.winrmd.tools.console import Answer, switches, value_after


def schtasks(machine: Machine, arguments: Sequence[str]) -> Answer:
    """Run `schtasks /create /xml | /run | /end | /query | /delete`, each with /tn."""
    given = switches(arguments)
    name = value_after(arguments, "/tn")
    if name is None:
        return _error("Invalid syntax. Value expected for '/tn'.")
    folder, _, leaf = ("\\" + name.strip("\\")).rpartition("\\")
    path = folder + "\\"
    try:
        match given[0] if given else "":
            case "/create":
                return _create(machine, arguments, leaf, path)
            case "/run":
                machine.tasks.start(leaf, path)
                return _success(f'Attempted to run the scheduled task "{name}".')
            case "/end":
                machine.tasks.end(leaf, path)
                return _success(f'The scheduled task "{name}" has been terminated successfully.')
            case "/delete":
                if "/f" not in given:
                    return _error("The input is redirected: say /f to delete without asking.")
                machine.tasks.unregister(leaf, path)
                return _success(f'The scheduled task "{name}" was successfully deleted.')
            case "/query":
                return _query(machine, leaf, path, full="/v" in given)
    except TaskError as error:
        return _error(str(error))
    return _error(f"Invalid argument/option - '{arguments[0]}'.")


def _create(machine: Machine, arguments: Sequence[str], name: str, path: str) -> Answer:
    file = value_after(arguments, "/xml")
    if file is None:
        return _error("Invalid syntax. This host takes tasks as /xml FILE.")
    try:
        raw = machine.host.local_path(file).read_bytes()
    except (BadPathError, OSError):
        return _error("The system cannot find the file specified.")
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        return _error("The task XML is malformed.")
    task = parse_task(name, path, text, value_after(arguments, "/ru") or "")
    machine.tasks.register(task, replace="/f" in switches(arguments))
    return _success(
        f'The scheduled task "{(path + name).strip(chr(92))}" has successfully been created.'
    )


def _query(machine: Machine, name: str, path: str, *, full: bool) -> Answer:
    task = machine.tasks.find(name, path)
    if task is None:
        return _error("The system cannot find the file specified.")
    # Results are printed as signed 32-bit integers.
    result = task.last_result - (1 << 32) if task.last_result >= 1 << 31 else task.last_result
    rows = [
        ("HostName", machine.host.read().computer_name),
        ("TaskName", task.path + task.name),
        ("Next Run Time", "N/A"),
        ("Status", machine.tasks.status(task)),
    ]
    if full:
        rows += [
            ("Last Result", str(result)),
            ("Task To Run", f"{task.command} {task.arguments}".rstrip()),
            ("Run As User", task.user),
        ]
    width = 38 if full else 15
    lines = [f"{label + ':':<{width}}{value}" for label, value in rows]
    return Answer(out=f"\nFolder: {task.path}\n" + "\n".join(lines) + "\n")


def _success(text: str) -> Answer:
    return Answer(out=f"SUCCESS: {text}\n")


def _error(text: str) -> Answer:
    return Answer(1, err=f"ERROR: {text}\n")
