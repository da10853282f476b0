"""`lab up --local`: real endpoints in processes of their own, and nothing of them left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.devlab.local import LocalLab
from harness.devlab.processes import ProcessIdentity, processes_of
from harness.errors import UsageError
from harness.hosts.inventory import Inventory
from harness.remote.deadline import Deadline
from harness.remote.endpoint import Endpoint
from harness.remote.passwords import fetch_password
from harness.remote.winrm import WinRM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pretend hosts need /proc")


_SLEEP = "import time; print('up', flush=True); time.sleep(600)"


class CommandLine:
    """`lcowlab lab`, as a user calls it, in a folder and cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.lab = LocalLab(self.cache / "devlab")

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from harness.cli import main; main()", "lab", *arguments],
            cwd=self.folder,
            env={**os.environ, "LCOWLAB_CACHE": str(self.cache), "TERM": "dumb"},
            capture_output=True,
            text=True,
        )

    def processes(self) -> list[ProcessIdentity]:
        """The processes of every host, found without the state that the lab wrote."""
        return [
            process
            for disk in self.lab.folder.glob("*/disk")
            for process in processes_of(disk.resolve())
        ]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[CommandLine]:
    command = CommandLine(tmp_path)
    yield command
    command.lab.down()


def _wait_until_gone(process: ProcessIdentity) -> None:
    deadline = time.monotonic() + 60
    while process.running:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_hosts_come_up_run_commands_and_go_down_without_a_trace(lab: CommandLine) -> None:
    up = lab("up", "--local", "2")
    assert up.returncode == 0, up.stderr
    inventory = lab.folder / "hv-inventory.toml"
    hosts = Inventory.load(inventory).hosts
    assert list(hosts) == ["local-1", "local-2"]
    assert len({host.port for host in hosts.values()}) == 2
    assert all(host.tls.startswith("pin:sha256:") for host in hosts.values())

    done = lab("ssh", "local-2", "cmd", "/c", "echo over WinRM& exit 5")
    assert (done.stdout.strip(), done.returncode) == ("over WinRM", 5), done.stderr
    # Ours is deployed there, and the QEMU of this machine is what boots its utility VMs.
    doctor = lab("ssh", "local-1", "lcowlab", "doctor", "--json")
    found = {each["what"]: each for each in json.loads(doctor.stdout)["findings"]}
    assert Path(found["qemu-system-x86_64"]["found"]).is_file() or found["accelerator"]["fix"]
    first = hosts["local-1"]
    assert first.password is not None
    password = fetch_password(first.password, host="local-1")
    endpoint = Endpoint("local-1", first.address, first.port, "ntlm", first.tls, "lab", password)
    with WinRM(endpoint) as host:
        answer = host.run(["cmd", "/c", "hostname"], deadline=Deadline.after(30))
        assert answer.text == "LOCAL-1"
        shell = host.open_shell(deadline=Deadline.after(30))
        running = shell.start(["python", "-c", _SLEEP], deadline=Deadline.after(30))
        assert running.read(deadline=Deadline.after(30)).stdout.strip() == b"up"
        with pytest.raises(UsageError, match="lcowlab lab down"):
            lab.lab.up(1, inventory=inventory)
        assert [each.state for each in lab.lab.status()] == ["running", "running"]

        before = lab.processes()
        endpoint_process, sleeper = sorted(
            processes_of((lab.lab.folder / "local-1/disk").resolve()), key=lambda each: each.started
        )
        # Killed as by the kernel: said so, and no obstacle to going down. What ran in it goes on.
        os.kill(endpoint_process.pid, signal.SIGKILL)
        _wait_until_gone(endpoint_process)
    assert sleeper.running
    assert len(before) == 3
    status = lab("status", "--json")
    states = sorted(host["state"] for host in json.loads(status.stdout)["hosts"])
    assert (states, status.returncode) == (["dead", "running"], 3)

    secrets = [path.read_text() for path in lab.lab.folder.glob("*/password")]
    assert len(set(secrets)) == 2
    shown = [inventory.read_text(), up.stdout, up.stderr, status.stdout]
    shown += [path.read_text() for path in lab.lab.folder.glob("*/log")]
    shown += [Path(f"/proc/{each.pid}/cmdline").read_text() for each in before if each.running]
    assert not [secret for secret in secrets for text in shown if secret in text]

    down = lab("down")
    assert down.returncode == 0, down.stderr
    assert not any(process.running for process in before)
    assert not inventory.exists()
    # What the doctor learned of this machine is this machine's.
    left = [path for path in lab.folder.rglob("*") if path.is_file()]
    assert [path for path in left if path.parent != lab.cache / "kvm"] == []


def test_a_damaged_state_file_does_not_keep_the_hosts_alive(lab: CommandLine) -> None:
    lab.lab.up(1, inventory=lab.folder / "inventory.toml")
    (process,) = lab.processes()
    (lab.lab.folder / "state.json").write_text("{")
    with pytest.raises(UsageError, match="lcowlab lab down"):
        lab.lab.status()
    lab.lab.down()
    assert not process.running
    assert not lab.lab.exists


def test_a_host_that_does_not_start_leaves_nothing(
    lab: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", str(lab.folder))  # no interpreter starts with that
    with pytest.raises(Exception, match="pretend host local-1 ended") as caught:
        lab.lab.up(2, inventory=lab.folder / "inventory.toml")
    assert "Python" in str(caught.value)
    assert not lab.lab.exists
    assert not (lab.folder / "inventory.toml").exists()


def test_an_inventory_written_by_hand_is_never_replaced(lab: CommandLine) -> None:
    mine = lab.folder / "hv-inventory.toml"
    mine.write_text('[hosts.a]\naddress = "a"\n')
    with pytest.raises(UsageError, match="--inventory"):
        lab.lab.up(1, inventory=mine)
    assert not lab.lab.exists
    assert mine.read_text().startswith("[hosts.a]")


def test_a_number_that_another_process_has_now_is_left_alone() -> None:
    mine = ProcessIdentity.of(os.getpid())
    assert mine is not None
    former = ProcessIdentity(mine.pid, mine.started - 1, mine.boot)
    assert not former.running
    former.end(patience_s=1)
    other_boot = ProcessIdentity(mine.pid, mine.started, "another")
    other_boot.end(patience_s=1)
    assert mine.running


def test_a_process_that_ignores_the_request_to_end_is_killed() -> None:
    script = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        identity = ProcessIdentity.of(child.pid)
        assert identity is not None
        identity.end(patience_s=0.2)
        assert not identity.running


@pytest.mark.parametrize("count", [0, -1, 65])
def test_a_number_of_hosts_out_of_range_is_refused(lab: CommandLine, count: int) -> None:
    with pytest.raises(UsageError, match="1 to 64"):
        lab.lab.up(count, inventory=lab.folder / "inventory.toml")
