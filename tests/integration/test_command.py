"""The `lcowlab` command as a user calls it: documents, files, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.lab import Lab

LCOWLAB = str(Path(sys.executable).parent / "lcowlab")


def _environment(cache: Path, **changes: str) -> dict[str, str]:
    return {**os.environ, "LCOWLAB_CACHE": str(cache), **changes}


@pytest.fixture
def cache(lab: Lab, tmp_path: Path) -> Path:
    """A cache of its own for labs and verdicts, with the images and templates of the lab."""
    lab.demo_image()
    lab.prepare_template()
    images = lab.image.initrd.parents[2]
    own = tmp_path / "cache"
    own.mkdir()
    (own / "images").symlink_to(images)
    (own / "templates").symlink_to(images.parent / "templates")
    return own


def _children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = entry.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid:
            child = int(entry.parent.name)
            found += [child, *_children_of(child)]
    return found


def _is_machine(pid: int) -> bool:
    """Whether it is a QEMU that runs a utility VM: probes start QEMU, too."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    # A question such as `qemu-system-x86_64 --version` is no utility VM: only those have a name.
    return b"qemu-system" in command[0] and b"-name" in command


def _wait_for_emulators(pid: int) -> list[int]:
    """Return the QEMU processes that a run has started."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := [child for child in _children_of(pid) if _is_machine(child)]:
            return found
        time.sleep(0.05)
    raise AssertionError("no utility VM was started")


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_run_gives_one_document_a_page_and_a_junit_file(cache: Path, tmp_path: Path) -> None:
    junit, report = tmp_path / "junit.xml", tmp_path / "report"
    command = [LCOWLAB, "run", "shared-scratch", "--json", "--junit", str(junit)]
    done = subprocess.run(
        [*command, "--report", str(report)],
        capture_output=True,
        text=True,
        timeout=150,
        env=_environment(cache),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "lcowlab.run/1"
    assert document["backend"] == "qemu"
    assert document["accelerator"] in ("tcg", "kvm")
    (scenario,) = document["scenarios"]
    assert (scenario["name"], scenario["outcome"]) == ("shared-scratch", "passed")
    assert scenario["reason"] is None
    assert scenario["facts"]["containers"] == 4
    assert document["leaks"] == []
    assert ET.parse(junit).getroot().find(".//testcase") is not None
    assert "shared-scratch" in (report / "index.html").read_text()
    assert list((cache / "labs").iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_exits_with_130_and_leaves_nothing(
    cache: Path, tmp_path: Path, how: signal.Signals
) -> None:
    process = subprocess.Popen(
        [LCOWLAB, "run", "shared-scratch", "--report", str(tmp_path / "report")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(cache),
    )
    emulators = _wait_for_emulators(process.pid)
    time.sleep(1.0)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert not any(_alive(pid) for pid in emulators)
    assert list((cache / "labs").iterdir()) == []


def test_a_killed_runs_lab_is_swept_by_the_next(cache: Path) -> None:
    process = subprocess.Popen(
        [LCOWLAB, "run", "shared-scratch"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_environment(cache),
        cwd=cache,
    )
    emulators = _wait_for_emulators(process.pid)
    process.kill()
    process.wait()
    assert len(list((cache / "labs").iterdir())) == 1
    deadline = time.monotonic() + 5
    while any(_alive(pid) for pid in emulators) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in emulators)
    done = subprocess.run(
        [LCOWLAB, "uvm", "exec", "--", "/bin/true"],
        timeout=100,
        capture_output=True,
        text=True,
        env=_environment(cache),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list((cache / "labs").iterdir()) == []


def test_a_command_in_a_utility_vm_relays_streams_and_exit_code(cache: Path) -> None:
    done = subprocess.run(
        [LCOWLAB, "uvm", "exec", "--", "/bin/sh", "-c", "echo out; echo err >&2; exit 9"],
        timeout=100,
        capture_output=True,
        text=True,
        env=_environment(cache),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")


def test_without_qemu_it_says_how_to_get_it_and_exits_with_3(tmp_path: Path) -> None:
    done = subprocess.run(
        [LCOWLAB, "run"],
        timeout=60,
        capture_output=True,
        text=True,
        env={**_environment(tmp_path), "PATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 3
    assert "qemu-system-x86_64 is not installed: apt install qemu-system-x86" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["run", "shared-scrach"], 2, "did you mean shared-scratch"),
        (["run", "--tag", "no-such-tag"], 4, "no scenario has that tag"),
        (["run", "--backend", "hcs"], 2, "backend hcs"),
        (["run", "--no-such-option"], 2, "No such option"),
        (["uvm", "build", "--kernel", "/bin/true"], 2, "go together"),
    ],
)
def test_a_wrong_call_is_one_clear_message_and_its_code(
    args: list[str], code: int, said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [LCOWLAB, *args],
        timeout=60,
        capture_output=True,
        text=True,
        env=_environment(tmp_path),
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_scenario_list_and_show_name_every_scenario() -> None:
    listed = subprocess.run(
        [LCOWLAB, "scenario", "list", "--json"], capture_output=True, timeout=60, check=True
    )
    names = [row["name"] for row in json.loads(listed.stdout)["scenarios"]]
    assert "shared-scratch" in names
    shown = subprocess.run(
        [LCOWLAB, "scenario", "show", names[0]], capture_output=True, timeout=60, check=True
    )
    assert names[0].encode() in shown.stdout


def test_doctor_says_what_is_here(cache: Path) -> None:
    done = subprocess.run(
        [LCOWLAB, "doctor", "--json"],
        capture_output=True,
        timeout=60,
        env=_environment(cache),
        check=False,
    )
    assert done.returncode == 0
    found = {row["what"]: row["found"] for row in json.loads(done.stdout)["findings"]}
    assert {"python", "qemu-system-x86_64", "accelerator", "utility VM image"} <= set(found)


def test_a_template_is_built_once_and_copied_by_what_comes_after(cache: Path) -> None:
    def call(*arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [LCOWLAB, "uvm", *arguments],
            timeout=100,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=_environment(cache),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    made = call("template", "--json")
    assert (made["schema"], made["memory"], made["built"]) == ("lcowlab.template/1", "file", False)
    assert Path(str(made["path"]), "state").is_file()
    copied = call("exec", "--json", "--", "/bin/true")
    assert (copied["from"], copied["exit_code"]) == ("template", 0)
    cold = call("exec", "--cold", "--json", "--", "/bin/true")
    assert cold["from"] == "cold"
    assert float(str(copied["ready_ms"])) < float(str(cold["ready_ms"])) / 2


def test_a_command_gets_standard_input_and_its_output_comes_as_it_is_made(cache: Path) -> None:
    command = "read first; echo got $first; read second; echo got $second; exit 3"
    process = subprocess.Popen(
        [LCOWLAB, "uvm", "exec", "--", "/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(cache),
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in ("one", "two"):
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"got {word}\n"
        process.stdin.close()
        assert process.wait(30) == 3


def test_what_qemu_cannot_honour_in_a_document_is_listed(tmp_path: Path) -> None:
    document = {
        "Owner": "test",
        "VirtualMachine": {
            "Chipset": {"LinuxKernelDirect": {"KernelFilePath": "/k", "KernelCmdLine": "quiet"}},
            "ComputeTopology": {"Memory": {"SizeInMB": 256}, "Processor": {"Count": 1}},
            "Devices": {
                "VirtualPMem": {"Devices": {"0": {"HostPath": "layer.vhd"}}},
                "HvSocket": {
                    "HvSocketConfig": {"ServiceTable": {"guid": {"AllowWildcardBinds": True}}}
                },
                "Newer": 1,
            },
        },
    }
    path = tmp_path / "document.json"
    path.write_text(json.dumps(document))

    def call(path: Path) -> tuple[int, dict[str, object]]:
        done = subprocess.run(
            [LCOWLAB, "uvm", "parity", str(path), "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, json.loads(done.stdout or "{}")

    code, found = call(path)
    assert (code, found["runs"], found["refusal"]) == (0, True, None)
    fields = found["fields"]
    assert isinstance(fields, list)
    named = {item["field"].removeprefix("VirtualMachine."): item["treatment"] for item in fields}
    assert named["Devices.VirtualPMem.Devices.0.HostPath"] == "ignored"
    assert named["Devices.Newer"] == "ignored"
    socket = "Devices.HvSocket.HvSocketConfig.ServiceTable.guid.AllowWildcardBinds"
    assert named[socket] == "different"
    del document["VirtualMachine"]["Chipset"]  # type: ignore[attr-defined]
    path.write_text(json.dumps(document))
    code, found = call(path)
    assert (code, found["runs"]) == (1, False)
    assert "LinuxKernelDirect" in str(found["refusal"])
    path.write_text("no json")
    assert call(path)[0] == 2


def test_a_machine_that_dies_in_the_middle_is_an_error_that_says_so(
    cache: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [LCOWLAB, "run", "shared-scratch", "--report", str(tmp_path / "report")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(cache),
    )
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if "attach, mount and start four containers" in line:
            for pid in _wait_for_emulators(process.pid):
                os.kill(pid, signal.SIGKILL)
            break
    rest, _ = process.communicate(timeout=60)
    output = "".join(lines) + rest
    assert process.returncode == 3, output
    assert "the utility VM died" in output
    assert list((cache / "labs").iterdir()) == []
