r"""A run on a host: held, checked, handed over, watched to its end, and its result brought here.

::

    take the lease ─► agent and version ─► begin ─► watch … ─► collected ─► release
                             │               ▲
                             │   a controller died: the same request under the same lease is
                             │   watched on, another one is refused with its name
                             └─ another version: deploy it, or refuse with the command to run

The run itself needs nobody: whoever watches may go away and come back. Only its lease has to be
renewed, or it ends by itself.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from harness.errors import (
    CheckFailedError,
    HarnessError,
    InfrastructureError,
    LeaseError,
    ProvisionError,
    RemoteError,
    RemoteTimeoutError,
    UsageError,
)
from harness.hosts.bundle import Bundle
from harness.hosts.deploy import deploy_wheels
from harness.hosts.facts import BootIdentity, read_boot
from harness.hosts.holding import HostHold
from harness.hosts.hostscripts import HostScripts
from harness.hosts.onhost.version import digest
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from harness.report.events import RunListener, RunResult
from harness.runs.hostruns import CurrentRun, HostRuns, current_run
from harness.runs.request import RunRequest
from harness.runs.tally import Tally
from harness.runs.watching import Patience, Watched, Watcher
from harness.runs.wire import Event, Failure, Progress, replay

PURPOSE: Final = "run"
_CALL_S: Final = 120.0
_DEPLOY_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class HostedRun:
    """What a run on a host came to; `kept` is the lab's directory there, "" where none stays."""

    result: RunResult
    kept: str = ""


