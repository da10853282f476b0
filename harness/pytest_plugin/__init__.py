"""The `lcowlab` pytest plugin: labs and utility VMs as fixtures.

Fixtures: `lab` (session), `uvm` (module), `make_uvm` (module; a factory), `snapshotter` and
`scratch` (function). No backend is imported until a test asks for one of them.
"""

from harness.pytest_plugin.fixtures import lab, make_uvm, scratch, snapshotter, uvm
from harness.pytest_plugin.options import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)

__all__ = [
    "lab",
    "make_uvm",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "scratch",
    "snapshotter",
    "uvm",
]
