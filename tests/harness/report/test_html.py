from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.report.events import Outcome, RunResult, ScenarioResult, StepResult
from harness.report.html import CONSOLE_LINES, render_html, write_html

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements with attributes, text by enclosing tag; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data.strip()))

    def text_of(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag and text]


def test_the_page_shows_every_scenario_with_outcome_reason_facts_and_steps(
    result: RunResult,
) -> None:
    page = Page(render_html(result))
    assert page.text_of("h1") == ["Run failed"]
    assert page.text_of("h2") == [
        "Scenarios", "shared-scratch", "crash", "no-qemu", "big", "Environment"
    ]  # fmt: skip
    text = " | ".join(text for _, text in page.texts if text)
    for expected in (
        "1 passed | 1 failed | 1 error | 1 skipped",
        "expected 1 attachment, found 2",
        "containers | 4",
        "boot_s | 1.235",
        "lcowlab run crash --keep failed",
        "kernel | 6.1.0",
        "2 | attach | passed | 1.50 s | 250 ms",
        "2 | look | failed | 400 ms | 600 ms | found 2",
    ):
        assert expected in text, expected


def test_links_lead_to_the_scenarios(result: RunResult) -> None:
    page = Page(render_html(result))
    targets = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    anchors = {f"#{attributes['id']}" for _, attributes in page.elements if "id" in attributes}
    assert len(targets) == 4
    assert set(targets) <= anchors


def test_the_page_refers_to_nothing_outside_itself(result: RunResult, hostile: RunResult) -> None:
    for run in (result, hostile):
        text = render_html(run)
        assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
        for tag, attributes in Page(text).elements:
            assert tag not in ("script", "iframe", "object", "embed", "img")
            assert "src" not in attributes
            if "href" in attributes:
                assert (attributes["href"] or "").startswith(("#", "data:,"))


def test_hostile_text_is_escaped_everywhere(hostile: RunResult) -> None:
    text = render_html(hostile)
    page = Page(text)
    assert "<script" not in text
    assert "49" not in "".join(page.text_of("pre")), "no text is taken for a template"
    assert "{{ 7*7 }}" in text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\uffff]", text)
    assert not any(name.startswith("on") for _, each in page.elements for name in each)
    text.encode("utf-8")


def test_bars_lie_inside_the_timeline_where_their_steps_ran() -> None:
    steps = (
        StepResult("first", 0.0, 1.0, Outcome.PASSED),
        StepResult("short", 1.0, 0.0, Outcome.PASSED),
        StepResult("last", 1.0, 3.0, Outcome.FAILED),
    )
    scenario = ScenarioResult("s", "", (), Outcome.FAILED, "r", 4.0, steps=steps)
    page = Page(render_html(RunResult("qemu", "tcg", "", 4.0, (scenario,))))
    bars = [
        (float((each["x"] or "")[:-1]), float((each["width"] or "")[:-1]))
        for tag, each in page.elements
        if tag == "rect"
    ]
    assert [bars[0], bars[2]] == [(0.0, 25.0), (25.0, 75.0)]
    assert bars[1][0] == 25.0
    assert bars[1][1] > 0, "a step of no time is seen too"
    assert all(left >= 0 and left + width <= 100.001 for left, width in bars)


def test_the_axis_has_round_times() -> None:
    step = StepResult("a", 0.0, 12.2, Outcome.PASSED)
    scenario = ScenarioResult("s", "", (), Outcome.PASSED, None, 12.2, steps=(step,))
    page = Page(render_html(RunResult("qemu", "tcg", "", 12.2, (scenario,))))
    assert page.text_of("text")[:3] == ["0", "5 s", "10 s"]


def test_the_console_is_folded_and_its_last_lines(result: RunResult) -> None:
    text = render_html(result)
    (console,) = re.findall(r'<pre class="console">(.*?)</pre>', text, re.DOTALL)
    lines = console.splitlines()
    assert len(lines) == CONSOLE_LINES
    assert lines[-1] == "line 499"
    assert "<details>\n    <summary>Console" in text


def test_a_run_of_nothing_is_a_page_too() -> None:
    page = Page(render_html(RunResult("model", "none", "", 0.0, ())))
    assert page.text_of("h1") == ["Run skipped"]


def test_leaks_and_interruption_are_told_first(result: RunResult) -> None:
    run = dataclasses.replace(result, leaks=("a process",), interrupted=True)
    page = Page(render_html(run))
    assert page.text_of("h2")[0] == "Left behind"
    assert {"interrupted", "1 left behind"} <= set(page.text_of("span"))


def test_a_failed_write_leaves_the_old_page_and_nothing_else(
    result: RunResult, tmp_path: Path
) -> None:
    path = tmp_path / "report" / "index.html"
    write_html(result, path)
    before = path.read_bytes()
    broken = dataclasses.replace(result, duration_s="long")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_html(broken, path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["index.html"]