class RemoteRun:
    """One request for one host, which is reached by `winrm`; made without I/O.

    `cancel` may be set by any thread, and by a signal handler. Packages come from `bundle` where
    the host has others than this machine.
    """

    def __init__(
        self,
        name: str,
        winrm: WinRM,
        root: ProtectedRoot,
        python: str,
        request: RunRequest,
        *,
        listeners: Sequence[RunListener] = (),
        progress: Callable[[str], None] = lambda _: None,
        cancel: threading.Event | None = None,
        bundle: Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._name = name
        self._winrm = winrm
        self._root = root
        self._python = python
        self._request = request
        self._listeners = tuple(listeners)
        self._progress = progress
        self._cancel = cancel or threading.Event()
        self._bundle = bundle
        self._patience = patience or Patience()
        self._hold = HostHold(winrm, root, python, purpose=PURPOSE, ttl_s=self._patience.ttl_s)
        self._runs = HostRuns(winrm, root, python, self._hold)

    def run(self) -> HostedRun:
        """Carry it out and return what came of it; the host is given back on every way out.

        Raises LeaseError naming who has the host; ProvisionError and UsageError with what to do
        first; RemoteError; KeyboardInterrupt when it was cancelled before any scenario began.
        """
        with self._held():
            with self._clean_unless_begun():
                self._make_ready()
                boot = read_boot(self._winrm, deadline=Deadline.after(_CALL_S))
                if self._cancel.is_set():
                    raise KeyboardInterrupt
                run = self._find() or self._begin(self._request)
            tally = Tally(self._request)
            watched = self._follow(run, boot, tally)
            hosted = self._concluded(watched, tally)
            self._note_collected(run)
            self._give_back("; ".join(hosted.result.leaks))
        for listener in self._listeners:
            listener.run_finished(hosted.result)
        return hosted

    def _note_collected(self, run: str) -> None:
        """Tell the host that the result is here; it counts where that fails, too."""
        try:
            self._runs.collected(run, deadline=Deadline.after(_CALL_S))
        except RemoteError as error:
            self._progress(f"the host does not know that its result is here: {error}")

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the host while the block runs. Raises LeaseError with the run that goes on there."""
        try:
            self._hold.take()
        except LeaseError as error:
            if (run := self._running_elsewhere()) is None:
                raise
            # The host's name stands in the message already.
            said = str(error).removeprefix(f"{self._winrm.host}: ")
            raise LeaseError(f"{said}; {run.name}", host=self._winrm.host) from error
        try:
            yield
        except BaseException as error:
            if self._hold.held:
                self._give_back(f"{PURPOSE} broke off: {str(error) or type(error).__name__}")
            raise

    def _running_elsewhere(self) -> CurrentRun | None:
        try:
            scripts = HostScripts(self._winrm, self._python)
            run = current_run(scripts, self._root, deadline=Deadline.after(_CALL_S))
        except RemoteError:
            return None
        return run if run is not None and run.live else None

    def _give_back(self, unfinished: str) -> None:
        """Release the lease. Where that fails it runs out by itself, and the result counts."""
        try:
            self._hold.release(unfinished)
        except RemoteError as error:
            self._hold.abandon()
            self._progress(f"the lease could not be given back and runs out by itself: {error}")

    @contextmanager
    def _clean_unless_begun(self) -> Iterator[None]:
        """Give the host back as it was where something stands in the way of the run."""
        try:
            yield
        except (HarnessError, KeyboardInterrupt):
            if self._hold.held:
                self._give_back("")
            raise

    def _make_ready(self) -> None:
        """See to it that the agent runs, with packages of this version.

        Raises ProvisionError and UsageError with the command that mends it.
        """
        deadline = Deadline.after(_CALL_S)
        agent = self._runs.agent()
        if not agent.running(deadline=deadline):
            raise ProvisionError(
                f"its agent does not run: lcowlab provision {self._name}", host=self._winrm.host
            )
        ours = digest()
        if self._version() == ours:
            return
        if self._bundle is None:
            raise ProvisionError(
                "what is deployed there is another version than this: "
                f"lcowlab deploy {self._name} --bundle DIR, or --bundle DIR here",
                host=self._winrm.host,
            )
        self._progress("another version is deployed there: what changed is brought")
        done = deploy_wheels(
            self._winrm,
            self._root,
            self._hold.scripts,
            Bundle.open(self._bundle),
            deadline=Deadline.after(_DEPLOY_S),
            report=self._progress,
        )
        self._progress(f"{done.name}: {len(done.pushed.copied)} wheels copied")
        if self._version() != ours:
            raise UsageError(
                f"the bundle {self._bundle} holds another version than this: make it anew "
                "(pip wheel --no-deps -w wheels ., lcowlab bundle create)"
            )

    def _version(self) -> str:
        answer = self._runs.agent().script("version", {}, deadline=Deadline.after(_CALL_S))
        return str(answer["digest"])

    def _find(self) -> str | None:
        """Return the run of a controller that died, if it was asked for the same under this lease.

        Raises LeaseError naming another one that goes on; waits for one of a lost lease to end.
        """
        current = self._runs.current(deadline=Deadline.after(_CALL_S))
        if current is None:
            return None
        if current.token != self._hold.token:
            self._wait_for_the_end(current)
            return None
        if current.request == self._request.document():
            self._progress(f"{current.name} is watched on")
            self._runs.hand_over(current.id, deadline=Deadline.after(_CALL_S))
            return current.id
        if current.live:
            self._hold.abandon()
            raise LeaseError(
                f"busy: {current.name} goes on; with the same scenarios and options it is watched "
                "on from here, and Ctrl-C ends it",
                host=self._winrm.host,
            )
        return None

    def _wait_for_the_end(self, current: CurrentRun) -> None:
        """A run whose lease was lost ends by itself; its host is not ours before that."""
        deadline = Deadline.after(self._patience.cancel_s)
        while current.live:
            if self._cancel.is_set():
                raise KeyboardInterrupt
            if deadline.passed:
                raise RemoteTimeoutError(f"{current.name} does not end", host=self._winrm.host)
            self._cancel.wait(0.5)
            now = self._runs.current(deadline=Deadline.after(_CALL_S))
            if now is None:
                return
            current = now

    def _begin(self, request: RunRequest) -> str:
        run = uuid.uuid4().hex
        deadline = Deadline.after(_CALL_S)
        self._runs.begin(run, request, deadline=deadline)
        self._runs.hand_over(run, deadline=deadline)
        return run

    def _follow(self, run: str, boot: BootIdentity, tally: Tally) -> Watched:
        def tell(event: Event) -> None:
            tally.take(event)
            if isinstance(event, Progress):
                self._progress(event.text)
            for listener in self._listeners:
                replay(event, listener)

        return self._watcher(run, boot, tell, self._cancel).follow()

    def _watcher(
        self,
        run: str,
        boot: BootIdentity,
        tell: Callable[[Event], None],
        cancel: threading.Event,
    ) -> Watcher:
        return Watcher(
            self._runs,
            run,
            boot=boot,
            tell=tell,
            progress=self._progress,
            cancel=cancel,
            patience=self._patience,
        )

    def _concluded(self, watched: Watched, tally: Tally) -> HostedRun:
        """Return the result, put together from what is known where the run did not say it.

        Raises what kept it from beginning, with the host given back.
        """
        ended, result = watched.ended, watched.ended.result
        left = ended.left
        if watched.died:
            left = self._sweep()
        if result is None:
            failure = ended.failure or Failure("infrastructure", "it did not say why")
            interrupted = failure.kind == "interrupted" and self._cancel.is_set()
            if not tally.started:
                self._give_back("; ".join(left))
                raise _error_of(failure, host=self._winrm.host, interrupted=interrupted)
            result, finished = tally.broken_off(failure.message, interrupted=interrupted)
            for each in result.scenarios[finished:]:
                for listener in self._listeners:
                    listener.scenario_finished(each)
        return HostedRun(self._here(result, left), ended.kept)

    def _here(self, result: RunResult, left: tuple[str, ...]) -> RunResult:
        """Return a result as this machine tells it: with the host, and how to repeat it there."""
        again = f" --host {self._name}"
        return replace(
            result,
            scenarios=tuple(
                replace(each, repro=f"{each.repro}{again}" if each.repro else "")
                for each in result.scenarios
            ),
            leaks=(*result.leaks, *left),
            environment={**result.environment, "host": self._name},
        )

    def _sweep(self) -> tuple[str, ...]:
        """Have the host remove what a run left that died; return what is there all the same."""
        self._progress("what it left is taken away")
        try:
            boot = read_boot(self._winrm, deadline=Deadline.after(_CALL_S))
            run = self._begin(replace(self._request, scenarios=(), jobs=1))
            never = threading.Event()
            ended = self._watcher(run, boot, lambda _: None, never).follow().ended
        except RemoteError as error:
            return (f"what the run left could not be looked at: {error}",)
        if ended.result is None:
            why = ended.failure.message if ended.failure else "it did not say why"
            return (f"what the run left could not be taken away: {why}", *ended.left)
        return (*ended.result.leaks, *ended.left)


def _error_of(failure: Failure, *, host: str, interrupted: bool) -> BaseException:
    """Return what a run on this machine would have raised."""
    if interrupted:
        return KeyboardInterrupt()
    kinds = {"usage": UsageError, "failed": CheckFailedError}
    return kinds.get(failure.kind, InfrastructureError)(f"{host}: {failure.message}")
