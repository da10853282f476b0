"""JUnit XML of a run, for the CI systems that read it (Jenkins, GitLab, GitHub actions, pytest).

One suite a run, one case a scenario; properties are named `hv.*` as those of the pytest plugin.
Leaks are a case of their own, which fails: a run that left something behind is not green.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

from harness.report.events import Fact, Outcome, RunResult, ScenarioResult
from harness.report.files import write_whole
from harness.report.text import printable, seconds, tail

CONSOLE_LINES = 200
_LEAK_CASE = "leak audit"


def write_junit(result: RunResult, path: Path) -> None:
    """Write the run as JUnit XML, whole or not at all. Raises OSError."""
    root = _suites(result)
    ET.indent(root)
    body = ET.tostring(root, encoding="unicode")
    write_whole(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n')


def _suites(result: RunResult) -> ET.Element:
    outcomes = [each.outcome for each in result.scenarios]
    counts = {
        "tests": len(outcomes) + bool(result.leaks),
        "failures": outcomes.count(Outcome.FAILED) + bool(result.leaks),
        "errors": outcomes.count(Outcome.ERROR),
        "skipped": outcomes.count(Outcome.SKIPPED),
    }
    totals = {name: str(count) for name, count in counts.items()}
    totals["time"] = f"{result.duration_s:.6f}"
    root = ET.Element("testsuites", name="lcowlab", attrib=totals)
    suite = ET.SubElement(
        root, "testsuite", name=f"lcowlab.{printable(result.backend)}", attrib=totals
    )
    suite.set("timestamp", _local_form(result.started_at))
    _add_properties(
        suite,
        {
            **{f"hv.{name}": value for name, value in result.environment.items()},
            "hv.backend": result.backend,
            "hv.accelerator": result.accelerator,
        },
    )
    for each in result.scenarios:
        _add_case(suite, result, each)
    if result.leaks:
        case = ET.SubElement(
            suite, "testcase", classname=suite.get("name", ""), name=_LEAK_CASE, time="0"
        )
        _add_verdict(case, "failure", f"left behind: {len(result.leaks)}", "\n".join(result.leaks))
    return root


def _add_case(suite: ET.Element, run: RunResult, scenario: ScenarioResult) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname=suite.get("name", ""),
        name=printable(scenario.name),
        time=f"{scenario.duration_s:.6f}",
    )
    _add_properties(
        case,
        {
            "hv.accelerator": run.accelerator,
            "hv.tags": ",".join(scenario.tags),
            **{f"hv.fact.{name}": _spelled(value) for name, value in scenario.facts.items()},
        },
    )
    reason = scenario.reason or ""
    match scenario.outcome:
        case Outcome.FAILED:
            _add_verdict(case, "failure", reason, _account(scenario))
        case Outcome.ERROR:
            _add_verdict(case, "error", reason, _account(scenario))
        case Outcome.SKIPPED:
            ET.SubElement(case, "skipped", message=_one_line(reason))
        case Outcome.PASSED:
            pass
    if scenario.console:
        ET.SubElement(case, "system-out").text = tail(scenario.console, lines=CONSOLE_LINES)


def _add_verdict(case: ET.Element, kind: str, message: str, text: str) -> None:
    element = ET.SubElement(case, kind, message=_one_line(message), type=kind)
    element.text = printable(text)


def _account(scenario: ScenarioResult) -> str:
    """The reason, the steps up to it, and how to see it again."""
    lines = [scenario.reason or "no reason was given", ""]
    for step in scenario.steps:
        detail = f": {step.detail}" if step.detail else ""
        lines.append(f"{step.outcome.value:8} {seconds(step.duration_s):>10}  {step.name}{detail}")
    if scenario.repro:
        lines += ["", f"run it again: {scenario.repro}"]
    return "\n".join(lines)


def _add_properties(parent: ET.Element, properties: Mapping[str, str]) -> None:
    element = ET.SubElement(parent, "properties")
    for name, value in properties.items():
        ET.SubElement(element, "property", name=_one_line(name), value=_one_line(value))


def _spelled(value: Fact) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _local_form(timestamp: str) -> str:
    """Return a UTC time without its zone: the JUnit schema knows none."""
    return printable(timestamp).removesuffix("Z").split("+")[0]
