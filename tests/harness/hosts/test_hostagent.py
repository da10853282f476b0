"""The agent runs as SYSTEM from the protected root, once for each request."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import RemoteCommandError, UnprotectedRootError
from harness.hosts.facts import read_boot
from harness.hosts.hostagent import HostAgent
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.restarts import RestartPatience, restart_host
from harness.remote.deadline import Deadline
from harness.winrmd.acl import Ace
from harness.winrmd.knobs import Strike, Trouble
from tests.harness.hosts.pretend import pretend_host

FAST = RestartPatience(timeout_s=30, sessions=2, interval_s=0.02, delay_s=0)
ROOT = ProtectedRoot("C:\\ProgramData\\lcowlab")


def test_the_agent_runs_programs_as_system_and_comes_back_after_a_restart(tmp_path: Path) -> None:
    deadline = Deadline.after(60)
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        agent = HostAgent(winrm, ROOT, "python")
        with pytest.raises(UnprotectedRootError):
            agent.install(deadline=deadline)
        assert pretend.host.read().tasks == {}
        state = ROOT.read(winrm, deadline=deadline)
        for action in ROOT.mend(state, host="win-01"):
            action.run(winrm, deadline=deadline)
        agent.install(deadline=deadline)
        assert agent.identity(deadline=deadline)["user"] == "WORKGROUP\\WINRMD$"
        assert pretend.host.read().tasks["\\lcowlab\\agent"].user == "SYSTEM"

        counter = tmp_path / "counter"
        argv = ("/bin/sh", "-c", f"cat; echo ran >> {counter}; exit 7")
        pretend.knobs.plan(Strike(Trouble.DROP_AFTER, "Command"))
        done = agent.run(argv, stdin=b"input", deadline=deadline)
        assert (done.exit_code, done.stdout) == (7, b"input")
        assert counter.read_text() == "ran\n"  # though the answer was lost
        with pytest.raises(RemoteCommandError, match="FileNotFoundError"):
            agent.run(("/no/such/program",), deadline=deadline)

        first = agent.identity(deadline=deadline)["pid"]
        agent.install(deadline=deadline)
        second = agent.identity(deadline=deadline)["pid"]
        restart_host(winrm, read_boot(winrm, deadline=deadline), FAST)
        assert len({first, second, agent.identity(deadline=deadline)["pid"]}) == 3

        with pretend.host.change() as changing:
            acl = changing.acls[ROOT.path.lower()]
            changing.acls[ROOT.path.lower()] = acl.granted(Ace("S-1-1-0", 0x1301BF))
        with pytest.raises(UnprotectedRootError):
            agent.install(deadline=deadline)
