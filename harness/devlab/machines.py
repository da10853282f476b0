"""The machines of a Vagrant lab as its TOML lists them, and the state of any lab's host."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UsageError


@dataclass(frozen=True, slots=True)
class HostStatus:
    """What `status` says of a host; `state` is `running`, or another word of its provider."""

    name: str
    address: str
    state: str


class Machine(BaseModel):
    """One machine; vagrant/machines.rb reads the same file and has the same limits."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    windows: Literal["2022", "2025"] = "2022"
    cpus: int = Field(4, ge=2, le=256)
    memory_mib: int = Field(12288, ge=8192)
    firmware: Literal["bios", "uefi"] = "bios"
    slots: int = Field(1, ge=1, le=256)
    tags: list[str] = []


def load_machines(path: Path) -> Mapping[str, Machine]:
    """Return the machines of a file by name. Raises UsageError that names the place in it."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read the machines of {path}: {error}") from error
    defaults, machines = document.get("defaults", {}), document.get("machines", {})
    found: dict[str, Machine] = {}
    for name, values in machines.items():
        try:
            found[name] = Machine.model_validate({**defaults, **values})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"{path}: machines.{name}.{place}: {first['msg']}") from error
    if not found:
        raise UsageError(f"{path}: no machine in it: add [machines.NAME]")
    return found
