"""The ScheduledTasks module: register, look at, start and remove tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from harness.winrmd.cmdlets.binding import Bound, Cmdlet, CmdletError, Item, Output
from harness.winrmd.hoststate import Task
from harness.winrmd.tasks import TaskError, parse_task

_TYPE: Final = (
    "Microsoft.Management.Infrastructure.CimInstance#Root/Microsoft/Windows/TaskScheduler/"
)


def _refused(error: TaskError, command: str) -> CmdletError:
    return CmdletError(
        str(error),
        id=f"HRESULT {error.hresult:#010x},{command}",
        category="PermissionDenied" if error.hresult == 0x80070005 else "NotSpecified",
        reason="CimException",
        hresult=error.hresult,
    )


def _shown(call: Bound, task: Task) -> Item:
    return Item(
        f"{_TYPE}MSFT_ScheduledTask",
        {
            "TaskName": task.name,
            "TaskPath": task.path,
            "State": call.machine.tasks.status(task),
        },
    )


def _path(text: str) -> str:
    r"""Return `\` or `\folder\`, as the scheduler spells a folder."""
    inner = text.strip("\\")
    return f"\\{inner}\\" if inner else "\\"


def _found(call: Bound, name: str, path: str, command: str) -> Task:
    task = call.machine.tasks.find(name, _path(path))
    if task is None:
        raise CmdletError(
            f"No MSFT_ScheduledTask objects found with property 'TaskName' equal to '{name}'.  "
            "Verify the value of the property and retry.",
            id=f"CmdletizationQuery_NotFound_TaskName,{command}",
            category="ObjectNotFound",
            reason="CimJobException",
            target=name,
        )
    return task


def _register(call: Bound) -> Iterator[Output]:
    try:
        task = parse_task(
            call.text("TaskName"), _path(call.text("TaskPath")), call.text("Xml"), call.text("User")
        )
        call.machine.tasks.register(task, replace=call.switch("Force"))
    except TaskError as error:
        raise _refused(error, "Register-ScheduledTask") from error
    yield _shown(call, task)


def _get(call: Bound) -> Iterator[Output]:
    for name in call.texts("TaskName"):
        for path in call.texts("TaskPath"):
            yield _shown(call, _found(call, name, path, "Get-ScheduledTask"))


def _get_info(call: Bound) -> Iterator[Output]:
    task = _found(call, call.text("TaskName"), call.text("TaskPath"), "Get-ScheduledTaskInfo")
    yield Item(
        f"{_TYPE}MSFT_TaskDynamicInfo",
        {
            "TaskName": task.name,
            "TaskPath": task.path,
            "LastRunTime": task.last_run,
            "LastTaskResult": task.last_result,
        },
    )


def _start(call: Bound) -> Iterable[Output]:
    command = "Start-ScheduledTask"
    task = _found(call, call.text("TaskName"), call.text("TaskPath"), command)
    try:
        call.machine.tasks.start(task.name, task.path)
    except TaskError as error:
        raise _refused(error, command) from error
    return ()


def _unregister(call: Bound) -> Iterable[Output]:
    command = "Unregister-ScheduledTask"
    if call.switch("Confirm"):
        raise CmdletError(
            "Windows PowerShell is in NonInteractive mode. Read and Prompt functionality is not "
            "available.",
            id=f"System.Management.Automation.PSInvalidOperationException,{command}",
            category="InvalidOperation",
            reason="PSInvalidOperationException",
            terminating=True,
        )
    for name in call.texts("TaskName"):
        for path in call.texts("TaskPath"):
            task = _found(call, name, path, command)
            try:
                call.machine.tasks.unregister(task.name, task.path)
            except TaskError as error:
                raise _refused(error, command) from error
    return ()


CMDLETS: Final = (
    Cmdlet(
        "Register-ScheduledTask",
        _register,
        {"TaskName": "text", "TaskPath": "text", "Xml": "text"},
        {"User": "text", "Force": "switch"},
    ),
    Cmdlet("Get-ScheduledTask", _get, {"TaskName": "texts", "TaskPath": "texts"}),
    Cmdlet("Get-ScheduledTaskInfo", _get_info, {"TaskName": "text", "TaskPath": "text"}),
    Cmdlet("Start-ScheduledTask", _start, {"TaskName": "text", "TaskPath": "text"}),
    Cmdlet(
        "Unregister-ScheduledTask",
        _unregister,
        {"TaskName": "texts", "TaskPath": "texts", "Confirm": "switch"},
    ),
)
