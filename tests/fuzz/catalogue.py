"""All targets by name."""

from __future__ import annotations

from tests.fuzz import targets, vhdx, winrm

TARGETS = targets.TARGETS | vhdx.TARGETS | winrm.TARGETS
