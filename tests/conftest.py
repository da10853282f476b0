"""Shared by all tests: one hypothesis profile without deadlines (emulation is slow)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from harness.scrubber import KNOWN

settings.register_profile("lcowlab", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lcowlab")


@pytest.fixture(autouse=True)
def _no_secret_of_another_test() -> Iterator[None]:
    """Passwords of one test ("wrong", "word") must not be struck out of what the next looks at."""
    yield
    KNOWN.forget()
