"""A run as people see it: live on a terminal, in plain lines elsewhere, as a table at its end.

Plain lines are written when the console is no terminal, or when NO_COLOR or CI is set. Both print
the same facts; what fails is told at once and again at the end, with what to do next.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from harness.report.document import run_outcome
from harness.report.events import Fact, Outcome, RunResult, ScenarioResult, StepResult
from harness.report.text import printable, seconds, spelled

_STYLE = {
    Outcome.PASSED: "green",
    Outcome.FAILED: "bold red",
    Outcome.ERROR: "bold yellow",
    Outcome.SKIPPED: "dim",
}
_LEAK_ADVICE = "look at these by hand, then remove them; the run does not count as passed"
_ERROR_ADVICE = (
    "the environment is at fault, not the product: `lcowlab doctor` names what is missing"
)


class LiveView:
    """A RunListener that writes to a console, normally one of standard error."""

    def __init__(
        self,
        console: Console,
        *,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        variables = os.environ if environment is None else environment
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._plain = not console.is_terminal or any(
            variables.get(name) for name in ("NO_COLOR", "CI")
        )
        self._total = 0
        self._finished = 0
        self._scenario = ""
        self._step = ""
        self._scenario_began = 0.0
        self._step_began = 0.0
        self._spinner = Spinner("dots", style="cyan")

    def run_started(self, scenarios: Sequence[str], *, backend: str, accelerator: str) -> None:
        """Say what will run and where."""
        self._total = len(scenarios)
        plural = "" if self._total == 1 else "s"
        self._print(Text(f"{self._total} scenario{plural} on {backend} ({accelerator})"))
        if not self._plain:
            self._live = Live(
                console=self._console,
                get_renderable=self._progress,
                refresh_per_second=10,
                transient=True,
            )
            # A run that ends without run_finished must not leave the cursor hidden.
            atexit.register(self.close)
            self._live.start()

    def scenario_started(self, name: str, summary: str) -> None:
        """Head a scenario."""
        self._scenario, self._step = printable(name), ""
        self._scenario_began = self._clock()
        self._print(Text.assemble((self._scenario, "bold"), f": {printable(summary)}"))

    def step_started(self, scenario: str, step: str) -> None:
        """Show a step with its time."""
        self._step = printable(step)
        self._step_began = self._clock()

    def step_finished(self, scenario: str, step: StepResult) -> None:
        """Leave a line of a step that ended."""
        self._step = ""
        line = Text.assemble("  ", (f"{seconds(step.duration_s):>9}", "dim"), f"  {step.name}")
        if step.outcome is not Outcome.PASSED:
            line.append(f"  {step.outcome.value}", _STYLE[step.outcome])
            if step.detail:
                line.append(f": {step.detail}")
        self._print(line)

    def scenario_finished(self, result: ScenarioResult) -> None:
        """Leave the outcome of a scenario, and why it did not pass."""
        self._finished += 1
        self._scenario = self._step = ""
        line = Text.assemble(
            (result.name, "bold"),
            " ",
            (result.outcome.value, _STYLE[result.outcome]),
            f" in {seconds(result.duration_s)}",
        )
        if result.reason:
            line.append(f": {result.reason}")
        self._print(line)

    def run_finished(self, result: RunResult) -> None:
        """End the live part and tell what went wrong with what to do next."""
        self.close()
        for scenario in result.scenarios:
            if scenario.outcome in (Outcome.FAILED, Outcome.ERROR):
                self._explain(scenario)
        if result.leaks:
            self._print(Text("left behind:", _STYLE[Outcome.FAILED]))
            for leak in result.leaks:
                self._print(Text(f"  {leak}"))
            self._print(Text(f"  next: {_LEAK_ADVICE}"))

    def close(self) -> None:
        """Give the terminal back; may be repeated."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self.close)

    def _explain(self, scenario: ScenarioResult) -> None:
        self._print(
            Text.assemble(
                (f"{scenario.name} {scenario.outcome.value}", _STYLE[scenario.outcome]),
                f": {scenario.reason or 'no reason was given'}",
            )
        )
        if scenario.outcome is Outcome.ERROR:
            self._print(Text(f"  next: {_ERROR_ADVICE}"))
        if scenario.repro:
            self._print(Text(f"  again: {scenario.repro}"))

    def _print(self, line: Text) -> None:
        line.plain = printable(line.plain)
        self._console.print(line, soft_wrap=True, highlight=False)

    def _progress(self) -> RenderableType:
        now = self._clock()
        text = Text(f" {self._finished}/{self._total}", "dim")
        if self._scenario:
            text.append(f"  {self._scenario} ", "bold")
            text.append(seconds(now - self._scenario_began), "cyan")
        if self._step:
            text.append(f"  {self._step} ")
            text.append(seconds(now - self._step_began), "cyan")
        self._spinner.update(text=text)
        return Padding(self._spinner, (0, 2))


def summary_table(result: RunResult) -> Table:
    """Return the table of a run: a line a scenario, with its facts or why it did not pass."""
    table = Table(
        title="Scenarios",
        title_justify="left",
        caption=_caption(result),
        caption_justify="left",
        highlight=False,
    )
    table.add_column("scenario", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("steps", justify="right")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("facts, or why it did not pass", overflow="fold")
    for scenario in result.scenarios:
        why = scenario.reason or _facts(scenario.facts)
        table.add_row(
            Text(printable(scenario.name)),
            Text(scenario.outcome.value, _STYLE[scenario.outcome]),
            Text(str(len(scenario.steps))),
            Text(seconds(scenario.duration_s)),
            Text(printable(why)),
        )
    return table


def _caption(result: RunResult) -> Text:
    outcomes = [each.outcome for each in result.scenarios]
    counts = [f"{outcomes.count(each)} {each.value}" for each in Outcome if each in outcomes]
    caption = Text(", ".join(counts) or "nothing ran", _STYLE[run_outcome(result)])
    where = printable(f"{result.backend} ({result.accelerator})")
    caption.append(f" in {seconds(result.duration_s)} on {where}")
    if result.leaks:
        caption.append(f", {len(result.leaks)} left behind", _STYLE[Outcome.FAILED])
    if result.interrupted:
        caption.append(", interrupted", _STYLE[Outcome.ERROR])
    return caption


def _facts(facts: Mapping[str, Fact]) -> str:
    return ", ".join(f"{name} {spelled(value)}" for name, value in facts.items())
