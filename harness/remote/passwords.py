"""Passwords: fetched when needed, never shown, and struck out wherever one turns up.

A password comes from an environment variable, the system's keyring, a command or a file; the
inventory holds only that place. `Secret` prints as asterisks and refuses to be pickled or copied
into a message by accident. Each that is fetched is known to `harness.scrubber` from then on.
"""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn, Protocol

from harness.errors import MissingProgramError, UsageError
from harness.scrubber import KNOWN, SHOWN

_COMMAND_TIMEOUT_S: Final = 60.0


class PasswordPlace(Protocol):
    """Where a password is: exactly one of these is given (the inventory's `PasswordSource`)."""

    @property
    def env(self) -> str | None: ...
    @property
    def keyring(self) -> str | None: ...
    @property
    def command(self) -> Sequence[str] | None: ...
    @property
    def file(self) -> Path | None: ...


class Secret:
    """A text that only `reveal` shows: not str, repr, format, pickle, or a dataclass's repr."""

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """Return the text; keep it in no attribute and no message."""
        return self.__text

    def fits_latin1(self) -> bool:
        """Whether HTTP's Basic can carry it; a failing encoder would show it in its error."""
        return all(ord(character) < 256 for character in self.__text)

    def __repr__(self) -> str:
        return f"Secret({SHOWN!r})"

    def __str__(self) -> str:
        return SHOWN

    def __format__(self, spec: str) -> str:
        return format(SHOWN, spec)

    def __bool__(self) -> bool:
        return bool(self.__text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reveal() == self.__text

    def __hash__(self) -> int:
        return hash(self.__text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is neither pickled nor copied: pass where it comes from")


def fetch_password(place: PasswordPlace, *, host: str) -> Secret:
    """Return the password from its place.

    Raises UsageError where there is none, naming the place and never what was read there;
    MissingProgramError for a keyring without the package.
    """
    if place.env is not None:
        text = os.environ.get(place.env)
        if not text:
            raise UsageError(f"{host}: set the environment variable {place.env} to its password")
    elif place.keyring is not None:
        text = _from_keyring(place.keyring, host)
    elif place.command is not None:
        text = _from_command(place.command, host)
    elif place.file is not None:
        text = _from_file(place.file, host)
    else:
        raise UsageError(f"{host}: its password has no place: env, keyring, command or file")
    KNOWN.add(text)
    return Secret(text)


def _from_keyring(entry: str, host: str) -> str:
    service, slash, user = entry.rpartition("/")
    if not slash or not service or not user:
        raise UsageError(f"{host}: write the keyring entry as SERVICE/USER, not {entry!r}")
    try:
        keyring = importlib.import_module("keyring")
    except ImportError as error:
        raise MissingProgramError("the keyring package", install="pip install keyring") from error
    text = keyring.get_password(service, user)
    if not text:
        raise UsageError(f"{host}: no password in the keyring; keyring set {service} {user}")
    return str(text)


def _from_command(command: Sequence[str], host: str) -> str:
    # Its output may be the password even where it failed: neither goes into a message.
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise UsageError(f"{host}: cannot run the password command {command[0]}: {error}") from None
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"{host}: the password command {command[0]} took over {_COMMAND_TIMEOUT_S:.0f} s"
        ) from None
    if done.returncode != 0:
        raise UsageError(
            f"{host}: the password command {command[0]} failed with exit code {done.returncode}"
        )
    return _one_line(done.stdout, f"{host}: the password command {command[0]} printed")


def _from_file(path: Path, host: str) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{host}: cannot read the password file: {error}") from error
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise UsageError(f"{host}: others may read the password file: chmod 600 {path}")
    return _one_line(raw, f"{host}: the password file {path} holds")


def _one_line(raw: bytes, what: str) -> str:
    try:
        text = raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError(f"{what} no UTF-8") from None
    if not text:
        raise UsageError(f"{what} nothing")
    if "\n" in text:
        raise UsageError(f"{what} more than one line")
    return text
