"""Scheduled tasks of a pretend host: their XML, and the real local processes that they start.

::

    Ready ── start ──► Running ── exit ──► Ready (LastTaskResult = exit code)
      │                   └─ end, restart ─► Ready (LastTaskResult = 0x41306, terminated)
      └─ disabled in the XML ─► Disabled (refuses to start)

A task runs whoever registered it: the account is a record (`USERNAME`, as SYSTEM sees it, in the
environment). It outlives the shell that started it, as on Windows, and ends with the boot.
Source: [MS-TSCH] 2.5 (XML task definition), 2.3.14 (result codes).
"""

from __future__ import annotations

import datetime
import os
import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from harness.winrmd.cmdbuiltins import TOOLS
from harness.winrmd.cmdexe import CmdExe, HostSide
from harness.winrmd.environment import WindowsEnvironment
from harness.winrmd.host import PretendHost
from harness.winrmd.hoststate import Task
from harness.winrmd.processes import Descriptors, Job, JobEndedError
from harness.winrmd.programs import Program, ProgramTable

HAS_NOT_RUN: Final = 0x41303
RUNNING: Final = 0x41301
TERMINATED: Final = 0x41306
FILE_NOT_FOUND: Final = 0x80070002
_NAMESPACE: Final = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
_SYSTEM: Final = frozenset({"s-1-5-18", "system", "nt authority\\system", "localsystem"})
_COMMAND: Final = re.compile(r"\s*(?:/[a-bd-z]\S*\s+)*/c\s*", re.IGNORECASE)  # cmd.exe's /c
_PATIENCE_S: Final = 5.0


class TaskError(Exception):
    """What the Task Scheduler refuses, with its HRESULT (unsigned)."""

    def __init__(self, message: str, hresult: int) -> None:
        super().__init__(message)
        self.hresult = hresult


def parse_task(name: str, path: str, xml: str, user: str = "") -> Task:
    """Return the task that a definition describes. `user` replaces its principal's.

    Raises TaskError (SCHED_E_MALFORMEDXML, 0x8004131A) for what is no task with one Exec action.
    """
    if "<!DOCTYPE" in xml:
        raise _malformed("a document type")  # and with it every entity
    try:
        root = ET.fromstring(xml)  # noqa: S314
    except ET.ParseError as error:
        raise _malformed(str(error)) from error
    if root.tag != _NAMESPACE + "Task":
        raise _malformed(f"the root is {root.tag}")
    actions = root.find(f"{_NAMESPACE}Actions")
    runs = [] if actions is None else actions.findall(f"{_NAMESPACE}Exec")
    if len(runs) != 1 or not (command := runs[0].findtext(f"{_NAMESPACE}Command", "").strip()):
        raise _malformed("a pretend host runs tasks with one Exec action")
    principal = root.findtext(f"{_NAMESPACE}Principals/{_NAMESPACE}Principal/{_NAMESPACE}UserId")
    account = user or principal or ""
    if not account:
        raise _malformed("nobody is named to run it")
    enabled = root.findtext(f"{_NAMESPACE}Settings/{_NAMESPACE}Enabled", "true")
    return Task(
        name=name,
        path=path,
        xml=xml,
        user="SYSTEM" if account.lower() in _SYSTEM else account,
        command=command.strip('"'),
        arguments=runs[0].findtext(f"{_NAMESPACE}Arguments", ""),
        directory=runs[0].findtext(f"{_NAMESPACE}WorkingDirectory", ""),
        at_boot=root.find(f"{_NAMESPACE}Triggers/{_NAMESPACE}BootTrigger") is not None,
        enabled=enabled.strip().lower() != "false",
    )


def task_key(name: str, path: str = "\\") -> str:
    r"""Return what two spellings of one task have in common: `\folder\name`, lower case."""
    return ("\\" + f"{path}\\{name}".replace("\\\\", "\\").strip("\\")).lower()


