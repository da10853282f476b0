"""Shared by all tests: one hypothesis profile without deadlines (emulation is slow)."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("lcowlab", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lcowlab")
