"""Environment variables as Windows has them: names ignore case and keep their spelling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Self


class WindowsEnvironment(Mapping[str, str]):
    """A set of variables that a command may change without touching those of its shell."""

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._variables: dict[str, tuple[str, str]] = {}
        for name, value in (variables or {}).items():
            self.set(name, value)

    def __getitem__(self, name: str) -> str:
        return self._variables[name.upper()][1]

    def __iter__(self) -> Iterator[str]:
        for name, _ in self._variables.values():
            yield name

    def __len__(self) -> int:
        return len(self._variables)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.upper() in self._variables

    def set(self, name: str, value: str) -> None:
        """Give a variable a value; an empty one removes it, as `set NAME=` does."""
        if not value:
            self._variables.pop(name.upper(), None)
            return
        spelled = self._variables.get(name.upper(), (name, ""))[0]
        self._variables[name.upper()] = (spelled, value)

    def copy(self) -> Self:
        """Return variables of their own with the same values."""
        return type(self)(self)
