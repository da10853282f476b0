"""`certutil -hashfile`: the one verb of it that a host is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from harness.winrmd.cmdlets import Machine
from harness.winrmd.host import BadPathError
from harness.winrmd.tools.console import Answer

_ALGORITHMS: Final = ("MD5", "SHA1", "SHA256", "SHA384", "SHA512")
_NOT_FOUND: Final = 0x80070002
_BAD_ARGUMENT: Final = 0x80070057


def certutil(machine: Machine, arguments: Sequence[str]) -> Answer:
    """Run `certutil -hashfile FILE [ALGORITHM]`; SHA1 where none is named."""
    words = list(arguments)
    if len(words) not in (2, 3) or words[0].lower() not in ("-hashfile", "/hashfile"):
        return _failed(_BAD_ARGUMENT, "E_INVALIDARG", "The parameter is incorrect.")
    algorithm = words[2].upper() if len(words) == 3 else "SHA1"
    if algorithm not in _ALGORITHMS:
        return _failed(_BAD_ARGUMENT, "E_INVALIDARG", "The parameter is incorrect.")
    try:
        local = machine.host.local_path(words[1])
        with local.open("rb") as file:
            digest = hashlib.file_digest(file, algorithm.lower()).hexdigest()
    except (BadPathError, OSError):
        return _failed(
            _NOT_FOUND, "ERROR_FILE_NOT_FOUND", "The system cannot find the file specified."
        )
    return Answer(
        out=f"{algorithm} hash of {words[1]}:\n{digest}\n"
        "CertUtil: -hashfile command completed successfully.\n"
    )


def _failed(code: int, name: str, text: str) -> Answer:
    told = f"{code:#010x} (WIN32: {code & 0xFFFF} {name})"
    return Answer(code, out=f"CertUtil: -hashfile command FAILED: {told}\nCertUtil: {text}\n")
