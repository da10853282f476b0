"""The inventory: which Windows hosts there are and how each is reached.

TOML, read strictly: an unknown key is an error that names the nearest known one, a password in the
file is an error that says where it belongs. `[defaults]` holds for every host that does not say
otherwise.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from harness.errors import UsageError
from harness.hosts.maintenance import MaintenanceWindow
from harness.hosts.selection import select_hosts

FILE_NAME: Final = "hv-inventory.toml"
VARIABLE: Final = "HV_INVENTORY"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PIN: Final = re.compile(r"pin:sha256:[0-9a-f]{64}")
_MANAGED: Final = re.compile(r"[^\\/:*?\"<>|]+\\[^\\/:*?\"<>|]+\$")
_RESERVED: Final = frozenset({"all", "and", "or", "not"})

Auth = Literal["negotiate", "ntlm", "kerberos", "basic", "credssp"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PasswordSource(_Strict):
    """Where a password comes from, when it is needed: exactly one of these."""

    env: str | None = Field(None, description="Name of an environment variable.")
    keyring: str | None = Field(None, description="SERVICE/USER in the system's keyring.")
    command: tuple[str, ...] | None = Field(None, description="A command that prints it.")
    file: Path | None = Field(None, description="A file that holds it.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of env, keyring, command, file")
        return self


class Connection(_Strict):
    """How a host is reached; every field may stand in `[defaults]`."""

    port: int = Field(5986, ge=1, le=65535)
    auth: Auth = "negotiate"
    tls: str = Field(
        "verify",
        description="verify, pin:sha256:HEX of the certificate, or off (plain HTTP, sealed).",
    )
    user: str = Field("", description="DOMAIN\\user, user@REALM or a local user.")
    password: PasswordSource | None = None
    slots: int = Field(1, ge=1, le=256, description="Utility VMs at a time.")
    root: str = Field(
        r"C:\ProgramData\lcowlab", description="Protected folder: everything of ours lives there."
    )
    agent: str = Field(
        "SYSTEM",
        description="Whom the host agent runs as: SYSTEM, or a group managed service account "
        "(DOMAIN\\name$) that is a member of the host's Administrators.",
    )
    maintenance: tuple[str, ...] = Field(
        (), description="When nobody may take the host, such as 'sun 02:00-04:00'."
    )

    @field_validator("tls")
    @classmethod
    def _known_tls(cls, value: str) -> str:
        if value not in ("verify", "off") and not _PIN.fullmatch(value):
            raise ValueError("write verify, off, or pin:sha256: and 64 hexadecimal digits")
        return value

    @field_validator("agent")
    @classmethod
    def _account_without_password(cls, value: str) -> str:
        if value != "SYSTEM" and not _MANAGED.fullmatch(value):
            raise ValueError(
                r"write SYSTEM, or a group managed service account as DOMAIN\name$: an account "
                "with a password of its own would need that password on the host"
            )
        return value

    @field_validator("password", mode="before")
    @classmethod
    def _no_plain_password(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(  # noqa: TRY004 - pydantic turns ValueErrors into located messages
                'a password does not belong into this file: write { env = "NAME" }, '
                '{ keyring = "SERVICE/USER" }, { command = [...] } or { file = "PATH" }'
            )
        return value

    @field_validator("maintenance")
    @classmethod
    def _windows(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            MaintenanceWindow.parse(text)
        return value

    @model_validator(mode="after")
    def _sealed_or_encrypted(self) -> Self:
        if self.tls == "off" and self.auth == "basic":
            raise ValueError("basic over plain HTTP shows the password: set tls, or another auth")
        return self

    @property
    def windows(self) -> tuple[MaintenanceWindow, ...]:
        """The maintenance windows, parsed."""
        return tuple(MaintenanceWindow.parse(text) for text in self.maintenance)


class Host(Connection):
    """One host; what it does not say stands in `[defaults]`."""

    address: str = Field(min_length=1, description="Host name or IP address.")
    tags: frozenset[str] = frozenset()

    @field_validator("tags")
    @classmethod
    def _usable_tags(cls, value: frozenset[str]) -> frozenset[str]:
        for tag in value:
            _check_name(tag, "tag")
        return value


class Inventory(_Strict):
    """All hosts by name."""

    defaults: Connection = Connection()
    hosts: Mapping[str, Host] = Field(default_factory=dict)

    @field_validator("hosts")
    @classmethod
    def _usable_names(cls, value: Mapping[str, Host]) -> Mapping[str, Host]:
        for name in value:
            _check_name(name, "host name")
        return value

    @classmethod
    def parse(cls, text: str, *, source: str = "inventory") -> Self:
        """Return the inventory that TOML text describes.

        Raises UsageError naming `source`, the place in it, and the mend.
        """
        try:
            raw: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{source} is no TOML: {error}") from error
        defaults = raw.get("defaults", {})
        hosts = raw.get("hosts", {})
        if isinstance(defaults, dict) and isinstance(hosts, dict):
            merged = {
                name: {**defaults, **host} if isinstance(host, dict) else host
                for name, host in hosts.items()
            }
            raw = {**raw, "hosts": merged} if hosts else raw
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise UsageError(f"{source}: {_explain(error)}") from error

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Return the inventory at `path`, else at HV_INVENTORY, here, or in the user's settings.

        Raises UsageError where there is none, naming the places looked at.
        """
        candidates = _candidates(path)
        for candidate in candidates:
            try:
                return cls.parse(candidate.read_text("utf-8"), source=str(candidate))
            except FileNotFoundError:
                continue
            except (OSError, UnicodeError) as error:
                raise UsageError(f"cannot read the inventory {candidate}: {error}") from error
        places = ", ".join(str(candidate) for candidate in candidates)
        raise UsageError(f"no inventory found: looked at {places}; lcowlab hosts add makes one")

    def select(self, expression: str = "all") -> tuple[str, ...]:
        """Return the names of the hosts that an expression selects. Raises UsageError."""
        return select_hosts(expression, {name: host.tags for name, host in self.hosts.items()})


def _candidates(path: Path | None) -> tuple[Path, ...]:
    if path is not None:
        return (path,)
    if named := os.environ.get(VARIABLE):
        return (Path(named),)
    return (Path(FILE_NAME), Path(platformdirs.user_config_dir("lcowlab")) / FILE_NAME)


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise ValueError(
            f"{name!r} is no {what}: letters, digits, '.', '_' and '-', "
            f"and none of {', '.join(sorted(_RESERVED))}"
        )


def _explain(error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    # A wrong default is reported once, not once more for every host that inherits it.
    wrong_defaults = {each["loc"][1:] for each in errors if each["loc"][:1] == ("defaults",)}
    problems = []
    for each in errors:
        if each["loc"][:1] == ("hosts",) and each["loc"][2:] in wrong_defaults:
            continue
        place = ".".join(str(part) for part in each["loc"])
        if each["type"] == "extra_forbidden":
            problems.append(f"{place} is not known{_suggestion(each['loc'])}")
        else:
            problems.append(f"{place}: {each['msg'].removeprefix('Value error, ')}")
    return "; ".join(problems)


def _suggestion(place: tuple[int | str, ...]) -> str:
    model: type[BaseModel] = Inventory
    if place[0] == "defaults":
        model = Connection
    elif place[0] == "hosts" and len(place) > 2:
        model = Host
    if len(place) > 2 and place[-2] == "password":
        model = PasswordSource
    near = difflib.get_close_matches(str(place[-1]), model.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else ""
