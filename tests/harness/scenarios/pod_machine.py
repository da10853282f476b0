"""The state machine: draws verbs of a play at random; the play itself judges every step."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from harness.scenarios.play import PodPlay

PODS = 2
MACHINES = 2
CONTAINERS = tuple(f"c{number}" for number in range(4))
REFUSALS = ("error(0x80004005)", "2*error(0x80004005)", "1*ok->error(0x80370105)")
SILENCES = ("timeout", "lost", "1*ok->lost")
HOST = ("service.attach", "service.detach", "service.properties")
GUEST = (
    "guest.add-mapped-virtual-disk",
    "guest.remove-mapped-virtual-disk",
    "guest.remove-scsi-device",
    "guest.add-combined-layers",
    "guest.remove-combined-layers",
)

containers = st.sampled_from(CONTAINERS)
machines = st.integers(0, MACHINES - 1)
pods = st.integers(0, PODS - 1)


class PodMachine(RuleBasedStateMachine):
    """Subclasses make the play; `steps` counts verbs over all examples."""

    steps = 0
    silence = True
    """Whether the guest may fail to answer: on a real bridge that costs the machine."""
    deaths = True

    def __init__(self) -> None:
        super().__init__()
        self.play = self.open_play()

    def open_play(self) -> PodPlay:
        raise NotImplementedError

    def close_play(self) -> None:
        self.play.close()

    def teardown(self) -> None:
        try:
            if not self.play.broken:
                self.play.finish()
        finally:
            self.close_play()

    def count(self) -> None:
        type(self).steps += 1

    @rule(container=containers, pod=pods, machine=machines)
    def start(self, container: str, pod: int, machine: int) -> None:
        self.count()
        self.play.start(container, pod=pod, machine=machine)

    @rule(several=st.lists(containers, min_size=2, max_size=3), pod=pods, machine=machines)
    def start_together(self, several: list[str], pod: int, machine: int) -> None:
        self.count()
        self.play.start_together(several, pod=pod, machine=machine)

    @precondition(lambda self: self.play.setting.hold is not None)
    @rule(container=containers, pod=pods, machine=machines)
    def give_up_waiting(self, container: str, pod: int, machine: int) -> None:
        self.count()
        self.play.give_up_waiting(container, pod=pod, machine=machine)

    # No rule and no draw may depend on what is held: with threads and faults that is not the same
    # in a second run, and hypothesis needs the same draws.

    @rule(container=containers)
    def release(self, container: str) -> None:
        self.count()
        self.play.release(container)

    @rule(several=st.permutations(CONTAINERS))
    def release_several(self, several: list[str]) -> None:
        self.count()
        for container in several[:2]:
            self.play.release(container)

    @rule(pod=pods)
    def release_pod(self, pod: int) -> None:
        self.count()
        self.play.release_pod(pod)

    @rule(boundary=st.sampled_from(HOST), spec=st.sampled_from((*REFUSALS, *SILENCES)))
    def fault_of_the_host(self, boundary: str, spec: str) -> None:
        self.count()
        self.play.fault(boundary, spec)

    @rule(boundary=st.sampled_from(GUEST), spec=st.sampled_from(REFUSALS[:2]))
    def refusal_of_the_guest(self, boundary: str, spec: str) -> None:
        self.count()
        self.play.fault(boundary, spec)

    @precondition(lambda self: self.silence)
    @rule(boundary=st.sampled_from(GUEST), spec=st.sampled_from(SILENCES))
    def silence_of_the_guest(self, boundary: str, spec: str) -> None:
        self.count()
        self.play.fault(boundary, spec)

    @rule()
    def calm(self) -> None:
        self.count()
        self.play.calm()

    @precondition(lambda self: self.deaths)
    @rule(machine=machines)
    def kill(self, machine: int) -> None:
        self.count()
        self.play.kill(machine)

    @precondition(lambda self: self.deaths)
    @rule(boundary=st.sampled_from((*HOST, *GUEST)))
    def die_in(self, boundary: str) -> None:
        self.count()
        self.play.fault(boundary, "die")
