"""Provisioning ends with a utility VM, made and taken down as the identity of the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ProvisionError
from harness.exportedimage import export_image
from harness.hosts.agentstep import Agent
from harness.hosts.facts import probe_host
from harness.hosts.journal import Journal
from harness.hosts.outcome import Outcome
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.provision import Provisioner
from harness.hosts.smokestep import Smoke
from harness.hosts.steps import Look, Options, State
from harness.hosts.systemsteps import Root
from harness.image.build import ensure_image
from harness.image.demo import ensure_demo_image
from harness.image.rootdisk import ensure_root_disk
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from tests.harness.hosts.pretend import Pretend, pretend_host

ROOT = ProtectedRoot("C:\\ProgramData\\lcowlab")
SYSTEM = "WORKGROUP\\WINRMD$"


def provisioner(winrm: WinRM, backend: str) -> Provisioner:
    options = Options(ROOT, port=1, smoke=backend)
    return Provisioner(winrm, options, steps=(Root(), Agent(), Smoke()))


def look(winrm: WinRM, backend: str) -> Look:
    deadline = Deadline.after(60)
    options = Options(ROOT, port=1, smoke=backend)
    return Look(winrm, probe_host(winrm, deadline=deadline), options, deadline)


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

        for name in ("packages", "user", "python", "system"):
            other = {**evidence, "key": {**evidence["key"], name: "another"}}
            evidence_file(pretend).write_text(json.dumps(other), "utf-8")
            assessment = Smoke().assess(look(winrm, "model"))
            assert assessment.state is State.CHANGE, name
            assert SYSTEM in assessment.detail
            assert assessment.proof


def test_a_managed_account_takes_over_and_proves_the_host_anew(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        provisioner(winrm, "off").apply()
        options = Options(ROOT, port=1, smoke="model", agent_user="LAB\\gmsa-hv$")
        managed = Provisioner(winrm, options, steps=(Root(), Agent(), Smoke()))
        outcome = managed.apply()
        assert r"ran as LAB\gmsa-hv$ (backend model" in proof(outcome)
        assert len(outcome.ran) == 2
        task = pretend.host.read().tasks["\\lcowlab\\agent"]
        assert task.user == "LAB\\gmsa-hv$"
        assert "<LogonType>Password</LogonType>" in task.xml
        assert not managed.apply().changed


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


@pytest.mark.qemu
def test_the_image_that_was_pushed_is_the_one_that_is_proved(tmp_path: Path) -> None:
    image = ensure_image()
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        outcome = provisioner(winrm, "off").apply()
        assert outcome.proofs == {}
        pushed = pretend.host.local_path(ROOT.inside("bundle", "image"))
        export_image(image, ensure_root_disk(image), ensure_demo_image(), pushed)
        assert f"ran as {SYSTEM} (backend qemu" in proof(provisioner(winrm, "qemu").apply())
        evidence = json.loads(evidence_file(pretend).read_bytes())
        assert evidence["key"]["image"] == evidence["environment"]["image"] == image.key
        assert not provisioner(winrm, "qemu").apply().changed
        listed = json.loads((pushed / "image.json").read_text("utf-8"))
        (pushed / "image.json").write_text(json.dumps({**listed, "key": "another"}), "utf-8")
        (*_, planned) = provisioner(winrm, "qemu").plan()
        assert planned.assessment.state is State.CHANGE
