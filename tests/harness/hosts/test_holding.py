"""Whoever works on a host holds it: nobody else does meanwhile, and updates wait as long."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.app import _code_for, app
from harness.cli.exit_codes import ExitCode
from harness.errors import LeaseError
from harness.hosts.facts import read_boot
from harness.hosts.holding import HostHold, owner_name
from harness.hosts.lease import HostState
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.restarts import RestartPatience, restart_host
from harness.hosts.updatepause import UPDATE_SETTINGS
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from harness.winrmd.knobs import Strike, Trouble
from tests.harness.hosts.pretend import CANARY, Pretend, pretend_host

ROOT = ProtectedRoot("C:\\ProgramData\\lcowlab")
FAST = RestartPatience(timeout_s=30, sessions=2, interval_s=0.02, delay_s=0)
TTL_S = 600.0


def make_root(winrm: WinRM) -> None:
    deadline = Deadline.after(30)
    for action in ROOT.mend(ROOT.read(winrm, deadline=deadline), host="win-01"):
        action.run(winrm, deadline=deadline)


def hold(winrm: WinRM, purpose: str = "provision") -> HostHold:
    return HostHold(winrm, ROOT, "python", purpose=purpose, ttl_s=TTL_S)


def settings(pretend: Pretend) -> dict[str, str]:
    return {
        name: str(value)
        for name, (_, value) in pretend.host.read().registry[UPDATE_SETTINGS].values.items()
    }


def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("LCOWLAB_CACHE", str(tmp_path / name))


def test_a_held_host_is_refused_to_others_with_the_holder_and_exit_code_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_WORD", CANARY)
    monkeypatch.setenv("HV_INVENTORY", str(tmp_path / "hv.toml"))
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        make_root(winrm)
        (tmp_path / "hv.toml").write_text(
            f'[hosts.win-01]\naddress = "127.0.0.1"\nport = {pretend.port}\nauth = "ntlm"\n'
            'tls = "off"\nuser = "lab"\npassword = { env = "LAB_WORD" }\n'
        )
        with hold(winrm, "run"):
            here = CliRunner().invoke(app, ["provision", "win-01"])
            assert isinstance(here.exception, LeaseError)
            assert "another lcowlab of this machine" in str(here.exception)
            another_machine(tmp_path, monkeypatch, "there")
            there = CliRunner().invoke(app, ["provision", "win-01"])
            assert isinstance(there.exception, LeaseError)
            assert f"busy: {owner_name()} has it" in str(there.exception)
            assert _code_for(there.exception) is ExitCode.LEASE
        assert pretend.host.read().features["Containers"].state == "Disabled"


def test_updates_pause_as_long_as_the_lease_and_are_then_as_before(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        make_root(winrm)
        with pretend.host.change() as state:
            state.registry[UPDATE_SETTINGS].values["PauseUpdatesStartTime"] = ("String", "owner's")
        before = settings(pretend)
        with hold(winrm) as held:
            paused = settings(pretend)
            held.keep()
            limit = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=TTL_S + 2)
        until = datetime.datetime.fromisoformat(paused["PauseUpdatesExpiryTime"])
        assert limit - datetime.timedelta(seconds=TTL_S) < until <= limit
        assert len(paused) == 6
        assert settings(pretend) == before


def test_a_longer_pause_of_the_owners_is_left_alone(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        make_root(winrm)
        with pretend.host.change() as state:
            values = state.registry[UPDATE_SETTINGS].values
            values["PauseUpdatesExpiryTime"] = ("String", "2999-01-01T00:00:00Z")
        with hold(winrm):
            assert settings(pretend) == {"PauseUpdatesExpiryTime": "2999-01-01T00:00:00Z"}


def test_a_dead_controllers_lease_goes_on_here_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        make_root(winrm)
        before = settings(pretend)
        first = hold(winrm)
        token = first.take().token
        first.abandon()
        here = tmp_path / "cache"
        another_machine(tmp_path, monkeypatch, "there")
        with pytest.raises(LeaseError, match="has it"):
            hold(winrm).take()
        monkeypatch.setenv("LCOWLAB_CACHE", str(here))
        second = hold(winrm)
        pretend.knobs.plan(Strike(Trouble.DROP_AFTER, "Command", times=2))
        assert second.take().token == token
        second.release()
        assert settings(pretend) == before  # what the dead one had found, not its own pause


def test_a_restart_that_is_announced_is_survived_and_another_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        make_root(winrm)
        soon = Deadline.after(60)
        held = hold(winrm)
        token = held.take().token
        held.announce_restart()
        boot = restart_host(winrm, read_boot(winrm, deadline=soon), FAST)
        held.restarted(boot)
        assert held.scripts.fence is not None
        assert held.scripts.fence.token == token
        boot = restart_host(winrm, boot, FAST)  # nobody said so
        with pytest.raises(LeaseError, match="restarted under"):
            held.keep()
        held.abandon()
        another_machine(tmp_path, monkeypatch, "there")
        with pytest.raises(LeaseError, match="dirty"):
            hold(winrm, "run").take()
        with hold(winrm) as again:  # the same work takes up what was left
            assert again.take is not None
            assert pretend.host.read().registry[UPDATE_SETTINGS].values


def test_a_script_behind_the_fence_does_nothing_once_the_lease_is_lost(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        make_root(winrm)
        held = hold(winrm)
        held.take()
        scripts = held.scripts
        soon = Deadline.after(30)
        paths = {"folder": ROOT.inside("bundle")}
        assert scripts.ask("compare", {"files": []}, paths, deadline=soon) == {"differing": []}
        held._keeper(read_boot(winrm, deadline=soon)).reset(deadline=soon)
        with pytest.raises(LeaseError, match="another holder: nobody"):
            scripts.ask("compare", {"files": []}, paths, deadline=soon)
        held.release()  # and ends no pause that may be another's by now
        record = held._keeper(read_boot(winrm, deadline=soon)).show(deadline=soon)
        assert record.state is HostState.FREE
        assert len(settings(pretend)) == 6
        with hold(winrm):
            pass
        assert settings(pretend) == {}


def test_work_that_breaks_off_leaves_the_host_dirty_with_the_reason(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        make_root(winrm)
        held = hold(winrm, "deploy")
        with pytest.raises(ValueError, match="broken"), held:
            raise ValueError("broken wheel")
        boot = read_boot(winrm, deadline=Deadline.after(30))
        record = held._keeper(boot).show(deadline=Deadline.after(30))
        assert (record.state, record.note) == (
            HostState.DIRTY,
            "deploy broke off: broken wheel",
        )
