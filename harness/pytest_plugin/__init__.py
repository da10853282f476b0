"""The `lcowlab` pytest plugin: labs and utility VMs as fixtures.

Fixtures: `lab` (session), `uvm` (module), `make_uvm` (module; a factory), `snapshotter` and
`scratch` (function). No backend is imported until a test asks for one of them.
Reports hold no password that was fetched.
"""

from harness.pytest_plugin.fixtures import lab, make_uvm, scratch, snapshotter, uvm
from harness.pytest_plugin.options import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)
from harness.pytest_plugin.secrets import (
    pytest_internalerror,
    pytest_make_collect_report,
    pytest_make_parametrize_id,
    pytest_runtest_makereport,
)

__all__ = [
    "lab",
    "make_uvm",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_internalerror",
    "pytest_make_collect_report",
    "pytest_make_parametrize_id",
    "pytest_runtest_makereport",
    "scratch",
    "snapshotter",
    "uvm",
]
