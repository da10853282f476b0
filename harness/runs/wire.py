"""A run's events as lines of JSON, so that a run on one machine is watched on another.

`EventWriter` is a listener that writes them; `EventReader` takes the bytes, cut anywhere, and
`replay` tells a listener here what happened there. The last event of a run is `Ended`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from harness.errors import ProtocolError
from harness.report.events import RunListener, RunResult, ScenarioResult, StepResult

_MOST_LINE: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Progress:
    """A line of the set-up."""

    text: str
    event: Literal["progress"] = "progress"


@dataclass(frozen=True, slots=True)
class RunStarted:
    """See `RunListener.run_started`."""

    scenarios: tuple[str, ...]
    backend: str
    accelerator: str
    event: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True)
class ScenarioStarted:
    """See `RunListener.scenario_started`."""

    name: str
    summary: str
    event: Literal["scenario_started"] = "scenario_started"


@dataclass(frozen=True, slots=True)
class StepStarted:
    """See `RunListener.step_started`."""

    scenario: str
    step: str
    event: Literal["step_started"] = "step_started"


@dataclass(frozen=True, slots=True)
class StepFinished:
    """See `RunListener.step_finished`."""

    scenario: str
    step: StepResult
    event: Literal["step_finished"] = "step_finished"


@dataclass(frozen=True, slots=True)
class ScenarioFinished:
    """See `RunListener.scenario_finished`."""

    result: ScenarioResult
    event: Literal["scenario_finished"] = "scenario_finished"


FailureKind = Literal["usage", "infrastructure", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run has no result: whose fault, and what was said."""

    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Everything is over and taken down: the result, or why there is none.

    `kept` is the lab's directory where it was to stay, `left` what is there against the order.
    """

    result: RunResult | None
    failure: Failure | None = None
    kept: str = ""
    left: tuple[str, ...] = ()
    event: Literal["ended"] = "ended"


Event = (
    Progress | RunStarted | ScenarioStarted | StepStarted | StepFinished | ScenarioFinished | Ended
)
_EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def encode(event: Event) -> bytes:
    """Return one line, its end included. What UTF-8 cannot hold of a console becomes `?`."""
    values = _EVENT.dump_python(event, mode="json")
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def decode(line: bytes) -> Event:
    """Return the event of a line. Raises ProtocolError."""
    try:
        return _EVENT.validate_python(json.loads(line))
    except (ValueError, ValidationError) as error:
        raise ProtocolError(f"a run's events hold what is none: {line[:80]!r}") from error


class EventReader:
    """Turns bytes into events; a line that is not whole yet waits for the rest of it."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that are whole by now. Raises ProtocolError."""
        self._rest += data
        while (end := self._rest.find(b"\n")) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            yield decode(line)
        if len(self._rest) > _MOST_LINE:
            raise ProtocolError(f"a run's events hold a line of more than {_MOST_LINE} bytes")


class Sink(Protocol):
    """Where lines go."""

    def write(self, data: bytes, /) -> object:
        """Take the bytes."""
        ...

    def flush(self) -> object:
        """Let readers see them."""
        ...


class EventWriter:
    """A RunListener that writes every event as it comes; used by any thread."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lock = threading.Lock()

    def write(self, event: Event) -> None:
        """Write one event."""
        line = encode(event)
        with self._lock:
            self._sink.write(line)
            self._sink.flush()

    def progress(self, text: str) -> None:
        """Write a line of the set-up."""
        self.write(Progress(text))

    def run_started(self, scenarios: Sequence[str], *, backend: str, accelerator: str) -> None:
        """See `RunListener`."""
        self.write(RunStarted(tuple(scenarios), backend, accelerator))

    def scenario_started(self, name: str, summary: str) -> None:
        """See `RunListener`."""
        self.write(ScenarioStarted(name, summary))

    def step_started(self, scenario: str, step: str) -> None:
        """See `RunListener`."""
        self.write(StepStarted(scenario, step))

    def step_finished(self, scenario: str, step: StepResult) -> None:
        """See `RunListener`."""
        self.write(StepFinished(scenario, step))

    def scenario_finished(self, result: ScenarioResult) -> None:
        """See `RunListener`."""
        self.write(ScenarioFinished(result))

    def run_finished(self, result: RunResult) -> None:
        """Nothing: `Ended` says it, once the labs are closed as well."""


def replay(event: Event, listener: RunListener) -> None:
    """Tell a listener what happened; `Progress` and `Ended` are for whoever watches."""
    match event:
        case RunStarted(scenarios=names, backend=backend, accelerator=accelerator):
            listener.run_started(names, backend=backend, accelerator=accelerator)
        case ScenarioStarted(name=name, summary=summary):
            listener.scenario_started(name, summary)
        case StepStarted(scenario=scenario, step=begun):
            listener.step_started(scenario, begun)
        case StepFinished(scenario=scenario, step=done):
            listener.step_finished(scenario, done)
        case ScenarioFinished(result=result):
            listener.scenario_finished(result)
        case Progress() | Ended():
            pass
