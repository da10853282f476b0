"""One self-contained HTML page of a run: no script, no reference to anything outside the file."""

from __future__ import annotations

import importlib.resources
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jinja2

from harness.report.document import run_outcome
from harness.report.events import Outcome, RunResult, ScenarioResult, StepResult
from harness.report.files import write_whole
from harness.report.text import printable, seconds, spelled, tail

CONSOLE_LINES = 400
_AXIS_TICKS = 5
_MIN_BAR_PERCENT = 0.35  # a step of no time is still seen


@dataclass(frozen=True, slots=True)
class Bar:
    """One step on the timeline; positions in percent of the scenario's time."""

    step: StepResult
    left: float
    width: float


@dataclass(frozen=True, slots=True)
class Tick:
    """One line of the time axis."""

    left: float
    label: str


@dataclass(frozen=True, slots=True)
class Section:
    """One scenario as the page shows it."""

    anchor: str
    scenario: ScenarioResult
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    console: str


def write_html(result: RunResult, path: Path) -> None:
    """Write the page, whole or not at all. Raises OSError."""
    write_whole(path, render_html(result))


def render_html(result: RunResult) -> str:
    """Return the page; every text of the run is escaped and printable."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["seconds"] = seconds
    environment.filters["fact"] = spelled
    templates = importlib.resources.files("harness.report") / "templates"
    template = environment.from_string((templates / "run.html.j2").read_text(encoding="utf-8"))
    counts = Counter(each.outcome for each in result.scenarios)
    return template.render(
        result=result,
        outcome=run_outcome(result),
        counts=[(outcome, counts[outcome]) for outcome in Outcome if counts[outcome]],
        sections=[_section(number, each) for number, each in enumerate(result.scenarios, 1)],
        style=(templates / "run.css").read_text(encoding="utf-8"),
    )


def _section(number: int, scenario: ScenarioResult) -> Section:
    total = max(
        [scenario.duration_s, *(step.started_s + step.duration_s for step in scenario.steps)]
    )
    return Section(
        anchor=f"s{number}",
        scenario=scenario,
        bars=tuple(_bar(step, total) for step in scenario.steps),
        ticks=_ticks(total),
        console=tail(scenario.console, lines=CONSOLE_LINES),
    )


def _bar(step: StepResult, total_s: float) -> Bar:
    if total_s <= 0:
        return Bar(step, 0.0, 100.0)
    width = max(100 * step.duration_s / total_s, _MIN_BAR_PERCENT)
    left = min(100 * step.started_s / total_s, 100 - width)
    return Bar(step, round(max(left, 0.0), 3), round(min(width, 100.0), 3))


def _ticks(total_s: float) -> tuple[Tick, ...]:
    """Lines at 1, 2 or 5 times a power of ten seconds, about `_AXIS_TICKS` of them."""
    if total_s <= 0:
        return ()
    unit = 1e-6
    while True:
        for factor in (1, 2, 5):
            if total_s / (unit * factor) <= _AXIS_TICKS + 1:
                step = unit * factor
                count = int(total_s / step)
                return tuple(
                    Tick(round(100 * step * n / total_s, 3), _axis_label(step * n))
                    for n in range(count + 1)
                )
        unit *= 10


def _axis_label(at_s: float) -> str:
    """Return a round time without needless digits: 0, 200 ms, 1.5 s, 20 s."""
    if at_s == 0:
        return "0"
    return f"{at_s * 1000:g} ms" if at_s < 1 else f"{at_s:g} s"
