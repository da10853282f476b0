"""Scheduled tasks: their XML, real processes, and what a restart leaves of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.winrmd.cmdlets import Machine
from harness.winrmd.tasks import FILE_NOT_FOUND, HAS_NOT_RUN, TERMINATED, TaskError, parse_task

XML = """<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <Triggers>{triggers}</Triggers>
  <Principals><Principal id="Author"><UserId>S-1-5-18</UserId></Principal></Principals>
  <Settings><Enabled>{enabled}</Enabled></Settings>
  <Actions Context="Author"><Exec><Command>{command}</Command>
    <Arguments>{arguments}</Arguments><WorkingDirectory>C:\\Windows\\Temp</WorkingDirectory>
  </Exec></Actions>
</Task>"""


def xml(
    command: str = "python.exe",
    arguments: str = "",
    *,
    triggers: str = "",
    enabled: str = "true",
) -> str:
    return XML.format(command=command, arguments=arguments, triggers=triggers, enabled=enabled)


def register(machine: Machine, text: str, name: str = "job") -> None:
    machine.tasks.register(parse_task(name, "\\", text), replace=True)


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def ended(machine: Machine, name: str = "job") -> int:
    def over() -> bool:
        task = machine.tasks.find(name)
        assert task is not None
        return machine.tasks.status(task) != "Running"

    wait(over)
    task = machine.tasks.find(name)
    assert task is not None
    return task.last_result


def script(machine: Machine, text: str) -> str:
    (machine.host.root / "job.py").write_text(text)
    return 'C:\\job.py "C:\\Windows\\Temp\\out file.json"'


def test_a_task_runs_a_real_process_as_system(machine: Machine) -> None:
    arguments = script(
        machine,
        "import json, os, sys\n"
        "json.dump([os.environ['USERNAME'], os.getcwd()], open(sys.argv[1], 'w'))\n"
        "sys.exit(7)\n",
    )
    register(machine, xml(arguments=arguments))
    task = machine.tasks.find("JOB")
    assert task is not None
    assert (task.user, task.last_result) == ("SYSTEM", HAS_NOT_RUN)
    machine.tasks.start("job")
    assert ended(machine) == 7
    temp = machine.host.root / "Windows" / "Temp"
    name, folder = json.loads((temp / "out file.json").read_text())
    assert (name, Path(folder)) == ("WINRMD$", temp)


def test_a_running_task_is_started_once_and_can_be_ended(machine: Machine) -> None:
    arguments = script(
        machine, "import sys, time\nopen(sys.argv[1], 'a').write('x')\ntime.sleep(60)\n"
    )
    register(machine, xml(arguments=arguments))
    out = machine.host.root / "Windows" / "Temp" / "out file.json"
    machine.tasks.start("job")
    wait(lambda: out.exists() and out.read_text() != "")
    machine.tasks.start("job")
    machine.tasks.end("job")
    assert ended(machine) == TERMINATED
    assert out.read_text() == "x"


def test_a_restart_ends_tasks_and_starts_those_with_a_boot_trigger(machine: Machine) -> None:
    arguments = script(
        machine, "import sys, time\nopen(sys.argv[1], 'a').write('x')\ntime.sleep(60)\n"
    )
    out = machine.host.root / "Windows" / "Temp" / "out file.json"
    register(machine, xml(arguments=arguments), "plain")
    register(machine, xml(arguments=arguments, triggers="<BootTrigger/>"), "at boot")
    machine.tasks.start("plain")
    wait(lambda: out.exists() and out.read_text() == "x")
    machine.host.restart(after_s=0)
    wait(lambda: out.read_text() == "xx")
    plain, at_boot = machine.tasks.find("plain"), machine.tasks.find("at boot")
    assert plain is not None
    assert at_boot is not None
    assert plain.last_result == TERMINATED
    assert machine.tasks.status(plain) == "Ready"
    assert machine.tasks.status(at_boot) == "Running"


def test_a_task_can_be_a_line_of_cmd_exe(machine: Machine) -> None:
    line = "/c echo one&gt; C:\\a.txt &amp; echo two&gt;&gt; C:\\a.txt &amp; exit 3"
    register(machine, xml("C:\\Windows\\System32\\cmd.exe", line))
    machine.tasks.start("job")
    assert ended(machine) == 3
    assert (machine.host.root / "a.txt").read_bytes().split() == [b"one", b"two"]


def test_a_missing_program_is_the_result_and_an_event(machine: Machine) -> None:
    register(machine, xml("C:\\lab\\nothing.exe"))
    machine.tasks.start("job")
    assert ended(machine) == FILE_NOT_FOUND
    (event,) = machine.host.read().events
    assert (event.id, event.level) == (203, 2)
    assert "C:\\lab\\nothing.exe" in event.message


def test_a_disabled_task_does_not_start(machine: Machine) -> None:
    register(machine, xml(enabled="false"))
    with pytest.raises(TaskError, match="disabled"):
        machine.tasks.start("job")


def test_a_policy_may_forbid_tasks(machine: Machine) -> None:
    with machine.host.change() as state:
        state.obstacles.tasks_denied = True
    with pytest.raises(TaskError, match="Access is denied") as denied:
        register(machine, xml())
    assert denied.value.hresult == 0x80070005


def test_a_task_is_replaced_only_when_asked(machine: Machine) -> None:
    register(machine, xml())
    with pytest.raises(TaskError) as exists:
        machine.tasks.register(parse_task("JOB", "\\", xml("cmd.exe")), replace=False)
    assert exists.value.hresult == 0x800700B7
    register(machine, xml("cmd.exe"))
    task = machine.tasks.find("job")
    assert task is not None
    assert task.command == "cmd.exe"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<Task/>",
        "<!DOCTYPE Task [<!ENTITY a 'b'>]>" + xml().partition("?>")[2],
        xml().replace("S-1-5-18", ""),
        xml(command=""),
        xml().replace("<Actions", "<Nothing").replace("</Actions", "</Nothing"),
    ],
)
def test_a_definition_that_cannot_run_is_malformed(text: str) -> None:
    with pytest.raises(TaskError) as malformed:
        parse_task("job", "\\", text)
    assert malformed.value.hresult == 0x8004131A
