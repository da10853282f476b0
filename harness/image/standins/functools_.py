"""`functools` for the guest: for what is not here the original is loaded."""

# mypy: ignore-errors

from __future__ import annotations

from _functools import partial, reduce

__all__ = ("partial", "reduce")


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    from originals import original

    return getattr(original("functools"), name)
