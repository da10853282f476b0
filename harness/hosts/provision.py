"""Provisioning: look at every step, run what it asks for, look again; restart where it is needed.

::

    pass:  facts ─► step by step: fine │ change ─► verify root ─► journal ─► run ─► verify │ restart
                                                                                      │
    another pass  ◄── another boot, three sessions alike ◄── journal ◄── restart ◄────┘
    done:  a pass in which nothing was lacking

Nothing is remembered but the host itself: a controller that died is followed by one that looks.
The journal says what was run, and by whom; `restart` lines hold the boot that was left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from harness.errors import (
    ConnectionLostError,
    ProvisionError,
    RemoteCommandError,
    RemoteError,
    RemoteTimeoutError,
    ShellGoneError,
)
from harness.hosts.agentstep import Agent
from harness.hosts.facts import probe_host
from harness.hosts.journal import Journal
from harness.hosts.restarts import RestartPatience, restart_host
from harness.hosts.settingsteps import (
    CrashDumps,
    Defender,
    EventLogs,
    Firewall,
    PowerPlan,
    Quotas,
    UpdatePause,
)
from harness.hosts.smokestep import Smoke
from harness.hosts.steps import Assessment, Look, Options, State, Step
from harness.hosts.systemsteps import (
    BitLocker,
    Features,
    HypervisorLaunch,
    PendingRestart,
    Preflight,
    Python,
    Root,
)
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM

T = TypeVar("T")

_PASSES: Final = 6
_LOOK_S: Final = 300.0
_STEP_S: Final = 1800.0
_TRIES: Final = 3
# After these nobody knows what ran: the step looks again and does what is lacking.
_UNKNOWN: Final = (ConnectionLostError, RemoteTimeoutError, ShellGoneError)


@dataclass(frozen=True, slots=True)
class Planned:
    """One step as it was found."""

    step: str
    assessment: Assessment

    def document(self) -> dict[str, object]:
        """Return it as JSON values."""
        return {
            "step": self.step,
            "state": self.assessment.state.value,
            "detail": self.assessment.detail,
            "commands": [action.text for action in self.assessment.actions],
        }


@dataclass(slots=True)
class Outcome:
    """What an apply did: texts of the commands that ran, in order, and its restarts.

    `proofs` says by step what commands showed that change nothing.
    """

    ran: list[str] = field(default_factory=list)
    restarts: int = 0
    notes: dict[str, str] = field(default_factory=dict)
    proofs: dict[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether anything was changed."""
        return len(self.ran) > len(self.proofs) or self.restarts > 0


def standard_steps() -> tuple[Step, ...]:
    """Return the steps in the order in which they are taken."""
    return (
        Preflight(),
        BitLocker(),
        PendingRestart(),
        Root(),
        Quotas(),
        Firewall(),
        Defender(),
        PowerPlan(),
        UpdatePause(),
        Features(),
        HypervisorLaunch(),
        CrashDumps(),
        EventLogs(),
        Python(),
        Agent(),
        Smoke(),
    )


