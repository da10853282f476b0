"""The whole way on pretend hosts, and what it must leave behind, whatever happened on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.errors import InfrastructureError, LeaseError
from harness.hosts.bundle import Bundle
from harness.hosts.journal import Journal
from harness.hosts.lease import HostState as LeaseState
from harness.hosts.outcome import Outcome
from harness.hosts.protectedroot import ProtectedRoot, judge_sddl
from harness.hosts.provision import Provisioner
from harness.hosts.pythonlayout import PythonLayout
from harness.hosts.restarts import RestartPatience
from harness.hosts.steps import Options
from harness.hosts.updatepause import UPDATE_SETTINGS
from harness.remote.deadline import Deadline
from harness.winrmd.hoststate import UPDATE_REBOOT_REQUIRED, HostState, RegistryKey
from tests.harness.hosts.pretend import Pretend

ROOT: Final = ProtectedRoot("C:\\ProgramData\\lcowlab")
FAST: Final = RestartPatience(timeout_s=60, sessions=3, interval_s=0.02, delay_s=0, lost_s=30)
_APPLIES: Final = 6


def updates_wait(state: HostState) -> None:
    """A host that waits for a restart already: with that of Hyper-V there are two."""
    state.registry[UPDATE_REBOOT_REQUIRED] = RegistryKey()


@dataclass(frozen=True, slots=True)
class Supplies:
    """What every host gets."""

    bundle: Bundle
    layout: PythonLayout

    def options(self, pretend: Pretend) -> Options:
        return self.options_at(pretend.port)

    def options_at(self, port: int) -> Options:
        return Options(
            ROOT,
            port=port,
            layout=self.layout,
            bundle=self.bundle,
            least_python=(3, 11),
            smoke="model",
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """What it took: the outcome that ended well, and the errors of the applies before it."""

    outcome: Outcome
    errors: tuple[InfrastructureError, ...]


def apply_until_done(
    pretend: Pretend,
    supplies: Supplies,
    *,
    report: Callable[[str], None] = lambda _line: None,
) -> Applied:
    """Provision as somebody does who calls again after each typed error; any other is raised."""
    errors: list[InfrastructureError] = []
    for _ in range(_APPLIES):
        with pretend.connect() as winrm:
            try:
                outcome = Provisioner(
                    winrm, supplies.options(pretend), patience=FAST, report=report
                ).apply()
            except LeaseError:
                raise
            except InfrastructureError as error:
                errors.append(error)
            else:
                return Applied(outcome, tuple(errors))
    raise AssertionError(f"not done after {_APPLIES} applies: {errors[-1]}") from errors[-1]


def what_a_host_is(pretend: Pretend) -> dict[str, Any]:
    """All that provisioning decides: settings, files with their hashes, and nothing that moves."""
    state = pretend.host.read()
    root = pretend.host.local_path(ROOT.path)
    files = {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for part in ("bundle", "deploy", "python")
        for file in sorted((root / part).rglob("*"))
        if file.is_file()
        and "__pycache__" not in file.parts
        # These name the folder of this very host on this machine.
        and file.name != "current.json"
    }
    return {
        "features": {name: each.state for name, each in state.features.items()},
        "hypervisor": state.hypervisor_present,
        "quotas": state.wsman_in_force,
        "quotas set": state.wsman,
        "excluded": state.defender.exclusion_path,
        "power": state.power_scheme,
        "logs": state.event_log_sizes,
        "services": {name: each.status for name, each in state.services.items()},
        "tasks": sorted(each.path + each.name for each in state.tasks.values()),
        "firewall": sorted(name.rpartition("-")[0] for name in state.firewall),
        "registry": {
            key: each.values
            for key, each in state.registry.items()
            if "PrefetchParameters" not in key
        },
        "updates": state.registry[UPDATE_SETTINGS].values,
        "dacl": judge_sddl(pretend.host.acl(ROOT.path).sddl),
        "files": files,
        "temporary": sorted(
            file.name
            for file in (pretend.host.root / "Windows" / "Temp").iterdir()
            # A restart in the moment between export and removal leaves a list of user rights.
            if not file.name.startswith("lcowlab-rights-")
        ),
    }


def assert_journal_closed(pretend: Pretend) -> None:
    """Everything that was begun is known to have ended: nothing is half done."""
    with pretend.connect() as winrm:
        entries = Journal(ROOT, "provision").read(winrm, deadline=Deadline.after(30))
    began: set[str] = set()
    for entry in entries:
        step = str(entry.details["step"]) if "step" in entry.details else ""
        if entry.event == "change":
            began.add(step)
        elif entry.event in ("changed", "settled"):
            assert step in began, f"{step} ended without having begun"
            began.discard(step)
    assert not began
    assert {"python", "winrm-quotas", "features", "agent", "packages", "boot-files", "smoke"} <= {
        str(entry.details.get("step")) for entry in entries if entry.event == "change"
    }


def assert_free(pretend: Pretend) -> None:
    """The host is nobody's."""
    file = pretend.host.local_path(ROOT.inside("lease", "lease.json"))
    assert f'"state": "{LeaseState.FREE.value}"' in file.read_text("utf-8")


def open_supplies(bundle: Bundle, into: Path) -> Supplies:
    (python,) = bundle.part("python")
    return Supplies(bundle, PythonLayout.open(bundle.local(python), least=(3, 12), into=into))
