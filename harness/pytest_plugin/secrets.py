"""Reports of pytest hold no password that this process fetched.

A report is scrubbed where it is made: what the terminal, JUnit XML, xdist and other plugins get of
it is clean. What a test prints past pytest's capture (`-s`) is its own affair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any, TypeVar

import pytest

from harness.scrubber import scrub

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Scrub how a test ended: traceback, values of locals, what it printed, its properties."""
    report = yield
    report.user_properties = scrubbed(report.user_properties)
    return _clean(report)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Scrub why a file could not be collected."""
    return _clean((yield))


@pytest.hookimpl(tryfirst=True)
def pytest_internalerror(excrepr: Any) -> None:  # noqa: ANN401 - pytest's own union
    """Scrub what pytest itself, or a plugin, died of."""
    scrubbed(excrepr)


@pytest.hookimpl(tryfirst=True)
def pytest_make_parametrize_id(val: object) -> str | None:
    """Return the id of a parameter that is a password, None for any other."""
    if isinstance(val, str) and (clean := scrub(val)) != val:
        return clean
    return None


def _clean(report: Report) -> Report:
    report.longrepr = scrubbed(report.longrepr)
    report.sections = scrubbed(report.sections)
    return report


def scrubbed(value: Any) -> Any:  # noqa: ANN401 - a tree of pytest's
    """Return texts, lists, tuples, mappings and dataclasses without passwords.

    Dataclasses, of which pytest's tracebacks consist, are changed in place.
    """
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list | tuple):
        return type(value)(map(scrubbed, value))
    if isinstance(value, dict):
        return {scrubbed(key): scrubbed(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not its fields: that of a failed collection keeps its text beside them.
        for name, before in list(vars(value).items()):
            if (clean := scrubbed(before)) is not before:
                setattr(value, name, clean)
    return value
