"""Pods played step by step, with plain counters as the judge of every step.

A play has a few disks, machines that attach them, and containers that share them; each verb does
one thing and then checks everything: no count too many or too few, no disk attached twice or taken
out while mounted, nobody left waiting. The state machine of the tests draws verbs at random and
prints a counterexample as the body of a scenario, which calls the same verbs.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from harness.containers import ContainerRootfs, LcowDisks
from harness.errors import CheckFailedError, HarnessError
from harness.scenarios.judge import judge, judge_mounts
from harness.scenarios.stage import Held, PlayedVm, PlaySetting

_PATIENCE_S = 60.0
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _told(
    verb: Callable[Concatenate[PodPlay, _P], _R],
) -> Callable[Concatenate[PodPlay, _P], _R]:
    """Write a verb down before it runs, check everything after it, and say all of it on failure."""

    @functools.wraps(verb)
    def run(play: PodPlay, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        words = [repr(arg) for arg in args] + [f"{name}={arg!r}" for name, arg in kwargs.items()]
        play.lines.append(f"play.{verb.__name__}({', '.join(words)})")
        try:
            result = verb(play, *args, **kwargs)
            play.replace_dead()
            play.check()
        except BaseException as error:
            if not play.broken:
                error.add_note(play.as_scenario())
            play.broken = True
            raise
        return result

    return run


@dataclass(eq=False)
class PodPlay:
    """The play; see the module's docstring."""

    setting: PlaySetting
    lines: list[str] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)
    faulty: bool = False
    """A fault may be waiting, so a verb may fail."""
    broken: bool = False
    """A check has failed: what follows means nothing."""
    vms: list[PlayedVm] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    """Machines in which something may have changed: asking a guest for its mounts is dear."""

    def __post_init__(self) -> None:
        self.vms = [self.setting.boot(number) for number in range(self.setting.machines)]

    def as_scenario(self) -> str:
        """Return what was played as the body of a scenario."""
        body = "\n".join(f"    {line}" for line in self.lines)
        return (
            "as a scenario:\n\n"
            "def counterexample(context: ScenarioContext) -> None:\n"
            f"    play = play_in_lab(context, pods={len(self.setting.scratches)}, "
            f"machines={self.setting.machines})\n{body}\n"
            "    play.close()\n"
        )

    # -- verbs -----------------------------------------------------------------------------------

    @_told
    def start(self, container: str, *, pod: int, machine: int = 0) -> bool:
        """Start a container's root on a pod's disk; whether it went through."""
        if container in self.held:
            return False
        held = self._new(container, pod, machine)
        try:
            self._build(held, pod)
        except HarnessError as error:
            self._check_refusal(error, pod, machine)
            self._give_up(container, held)
            return False
        self.held[container] = held
        return True

    @_told
    def start_together(self, containers: Sequence[str], *, pod: int, machine: int = 0) -> None:
        """Start several at the same moment."""
        new = [name for name in dict.fromkeys(containers) if name not in self.held]
        started = {name: self._new(name, pod, machine) for name in new}
        errors: dict[str, BaseException] = {}

        def build(name: str) -> None:
            try:
                self._build(started[name], pod)
            except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
                errors[name] = error

        threads = [threading.Thread(target=build, args=(name,)) for name in new]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_PATIENCE_S)
        if any(thread.is_alive() for thread in threads):
            raise CheckFailedError("a start never ended")
        for name in new:
            error = errors.get(name)
            if error is None:
                self.held[name] = started[name]
            elif isinstance(error, HarnessError):
                self._check_refusal(error, pod, machine)
                self._give_up(name, started[name])
            else:
                raise error

    @_told
    def give_up_waiting(self, container: str, *, pod: int, machine: int = 0) -> None:
        """Have one start wait for another's attach, and give up; the other one goes on."""
        busy = any(each.pod == pod for each in self.held.values())
        if self.setting.hold is None or container in self.held or busy:
            return
        vm, disk = self.vms[machine], self.setting.scratches[pod]
        hold = self.setting.hold("service.attach")
        first = threading.Thread(target=self._acquire_and_release, args=(vm, disk))
        first.start()
        try:
            if hold.wait():
                try:
                    vm.scsi.acquire(disk, holder="impatient", timeout_s=0.002).release()
                except HarnessError:
                    pass
                else:
                    raise CheckFailedError("a disk was there before its attach had ended")
        finally:
            hold.let_go()
            first.join(_PATIENCE_S)
        if first.is_alive():
            raise CheckFailedError("the one at work never ended")

    @_told
    def release(self, container: str) -> bool:
        """Release a container's root; whether it went through."""
        return self._release([container])

    @_told
    def release_pod(self, pod: int) -> bool:
        """Release every container of a pod, its owner's disk with the last."""
        return self._release([name for name, each in self.held.items() if each.pod == pod])

    @_told
    def fault(self, boundary: str, spec: str) -> None:
        """Put a fault at a boundary."""
        self.setting.faults.add(boundary, spec)
        self.faulty = True

    @_told
    def calm(self) -> None:
        """Take every fault away and have what was left half-way finished."""
        self._calm()

    @_told
    def kill(self, machine: int) -> None:
        """Kill a machine and boot another one in its place."""
        self._replace(machine)

    @_told
    def finish(self) -> None:
        """Release everything; nothing is left."""
        self._calm()
        self._release(list(self.held))
        for vm in self.vms:
            vm.scsi.reclaim()
            if vm.disks() or vm.mounts() or vm.scsi.snapshot().attachments:
                raise CheckFailedError(
                    f"{vm.name} keeps disks {list(vm.disks())}, mounts {list(vm.mounts())}, "
                    f"attachments {vm.scsi.snapshot().attachments}"
                )

    def close(self) -> None:
        """Take the machines down."""
        for vm in self.vms:
            vm.close()
        self.setting.on_close()

    # -- how -------------------------------------------------------------------------------------

    def _new(self, container: str, pod: int, machine: int) -> Held:
        vm = self.vms[machine]
        self.touched.add(machine)
        return Held(machine, pod, ContainerRootfs(vm.scsi, vm.guest, container))

    def _build(self, held: Held, pod: int) -> None:
        disks = LcowDisks(self.setting.layers, self.setting.scratches[pod])
        held.root.build(disks, f"pod{pod}", timeout_s=_PATIENCE_S)

    @staticmethod
    def _acquire_and_release(vm: PlayedVm, disk: Path) -> None:
        """Attach a disk and take it away again, however often the release has to be repeated."""
        with contextlib.suppress(HarnessError):
            share = vm.scsi.acquire(disk, holder="first")
            while not share.released:  # every fault is met once, so this ends
                with contextlib.suppress(HarnessError):
                    share.release()

    def _check_refusal(self, error: HarnessError, pod: int, machine: int) -> None:
        """Raise CheckFailedError for a start that failed without a reason."""
        elsewhere = [
            each for each in self.held.values() if each.pod == pod and each.machine != machine
        ]
        if not elsewhere and not self.faulty:
            raise CheckFailedError(f"a start was refused without a reason: {error}") from error

    def _give_up(self, container: str, held: Held) -> None:
        """Undo a failed start; what cannot be undone now counts as half there."""
        held.sure = False
        self.held[container] = held
        self._release([container])

    def _release(self, containers: Sequence[str]) -> bool:
        good = True
        for name in containers:
            held = self.held.get(name)
            if held is None:
                continue
            held.sure = False
            self.touched.add(held.machine)
            try:
                held.root.unmount()
                if held.root.leftover:
                    self.vms[held.machine].remove_directory(held.root.leftover)
                    held.root.leftover = ""
                held.root.release_disks()
            except HarnessError as error:
                if not self.faulty:
                    raise CheckFailedError(f"a release failed without a reason: {error}") from error
                good = False
            else:
                del self.held[name]
        return good

    def _calm(self) -> None:
        self.setting.faults.clear()
        for machine, vm in enumerate(self.vms):
            if not vm.alive():
                continue
            self._release([n for n, h in self.held.items() if h.machine == machine and not h.sure])
            vm.scsi.reclaim()
        self.faulty = False

    def replace_dead(self) -> None:
        """Boot another machine in the place of each that a fault killed."""
        for machine, vm in enumerate(self.vms):
            if not vm.alive():
                self._replace(machine)

    def _replace(self, machine: int) -> None:
        """Kill a machine: everything in it is gone, and counts as released."""
        vm = self.vms[machine]
        vm.kill()
        self.held = {n: each for n, each in self.held.items() if each.machine != machine}
        if left := vm.scsi.snapshot().attachments:
            raise CheckFailedError(f"{vm.name} is dead and counts {left}")
        self.vms[machine] = self.setting.boot(machine)

    def check(self) -> None:
        """Raise CheckFailedError unless tables, machines and plain counters agree."""
        look = not len(self.lines) % self.setting.verbs_per_look
        for number, vm in enumerate(self.vms):
            here = [each for each in self.held.values() if each.machine == number]
            judge(self.setting, vm, here)
            if look and number in self.touched:
                self.touched.remove(number)
                judge_mounts(vm, here)
