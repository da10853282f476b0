"""Options `--hv-*`, environment `HV_*` and ini `hv_*`, in that precedence; markers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from harness.qemu.kvm import AcceleratorChoice

_GUEST_FIXTURES = frozenset({"lab", "uvm", "make_uvm"})
BACKENDS = ("auto", "qemu", "hcs", "model")
ACCELERATORS: tuple[AcceleratorChoice, ...] = ("auto", "kvm", "tcg")
Choice = TypeVar("Choice", bound=str)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of group `lcowlab`."""
    group = parser.getgroup("lcowlab", "utility VMs (lcowlab)")
    group.addoption(
        "--hv-backend",
        choices=BACKENDS,
        default=None,
        help="compute service for utility VMs (environment HV_BACKEND, ini hv_backend; auto)",
    )
    group.addoption(
        "--hv-accelerator",
        choices=ACCELERATORS,
        default=None,
        help="accelerator of QEMU (environment HV_ACCELERATOR, ini hv_accelerator; auto)",
    )
    parser.addini("hv_backend", "compute service for utility VMs", default="auto")
    parser.addini("hv_accelerator", "accelerator of QEMU", default="auto")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, so that `--strict-markers` accepts them."""
    config.addinivalue_line("markers", "qemu: needs a utility VM on QEMU")


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Mark every test that uses a utility VM, so that `-m "not qemu"` leaves it out."""
    if backend(config) == "model":
        return
    for item in items:
        if _GUEST_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("qemu")


def backend(config: pytest.Config) -> str:
    """Return the compute service to use. Raises UsageError for one that does not exist."""
    return _setting(config, "backend", BACKENDS)


def accelerator(config: pytest.Config) -> AcceleratorChoice:
    """Return what QEMU is to run guest code with. Raises UsageError for an unknown word."""
    return _setting(config, "accelerator", ACCELERATORS)


def _setting(config: pytest.Config, name: str, choices: tuple[Choice, ...]) -> Choice:
    """Return a setting by precedence: command line, environment, ini, default."""
    given = config.getoption(f"hv_{name}")
    chosen = given or os.environ.get(f"HV_{name.upper()}") or config.getini(f"hv_{name}")
    for choice in choices:
        if chosen == choice:
            return choice
    raise pytest.UsageError(f"hv_{name} is {chosen!r}: choose one of {', '.join(choices)}")