@dataclass(slots=True)
class _Run:
    """One run of a task."""

    job: Job
    thread: threading.Thread | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class TaskScheduler:
    """Registers, starts and ends the tasks of one host. From any thread."""

    def __init__(self, host: PretendHost) -> None:
        self._host = host
        self._programs = ProgramTable({})
        self._runs: dict[str, _Run] = {}
        self._lock = threading.RLock()
        host.lives_here(self)

    def use_programs(self, programs: Mapping[str, Program]) -> None:
        """Let tasks run these beside files of the host; some of them work on this scheduler."""
        self._programs = ProgramTable(programs)

    def register(self, task: Task, *, replace: bool) -> None:
        """Keep a task. Raises TaskError for one that exists, or where a policy forbids it."""
        key = task_key(task.name, task.path)
        with self._host.change() as state:
            if state.obstacles.tasks_denied:
                raise TaskError("Access is denied.", 0x80070005)
            if key in state.tasks and not replace:
                raise TaskError("Cannot create a file when that file already exists.", 0x800700B7)
            state.tasks[key] = task

    def find(self, name: str, path: str = "\\") -> Task | None:
        """Return a task, or None."""
        return self._host.read().tasks.get(task_key(name, path))

    def status(self, task: Task) -> str:
        """Return Ready, Running or Disabled."""
        with self._lock:
            if task_key(task.name, task.path) in self._runs:
                return "Running"
        return "Ready" if task.enabled else "Disabled"

    def start(self, name: str, path: str = "\\") -> None:
        """Run a task; one that runs already is left alone (IgnoreNew).

        Raises TaskError for a task that is missing or disabled. A program that is missing is no
        error here: as on Windows its code becomes the task's last result.
        """
        key = task_key(name, path)
        with self._lock:
            task = self.find(name, path)
            if task is None:
                raise TaskError("The system cannot find the file specified.", FILE_NOT_FOUND)
            if not task.enabled:
                raise TaskError("The task is disabled.", 0x80041326)
            if key in self._runs:
                return
            run = self._runs[key] = _Run(Job())
            self._note(key, RUNNING)
            run.thread = threading.Thread(
                target=self._carry_out, args=(key, task, run), name=f"task {name}", daemon=True
            )
            run.thread.start()

    def end(self, name: str, path: str = "\\") -> None:
        """Stop a task and what it started. Raises TaskError for a task that is missing."""
        if self.find(name, path) is None:
            raise TaskError("The system cannot find the file specified.", FILE_NOT_FOUND)
        self._end([task_key(name, path)])

    def unregister(self, name: str, path: str = "\\") -> None:
        """Forget a task; what it started goes on. Raises TaskError for a task that is missing."""
        with self._host.change() as state:
            if state.tasks.pop(task_key(name, path), None) is None:
                raise TaskError("The system cannot find the file specified.", FILE_NOT_FOUND)

    def rebooted(self) -> None:
        """End all tasks, then start those with a boot trigger."""
        self.close()
        for task in self._host.read().tasks.values():
            if task.at_boot and task.enabled:
                self.start(task.name, task.path)

    def close(self) -> None:
        """End every process; may be called again."""
        with self._lock:
            keys = list(self._runs)
        self._end(keys)

    def _end(self, keys: list[str]) -> None:
        with self._lock:
            ending = [self._runs[key] for key in keys if key in self._runs]
        for run in ending:
            run.job.end()
        for run in ending:
            # A task may end itself (its program asks for it): it cannot wait for its own thread.
            if run.thread is not threading.current_thread():
                run.ended.wait(_PATIENCE_S)

    def _carry_out(self, key: str, task: Task, run: _Run) -> None:
        code = FILE_NOT_FOUND
        try:
            code = self._execute(task, run.job)
        finally:
            if run.job.ending.is_set():
                code = TERMINATED
            run.job.end()
            with self._lock:
                del self._runs[key]
                self._note(key, code)
            run.ended.set()

    def _execute(self, task: Task, job: Job) -> int:
        state = self._host.read()
        cmd = CmdExe(
            host=HostSide(
                paths=self._host.paths,
                programs=self._programs,
                machine=state.computer_name,
                user=task.user,
                code_page="utf-8",
                system_path=os.environ.get("PATH", os.defpath),
                shutdown=lambda after_s, kind: self._host.restart(after_s=after_s),
            ),
            environment=self._environment(task, state.computer_name),
            directory=self._host.paths.local(task.directory or "C:\\") or self._host.root,
            job=job,
        )
        line = f'"{task.command}" {task.arguments}'.rstrip()
        null = os.open(os.devnull, os.O_RDWR)
        try:
            io = Descriptors(null, null, null)
            tool = task.command.lower().rsplit("\\", 1)[-1].removesuffix(".exe")
            if tool == "cmd" and (match := _COMMAND.match(task.arguments)):
                return cmd.run_command_line(task.arguments[match.end() :], io)
            if tool in TOOLS:
                return cmd.run(line, io)
            program = cmd.find_program(line)
            if program is None:
                self._cannot_launch(task)
                return FILE_NOT_FOUND
            return cmd.run_program(program, line, io)
        except (JobEndedError, ChildProcessError):
            # The latter: the job was ended, and its process reaped, while we waited for it.
            return TERMINATED
        finally:
            os.close(null)

    def _cannot_launch(self, task: Task) -> None:
        self._host.log(
            "Microsoft-Windows-TaskScheduler/Operational",
            "Microsoft-Windows-TaskScheduler",
            event_id=203,
            level=2,
            message=f'Task Scheduler failed to launch action "{task.command}" in "{task.name}".',
        )

    def _environment(self, task: Task, computer: str) -> WindowsEnvironment:
        system = task.user == "SYSTEM"
        domain, _, name = task.user.rpartition("\\")
        return WindowsEnvironment(
            {
                "COMPUTERNAME": computer,
                "COMSPEC": "C:\\Windows\\system32\\cmd.exe",
                "LCOWLAB_PRETEND_HOST": str(self._host.root),
                "PATH": "C:\\Windows\\system32;C:\\Windows",
                "SystemDrive": "C:",
                "SystemRoot": "C:\\Windows",
                "TEMP": "C:\\Windows\\Temp",
                "USERDOMAIN": "WORKGROUP" if system else domain or computer,
                "USERNAME": f"{computer}$" if system else name,
            }
        )

    def _note(self, key: str, result: int) -> None:
        with self._host.change() as state:
            task = state.tasks.get(key)
            if task is not None:
                task.last_result = result
                if result == RUNNING:
                    task.last_run = datetime.datetime.now(datetime.UTC)


def _malformed(why: str) -> TaskError:
    return TaskError(f"The task XML is malformed. {why}", 0x8004131A)
