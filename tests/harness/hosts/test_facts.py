"""A probe reads what a host is, and the next one shows what drifted."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.hosts.facts import FactsCache, drift, probe_host
from harness.remote.deadline import Deadline
from tests.harness.hosts.pretend import pretend_host


def test_a_probe_reads_a_host_and_the_next_shows_what_drifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCOWLAB_CACHE", str(tmp_path / "cache"))
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        first = probe_host(winrm, deadline=Deadline.after(20))
        assert (first.build, first.edition) == (20348, "ServerDatacenter")
        assert first.features["Microsoft-Hyper-V"] == "disabled"
        assert first.virtualization
        assert not first.hypervisor_present
        assert first.pending_restart == ()
        assert first.quotas["Winrs/MaxShellsPerUser"] == "30"
        assert first.language_mode == "ConstrainedLanguage"
        cache = FactsCache.open()
        assert cache.last("win-01") is None
        cache.keep("win-01", first)
        with pretend.host.change() as state:
            state.features["Containers"].state = "Enabled"
            state.disks[0].free -= 1 << 30
        second = probe_host(winrm, deadline=Deadline.after(20))
        before = cache.last("win-01")
        assert before == first
        assert [(each.what, each.before, each.after) for each in drift(before, second)] == [
            ("features.Containers", "disabled", "enabled")
        ]
