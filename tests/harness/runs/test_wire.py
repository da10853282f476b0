"""What happened there is told here: the same, however the bytes were cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ProtocolError
from harness.report.events import Outcome, RunResult, ScenarioResult, StepResult
from harness.runs.wire import (
    Ended,
    Event,
    EventReader,
    EventWriter,
    Failure,
    Progress,
    RunStarted,
    ScenarioFinished,
    ScenarioStarted,
    StepFinished,
    StepStarted,
    decode,
    encode,
    replay,
)

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIMES = st.floats(0, 1e6)
OUTCOMES = st.sampled_from(Outcome)
FACTS = st.dictionaries(
    WORDS, st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS, max_size=3
)
STEPS = st.builds(StepResult, WORDS, TIMES, TIMES, OUTCOMES, WORDS)
SCENARIOS = st.builds(
    ScenarioResult,
    WORDS,
    WORDS,
    st.lists(WORDS, max_size=2).map(tuple),
    OUTCOMES,
    st.none() | WORDS,
    TIMES,
    FACTS,
    st.lists(STEPS, max_size=2).map(tuple),
    WORDS,
    WORDS,
)
RUNS = st.builds(
    RunResult,
    WORDS,
    WORDS,
    WORDS,
    TIMES,
    st.lists(SCENARIOS, max_size=2).map(tuple),
    st.lists(WORDS, max_size=2).map(tuple),
    st.dictionaries(WORDS, WORDS, max_size=2),
    st.booleans(),
)
FAILURES = st.builds(
    Failure, st.sampled_from(["usage", "infrastructure", "failed", "interrupted"]), WORDS
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Progress, WORDS),
    st.builds(RunStarted, st.lists(WORDS, max_size=2).map(tuple), WORDS, WORDS),
    st.builds(ScenarioStarted, WORDS, WORDS),
    st.builds(StepStarted, WORDS, WORDS),
    st.builds(StepFinished, WORDS, STEPS),
    st.builds(ScenarioFinished, SCENARIOS),
    st.builds(Ended, st.none() | RUNS, st.none() | FAILURES, WORDS),
)


@given(st.lists(EVENTS, max_size=4), st.data())
def test_events_come_through_however_the_bytes_are_cut(
    events: list[Event], data: st.DataObject
) -> None:
    stream = b"".join(map(encode, events))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=4))
    reader = EventReader()
    bounds = [0, *sorted(cuts), len(stream)]
    read = [event for a, b in pairwise(bounds) for event in reader.feed(stream[a:b])]
    assert read == events
    # 1, 1.0 and True are equal, and are not the same fact.
    assert repr(read) == repr(events)


def test_a_console_with_bytes_of_no_text_is_told_all_the_same() -> None:
    result = ScenarioResult("a", "", (), Outcome.FAILED, "why", 1.0, console="x\udc80y")
    (event,) = EventReader().feed(encode(ScenarioFinished(result)))
    assert isinstance(event, ScenarioFinished)
    assert event.result.console == "x?y"


@pytest.mark.parametrize("line", [b"", b"[]", b"\xff", b'{"event": "nothing"}', b'{"event": 1'])
def test_a_line_that_is_no_event_is_a_fault_of_the_peer(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


class Recorder:
    """A sink and a listener, to hold what was told there against what is told here."""

    def __init__(self) -> None:
        self.data = b""
        self.told: list[object] = []

    def write(self, data: bytes) -> None:
        self.data += data

    def flush(self) -> None:
        pass

    def run_started(self, scenarios: Sequence[str], *, backend: str, accelerator: str) -> None:
        self.told.append((tuple(scenarios), backend, accelerator))

    def scenario_started(self, name: str, summary: str) -> None:
        self.told.append(("started", name, summary))

    def step_started(self, scenario: str, step: str) -> None:
        self.told.append(("step", scenario, step))

    def step_finished(self, scenario: str, step: StepResult) -> None:
        self.told.append((scenario, step))

    def scenario_finished(self, result: ScenarioResult) -> None:
        self.told.append(result)

    def run_finished(self, result: RunResult) -> None:
        self.told.append(result)


def test_a_listener_here_hears_what_a_listener_there_heard() -> None:
    step = StepResult("boot", 0.0, 1.5, Outcome.PASSED)
    done = ScenarioResult("a", "An a.", ("core",), Outcome.PASSED, None, 2.0, {"n": 1}, (step,))
    here, there = Recorder(), Recorder()
    writer = EventWriter(there)
    for listener in (writer, there):
        listener.run_started(["a"], backend="model", accelerator="none")
        listener.scenario_started("a", "An a.")
        listener.step_started("a", "boot")
        listener.step_finished("a", step)
        listener.scenario_finished(done)
    writer.run_finished(RunResult("model", "none", "", 2.0, (done,)))  # `Ended` says it
    for event in EventReader().feed(there.data):
        replay(event, here)
    assert here.told == there.told
