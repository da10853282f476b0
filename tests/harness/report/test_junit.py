from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from harness.report.events import RunResult
from harness.report.junit import CONSOLE_LINES, write_junit


def written(result: RunResult, tmp_path: Path) -> ET.Element:
    path = tmp_path / "deep" / "junit.xml"
    write_junit(result, path)
    return ET.parse(path).getroot()


def test_counts_and_cases_are_those_of_the_run(result: RunResult, tmp_path: Path) -> None:
    root = written(result, tmp_path)
    (suite,) = root
    assert root.tag == "testsuites"
    for element in (root, suite):
        counts = [element.get(name) for name in ("tests", "failures", "errors", "skipped")]
        assert counts == ["4", "1", "1", "1"]
    assert suite.get("timestamp") == "2026-01-02T03:04:05"
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert list(cases) == ["shared-scratch", "crash", "no-qemu", "big"]
    verdicts = {
        name: [child.tag for child in case if child.tag != "properties"]
        for name, case in cases.items()
    }
    assert verdicts == {
        "shared-scratch": [],
        "crash": ["failure", "system-out"],
        "no-qemu": ["error"],
        "big": ["skipped"],
    }


def test_properties_carry_environment_and_facts(result: RunResult, tmp_path: Path) -> None:
    (suite,) = written(result, tmp_path)
    names = {each.get("name"): each.get("value") for each in suite.findall("properties/property")}
    assert names == {
        "hv.backend": "qemu",
        "hv.accelerator": "tcg",
        "hv.kernel": "6.1.0",
        "hv.python": "3.11",
    }
    case = suite.find("testcase")
    assert case is not None
    facts = {each.get("name"): each.get("value") for each in case.findall("properties/property")}
    assert facts == {
        "hv.accelerator": "tcg",
        "hv.tags": "core,scratch",
        "hv.fact.containers": "4",
        "hv.fact.same_free_space": "true",
        "hv.fact.boot_s": "1.23456",
    }


def test_a_failure_tells_its_reason_its_steps_and_how_to_see_it_again(
    result: RunResult, tmp_path: Path
) -> None:
    failure = written(result, tmp_path).find(".//failure")
    assert failure is not None
    assert failure.get("message") == "expected 1 attachment, found 2"
    assert "look: found 2" in (failure.text or "")
    assert "run it again: lcowlab run crash --keep failed" in (failure.text or "")


def test_the_console_is_its_last_lines(result: RunResult, tmp_path: Path) -> None:
    lines = (written(result, tmp_path).findtext(".//system-out") or "").splitlines()
    assert len(lines) == CONSOLE_LINES
    assert lines[-1] == "line 499"


def test_a_leak_is_a_failing_case(result: RunResult, tmp_path: Path) -> None:
    passed = dataclasses.replace(
        result, scenarios=result.scenarios[:1], leaks=("a process", "a mount")
    )
    root = written(passed, tmp_path)
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    assert root.findtext(".//testcase[@name='leak audit']/failure") == "a process\na mount"


def test_hostile_text_makes_well_formed_xml(hostile: RunResult, tmp_path: Path) -> None:
    root = written(hostile, tmp_path)
    case = root.find(".//testcase")
    assert case is not None
    assert (case.get("name") or "").startswith("<script>alert('x')</script> & \"quoted\"")
    assert not list(root.iter("script"))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    result: RunResult, tmp_path: Path
) -> None:
    path = tmp_path / "junit.xml"
    write_junit(result, path)
    before = path.read_bytes()
    broken = dataclasses.replace(result, duration_s="not a number")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="format"):
        write_junit(broken, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
