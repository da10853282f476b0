"""Provisioning ends with a utility VM, made and taken down as the identity of the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ProvisionError
from harness.hosts.agentstep import Agent
from harness.hosts.journal import Journal
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.provision import Outcome, Provisioner
from harness.hosts.smokestep import Smoke
from harness.hosts.steps import Options, State
from harness.hosts.systemsteps import Root
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from tests.harness.hosts.pretend import Pretend, pretend_host

ROOT = ProtectedRoot("C:\\ProgramData\\lcowlab")
SYSTEM = "WORKGROUP\\WINRMD$"


def provisioner(winrm: WinRM, backend: str) -> Provisioner:
    options = Options(ROOT, port=1, smoke=backend)
    return Provisioner(winrm, options, steps=(Root(), Agent(), Smoke()))


def evidence_file(pretend: Pretend) -> Path:
    return pretend.host.local_path(ROOT.inside("journal", "smoke.json"))


def proof(outcome: Outcome) -> str:
    assert outcome.ran[-1].endswith("with a disk, and take it down")
    return outcome.proofs["smoke"]


def test_the_agents_user_makes_a_utility_vm_once_and_the_evidence_stays(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        planned = {each.step: each.assessment for each in provisioner(winrm, "model").plan()}
        assert planned["smoke"].state is State.CHANGE
        first = provisioner(winrm, "model").apply()
        assert f"ran as {SYSTEM} (backend model" in proof(first)
        again = provisioner(winrm, "model").apply()
        assert (again.ran, again.proofs, again.changed) == ([], {}, False)
        (entry,) = [
            each
            for each in Journal(ROOT, "provision").read(winrm, deadline=Deadline.after(20))
            if each.event == "smoke"
        ]
        evidence: dict[str, Any] = json.loads(evidence_file(pretend).read_bytes())
        assert entry.details["evidence"] == evidence
        assert (evidence["user"], evidence["backend"]) == (SYSTEM, "model")
        left = list(pretend.host.local_path(ROOT.inside("lab")).iterdir())
        assert left == []


def test_evidence_for_other_packages_or_another_user_proves_nothing(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        provisioner(winrm, "model").apply()
        file = evidence_file(pretend)
        for name in ("packages", "user", "python", "system"):
            evidence = json.loads(file.read_bytes())
            evidence["key"][name] = "another"
            file.write_text(json.dumps(evidence), "utf-8")
            (*_, planned) = provisioner(winrm, "model").plan()
            assert planned.assessment.state is State.CHANGE, name
            assert SYSTEM in planned.assessment.detail
        assert not provisioner(winrm, "model").apply().changed  # a proof is no change


def test_a_utility_vm_that_does_not_run_blocks_with_its_reason(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        with pytest.raises(ProvisionError, match=r"no utility VM.*backend none.*choose one of"):
            provisioner(winrm, "none").apply()
        entries = Journal(ROOT, "provision").read(winrm, deadline=Deadline.after(20))
        assert any("choose one of" in str(each.details.get("failed")) for each in entries)
        assert not evidence_file(pretend).exists()


@pytest.mark.qemu
def test_the_utility_vm_of_a_pretend_host_is_a_real_one(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        assert f"ran as {SYSTEM} (backend qemu" in proof(provisioner(winrm, "qemu").apply())
        evidence = json.loads(evidence_file(pretend).read_bytes())
        assert evidence["environment"]["kernel"]
