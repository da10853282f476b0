"""Functions of a DLL, played by Python: they take what their ctypes prototypes take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class ForeignFunction:
    """One exported function. Arguments by reference arrive as what they refer to."""

    def __init__(self, body: Callable[..., Any]) -> None:
        self.restype: Any = None
        self.argtypes: tuple[Any, ...] = ()
        self._body = body

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401
        assert len(arguments) == len(self.argtypes), self._body
        for argument, declared in zip(arguments, self.argtypes, strict=True):
            if not hasattr(argument, "_obj"):  # byref: only a foreign function takes it apart
                declared.from_param(argument)
        return self._body(*(getattr(argument, "_obj", argument) for argument in arguments))


class ForeignLibrary:
    """What `ctypes.WinDLL` gives: the methods of `player` by their names, made on first use."""

    def __init__(self, player: object) -> None:
        self._player = player

    def __getattr__(self, name: str) -> ForeignFunction:
        function = ForeignFunction(getattr(self._player, name))
        setattr(self, name, function)
        return function
