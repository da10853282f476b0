"""The inventory that a developer lab writes, and never over one that somebody wrote by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.errors import UsageError
from harness.hosts.inventory import Inventory

_MARK: Final = "# written by lcowlab lab up; lcowlab lab down removes it\n"


@dataclass(frozen=True, slots=True)
class LabHost:
    """A host of a lab as the inventory lists it; `pin` is the SHA-256 of its certificate."""

    name: str
    address: str
    port: int
    user: str
    password_file: Path
    pin: str
    slots: int = 1
    tags: tuple[str, ...] = ()


def render_inventory(hosts: Sequence[LabHost]) -> str:
    """Return the TOML; it names the files that hold the passwords and no password."""
    parts = [_MARK]
    for host in hosts:
        values: dict[str, str | int | list[str]] = {
            "address": host.address,
            "port": host.port,
            "auth": "negotiate",
            "tls": f"pin:sha256:{host.pin}",
            "user": host.user,
            "slots": host.slots,
            "tags": sorted(host.tags),
        }
        lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
        lines.append(f"password = {{ file = {_toml(str(host.password_file))} }}")
        parts.append(f"\n[hosts.{_toml(host.name)}]\n" + "\n".join(lines) + "\n")
    text = "".join(parts)
    Inventory.parse(text, source="the inventory of the lab")  # what is written can be read
    return text


def check_replaceable(path: Path) -> None:
    """Raise UsageError where `path` is an inventory that no lab wrote."""
    try:
        ours = path.read_text("utf-8").startswith(_MARK)
    except FileNotFoundError:
        return
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if not ours:
        raise UsageError(
            f"{path} is an inventory that no lab wrote: name another file with --inventory"
        )


def write_inventory(path: Path, hosts: Sequence[LabHost]) -> None:
    """Write the inventory, whole or not at all. Raises UsageError."""
    check_replaceable(path)
    text = render_inventory(hosts)
    write_whole(path, text)


def remove_inventory(path: Path) -> None:
    """Remove the inventory if a lab wrote it; anything else stays."""
    try:
        check_replaceable(path)
    except UsageError:
        return
    path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file beside and rename it over; only its owner may read it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error}") from error


def _toml(value: str | int | Sequence[str]) -> str:
    # JSON's strings, numbers and arrays are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")
