r"""Files on a host that has no Python yet: read by `type`, brought by `Add-Content`.

Slow, and needs nothing but WinRM: it is for the one file that brings Python. Every chunk is known
by the SHA-256 of the file up to it, so that a lost answer, or a controller that died, costs no more
than one look at what is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from harness.errors import (
    ConnectionLostError,
    RemoteCommandError,
    RemoteTimeoutError,
    ShellGoneError,
    TransferError,
)
from harness.remote.deadline import Deadline
from harness.remote.powershell import Command
from harness.remote.winrm import WinRM

_CHUNK: Final = 256 * 1024
_LOST: Final = (ConnectionLostError, RemoteTimeoutError, ShellGoneError)
_MOST_STRIKES: Final = 10  # lost answers in a row, and contents that are not ours


def path_exists(winrm: WinRM, path: str, *, deadline: Deadline) -> bool:
    """Return whether there is a file or folder."""
    there = winrm.powershell(
        Command.build("Test-Path", {"LiteralPath": (path,)}), deadline=deadline
    )
    return there == (True,)


def read_file(winrm: WinRM, path: str, *, deadline: Deadline) -> bytes | None:
    """Return the content of a small file, or None where there is none."""
    if not path_exists(winrm, path, deadline=deadline):
        return None
    done = winrm.run(("cmd", "/d", "/c", "type", path), deadline=deadline, idempotent=True)
    return done.stdout if done.exit_code == 0 else None


def file_sha256(winrm: WinRM, path: str, *, deadline: Deadline) -> str | None:
    """Return a file's SHA-256 in lower-case hexadecimal, or None where there is none."""
    if not path_exists(winrm, path, deadline=deadline):
        return None
    try:
        (found,) = winrm.powershell(
            Command.build("Get-FileHash", {"LiteralPath": (path,), "Algorithm": "SHA256"}),
            deadline=deadline,
        )
    except RemoteCommandError as error:
        if "FileNotFound" in error.error_id or "PathNotFound" in error.error_id:
            return None  # it went meanwhile
        raise
    return str(found.get("Hash")).lower() if isinstance(found, dict) else None


def bring_file(
    winrm: WinRM,
    source: Path,
    destination: str,
    *,
    deadline: Deadline,
    report: Callable[[str], None],
    chunk: int = _CHUNK,
) -> int:
    """Bring a file to `destination` and return how many bytes crossed the network this time.

    Goes on where it broke off. Raises TransferError when what arrives is not what was sent;
    RemoteError. The folder must be there.
    """
    data = source.read_bytes()
    prefixes = _prefixes(data, chunk)
    whole = len(prefixes) - 1
    moved = strikes = 0
    have = _arrived(winrm, destination, prefixes, deadline)
    while have != whole:
        if strikes > _MOST_STRIKES:
            raise TransferError(f"{destination} does not become {source.name}", host=winrm.host)
        if have is None:
            # Not a beginning of ours: another file, or two controllers at once.
            strikes += 1
            winrm.run(
                ("cmd", "/d", "/c", "del", "/f", "/q", destination),
                deadline=deadline,
                idempotent=True,
            )
            have = _arrived(winrm, destination, prefixes, deadline)
            continue
        piece = data[have * chunk : (have + 1) * chunk]
        command = Command.build(
            "Add-Content", {"LiteralPath": (destination,), "Value": piece, "Encoding": "Byte"}
        )
        try:
            winrm.powershell(command, deadline=deadline)
        except _LOST:
            strikes += 1
            if strikes > _MOST_STRIKES:
                raise
            have = _arrived(winrm, destination, prefixes, deadline)
            continue
        moved += len(piece)
        strikes = 0
        have += 1
        if have == whole:
            have = _arrived(winrm, destination, prefixes, deadline)
        report(f"{source.name}: {min((have or 0) * chunk, len(data))} of {len(data)} bytes")
    return moved


def _prefixes(data: bytes, chunk: int) -> dict[str, int]:
    """Return the SHA-256 of the first 0, 1, 2 … chunks, with their number."""
    digest = hashlib.sha256()
    prefixes = {digest.hexdigest(): 0}
    for number, at in enumerate(range(0, len(data), chunk), 1):
        digest.update(data[at : at + chunk])
        prefixes[digest.hexdigest()] = number
    return prefixes


def _arrived(
    winrm: WinRM, destination: str, prefixes: dict[str, int], deadline: Deadline
) -> int | None:
    """Return how many chunks are there; None for what is no beginning of the file."""
    found = file_sha256(winrm, destination, deadline=deadline)
    return 0 if found is None else prefixes.get(found)
