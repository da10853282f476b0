"""`collections` for the guest: for what is not in C the original is loaded."""

# mypy: ignore-errors

from __future__ import annotations

import _collections_abc
import sys
from _collections import OrderedDict, defaultdict, deque

__all__ = ("OrderedDict", "defaultdict", "deque")
__path__ = []  # a package: it has `collections.abc`

abc = sys.modules["collections.abc"] = _collections_abc
_collections_abc.MutableSequence.register(deque)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    from originals import original

    return getattr(original("collections"), name)
