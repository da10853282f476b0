from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console

from harness.report.events import RunListener, RunResult
from harness.report.live import LiveView, summary_table


def play(view: RunListener, result: RunResult) -> None:
    names = [each.name for each in result.scenarios]
    view.run_started(names, backend=result.backend, accelerator=result.accelerator)
    for scenario in result.scenarios:
        view.scenario_started(scenario.name, scenario.summary)
        for step in scenario.steps:
            view.step_started(scenario.name, step.name)
            view.step_finished(scenario.name, step)
        view.scenario_finished(scenario)
    view.run_finished(result)


def plain(result: RunResult) -> str:
    stream = io.StringIO()
    play(LiveView(Console(file=stream, width=40), environment={}), result)
    return stream.getvalue()


def test_without_a_terminal_a_run_is_plain_lines(result: RunResult) -> None:
    text = plain(result)
    assert "\x1b" not in text
    assert text.splitlines()[:8] == [
        "4 scenarios on qemu (tcg)",
        "shared-scratch: Four hold one scratch.",
        "     1.50 s  boot",
        "     250 ms  attach",
        "shared-scratch passed in 2.00 s",
        "crash: The VM dies.",
        "     400 ms  kill",
        "     600 ms  look  failed: found 2",
    ]


def test_the_end_tells_each_failure_again_with_what_to_do_next(result: RunResult) -> None:
    text = plain(dataclasses.replace(result, leaks=("a process",)))
    assert text.splitlines()[-7:] == [
        "crash failed: expected 1 attachment, found 2",
        "  again: lcowlab run crash --keep failed",
        "no-qemu error: qemu is not installed",
        "  next: the environment is at fault, not the product: "
        "`lcowlab doctor` names what is missing",
        "left behind:",
        "  a process",
        "  next: look at these by hand, then remove them; the run does not count as passed",
    ]


def test_on_a_terminal_the_step_under_way_is_shown_with_its_time(
    result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a dumb one shows no line that changes
    stream = io.StringIO()
    now = 100.0
    view = LiveView(
        Console(file=stream, force_terminal=True, width=100), environment={}, clock=lambda: now
    )
    view.run_started(["shared-scratch"], backend="qemu", accelerator="tcg")
    view.scenario_started("shared-scratch", "Four hold one scratch.")
    view.step_started("shared-scratch", "boot a utility VM")
    now = 102.5
    view.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "boot a utility VM 2.50 s" in shown
    assert "0/1" in shown
    assert stream.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in stream.getvalue()


@pytest.mark.parametrize("variable", ["NO_COLOR", "CI"])
def test_no_color_and_ci_ask_for_plain_lines_even_on_a_terminal(
    result: RunResult, variable: str
) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, no_color=True)
    play(LiveView(console, environment={variable: "1"}), result)
    assert "\x1b[?25l" not in stream.getvalue(), "the cursor stays"
    assert "\r" not in stream.getvalue()


def test_hostile_text_is_neither_markup_nor_terminal_control(hostile: RunResult) -> None:
    scenario = dataclasses.replace(hostile.scenarios[0], name="[bold red]x[/] \x1b[2J")
    run = dataclasses.replace(hostile, scenarios=(scenario,))
    text = plain(run)
    stream = io.StringIO()
    Console(file=stream, width=200).print(summary_table(run))
    for shown in (text, stream.getvalue()):
        assert "[bold red]x[/]" in shown
        assert "\x1b" not in shown
        assert "\x00" not in shown
        shown.encode("utf-8")


def test_the_table_has_a_line_a_scenario_and_the_counts(result: RunResult) -> None:
    stream = io.StringIO()
    Console(file=stream, width=160).print(summary_table(result))
    text = stream.getvalue()
    assert re.search(
        r"shared-scratch .*passed .*2 .*2.00 s .*containers 4, same_free_space yes", text
    )
    assert re.search(r"crash .*failed .*expected 1 attachment, found 2", text)
    assert "1 passed, 1 failed, 1 error, 1 skipped in 4.50 s on qemu (tcg)" in text


def test_the_table_tells_leaks_and_interruption(result: RunResult) -> None:
    stream = io.StringIO()
    run = dataclasses.replace(result, leaks=("a", "b"), interrupted=True)
    Console(file=stream, width=160).print(summary_table(run))
    assert "2 left behind, interrupted" in stream.getvalue()
