"""Functions of a DLL, played by Python: they take what their ctypes prototypes take."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any


def check_arguments(declared: Sequence[Any], arguments: Sequence[object]) -> None:
    """Raise as ctypes does where arguments are not what a prototype takes."""
    assert len(arguments) == len(declared)
    for argument, kind in zip(arguments, declared, strict=True):
        if not hasattr(argument, "_obj"):
            kind.from_param(argument)
        elif kind is not ctypes.c_void_p:  # byref, which only a foreign function takes apart
            assert isinstance(argument._obj, kind._type_), (argument._obj, kind)


class ForeignFunction:
    """One exported function. Arguments by reference arrive as what they refer to."""

    def __init__(self, body: Callable[..., Any]) -> None:
        self.restype: Any = None
        self.argtypes: tuple[Any, ...] = ()
        self._body = body

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401
        check_arguments(self.argtypes, arguments)
        return self._body(*(getattr(argument, "_obj", argument) for argument in arguments))


class ForeignLibrary:
    """What `ctypes.WinDLL` gives: the methods of `player` by their names, made on first use."""

    def __init__(self, player: object) -> None:
        self._player = player

    def __getattr__(self, name: str) -> ForeignFunction:
        function = ForeignFunction(getattr(self._player, name))
        setattr(self, name, function)
        return function
