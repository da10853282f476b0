"""Each step says what it finds, and the one command that changes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.hosts.facts import probe_host
from harness.hosts.settingsteps import CrashDumps, Defender, EventLogs, Firewall, PowerPlan
from harness.hosts.steps import GIB, Assessment, Look, Options, State, Step
from harness.hosts.systemsteps import BitLocker, Features, HypervisorLaunch, Preflight
from harness.remote.deadline import Deadline
from harness.winrmd.hoststate import HostState
from tests.harness.hosts.pretend import Pretend, pretend_host
from tests.harness.hosts.test_provision import ROOT

Change = Callable[[HostState], None]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pretend]:
    with pretend_host(tmp_path_factory.mktemp("steps") / "host") as pretend:
        yield pretend


@pytest.fixture
def host(shared: Pretend) -> Iterator[Pretend]:
    """The module's host, afterwards as it was."""
    before = shared.host.read()
    yield shared
    with shared.host.change() as state:
        for name in before.__dataclass_fields__:
            setattr(state, name, getattr(before, name))


def assess(host: Pretend, step: Step, *, source: str = "") -> Assessment:
    deadline = Deadline.after(60)
    with host.connect() as winrm:
        facts = probe_host(winrm, deadline=deadline)
        options = Options(ROOT, port=5986, feature_source=source)
        return step.assess(Look(winrm, facts, options, deadline))


def texts(assessment: Assessment) -> list[str]:
    return [action.text for action in assessment.actions]


def old(state: HostState) -> None:
    state.build, state.version = 14393, "10.0.14393"


def small(state: HostState) -> None:
    state.memory = 4 * GIB


def full(state: HostState) -> None:
    state.disks[0].free = 1 * GIB


def locked(state: HostState) -> None:
    state.obstacles.code_integrity = 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (old, "build 14393 is older than 17763"),
        (small, "4 GiB of memory"),
        (full, "1 GiB free on C:"),
        (locked, "code-integrity policy is enforced"),
    ],
)
def test_what_no_command_can_mend_blocks_with_its_reason(
    host: Pretend, change: Change, said: str
) -> None:
    assert assess(host, Preflight()).state is State.FINE
    with host.host.change() as state:
        change(state)
    found = assess(host, Preflight())
    assert (found.state, said in found.detail, found.actions) == (State.BLOCKED, True, ())


def test_a_volume_that_may_ask_for_a_key_at_boot_is_told_and_left_alone(host: Pretend) -> None:
    assert assess(host, BitLocker()).state is State.FINE
    with host.host.change() as state:
        state.disks[0].bitlocker, state.disks[0].protection = "FullyEncrypted", "On"
    found = assess(host, BitLocker())
    assert (found.state, found.actions) == (State.NOTE, ())
    assert "must not ask for a PIN" in found.detail


def test_a_removed_feature_needs_a_source_and_asks_nowhere_else(host: Pretend) -> None:
    with host.host.change() as state:
        state.features["Containers"].state = "DisabledWithPayloadRemoved"
    found = assess(host, Features())
    assert (found.state, "--feature-source" in found.detail) == (State.BLOCKED, True)
    given = assess(host, Features(), source="D:\\sources\\sxs")
    assert given.state is State.CHANGE
    (text,) = texts(given)
    assert "-Source 'D:\\sources\\sxs'" in text
    assert "-LimitAccess" in text


def test_a_hypervisor_that_is_switched_off_at_boot_is_switched_on(host: Pretend) -> None:
    with host.host.change() as state:
        state.hypervisor_launch = "Off"
    found = assess(host, HypervisorLaunch())
    assert texts(found) == ["bcdedit /set {current} hypervisorlaunchtype auto"]
    with host.host.change() as state:
        state.hypervisor_launch = "Auto"
    assert assess(host, HypervisorLaunch()).state is State.RESTART
    with host.host.change() as state:
        state.hypervisor_present = True
    assert assess(host, HypervisorLaunch()).state is State.FINE


@pytest.mark.parametrize("step", [Firewall(), Defender(), PowerPlan(), CrashDumps(), EventLogs()])
def test_a_setting_is_changed_once_by_the_commands_that_were_told(
    host: Pretend, step: Step
) -> None:
    found = assess(host, step)
    assert found.state is State.CHANGE
    assert texts(found)
    with host.connect() as winrm:
        for action in found.actions:
            action.run(winrm, deadline=Deadline.after(30))
    assert assess(host, step).state is State.FINE


def test_another_scanner_than_defender_is_told(host: Pretend) -> None:
    with host.host.change() as state:
        state.defender.installed = False
    found = assess(host, Defender())
    assert (found.state, found.actions) == (State.NOTE, ())
