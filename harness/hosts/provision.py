"""Provisioning: look at every step, run what it asks for, look again; restart where it is needed.

::

    pass:  facts ─► step by step: fine │ change ─► root, lease ─► journal ─► run ─► look ─► journal
                                       │ restart
    another pass  ◄── another boot, three sessions alike ◄── journal ◄── restart ◄── end of a pass
    done:  a pass in which nothing was lacking

Nothing is remembered but the host itself: a controller that died is followed by one that looks.
From the moment on that the host has Python, it is leased. The journal says what was begun and what
came of it, and by whom: each `change` is followed by `changed`, or by `settled` where a later look
found it done; `restart` lines hold the boot that was left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from harness.errors import (
    ConnectionLostError,
    LeaseError,
    ProvisionError,
    RemoteCommandError,
    RemoteError,
    RemoteTimeoutError,
    ShellGoneError,
)
from harness.hosts.facts import BootIdentity, HostFacts, probe_host, read_boot
from harness.hosts.holding import HostHold
from harness.hosts.journal import Journal
from harness.hosts.outcome import Outcome, Planned
from harness.hosts.pythonstep import Python, describe_python, host_python
from harness.hosts.restarts import RestartPatience, restart_host, wait_for_answer
from harness.hosts.standardsteps import standard_steps
from harness.hosts.steps import Assessment, Look, Options, State, Step
from harness.hosts.systemsteps import PendingRestart
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM

T = TypeVar("T")

PURPOSE: Final = "provision"
_PASSES: Final = 6
_STRAY_RESTARTS: Final = 5
_LOOK_S: Final = 300.0
_STEP_S: Final = 1800.0
_TRIES: Final = 3
# After these nobody knows what ran: the step looks again and does what is lacking.
_UNKNOWN: Final = (ConnectionLostError, RemoteTimeoutError, ShellGoneError)


class _StrayRestartError(Exception):
    """The host is in another boot, and it was not us: everything is to be looked at anew."""


class Provisioner:
    """Brings one host to what `options` say.

    `hold` makes the lease of the host, whose Python it gets; a host without one is not leased.
    """

    def __init__(
        self,
        winrm: WinRM,
        options: Options,
        *,
        steps: Sequence[Step] | None = None,
        patience: RestartPatience | None = None,
        report: Callable[[str], None] | None = None,
        hold: Callable[[str], HostHold] | None = None,
    ) -> None:
        self._winrm = winrm
        self._options = options
        self._steps = tuple(steps) if steps is not None else standard_steps()
        self._patience = patience or RestartPatience()
        self._report = report or _silent
        self._journal = Journal(options.root, "provision")
        self._make_hold = hold or self._new_hold
        self._hold: HostHold | None = None
        self._boot: BootIdentity | None = None
        self._open: set[str] | None = None
        self.facts: HostFacts | None = None
        """What the host was in the last pass; None before the first."""

    def _new_hold(self, python: str) -> HostHold:
        return HostHold(self._winrm, self._options.root, python, purpose=PURPOSE)

    def plan(self) -> tuple[Planned, ...]:
        """Return what each step finds and would run now; nothing is changed. Raises RemoteError.

        What only shows after a restart (the hypervisor, say) is planned as it looks before.
        """
        try:
            look = self._look()
        except _StrayRestartError:
            look = self._look()
        return tuple(Planned(step.name, step.assess(look)) for step in self._steps)

    def apply(self) -> Outcome:
        """Do what is lacking, with the restarts it takes, until nothing is.

        Raises ProvisionError for what blocks, or did not hold; LeaseError where the host is
        another's; UnprotectedRootError; RemoteError. Whatever was done before stays, and the next
        apply goes on from there.
        """
        outcome = Outcome()
        try:
            self._passes(outcome)
        except (Exception, KeyboardInterrupt) as error:
            self._leave(f"provisioning is not finished: {error}")
            raise
        except BaseException:
            if self._hold is not None:
                self._hold.abandon()
            raise
        if self._hold is not None:
            self._steadily(self._hold.release)
        return outcome

    def _leave(self, unfinished: str) -> None:
        """Give back a host that is not finished: nobody runs anything on it before it is."""
        if self._hold is None:
            return
        try:
            self._hold.release(unfinished)
        except RemoteError:
            self._hold.abandon()  # the lease runs out with its time

    def _passes(self, outcome: Outcome) -> None:
        strays = 0
        passes = 0
        while passes < _PASSES:
            before = len(outcome.ran)
            try:
                waiting = self._pass(outcome)
                if waiting:
                    self._restart(outcome, waiting)
                elif len(outcome.ran) == before:
                    return
            except _StrayRestartError as error:
                strays += 1
                if strays > _STRAY_RESTARTS:
                    raise ProvisionError(
                        f"it restarted {strays} times while it was worked on: look at its event "
                        "log",
                        host=self._winrm.host,
                    ) from error
                continue
            passes += 1
        raise ProvisionError(
            f"after {_PASSES} passes there is still something to do: {outcome.ran[-1:]}",
            host=self._winrm.host,
        )

    def _look(self) -> Look:
        while True:
            facts = self._steadily(
                lambda: probe_host(self._winrm, deadline=Deadline.after(_LOOK_S))
            )
            if self._boot is None or facts.boot.same(self._boot):
                break
            # It restarted while it was looked at: what was seen is of two boots.
            self._in_boot(facts.boot)
        self.facts, self._boot = facts, facts.boot
        return self._seen(facts)

    def _seen(self, facts: HostFacts) -> Look:
        deadline = Deadline.after(_STEP_S)
        return Look(self._winrm, facts, self._options, deadline, self._hold, self._report)

    def _pass(self, outcome: Outcome) -> tuple[str, ...]:
        """Take every step once; return why a restart is needed."""
        look = self._look()
        self._take_lease(look)
        look = self._seen(look.facts)
        waiting: list[str] = []
        for step in self._steps:
            found = self._steadily(lambda step=step, look=look: step.assess(look))  # type: ignore[misc]
            if found.state is State.BLOCKED:
                raise ProvisionError(f"{step.name}: {found.detail}", host=self._winrm.host)
            if found.state is State.NOTE:
                outcome.notes[step.name] = found.detail
            if found.state is State.RESTART:
                waiting.append(f"{step.name}: {found.detail}")
                if step.name == PendingRestart().name:
                    break  # nothing is put on top of what Windows has not finished
            if found.proof and waiting:
                continue
            if found.state is State.CHANGE:
                self._report(f"{step.name}: {found.detail}")
                after = self._change(step, found, look, outcome)
                if found.proof:
                    outcome.proofs[step.name] = after.detail
                if after.state is State.RESTART:
                    waiting.append(f"{step.name}: {after.detail}")
            elif step.elevated and step.name in self._began():
                self._note("settled", step.name, {})
                self._began().discard(step.name)
                outcome.settled.append(step.name)
            if step.name == Python().name and self._hold is None:
                self._take_lease(look)
                look = self._seen(look.facts)
        return tuple(waiting)

    def _take_lease(self, look: Look) -> None:
        """Lease the host, if it has what a lease needs and is not ours yet. Raises LeaseError."""
        if self._hold is not None:
            return
        root = self._options.root
        if self._steadily(lambda: root.read(self._winrm, deadline=look.deadline)).wrong:
            return
        python = self._steadily(lambda: host_python(look))
        if not self._steadily(lambda: describe_python(self._winrm, python, deadline=look.deadline)):
            return
        hold = self._make_hold(python)
        self._steadily(hold.take)
        self._hold = hold

    def _change(self, step: Step, found: Assessment, look: Look, outcome: Outcome) -> Assessment:
        """Run what a step asks for and return how it looks then; again where an answer was lost."""
        for attempt in range(_TRIES):
            refused: RemoteError | None = None
            try:
                self._run(step, found, look, outcome)
            except LeaseError:
                raise
            except (*_UNKNOWN, RemoteCommandError) as error:
                # A refusal may be that of a second try whose first was carried out.
                self._report(f"{step.name}: {error}; looking again")
                if attempt == _TRIES - 1:
                    raise
                refused = error
                if isinstance(error, _UNKNOWN):
                    self._recover()
            after = self._steadily(lambda: step.assess(look))
            if after.state is State.BLOCKED:
                raise ProvisionError(f"{step.name}: {after.detail}", host=self._winrm.host)
            if isinstance(refused, RemoteCommandError) and after.actions == found.actions:
                raise ProvisionError(f"{step.name}: {refused}", host=self._winrm.host) from refused
            if after.state is not State.CHANGE:
                self._finished(step)
                return after
            found = after
        raise ProvisionError(
            f"{step.name} did not hold: {after.detail} after {found.actions[-1].text}",
            host=self._winrm.host,
        )

    def _run(self, step: Step, found: Assessment, look: Look, outcome: Outcome) -> None:
        if step.elevated:
            self._steadily(lambda: self._options.root.verify(self._winrm, deadline=look.deadline))
            self._keep_lease()
            self._note("change", step.name, {"commands": [each.text for each in found.actions]})
            self._began().add(step.name)
        for action in found.actions:
            action.run(self._winrm, deadline=look.deadline)
            outcome.ran.append(action.text)

    def _keep_lease(self) -> None:
        """Ask for more time, in the boot that was looked at. Raises LeaseError, _StrayRestartError.

        A restart that fell between two requests was noticed by nobody but the host.
        """
        boot = self._steadily(lambda: read_boot(self._winrm, deadline=Deadline.after(_LOOK_S)))
        self._same_boot(boot)
        if (hold := self._hold) is not None:
            self._steadily(lambda: hold.keep(boot))

    def _finished(self, step: Step) -> None:
        if step.elevated:
            self._note("changed", step.name, {})
            self._began().discard(step.name)

    def _began(self) -> set[str]:
        """Return the steps that were begun and of which nobody knows yet how they ended."""
        if self._open is None:
            self._open = set()
            for entry in self._steadily(
                lambda: self._journal.read(self._winrm, deadline=Deadline.after(_LOOK_S))
            ):
                step = str(entry.details.get("step"))
                if entry.event == "change":
                    self._open.add(step)
                elif entry.event in ("changed", "settled"):
                    self._open.discard(step)
        return self._open

    def _note(self, event: str, step: str, details: dict[str, object]) -> None:
        line = {"step": step, "user": self._winrm.endpoint.user, **details}
        self._steadily(
            lambda: self._journal.append(self._winrm, event, line, deadline=Deadline.after(_LOOK_S))
        )

    def _restart(self, outcome: Outcome, waiting: tuple[str, ...]) -> None:
        self._report(f"restart: {'; '.join(waiting)}")
        deadline = Deadline.after(_LOOK_S)
        before = self._steadily(lambda: read_boot(self._winrm, deadline=deadline))
        self._same_boot(before)
        root = self._options.root
        if not self._steadily(lambda: root.read(self._winrm, deadline=deadline)).wrong:
            details: dict[str, object] = {"why": list(waiting), "boot": before.model_dump()}
            self._note("restart", "restart", details)
        if self._hold is not None:
            self._steadily(self._hold.announce_restart)
        after = restart_host(self._winrm, before, self._patience)
        outcome.restarts += 1
        self._report(f"back in boot {after.boot_id} since {after.began}")
        self._in_boot(after)

    def _steadily(self, call: Callable[[], T]) -> T:
        """Return what a call returns that may always be made again.

        Raises _StrayRestartError where the host restarted under it.
        """
        for _ in range(_TRIES - 1):
            try:
                return call()
            except _UNKNOWN as error:
                self._report(f"{error}; once more")
                self._recover()
        return call()

    def _recover(self) -> None:
        """Wait until a host that was lost answers, and see whether it is in the same boot."""
        self._same_boot(wait_for_answer(self._winrm, self._patience))

    def _same_boot(self, boot: BootIdentity) -> None:
        if self._boot is None or boot.same(self._boot):
            return
        self._report(f"it restarted, and not for us: boot {boot.boot_id}")
        self._in_boot(boot)
        raise _StrayRestartError

    def _in_boot(self, boot: BootIdentity) -> None:
        """Take up the lease in another boot."""
        self._boot = boot
        for _ in range(_TRIES - 1):
            try:
                if self._hold is not None:
                    self._hold.restarted(boot)
            except _UNKNOWN:
                wait_for_answer(self._winrm, self._patience)
            else:
                return
        if self._hold is not None:
            self._hold.restarted(boot)


def _silent(_line: str) -> None:
    pass
