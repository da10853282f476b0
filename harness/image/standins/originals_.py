"""`originals` for the guest: the standard library's own modules behind the stand-ins."""

# mypy: ignore-errors

from __future__ import annotations

import sys
from importlib.machinery import PathFinder

_FOLDER = __file__.rpartition("/")[0]
_loaded = {}


def original(name):
    """Return the standard module of a name, loaded at the first call and once."""
    if name not in _loaded:
        places = [place for place in sys.path if place not in ("", _FOLDER)]
        spec = PathFinder.find_spec(name, places)
        module = type(sys)(name)
        module.__spec__, module.__file__, module.__loader__ = spec, spec.origin, spec.loader
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        spec.loader.exec_module(module)
        _loaded[name] = module
    return _loaded[name]
