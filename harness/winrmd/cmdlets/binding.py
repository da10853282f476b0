"""Cmdlets as the pretend host has them: bound parameters in, objects out, PowerShell's own errors.

A cmdlet takes exactly the parameters that it names. Error texts and ids are those of Windows
PowerShell 5.1, because callers tell failures apart by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from harness.winrmd.host import PretendHost
from harness.winrmd.tasks import TaskScheduler

Kind = Literal["text", "texts", "integer", "switch", "bytes", "scalar", "table"]
ErrorAction = Literal["Continue", "Stop", "SilentlyContinue", "Ignore"]
_ACTIONS: Final[Mapping[str, ErrorAction]] = {
    "continue": "Continue",
    "stop": "Stop",
    "silentlycontinue": "SilentlyContinue",
    "ignore": "Ignore",
}
_BY_NUMBER: Final[Sequence[ErrorAction]] = ("SilentlyContinue", "Stop", "Continue")

Output: TypeAlias = "Item | str | int | bool"


@dataclass(frozen=True, slots=True)
class Item:
    """An object: its .NET or CIM type, and its properties in order."""

    type_name: str
    properties: Mapping[str, object]


class CmdletError(Exception):
    """An ErrorRecord. `terminating` ones fail the pipeline whatever -ErrorAction says."""

    def __init__(
        self,
        message: str,
        *,
        id: str,  # noqa: A002 - FullyQualifiedErrorId
        category: str,
        reason: str = "Exception",
        target: str = "",
        hresult: int = 0x80131500,
        terminating: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.id = id
        self.category = category
        self.reason = reason
        self.target = target
        self.hresult = hresult
        self.terminating = terminating


@dataclass(frozen=True, slots=True)
class Streams:
    """Where a cmdlet writes beside its output. `stopped` says that the caller wants it to end."""

    warning: Callable[[str], None]
    verbose: Callable[[str], None]
    progress: Callable[[str, int], None]
    stopped: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Machine:
    """What cmdlets and programs work on."""

    host: PretendHost
    tasks: TaskScheduler


@dataclass(frozen=True, slots=True)
class Bound:
    """The parameters of one call, checked against the cmdlet's kinds."""

    machine: Machine
    streams: Streams
    values: Mapping[str, object] = field(default_factory=dict)

    @property
    def host(self) -> PretendHost:
        """The host."""
        return self.machine.host

    def has(self, name: str) -> bool:
        """Return whether the parameter was given."""
        return name in self.values

    def text(self, name: str, default: str = "") -> str:
        """Return a string parameter."""
        return str(self.values.get(name, default))

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a string array; one string is an array of one."""
        value = self.values.get(name, ())
        return tuple(map(str, value)) if isinstance(value, tuple) else (str(value),)

    def integer(self, name: str, default: int = 0) -> int:
        """Return an integer parameter."""
        value = self.values.get(name, default)
        assert isinstance(value, int)
        return value

    def switch(self, name: str) -> bool:
        """Return whether a switch is on."""
        return self.values.get(name, False) is True

    def raw(self, name: str) -> object:
        """Return a parameter as it came."""
        return self.values.get(name)


Run: TypeAlias = Callable[[Bound], Iterable[Output]]


@dataclass(frozen=True, slots=True)
class Cmdlet:
    """A command with its parameters: those it cannot do without, and the others.

    `pipeline` is the parameter that takes each object of the pipeline's input, if one does.
    """

    name: str
    run: Run
    required: Mapping[str, Kind] = field(default_factory=dict)
    optional: Mapping[str, Kind] = field(default_factory=dict)
    pipeline: str = ""

    def bind(
        self, given: Sequence[tuple[str, object]], machine: Machine, streams: Streams
    ) -> tuple[Bound, ErrorAction]:
        """Return the call, ready to run, and its -ErrorAction.

        Raises CmdletError as the parameter binder does.
        """
        known = {name.lower(): (name, kind) for name, kind in self._all.items()}
        values: dict[str, object] = {}
        action: ErrorAction = "Continue"
        for name, value in given:
            if name.lower() == "erroraction":
                action = self._action(value)
                continue
            if name.lower() not in known:
                raise self._refused(
                    f"A parameter cannot be found that matches parameter name '{name}'.",
                    "NamedParameterNotFound",
                )
            spelled, kind = known[name.lower()]
            if spelled in values:
                raise self._refused(
                    f"Cannot bind parameter because parameter '{spelled}' is specified more than "
                    "once.",
                    "ParameterAlreadyBound",
                )
            values[spelled] = self._convert(spelled, kind, value)
        lacking = [name for name in self.required if name not in values]
        if lacking:
            raise self._refused(
                "Cannot process command because of one or more missing mandatory parameters: "
                f"{' '.join(lacking)}.",
                "MissingMandatoryParameter",
            )
        return Bound(machine, streams, values), action

    @property
    def _all(self) -> Mapping[str, Kind]:
        return {**self.required, **self.optional}

    def _action(self, value: object) -> ErrorAction:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 3:
            return _BY_NUMBER[value]
        found = _ACTIONS.get(str(value).lower())
        if found is None:
            raise self._refused(
                f"Cannot bind parameter 'ErrorAction'. Cannot convert value \"{value}\" to type "
                '"System.Management.Automation.ActionPreference".',
                "CannotConvertArgumentNoMessage",
            )
        return found

    def _convert(self, name: str, kind: Kind, value: object) -> object:
        converted = _CONVERT[kind](value)
        if converted is None:
            raise self._refused(
                f"Cannot process argument transformation on parameter '{name}'. Cannot convert "
                f'the "{type(value).__name__}" value to what the parameter takes ({kind}).',
                "ParameterArgumentTransformationError",
            )
        return converted

    def _refused(self, message: str, id: str) -> CmdletError:  # noqa: A002
        return CmdletError(
            message,
            id=f"{id},{self.name}",
            category="InvalidArgument",
            reason="ParameterBindingException",
            terminating=True,
        )


def _text(value: object) -> object:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _texts(value: object) -> object:
    if isinstance(value, list | tuple):
        each = tuple(_text(one) for one in value)
        return None if None in each or not each else each
    one = _text(value)
    return None if one is None else (one,)


def _integer(value: object) -> object:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _switch(value: object) -> object:
    # A parameter without a value comes as null: a switch that is on.
    return True if value is None else value if isinstance(value, bool) else None


def _bytes(value: object) -> object:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, list | tuple) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 256 for one in value
    ):
        return bytes(value)
    return None


def _scalar(value: object) -> object:
    return value if _integer(value) is not None or isinstance(value, str) else _texts(value)


def _table(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else None


_CONVERT: Final[Mapping[Kind, Callable[[object], object]]] = {
    "text": _text,
    "texts": _texts,
    "integer": _integer,
    "switch": _switch,
    "bytes": _bytes,
    "scalar": _scalar,
    "table": _table,
}


def not_recognized(word: str) -> CmdletError:
    """Return the error for a command that this host does not have."""
    return CmdletError(
        f"The term '{word}' is not recognized as the name of a cmdlet, function, script file, or "
        "operable program. Check the spelling of the name, or if a path was included, verify that "
        "the path is correct and try again.",
        id="CommandNotFoundException",
        category="ObjectNotFound",
        reason="CommandNotFoundException",
        target=word,
        hresult=0x80131501,
        terminating=True,
    )