class Provisioner:
    """Brings one host to what `options` say."""

    def __init__(
        self,
        winrm: WinRM,
        options: Options,
        *,
        steps: Sequence[Step] | None = None,
        patience: RestartPatience | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._winrm = winrm
        self._options = options
        self._steps = tuple(steps) if steps is not None else standard_steps()
        self._patience = patience or RestartPatience()
        self._report = report or _silent
        self._journal = Journal(options.root, "provision")

    def plan(self) -> tuple[Planned, ...]:
        """Return what each step finds and would run now; nothing is changed. Raises RemoteError.

        What only shows after a restart (the hypervisor, say) is planned as it looks before.
        """
        look = self._look()
        return tuple(Planned(step.name, step.assess(look)) for step in self._steps)

    def apply(self) -> Outcome:
        """Do what is lacking, with the restarts it takes, until nothing is.

        Raises ProvisionError for what blocks, or did not hold; UnprotectedRootError; RemoteError.
        Whatever was done before stays, and the next apply goes on from there.
        """
        outcome = Outcome()
        for _ in range(_PASSES):
            before = len(outcome.ran)
            waiting = self._pass(outcome)
            if waiting:
                self._restart(outcome, waiting)
            elif len(outcome.ran) == before:
                return outcome
        raise ProvisionError(
            f"after {_PASSES} passes there is still something to do: {outcome.ran[-1:]}",
            host=self._winrm.host,
        )

    def _look(self) -> Look:
        deadline = Deadline.after(_LOOK_S)
        facts = self._steadily(lambda: probe_host(self._winrm, deadline=deadline))
        return Look(self._winrm, facts, self._options, Deadline.after(_STEP_S))

    def _pass(self, outcome: Outcome) -> tuple[str, ...]:
        """Take every step once; return why a restart is needed."""
        look = self._look()
        waiting: list[str] = []
        for step in self._steps:
            found = self._steadily(lambda step=step: step.assess(look))  # type: ignore[misc]
            if found.state is State.BLOCKED:
                raise ProvisionError(f"{step.name}: {found.detail}", host=self._winrm.host)
            if found.state is State.NOTE:
                outcome.notes[step.name] = found.detail
            if found.state is State.RESTART:
                waiting.append(f"{step.name}: {found.detail}")
                if step.name == "pending-restart":
                    break  # nothing is put on top of what Windows has not finished
            if found.proof and waiting:
                continue
            if found.state is State.CHANGE:
                self._report(f"{step.name}: {found.detail}")
                after = self._change(step, found, look, outcome)
                if found.proof:
                    outcome.proofs[step.name] = after.detail
                if after.state is State.RESTART or found.in_force_after_restart:
                    waiting.append(f"{step.name}: {after.detail}")
        return tuple(waiting)

    def _change(self, step: Step, found: Assessment, look: Look, outcome: Outcome) -> Assessment:
        """Run what a step asks for and return how it looks then; again where an answer was lost."""
        for attempt in range(_TRIES):
            refused: RemoteError | None = None
            try:
                self._run(step, found, look, outcome)
            except (*_UNKNOWN, RemoteCommandError) as error:
                # A refusal may be that of a second try whose first was carried out.
                self._report(f"{step.name}: {error}; looking again")
                if attempt == _TRIES - 1:
                    raise
                refused = error
            after = self._steadily(lambda: step.assess(look))
            if after.state is State.BLOCKED:
                raise ProvisionError(f"{step.name}: {after.detail}", host=self._winrm.host)
            if isinstance(refused, RemoteCommandError) and after.actions == found.actions:
                raise ProvisionError(f"{step.name}: {refused}", host=self._winrm.host) from refused
            if after.state is not State.CHANGE:
                return after
            if found.in_force_after_restart and refused is None:
                return after
            found = after
        raise ProvisionError(
            f"{step.name} did not hold: {after.detail} after {found.actions[-1].text}",
            host=self._winrm.host,
        )

    def _run(self, step: Step, found: Assessment, look: Look, outcome: Outcome) -> None:
        if step.elevated:
            self._steadily(lambda: self._options.root.verify(self._winrm, deadline=look.deadline))
            self._note("change", step.name, {"commands": [each.text for each in found.actions]})
        for action in found.actions:
            action.run(self._winrm, deadline=look.deadline)
            outcome.ran.append(action.text)
        if step.elevated:
            self._note("changed", step.name, {})

    def _note(self, event: str, step: str, details: dict[str, object]) -> None:
        self._journal.append(
            self._winrm,
            event,
            {"step": step, "user": self._winrm.endpoint.user, **details},
            deadline=Deadline.after(_LOOK_S),
        )

    def _restart(self, outcome: Outcome, waiting: tuple[str, ...]) -> None:
        self._report(f"restart: {'; '.join(waiting)}")
        look = self._look()
        before = look.facts.boot
        if not self._options.root.read(self._winrm, deadline=look.deadline).wrong:
            details: dict[str, object] = {"why": list(waiting), "boot": before.model_dump()}
            self._note("restart", "restart", details)
        after = restart_host(self._winrm, before, self._patience)
        outcome.restarts += 1
        self._report(f"back in boot {after.boot_id} since {after.began}")

    def _steadily(self, read: Callable[[], T]) -> T:
        """Return what a reading returns; a reading may always be made again."""
        for _ in range(_TRIES - 1):
            try:
                return read()
            except _UNKNOWN as error:
                self._report(f"{error}; reading again")
        return read()


def _silent(_line: str) -> None:
    pass
