"""Shared by all tests: one hypothesis profile without deadlines (emulation is slow), and Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from harness.scrubber import KNOWN

settings.register_profile("lcowlab", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lcowlab")

# A shell without job control starts what is in its background with Ctrl-C ignored, and every
# process below inherits that: the commands under test could not be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_secret_of_another_test() -> Iterator[None]:
    """Passwords of one test ("wrong", "word") must not be struck out of what the next looks at."""
    yield
    KNOWN.forget()
