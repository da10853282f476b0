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
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from harness.winrmd.cmdline import split_argv
from harness.winrmd.host import BadPathError, PretendHost
from harness.winrmd.hoststate import Task

HAS_NOT_RUN: Final = 0x41303
RUNNING: Final = 0x41301
TERMINATED: Final = 0x41306
FILE_NOT_FOUND: Final = 0x80070002
_NAMESPACE: Final = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
_SYSTEM: Final = frozenset({"s-1-5-18", "system", "nt authority\\system", "localsystem"})
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


class TaskScheduler:
    """Registers, starts and ends the tasks of one host. From any thread.

    `programs` maps a program's name without `.exe` to the argv that runs in its place.
    """

    def __init__(self, host: PretendHost, programs: Mapping[str, tuple[str, ...]]) -> None:
        self._host = host
        self._programs = {name.lower(): argv for name, argv in programs.items()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()
        host.lives_here(self)

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
            process = self._processes.get(task_key(task.name, task.path))
            if process is not None and process.poll() is None:
                return "Running"
        return "Ready" if task.enabled else "Disabled"

    def start(self, name: str, path: str = "\\") -> None:
        """Run a task; one that runs already is left alone (IgnoreNew).

        Raises TaskError for a task that is missing or disabled. A program that is missing is no
        error here: as on Windows its code becomes the task's last result.
        """
        key = task_key(name, path)
        task = self.find(name, path)
        if task is None:
            raise TaskError("The system cannot find the file specified.", FILE_NOT_FOUND)
        if not task.enabled:
            raise TaskError("The task is disabled.", 0x80041326)
        with self._lock:
            if self.status(task) == "Running":
                return
            try:
                process = self._spawn(task)
            except (OSError, BadPathError) as error:
                self._host.log(
                    "Microsoft-Windows-TaskScheduler/Operational",
                    "Microsoft-Windows-TaskScheduler",
                    event_id=203,
                    level=2,
                    message=f"Task Scheduler failed to launch {task.command}: {error}",
                )
                self._note(key, FILE_NOT_FOUND)
                return
            self._processes[key] = process
        self._note(key, RUNNING)
        threading.Thread(
            target=self._wait, args=(key, process), name=f"task {name}", daemon=True
        ).start()

    def end(self, name: str, path: str = "\\") -> None:
        """Stop a task's processes. Raises TaskError for a task that is missing."""
        if self.find(name, path) is None:
            raise TaskError("The system cannot find the file specified.", FILE_NOT_FOUND)
        with self._lock:
            process = self._processes.pop(task_key(name, path), None)
        if process is not None:
            _kill(process)
            self._note(task_key(name, path), TERMINATED)

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
            ending, self._processes = self._processes, {}
        for key, process in ending.items():
            running = process.poll() is None
            _kill(process)
            if running:
                self._note(key, TERMINATED)

    def _spawn(self, task: Task) -> subprocess.Popen[bytes]:
        directory = self._host.local_path(task.directory or "C:\\")
        return subprocess.Popen(
            [*self._program(task.command), *self._arguments(task.arguments)],
            cwd=directory,
            env=self._environment(task),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _program(self, command: str) -> tuple[str, ...]:
        name = command.replace("\\", "/").rpartition("/")[2].lower().removesuffix(".exe")
        try:
            local = self._host.local_path(command)
        except BadPathError:
            local = Path()
        if local.is_file() and not _is_windows_image(local):
            return (str(local),)
        in_windows = command.lower().startswith("c:\\windows\\") or "\\" not in command
        if name in self._programs and (in_windows or local.is_file()):
            return self._programs[name]
        raise FileNotFoundError(command)

    def _arguments(self, text: str) -> list[str]:
        """Return what the local program is given: paths of the host become local ones."""
        return [self._host.paths.translate(each) for each in split_argv("- " + text)[1:]]

    def _environment(self, task: Task) -> dict[str, str]:
        name = self._host.read().computer_name
        system = task.user == "SYSTEM"
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "COMPUTERNAME": name,
            "USERDOMAIN": "WORKGROUP" if system else name,
            "USERNAME": f"{name}$" if system else task.user.rpartition("\\")[2],
            "SYSTEMROOT": "C:\\Windows",
            "SYSTEMDRIVE": "C:",
            "TEMP": str(self._host.local_path("C:\\Windows\\Temp")),
            "LCOWLAB_PRETEND_HOST": str(self._host.root),
        }

    def _wait(self, key: str, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with self._lock:
            if self._processes.get(key) is not process:
                return  # ended by us: its result is written already
            del self._processes[key]
        self._note(key, code & 0xFFFFFFFF)

    def _note(self, key: str, result: int) -> None:
        with self._host.change() as state:
            task = state.tasks.get(key)
            if task is not None:
                task.last_result = result
                if result == RUNNING:
                    task.last_run = datetime.datetime.now(datetime.UTC)


def _is_windows_image(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"MZ"


def _kill(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        process.kill()
    else:
        # The task's own session: what it started goes with it, as with a job object.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.poll()
    process.wait(_PATIENCE_S)


def _malformed(why: str) -> TaskError:
    return TaskError(f"The task XML is malformed. {why}", 0x8004131A)
