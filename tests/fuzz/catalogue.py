"""All targets by name."""

from __future__ import annotations

from tests.fuzz import targets, winrm

TARGETS = targets.TARGETS | winrm.TARGETS
