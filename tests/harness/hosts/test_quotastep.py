"""Quotas are raised and WinRM is restarted by a task, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.hosts.provision import Provisioner
from harness.hosts.quotastep import TASK, Quotas, _register
from harness.hosts.restarts import RestartPatience
from harness.hosts.steps import Options
from harness.hosts.systemsteps import Root
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from harness.winrmd.knobs import Strike, Trouble
from tests.harness.hosts.pretend import Pretend, pretend_host
from tests.harness.hosts.test_provision import ROOT

FAST = RestartPatience(timeout_s=30, sessions=2, interval_s=0.02, delay_s=0, lost_s=20)
SHELLS = "Shell\\MaxShellsPerUser"


def provisioner(pretend: Pretend, winrm: WinRM) -> Provisioner:
    options = Options(ROOT, port=pretend.port, least_python=(3, 11))
    return Provisioner(winrm, options, steps=(Root(), Quotas()), patience=FAST)


def assert_raised(pretend: Pretend) -> None:
    state = pretend.host.read()
    assert state.wsman_in_force == state.wsman
    assert state.wsman_in_force[SHELLS] == "100"
    assert TASK not in {task.name for task in state.tasks.values()}
    assert state.services["WinRM"].status == "Running"


def test_winrm_reads_its_quotas_at_a_restart_that_cuts_us_off(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        winrm.run(("hostname",), deadline=Deadline.after(20))
        shells = {shell.shell_id for shell in pretend.server.shells.listed()}
        assert shells
        boots = pretend.host.read().boots
        outcome = provisioner(pretend, winrm).apply()
        assert outcome.restarts == 0
        assert pretend.host.read().boots == boots
        assert pretend.server.quotas.max_shells_per_user == 100
        assert not shells & {shell.shell_id for shell in pretend.server.shells.listed()}
        assert_raised(pretend)
        assert not provisioner(pretend, winrm).apply().changed


def test_a_restart_that_is_still_due_is_made_up_for(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        Provisioner(winrm, Options(ROOT, port=1), steps=(Root(),)).apply()
        _register().run(winrm, deadline=Deadline.after(20))
        with pretend.host.change() as state:  # a controller died between its two halves
            for key, value in Options(ROOT, port=1).quotas.items():
                state.wsman[key] = str(value)
        pretend.host.start_winrm()
        outcome = provisioner(pretend, winrm).apply()
        assert [text.split()[:2] for text in outcome.ran] == [["run", "\\lcowlab\\restart-winrm"]]
        assert_raised(pretend)


def test_stopping_winrm_from_its_own_shell_leaves_it_stopped(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        line = "net stop WinRM & net start WinRM"
        with pytest.raises(Exception, match=r"connection|answer"):
            winrm.run(("cmd", "/d", "/c", line), deadline=Deadline.after(5))
        assert pretend.host.read().services["WinRM"].status == "Stopped"
        assert not pretend.server.listening


@pytest.mark.parametrize("nth", [58])
def test_answers_that_are_lost_change_nothing_about_it(tmp_path: Path, nth: int) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        Provisioner(winrm, Options(ROOT, port=1), steps=(Root(),)).apply()
        pretend.knobs.plan(Strike(Trouble.DROP_AFTER, nth=nth, times=2))
        provisioner(pretend, winrm).apply()
        assert_raised(pretend)
